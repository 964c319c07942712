"""A server of Hearth for the time of a measurement; the benchmarks of search and of answers use it."""

import contextlib
import pathlib
import re
import subprocess
import sys
import time
import urllib.request


@contextlib.contextmanager
def server(binary, folder, *arguments):
    """The address of a server on a free port whose data directory is in `folder`, once its models are loaded."""
    log = pathlib.Path(folder) / "log"
    command = [binary, "serve", "--port", "0", "--offline", "--data-dir", f"{folder}/data", *arguments]
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        for _ in range(1200):
            found = re.search(r"listening on (http://\S+)", log.read_text())
            with contextlib.suppress(OSError):
                if found and urllib.request.urlopen(found.group(1) + "/health/ready").status == 200:
                    break
            if process.poll() is not None:
                sys.exit("The server did not start:\n" + log.read_text())
            time.sleep(0.1)
        else:
            sys.exit("The server did not become ready within two minutes:\n" + log.read_text())
        yield found.group(1)
    finally:
        process.terminate()
        process.wait()
