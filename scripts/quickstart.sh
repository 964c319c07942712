#!/usr/bin/env bash
# From a fresh clone to answers from documents: build the release binary, get the models, start the server, put this
# project's own pages in, ask three questions about them, and stream an answer as any client does. Needs cargo, a C
# compiler, python3 and pip; takes no arguments.
#
# Everything it makes is in target/ and models/. Run it again and it only does what is missing. The models that come with
# Hearth are enough: without a network it does the same with those.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

say "Building hearth"
cargo build --release --locked
hearth=target/release/hearth

say "Embedding model"
if [ -e models/all-MiniLM-L6-v2/model.safetensors ]; then
  echo models/all-MiniLM-L6-v2
elif ! "$hearth" pull all-minilm-l6-v2 && ! scripts/fetch_minilm.sh; then
  echo "No network: models/hearth-embed.gguf, which comes with Hearth, finds the passages."
fi

say "Starting the server on a free port of this machine"
log=target/quickstart.log
data=target/quickstart
# Not the address of the run before.
mkdir -p target && rm -f "$log"
"$hearth" serve --port 0 --offline --data-dir "$data" > "$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true' EXIT
until url=$(grep -som1 'http://[0-9.:]*' "$log"); do
  kill -0 "$server" 2>/dev/null || { cat "$log"; exit 1; }
  sleep 0.1
done
echo "$url"

say "Putting this project's own pages in"
# Not the README: it shows what this script printed, answers included.
"$hearth" ingest --data-dir "$data" ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md docs models/*.md

say "Three questions about them"
for question in "What happens if the caller leaves?" "When is a revoked key refused?" "Who won the world cup?"; do
  printf '\n> %s\n' "$question"
  "$hearth" ask --data-dir "$data" --top-k 3 --max-tokens 120 "$question"
done

say "A conversation over HTTP, streamed, as any client of OpenAI's contract has it"
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

say "It works. Go on with:"
cat <<TEXT
  $hearth serve                       # the same server on http://127.0.0.1:8080, until Ctrl-C
  $hearth ingest DIRECTORY            # your own documents
  $hearth ask QUESTION                # answered from them, with sources
  $hearth chat                        # a conversation in this terminal
  $hearth pull qwen3-0.6b             # a real chat model, which \`serve\`, \`ask\` and \`chat\` take from then on
TEXT
