#!/usr/bin/env bash
# From a fresh clone to a model that answers: build the release binary, get the models, start the server,
# stream an answer through it. Needs cargo, a C compiler, python3 and pip; takes no arguments.
#
# Everything it makes is in target/ and models/. Run it again and it only does what is missing.
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
  echo "No network: models/hearth-embed.gguf, which comes with Hearth, takes its place."
fi

say "Chat model"
shopt -s nullglob
models=()
for file in models/*.gguf; do
  [ "$file" = models/hearth-embed.gguf ] || models+=("$file")
done
if [ ${#models[@]} -eq 0 ]; then
  # A stand-in that babbles in the words of this project's documentation; `hearth pull` brings a real one.
  [ -x target/python/bin/python ] || python3 -m venv target/python
  target/python/bin/pip install -q 'numpy==2.*' 'gguf==0.19.*' 'tokenizers==0.23.*'
  target/python/bin/python scripts/make_tiny_chat.py models/hearth-tiny-chat.gguf README.md ARCHITECTURE.md CONTRIBUTING.md docs/*.md
else
  echo "${models[0]}"
fi

say "Starting the server on a free port of this machine"
log=target/quickstart.log
"$hearth" serve --port 0 --offline > "$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true' EXIT
python3 - "$log" "$server" <<'PYTHON'
"""Waits for the server, then asks it through the same HTTP calls that any client makes."""
import json, os, re, sys, time, urllib.request

log, server = sys.argv[1], int(sys.argv[2])


def address():
    found = re.search(r"listening on (http://\S+)", open(log).read())
    return found and found.group(1)


def is_ready(url):
    try:
        return urllib.request.urlopen(url + "/health/ready").status == 200
    except OSError:
        return False


for _ in range(600):
    url = address()
    if url and is_ready(url):
        break
    try:
        os.kill(server, 0)
    except ProcessLookupError:
        sys.exit("The server did not start:\n" + open(log).read())
    time.sleep(0.1)
else:
    sys.exit("The server did not become ready within a minute:\n" + open(log).read())


def post(path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    return urllib.request.urlopen(request)


models = json.load(urllib.request.urlopen(url + "/v1/models"))["data"]
print("Serving", ", ".join(model["id"] for model in models), "at", url)
embedding, chat = (next(model["id"] for model in models if model["capabilities"][what]) for what in ("embeddings", "chat"))

texts = ["How do I install it?", "Setting the program up", "The weather is fine today."]
vectors = [item["embedding"] for item in json.load(post("/v1/embeddings", {"model": embedding, "input": texts}))["data"]]
print("\n> POST /v1/embeddings")
for text, vector in zip(texts[1:], vectors[1:]):
    print(f"  {sum(a * b for a, b in zip(vectors[0], vector)):5.2f}  {texts[0]!r} and {text!r}")

question = "What is Hearth?"
print(f"\n> POST /v1/chat/completions, streamed: {question}\n  ", end="")
body = {
    "model": chat, "messages": [{"role": "user", "content": question}], "stream": True, "max_tokens": 80,
    "temperature": 0.5, "top_p": 0.8, "seed": 1, "stream_options": {"include_usage": True},
}
for line in post("/v1/chat/completions", body):
    if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
        continue
    chunk = json.loads(line[6:])
    for choice in chunk["choices"]:
        print(choice["delta"].get("content") or "", end="", flush=True)
    if chunk.get("usage"):
        timings = chunk.get("timings") or {}
        rate = timings.get("predicted_per_second")
        print(f"\n\n  {chunk['usage']['completion_tokens']} tokens" + (f", {rate:.0f} a second" if rate else ""))
PYTHON

say "It works. Go on with:"
cat <<TEXT
  $hearth serve                       # the same server on http://127.0.0.1:8080, until Ctrl-C
  $hearth chat                        # a conversation in this terminal
  $hearth pull REPOSITORY:QUANT       # a real chat model from the hub, such as Qwen/Qwen3-0.6B-GGUF:Q8_0
TEXT
