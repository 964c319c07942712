# Sourced by scripts that work in stages: `stage NAME COMMAND...` runs one and notes its seconds. The outermost script
# prints them all when it ends, and the stage in which it ended, if one was not over.

if [ -z "${HEARTH_STAGES:-}" ]; then
  HEARTH_STAGES=$(mktemp -d)
  export HEARTH_STAGES
  touch "$HEARTH_STAGES/over"
  trap print_stages EXIT
fi

# The script's status is the one with which it ended, whatever printing says.
print_stages() {
  local status=$?
  printf '\n==== Seconds\n'
  cat "$HEARTH_STAGES/over"
  if [ -e "$HEARTH_STAGES/open" ]; then cat "$HEARTH_STAGES/open"; fi
  printf '%6d  in all\n' "$SECONDS"
  rm -rf "$HEARTH_STAGES"
  exit "$status"
}

# A command that fails ends the script, so nothing here may make `set -e` ineffective for it.
stage() {
  local name=$1 from=$SECONDS
  shift
  printf '\n==== %s\n' "$name"
  printf 'failed  %s\n' "$name" > "$HEARTH_STAGES/open"
  "$@"
  rm "$HEARTH_STAGES/open"
  printf '%6d  %s\n' "$((SECONDS - from))" "$name" >> "$HEARTH_STAGES/over"
}
