#!/usr/bin/env python3
"""Measures what reading documents costs those who chat meanwhile: four streams alone, and four streams while 1,000 pages
are read, by the time between two of a stream's tokens.

usage: bench_ingest.py HEARTH CHAT_MODEL.gguf EMBEDDING_MODEL [--pages 1000] [--out FILE.json]
It starts its own server on an empty data directory. The pages are made of words of /usr/share/dict/words, or of numbers
where that is not there, 400 words a page, in documents of 50 pages.
"""

import argparse
import http.client
import json
import pathlib
import random
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
import uuid

STREAMS = 4
IDLE_SECONDS = 20
WORDS_A_PAGE, PAGES_A_DOCUMENT = 400, 50


def documents(pages):
    random.seed(7)
    dictionary = pathlib.Path("/usr/share/dict/words")
    words = dictionary.read_text().split() if dictionary.exists() else [f"word{n}" for n in range(20_000)]
    for first in range(0, pages, PAGES_A_DOCUMENT):
        sections = []
        for page in range(first, min(pages, first + PAGES_A_DOCUMENT)):
            sentences = (" ".join(random.choices(words, k=16)).capitalize() + "." for _ in range(WORDS_A_PAGE // 16))
            sections.append(f"# Page {page}\n\n" + " ".join(sentences) + "\n")
        yield f"pages-{first}.md", "\n".join(sections)


def post(url, path, body, content_type="application/json"):
    request = urllib.request.Request(url + path, body, {"content-type": content_type})
    return json.load(urllib.request.urlopen(request))


def get(url, path):
    return json.load(urllib.request.urlopen(url + path))


def upload(url, name, text):
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = head.encode() + text.encode() + f"\r\n--{boundary}--\r\n".encode()
    post(url, "/api/v1/documents/upload", body, f"multipart/form-data; boundary={boundary}")


def stream(url, until, gaps):
    """Chats, one conversation after the other, and notes (when, seconds since the token before)."""
    address = url.removeprefix("http://")
    while not until.is_set():
        connection = http.client.HTTPConnection(address)
        body = {
            "model": "chat",
            "stream": True,
            "ignore_eos": True,
            "max_tokens": 256,
            "messages": [{"role": "user", "content": f"Tell me about {random.random()}."}],
        }
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        last = None
        for line in connection.getresponse():
            if b'"content"' not in line:
                continue
            now = time.monotonic()
            if last is not None:
                gaps.append((now, now - last))
            last = now
            if until.is_set():
                break
        connection.close()


def percentile(values, share):
    return sorted(values)[int(share * (len(values) - 1))]


def figures(gaps, begun, ended):
    values = [1000 * gap for when, gap in gaps if begun <= when <= ended]
    return {
        "tokens": len(values),
        "median_ms": round(statistics.median(values), 2),
        "p95_ms": round(percentile(values, 0.95), 2),
        "p99_ms": round(percentile(values, 0.99), 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("hearth")
    parser.add_argument("chat_model")
    parser.add_argument("embedding_model")
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as data:
        command = [
            *(options.hearth, "serve", "-m", options.chat_model, "--embedding-model", options.embedding_model),
            *("-a", "chat", "--offline", "--port", "0", "--ctx-size", "1024", "--data-dir", data),
        ]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            measured = measure(server.stdout.readline().split()[-1], options.pages)
        finally:
            server.terminate()
            server.wait()
    print(json.dumps(measured, indent=2))
    if options.out:
        options.out.write_text(json.dumps(measured, indent=2) + "\n")


def measure(url, pages):
    while True:
        try:
            get(url, "/health/ready")
            break
        except OSError:
            time.sleep(0.1)
    until, gaps = threading.Event(), []
    threads = [threading.Thread(target=stream, args=(url, until, gaps)) for _ in range(STREAMS)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    idle_from = time.monotonic()
    time.sleep(IDLE_SECONDS)
    idle_to = time.monotonic()
    for name, text in documents(pages):
        upload(url, name, text)
    while any(document["status"] == "processing" for document in get(url, "/api/v1/documents")["documents"]):
        time.sleep(0.5)
    read = time.monotonic()
    until.set()
    for thread in threads:
        thread.join()
    found = get(url, "/api/v1/documents")["documents"]
    idle, reading = figures(gaps, idle_from, idle_to), figures(gaps, idle_to, read)
    return {
        "pages": pages,
        "ready": sum(document["status"] == "ready" for document in found),
        "documents": len(found),
        "chunks": sum(document["chunks"] for document in found),
        "seconds_to_read": round(read - idle_to, 1),
        "idle": idle,
        "while_reading": reading,
        "p95_ratio": round(reading["p95_ms"] / idle["p95_ms"], 2),
    }


if __name__ == "__main__":
    main()
