#!/usr/bin/env python3
"""Measures what embeddings requests with long texts cost those who chat meanwhile: 16 streams alone, and 16 streams beside
requests of 8 texts, 3.2 MB in all, one after another; by the longest time between two of a stream's packets, and by how
long /health/live takes.

usage: bench_long_texts.py CHAT_MODEL.gguf EMBEDDING_MODEL NAME=HEARTH... [--rounds 1] [--seconds 10] [--out FILE.json]
Several binaries run in turns. Each run starts its own server on an empty data directory. `prose` are words with spaces,
`unbroken` has no space at which a text could be cut; both once with `truncate` and once without.
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
import urllib.error
import urllib.request

STREAMS = 16
TEXTS, BYTES = 8, 400_000
PROSE = "The relief valve of unit 217 was inspected on Monday, and it was replaced. "


def texts(kind):
    text = (PROSE * (BYTES // len(PROSE) + 1))[:BYTES]
    return [text if kind == "prose" else text.replace(" ", "-")] * TEXTS


def stream(address, until, packets):
    """Chats, one conversation after the other, and notes (when, seconds since the packet before, bytes)."""
    while not until.is_set():
        connection = http.client.HTTPConnection(address)
        body = {
            "model": "chat",
            "stream": True,
            "ignore_eos": True,
            "temperature": 1,
            "max_tokens": 512,
            "messages": [{"role": "user", "content": f"Tell me about {random.random()}."}],
        }
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        last = None
        for line in connection.getresponse():
            if b'"content"' not in line:
                continue
            now = time.monotonic()
            if last is not None:
                packets.append((now, now - last, len(line)))
            last = now
            if until.is_set():
                break
        connection.close()


def ask_for_life(address, until, latencies):
    while not until.is_set():
        began = time.monotonic()
        with urllib.request.urlopen(f"http://{address}/health/live") as answer:
            answer.read()
        latencies.append((began, time.monotonic() - began))
        time.sleep(0.05)


def embed(address, body, answers):
    began = time.monotonic()
    request = urllib.request.Request(f"http://{address}/v1/embeddings", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            answer.read()
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    answers.append((status, time.monotonic() - began))


def figures(packets, latencies, begun, ended):
    within = [(gap, size) for when, gap, size in packets if begun <= when <= ended]
    gaps = sorted(1000 * gap for gap, _ in within)
    lives = sorted(1000 * took for when, took in latencies if begun <= when <= ended)
    return {
        "seconds": round(ended - begun, 1),
        "packets": len(gaps),
        "kb_a_second": round(sum(size for _, size in within) / 1000 / (ended - begun), 1),
        "gap_median_ms": round(statistics.median(gaps), 1) if gaps else None,
        "gap_p99_ms": round(gaps[int(0.99 * (len(gaps) - 1))], 1) if gaps else None,
        "gap_longest_ms": round(gaps[-1], 1) if gaps else None,
        "live_median_ms": round(statistics.median(lives), 2) if lives else None,
        "live_longest_ms": round(lives[-1], 2) if lives else None,
    }


def measure(hearth, chat_model, embedding_model, seconds):
    with tempfile.TemporaryDirectory() as data:
        command = [
            *(hearth, "serve", "-m", chat_model, "--embedding-model", embedding_model, "-a", "chat", "--offline"),
            *("--port", "0", "--ctx-size", "1024", "--parallel", str(STREAMS), "--data-dir", data),
        ]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            address = server.stdout.readline().split()[-1].removeprefix("http://").rstrip("/")
            return measure_server(address, seconds)
        finally:
            server.terminate()
            server.wait()


def measure_server(address, seconds):
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}/health/ready") as answer:
                answer.read()
            break
        except OSError:
            time.sleep(0.1)
    with urllib.request.urlopen(f"http://{address}/v1/models") as answer:
        models = [model["id"] for model in json.load(answer)["data"]]
    embedding_model = next(model for model in models if model != "chat" and "embed" in model.lower())
    until, packets, latencies = threading.Event(), [], []
    threads = [threading.Thread(target=stream, args=(address, until, packets)) for _ in range(STREAMS)]
    threads.append(threading.Thread(target=ask_for_life, args=(address, until, latencies)))
    for thread in threads:
        thread.start()
    time.sleep(3)
    begun = time.monotonic()
    time.sleep(seconds)
    found = {"idle": figures(packets, latencies, begun, time.monotonic())}
    for kind in ("prose", "unbroken"):
        for truncate in (False, True):
            request = {"model": embedding_model, "input": texts(kind), "truncate": truncate}
            body, answers = json.dumps(request).encode(), []
            begun = time.monotonic()
            while time.monotonic() < begun + seconds:
                embed(address, body, answers)
            name = f"{kind}, {'cut' if truncate else 'whole'}"
            found[name] = figures(packets, latencies, begun, time.monotonic())
            found[name]["requests"] = len(answers)
            found[name]["statuses"] = sorted({status for status, _ in answers})
            found[name]["request_longest_ms"] = round(1000 * max(took for _, took in answers), 1)
            found[name]["gap_ratio"] = round(found[name]["gap_longest_ms"] / found["idle"]["gap_longest_ms"], 2)
            time.sleep(1)
    until.set()
    for thread in threads:
        thread.join()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chat_model")
    parser.add_argument("embedding_model")
    parser.add_argument("binaries", nargs="+", metavar="NAME=HEARTH")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    runs = []
    for round_number in range(options.rounds):
        for binary in options.binaries:
            name, path = binary.split("=", 1)
            measured = measure(path, options.chat_model, options.embedding_model, options.seconds)
            runs.append({"round": round_number + 1, "binary": name, **measured})
            print(json.dumps(runs[-1], indent=1), flush=True)
    if options.out:
        options.out.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
