#!/usr/bin/env bash
# Every test. Installs what they need into target/ (Python and JavaScript packages, test vectors, the
# embedding model), runs the Rust tests, then real clients against the binary that those built. HEARTH_BINARY names
# another one.
#
# usage: scripts/test.sh [--rust-only]
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

say() { printf '\n== %s\n' "$*"; }

say "Test vectors and the embedding model"
[ -x target/python/bin/python ] || python3 -m venv target/python
scripts/fetch_minilm.sh
scripts/fixtures/fetch_vocabs.sh
target/python/bin/pip install -q -r scripts/fixtures/requirements.txt -r tests/clients/requirements.txt
if [ ! -e target/fixtures/chat_templates.json ]; then
  target/python/bin/python scripts/fixtures/chat_templates.py target/fixtures/templates target/fixtures/chat_templates.json
fi

say "Rust tests"
export HEARTH_REQUIRE_MODELS=1 HEARTH_VOCAB_DIR=$root/target/fixtures/vocabs
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --locked --profile ci
else
  cargo test --locked
fi
[ "${1:-}" = "--rust-only" ] && exit 0

say "Real clients: the openai SDKs in Python and JavaScript, langchain-openai"
if command -v npm >/dev/null; then
  npm install --prefix tests/clients --silent --no-package-lock
else
  echo "npm is missing: the JavaScript SDK is left out" >&2
fi
target/python/bin/python -m pytest -q tests/clients
