#!/usr/bin/env bash
# Every test. Installs what they need into CARGO_TARGET_DIR, or target/ without it (Python and JavaScript packages, PostgreSQL, test
# vectors, the embedding model), runs the Rust tests, those of documents, owners and jobs again with two servers that share a
# PostgreSQL, then real clients against the binary that those built.
# HEARTH_BINARY names another one.
#
# usage: scripts/test.sh [--rust-only]
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
export HEARTH_FIXTURES=$target/fixtures

. scripts/stage.sh

python=$target/python/bin/python

# Test vectors and the embedding model.
fixtures() {
  [ -x "$python" ] || python3 -m venv "$target/python"
  scripts/fetch_minilm.sh
  scripts/fixtures/fetch_vocabs.sh
  "$python" -m pip install -q --disable-pip-version-check \
    -r scripts/fixtures/requirements.txt -r tests/clients/requirements.txt
  # Made again when the script that makes it has changed, and every day: templates write the date.
  local rendered=$HEARTH_FIXTURES/chat_templates.json made_by
  made_by="$(sha256sum < scripts/fixtures/chat_templates.py) $(date +%F)"
  if [ ! -e "$rendered" ] || [ "$made_by" != "$(cat "$rendered.made-by" 2>/dev/null)" ]; then
    "$python" scripts/fixtures/chat_templates.py "$HEARTH_FIXTURES/templates" "$rendered"
    printf '%s\n' "$made_by" > "$rendered.made-by"
  fi
}

# What any store must pass, on PostgreSQL; and what a server must do, with two servers behind a balancer that share the database, so that
# consecutive requests reach different ones. A prompt's beginning is kept by one server alone.
cluster() (
  directory=$(mktemp -d)
  trap 'scripts/postgres.sh stop "$directory"' EXIT
  HEARTH_TEST_POSTGRES=$(scripts/postgres.sh start "$directory")
  export HEARTH_TEST_POSTGRES
  if [ -n "$nextest" ]; then
    cargo nextest run --locked --profile ci -E "
      (kind(lib) & test(/^store::/)) | (binary(integration) & test(/^(analysis|ask|cluster|documents|files|owners|vector_stores)::/)) -
      test(what_one_has_sent_is_not_in_the_prefix_cache_for_another)"
  else
    cargo test --locked --lib -- store::
    cargo test --locked --test integration -- analysis:: ask:: cluster:: documents:: files:: owners:: vector_stores:: \
      --skip what_one_has_sent_is_not_in_the_prefix_cache_for_another
  fi
)

# The openai SDKs in Python and JavaScript, and langchain-openai.
clients() {
  if command -v npm >/dev/null; then
    npm install --prefix tests/clients --silent --no-package-lock
  else
    echo "npm is missing: the JavaScript SDK is left out" >&2
  fi
  "$python" -m pytest -q tests/clients
}

stage "Fixtures" fixtures
export HEARTH_REQUIRE_MODELS=1
nextest=$(cargo nextest --version 2>/dev/null || true)
if [ -n "$nextest" ]; then
  stage "Building the tests" cargo nextest run --locked --profile ci --no-run
  stage "Rust tests" cargo nextest run --locked --profile ci
else
  stage "Building the tests" cargo test --locked --no-run
  stage "Rust tests" cargo test --locked
fi
stage "Two servers that share a PostgreSQL" cluster
[ "${1:-}" = "--rust-only" ] && exit 0
# The binary that the tests built.
export HEARTH_BINARY=${HEARTH_BINARY:-$target/debug/hearth}
stage "Real clients" clients
