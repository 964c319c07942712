#!/usr/bin/env python3
"""Compares how builds of Hearth read PDF files: how much of the text, in which order, how fast, and what stops them.

usage: bench_pdf.py FOLDER --build NAME=HEARTH [--build NAME=HEARTH ...] [--out FILE.json]
Each file of FOLDER is read as the server reads it, in a child process with a limit of memory and of 10 seconds. Where
`pdftotext` (poppler-utils) gives at least five words, its text is the reference: F1 is of the words as a multiset, order
the longest common subsequence of the first 500 words of both, over the shorter one. The public collection of
https://github.com/py-pdf/sample-files is a folder to begin with.
"""

import argparse
import collections
import json
import pathlib
import re
import resource
import statistics
import subprocess
import time

MIB = 1 << 20
LIMITS = {
    "file_bytes": 100 * MIB, "text_bytes": 64 * MIB, "blocks": 1_000_000, "pages": 20_000, "archive_entries": 20_000,
    "archive_bytes": 512 * MIB, "archive_ratio": 250, "memory_bytes": 1024 * MIB,
    "wall_time": {"secs": 10, "nanos": 0}, "cpu_time": {"secs": 10, "nanos": 0},
}
ORDER_WORDS = 500


def words(text):
    return re.findall(r"\w+", text.lower())


def reference(path):
    try:
        done = subprocess.run(["pdftotext", path, "-"], capture_output=True, timeout=30)
    except subprocess.TimeoutExpired:
        return []
    return words(done.stdout.decode("utf-8", "replace")) if done.returncode == 0 else []


def read(build, path):
    """The words that a build finds, how the reading ended, and its processor seconds."""
    request = json.dumps({"path": str(path), "file_name": "document.pdf", "limits": LIMITS})
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run([build, "extract-child"], input=request.encode(), capture_output=True, timeout=15)
    except subprocess.TimeoutExpired:
        return [], "timeout", 15.0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = done.stdout.strip().split(b"\n")
    if done.returncode != 0 or not lines[-1]:
        return [], f"died ({done.returncode})", seconds
    answer = json.loads(lines[-1])
    if "Err" in answer:
        return [], f"error: {answer['Err']['error']}", seconds
    return words("\n".join(block["text"] for block in answer["Ok"]["blocks"])), "read", seconds


def f1(found, wanted):
    common = sum((collections.Counter(found) & collections.Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted)) if found or wanted else 1.0


def order(found, wanted):
    found, wanted = found[:ORDER_WORDS], wanted[:ORDER_WORDS]
    if not found or not wanted:
        return 0.0
    row = [0] * (len(wanted) + 1)
    for word in found:
        diagonal = 0
        for at, other in enumerate(wanted):
            above = row[at + 1]
            row[at + 1] = diagonal + 1 if word == other else max(above, row[at])
            diagonal = above
    return row[-1] / min(len(found), len(wanted))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--build", action="append", required=True, metavar="NAME=HEARTH")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    builds = dict(build.split("=", 1) for build in arguments.build)
    rows = []
    for path in sorted(path for path in arguments.folder.rglob("*") if path.is_file()):
        wanted = reference(path)
        row = {"file": str(path.relative_to(arguments.folder)), "words": len(wanted)}
        for name, build in builds.items():
            start = time.monotonic()
            found, ended, seconds = read(build, path)
            row[name] = {"ended": ended, "words": len(found), "cpu_s": round(seconds, 3),
                         "wall_s": round(time.monotonic() - start, 3)}
            if len(wanted) >= 5:
                row[name] |= {"f1": round(f1(found, wanted), 4), "order": round(order(found, wanted), 4)}
        rows.append(row)
    for name in builds:
        scored = [row for row in rows if "f1" in row[name]]
        weight = sum(row["words"] for row in scored) or 1
        ended = collections.Counter(row[name]["ended"] for row in rows)
        print(f"{name}: {len(rows)} files, {sum(row[name]['cpu_s'] for row in rows):.1f} s of processor, "
              f"slowest {max(row[name]['cpu_s'] for row in rows):.2f} s; {dict(ended)}")
        if scored:
            print(f"  {len(scored)} with a reference: F1 {statistics.mean(row[name]['f1'] for row in scored):.3f}, "
                  f"by words {sum(row[name]['f1'] * row['words'] for row in scored) / weight:.3f}, "
                  f"order {statistics.mean(row[name]['order'] for row in scored):.3f}; below 0.5: "
                  f"{sum(row[name]['f1'] < 0.5 for row in scored)}")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=0) + "\n")


if __name__ == "__main__":
    main()
