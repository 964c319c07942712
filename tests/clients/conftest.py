"""One server for the whole run, as a user would start it: a binary, a model file, a port.

The binary is the one that the Rust tests built, or HEARTH_BINARY.
"""

import os
import pathlib
import socket
import subprocess
import time
import urllib.request

import openai
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("HEARTH_BINARY", ROOT / "target/debug/hearth"))
CHAT_MODEL = ROOT / "tests/fixtures/tiny-chat.gguf"
EMBEDDING_MODEL = ROOT / "models/all-MiniLM-L6-v2"
KEY = "sk-test-key"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def base_url(tmp_path_factory):
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    with open(log, "wb") as out:
        server = subprocess.Popen(
            [BINARY, "serve", "-m", CHAT_MODEL, "--embedding-model", EMBEDDING_MODEL, "-a", "tiny", "--port", str(port),
             "--api-key", KEY, "--offline", "--ctx-size", "2048", "--data-dir", str(log.parent / "data")],
            stdout=out, stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            if urllib.request.urlopen(url + "/health/ready").status == 200:
                break
        except OSError:
            pass
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not become ready:\n{log.read_text()}")
        time.sleep(0.05)
    yield url
    server.terminate()
    assert server.wait(timeout=30) == 0, log.read_text()
    assert "panicked" not in log.read_text()


@pytest.fixture(scope="session")
def client(base_url):
    return openai.OpenAI(base_url=base_url + "/v1", api_key=KEY, max_retries=0)


@pytest.fixture(scope="session")
def async_client(base_url):
    return openai.AsyncOpenAI(base_url=base_url + "/v1", api_key=KEY, max_retries=0)
