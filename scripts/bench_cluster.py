#!/usr/bin/env python3
"""What requests that run no model cost where servers share a PostgreSQL: answers a second from 1, 2 and 4 servers, in turns, and how much
of the processors' time each answer takes in the servers and in the database.

usage: bench_cluster.py HEARTH POSTGRES_URL DATABASE_DIRECTORY [--seconds 5] [--rounds 3] [--servers 1,2,4] [--out FILE.json]
       POSTGRES_URL is an empty database of a server that runs on this machine with its files in DATABASE_DIRECTORY, as
       `scripts/postgres.sh start DIRECTORY` starts one (then DIRECTORY/data). Servers, database and the load share the machine, so
       the answers a second do not grow once its processors are busy; the time of an answer is what to size a machine by.
needs: wrk
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import statistics
import subprocess
import tempfile
import time
import urllib.request

CONNECTIONS = 16
ROUTES = {"models": "/v1/models", "documents": "/api/v1/documents?limit=20", "files": "/v1/files?limit=20", "health": "/health/ready"}
TICK = os.sysconf("SC_CLK_TCK")


def times(pids):
    """Seconds of processor time of these processes and of their children that have ended."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += sum(int(number) for number in fields[11:15])
    return total / TICK


def processes_of(postmaster):
    children = subprocess.run(["pgrep", "-P", str(postmaster)], capture_output=True, text=True).stdout.split()
    return [postmaster, *map(int, children)]


def start(binary, url, folder, number):
    log = pathlib.Path(folder) / f"log{number}"
    command = [binary, "serve", "--port", "0", "--data-dir", f"{folder}/{number}", "--embedding-model", "models/hearth-embed.gguf"]
    process = subprocess.Popen(
        [*command, "--models-dir", "/nonexistent", "--replica-name", str(number)],
        stdout=log.open("wb"), stderr=subprocess.STDOUT, env={**os.environ, "HEARTH_STORE_URL": url},
    )
    for _ in range(600):
        found = re.search(r"listening on (http://\S+)", log.read_text())
        with contextlib.suppress(OSError):
            if found and urllib.request.urlopen(found.group(1) + "/health/ready").status == 200:
                return process, found.group(1)
        time.sleep(0.05)
    raise SystemExit("a server did not start:\n" + log.read_text())


def load(urls, path, seconds):
    """Answers of all servers together, each asked by its share of the connections."""
    each = max(1, CONNECTIONS // len(urls))
    asked = [
        subprocess.Popen(["wrk", "-t1", f"-c{each}", f"-d{seconds}s", url + path], stdout=subprocess.PIPE, text=True)
        for url in urls
    ]
    answers = 0
    for process in asked:
        said = process.communicate()[0]
        if "Non-2xx" in said:
            raise SystemExit(said)
        answers += int(re.search(r"(\d+) requests in", said).group(1))
    return answers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hearth")
    parser.add_argument("url")
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", default="1,2,4")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    postmaster = int((arguments.directory / "postmaster.pid").read_text().split()[0])
    counts = [int(number) for number in arguments.servers.split(",")]
    turns = []
    with tempfile.TemporaryDirectory() as folder:
        started = [start(arguments.hearth, arguments.url, folder, number) for number in range(max(counts))]
        for number in range(40):
            boundary = "a-line-that-no-part-has"
            body = (
                f"--{boundary}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{number}.md\"\r\n\r\n"
                f"# Page {number}\n\nThe text of page {number}.\r\n--{boundary}--\r\n"
            )
            headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
            request = urllib.request.Request(started[0][1] + "/api/v1/documents/upload", body.encode(), headers)
            urllib.request.urlopen(request).read()
        time.sleep(5)
        for turn in range(arguments.rounds):
            for count in counts if turn % 2 == 0 else counts[::-1]:
                for name, path in ROUTES.items():
                    urls = [url for _, url in started[:count]]
                    pids = [process.pid for process, _ in started[:count]]
                    # Backends begin and end meanwhile; those that are there at both times are most.
                    database = processes_of(postmaster)
                    before = times(pids), times(database)
                    answers = load(urls, path, arguments.seconds)
                    after = times(pids), times(processes_of(postmaster))
                    turns.append({
                        "servers": count, "route": name, "answers_per_second": answers / arguments.seconds,
                        "server_us": 1e6 * (after[0] - before[0]) / answers, "database_us": 1e6 * (after[1] - before[1]) / answers,
                    })
        for process, _ in started:
            process.terminate()
        for process, _ in started:
            process.wait()
    print("| route | servers | answers a second | us of a server | us of the database |\n|---|---|---|---|---|")
    for name in ROUTES:
        for count in counts:
            of = [turn for turn in turns if turn["route"] == name and turn["servers"] == count]
            middle = [statistics.median(turn[key] for turn in of) for key in ("answers_per_second", "server_us", "database_us")]
            print(f"| {name} | {count} | {middle[0]:.0f} | {middle[1]:.0f} | {middle[2]:.0f} |")
    if arguments.out:
        arguments.out.write_text(json.dumps(turns, indent=1) + "\n")


if __name__ == "__main__":
    main()
