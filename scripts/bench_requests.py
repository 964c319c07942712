#!/usr/bin/env python3
"""Compares what a request costs beside its tokens in builds of Hearth, in turns: each round asks every build the same.

usage: bench_requests.py CHAT_MODEL.gguf NAME=HEARTH NAME=HEARTH [--rounds 5] [--requests 400] [--out FILE.json]
It starts one server for each build, on loopback, with a key, limits and a ledger, and sends one request after another over
one connection: the list of models, a text of 2 kB to tokenize, a chat of one token, and the same chat as a stream. Quoted
are the medians over the rounds of each round's median, in microseconds, and their ratios to the first build.
"""

import argparse
import contextlib
import http.client
import json
import pathlib
import statistics
import tempfile
import time

from peers.server import serving

PROMPT = "The quick brown fox jumps over the lazy dog. " * 4


def requests(model):
    chat = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1, "temperature": 0}
    return {
        "models": ("GET", "/v1/models", None),
        "tokenize": ("POST", "/tokenize", {"content": PROMPT * 12}),
        "chat": ("POST", "/v1/chat/completions", chat),
        "stream": ("POST", "/v1/chat/completions", chat | {"stream": True}),
    }


@contextlib.contextmanager
def server(build, model):
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(build, "-m", model, "--data-dir", folder, "--api-key", "key", "--rpm", "10000000") as port,
    ):
        yield http.client.HTTPConnection("127.0.0.1", port, timeout=60)


def ask(connection, method, path, body):
    start = time.perf_counter()
    headers = {"Authorization": "Bearer key", "Content-Type": "application/json"}
    connection.request(method, path, json.dumps(body) if body else None, headers)
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise SystemExit(f"{path}: {response.status} {answer[:300]}")
    return (time.perf_counter() - start) * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("build", nargs="+", metavar="NAME=HEARTH")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    builds = dict(build.split("=", 1) for build in arguments.build)
    medians = {}
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(server(build, arguments.model)) for name, build in builds.items()}
        first = next(iter(servers.values()))
        first.request("GET", "/v1/models", headers={"Authorization": "Bearer key"})
        model = json.load(first.getresponse())["data"][0]["id"]
        for round_ in range(arguments.rounds + 1):
            for what, request in requests(model).items():
                for name, connection in servers.items():
                    times = [ask(connection, *request) for _ in range(arguments.requests if round_ else 20)]
                    # The first round warms up.
                    if round_:
                        medians.setdefault(what, {}).setdefault(name, []).append(statistics.median(times))
    for what, by_build in medians.items():
        base = statistics.median(next(iter(by_build.values())))
        print(what.ljust(10) + "  ".join(
            f"{name} {statistics.median(values):.0f} µs ({statistics.median(values) / base:.3f}; "
            f"{min(values):.0f} to {max(values):.0f})" for name, values in by_build.items()))
    if arguments.out:
        arguments.out.write_text(json.dumps(medians, indent=1) + "\n")


if __name__ == "__main__":
    main()
