"""Fifty callers with keys of their own and every kind of ending: the ledger holds one row for each request, its sums are
the metrics', and the compute that is paid for is the compute that was done.

LEDGER_REQUESTS sets how many requests; a thousand take some seconds.
"""

import asyncio
import collections
import os
import random
import re
import subprocess
import time

import httpx
import pytest

from conftest import BINARY, ROOT, free_port

REQUESTS = int(os.environ.get("LEDGER_REQUESTS", "1000"))
CALLERS = 50
AT_A_TIME = 32
CHAT = "/v1/chat/completions"
KINDS = ["chat", "chat", "stream", "leave", "embed", "mistake", "ask", "timeout"]


def make_key(data, caller, scopes):
    command = [BINARY, "keys", "create", "--data-dir", data, "--caller", caller, "--scopes", scopes]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def server(tmp_path):
    data = tmp_path / "data"
    keys = [make_key(data, f"caller-{number}", "chat,embed,documents") for number in range(CALLERS)]
    admin = make_key(data, "admin", "admin")
    port, log = free_port(), tmp_path / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [BINARY, "serve", "--offline", "--models-dir", ROOT / "models", "--embedding-model", "hearth-embed",
             "-m", "hearth-chat", "--port", str(port), "--data-dir", data, "--usd-per-compute-hour", "1.5"],
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            if httpx.get(url + "/health/ready").status_code == 200:
                break
        except httpx.HTTPError:
            pass
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    yield url, keys, admin
    process.terminate()
    assert process.wait(timeout=30) == 0, log.read_text()


async def send(client, kind, number):
    messages = [{"role": "user", "content": f"Tell me about number {number}."}]
    chat = {"model": "hearth-chat", "messages": messages, "max_tokens": 8}
    endless = chat | {"max_tokens": 500, "ignore_eos": True}
    if kind == "leave":
        async with client.stream("POST", CHAT, json=endless | {"stream": True}) as answer:
            async for _ in answer.aiter_raw():
                return answer.status_code
    path, body = {
        "chat": (CHAT, chat),
        "stream": (CHAT, chat | {"stream": True}),
        "embed": ("/v1/embeddings", {"model": "hearth-embed", "input": [f"text {number}"] * 3}),
        "mistake": (CHAT, chat | {"model": "nobody"}),
        "ask": ("/ask", {"question": f"What is {number}?"}),
        "timeout": (CHAT, endless | {"timeout": 0.02}),
    }[kind]
    return (await client.post(path, json=body)).status_code


async def send_all(url, keys):
    draw, sent, told = random.Random(5), collections.Counter(), collections.Counter()
    places = asyncio.Semaphore(AT_A_TIME)

    async def one(number):
        kind, key = draw.choice(KINDS), draw.choice(keys)
        async with places, httpx.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=120
        ) as client:
            sent[kind] += 1
            told[kind, await send(client, kind, number)] += 1

    await asyncio.gather(*(one(number) for number in range(REQUESTS)))
    return sent, told


def test_one_row_a_request_however_it_ends(server):
    url, keys, admin = server
    sent, told = asyncio.run(send_all(url, keys))
    assert told["mistake", 404] == sent["mistake"] and told["timeout", 504] == sent["timeout"], told
    client = httpx.Client(base_url=url, headers={"authorization": f"Bearer {admin}"})

    def summary():
        return client.get("/metrics", headers={"accept": "application/json"}).json()

    # Who left has a row when the engine has noticed.
    deadline = time.monotonic() + 30
    while summary()["total_requests"] < REQUESTS and time.monotonic() < deadline:
        time.sleep(0.05)
    metrics = summary()
    endings = metrics["requests_by_outcome"]
    assert metrics["total_requests"] == REQUESTS == sum(endings.values())
    assert (endings["refused"], endings["timed_out"], endings["failed"]) == (sent["mistake"], sent["timeout"], 0)
    assert endings["cancelled"] <= sent["leave"] and endings["cancelled"] > 0
    usage = client.get("/v1/usage", params={"group_by": "caller"}).json()
    for figure, total in (
        ("requests", REQUESTS),
        ("cost_micro_usd", metrics["total_cost_micro_usd"]),
        ("prompt_tokens", metrics["total_input_tokens"]),
        ("completion_tokens", metrics["total_output_tokens"]),
    ):
        assert sum(group[figure] for group in usage["data"]) == usage["total"][figure] == total, figure
    text = client.get("/metrics", headers={"accept": "text/plain"}).text
    busy = sum(
        float(re.search(rf"^{name}_sum (\S+)$", text, re.MULTILINE)[1])
        for name in ("hearth_step_seconds", "hearth_embedding_batch_seconds")
    )
    assert metrics["total_compute_seconds"] == pytest.approx(busy, rel=0.01)
