"""Servers of Hearth that a comparison starts on loopback and ends."""

import contextlib
import http.client
import socket
import subprocess
import time


@contextlib.contextmanager
def serving(hearth, *arguments):
    """The port of `hearth serve` with these arguments, once it is ready; the server ends with the context."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [hearth, "serve", "--port", str(port), *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request("GET", "/health/ready")
                if connection.getresponse().status == 200:
                    break
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
            time.sleep(0.1)
        else:
            raise SystemExit(f"{hearth} was not ready within a minute")
        yield port
    finally:
        process.terminate()
        process.wait()
