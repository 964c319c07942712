#!/usr/bin/env python3
"""Measures what affinity is worth: conversations over several engines behind one name, chosen by prefix and by load alone.

usage: bench_engines.py CHAT_MODEL.gguf [--hearth HEARTH] [--engines 4] [--rounds 3] [--out FILE.json]
Each round starts the engines and a Hearth before them twice, once for each affinity, on loopback, so that no cache knows
anything. Conversations with one of a few long system prompts take turns at random, a few at a time; every turn sends the
whole conversation. Quoted are, over the rounds, the medians of the share of prompt tokens that engines had in their prefix
caches, of the time to the first token, and of the whole time. Engines share the machine's cores, so times mean something only
relative to each other.
"""

import argparse
import contextlib
import http.client
import json
import pathlib
import queue
import random
import statistics
import tempfile
import threading
import time

from peers.server import serving

AFFINITIES = ("none", "prefix")
WORDS = ("harbour signal copper winter ledger bridge garden engine paper window river market station lantern forest "
         "kettle summit valley anchor mirror thread saddle orchard").split()


def text(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def ask(port, messages):
    """The answer, the prompt's tokens, those of them that were cached, the seconds to the first token, and the engine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    body = {"model": "pooled", "messages": messages, "max_tokens": 12, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}}
    began = time.monotonic()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"status {answer.status}: {answer.read()!r}")
    said, first, usage = "", None, None
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        for choice in event.get("choices", []):
            piece = choice["delta"].get("content") or ""
            if piece and first is None:
                first = time.monotonic() - began
            said += piece
        usage = event.get("usage") or usage
    connection.close()
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return said, usage["prompt_tokens"], cached, first, answer.headers.get("x-hearth-engine")


def measure(options, affinity, seed):
    rng = random.Random(seed)
    prompts = [f"You are number {number}. " + text(rng, 260) for number in range(options.prompts)]
    conversations = [[{"role": "system", "content": prompts[number % len(prompts)]}] for number in range(options.conversations)]
    questions = [[text(rng, 30) for _ in range(options.turns)] for _ in conversations]
    order = [number for number in range(len(conversations)) for _ in range(options.turns)]
    rng.shuffle(order)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = ("-m", str(options.model), "--ctx-size", "2048", "--parallel", "4", "--threads", "1")
        ports = [stack.enter_context(serving(options.hearth, "--data-dir", folder / f"engine{number}", *engine))
                 for number in range(options.engines)]
        config = folder / "hearth.toml"
        name = options.model.stem
        engines = ", ".join(f'"http://127.0.0.1:{port}/v1"' for port in ports)
        config.write_text(f'[[upstream]]\nname = "pool"\nkind = "hearth"\naffinity = "{affinity}"\nengines = [{engines}]\n'
                          f'[upstream.models]\npooled = "{name}"\n')
        front = stack.enter_context(serving(options.hearth, "--data-dir", folder / "front", "--config", config,
                                            "--models-dir", folder, "--policy", "hosted-only"))
        turns, locks, results = queue.Queue(), [threading.Lock() for _ in conversations], []
        for number in order:
            turns.put(number)

        def client():
            while True:
                try:
                    number = turns.get_nowait()
                except queue.Empty:
                    return
                with locks[number]:
                    conversation = conversations[number]
                    conversation.append({"role": "user", "content": questions[number].pop()})
                    said, tokens, cached, first, who = ask(front, conversation)
                    conversation.append({"role": "assistant", "content": said or "."})
                results.append({"tokens": tokens, "cached": cached, "first": first, "engine": who})

        began = time.monotonic()
        clients = [threading.Thread(target=client) for _ in range(options.clients)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        seconds = time.monotonic() - began
    if len(results) != len(order):
        raise SystemExit(f"{len(results)} of {len(order)} turns were answered")
    counts = {engine: sum(result["engine"] == engine for result in results) for engine in {r["engine"] for r in results}}
    return {
        "affinity": affinity,
        "cached": sum(result["cached"] for result in results) / sum(result["tokens"] for result in results),
        "first_token_ms": statistics.median(1e3 * result["first"] for result in results if result["first"]),
        "seconds": seconds,
        "requests": sorted(counts.values()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--hearth", default="target/release/hearth", help="the binary (target/release/hearth)")
    parser.add_argument("--engines", type=int, default=4, metavar="N")
    parser.add_argument("--prompts", type=int, default=8, metavar="N", help="system prompts (8)")
    parser.add_argument("--conversations", type=int, default=32, metavar="N", help="conversations (32)")
    parser.add_argument("--turns", type=int, default=4, metavar="N", help="turns of each (4)")
    parser.add_argument("--clients", type=int, default=4, metavar="N", help="requests at a time (4)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--out", type=pathlib.Path, help="where all figures are written")
    options = parser.parse_args()
    runs = []
    for number in range(options.rounds):
        # Which goes first changes from round to round.
        for affinity in AFFINITIES if number % 2 == 0 else AFFINITIES[::-1]:
            run = measure(options, affinity, number)
            print(json.dumps(run), flush=True)
            runs.append(run)
    for affinity in AFFINITIES:
        of = [run for run in runs if run["affinity"] == affinity]
        cached, first, seconds = (statistics.median(run[key] for run in of) for key in ("cached", "first_token_ms", "seconds"))
        print(f"{affinity:>7}: {cached:.1%} of the prompts' tokens cached, first token after {first:.0f} ms, all in {seconds:.1f} s")
    if options.out:
        counts = ("engines", "prompts", "conversations", "turns", "clients", "rounds")
        said = {"model": options.model.name} | {name: getattr(options, name) for name in counts}
        options.out.write_text(json.dumps({"options": said, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
