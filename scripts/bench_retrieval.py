#!/usr/bin/env python3
"""Measures how well /api/v1/search finds the passage that answers a question: by meaning (dense), by words (lexical),
by both (fused), and reranked where the server can, as hit@1, hit@5 and MRR@10 with 95 % intervals.

Two parts, one collection:
- "project": this project's own pages and benches/retrieval/questions.tsv, questions written by hand in a user's words.
  A hit is a passage of the labelled file under the labelled heading.
- "perlfaq": the FAQ of Debian's perl-doc package, fetched with apt-get and unpacked, not installed; nothing of it is
  committed. Its questions are asked as they stand, and taken out of the documents, where "Entry N" stands instead, so
  that none is found by being there word for word. A hit is a passage of the entry.

The half "tune" is for choosing constants, "report" for figures: a question's own hash says to which it belongs.

usage: bench_retrieval.py [--url URL] [--binary PATH] [--embedding-model PATH] [--half all|tune|report] [--out FILE]
       Without --url it starts the binary on a temporary data directory and a free port. Prints a table; the ranks of
       each question go to FILE as JSON.
needs: Debian's apt-get and dpkg-deb
"""

import argparse
import contextlib
import hashlib
import json
import math
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import uuid

from bench_server import server

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "target/retrieval"
PAGES = [
    "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/API.md", "models/README.md", "models/hearth-embed.md",
    "scripts/train/README.md",
]
COLLECTION = "retrieval-bench"
MODES = {
    "dense": {"search_mode": "dense"},
    "lexical": {"search_mode": "lexical"},
    "fused": {"search_mode": "fused"},
    "reranked": {"search_mode": "fused", "rerank": True},
}
TOP_K, RESAMPLES, ANSWER_WORDS_MIN = 10, 2000, 20


def perl_faq():
    """The FAQ's nine pages as pod, from the package."""
    unpacked = FOLDER / "perl-doc"
    if not unpacked.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", "perl-doc"], cwd=FOLDER, check=True)
        package = next(FOLDER.glob("perl-doc_*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
    return sorted(unpacked.glob("usr/share/perl/*/pod/perlfaq[1-9].pod"))


def without_markup(text):
    text = re.sub(r"L<(?:([^|>]*)\|)?([^>]*)>", lambda m: m.group(1) or m.group(2), text)
    for _ in range(3):
        text = re.sub(r"[BCEFISX]<<* ?([^<>]*?) ?>+", r"\1", text)
    return text


def perl_documents():
    """(documents by name, questions as (part, file, heading, question)) of the FAQ."""
    documents, questions = {}, []
    for page in perl_faq():
        name, lines, entry = page.stem + ".md", [], 0
        sections = re.split(r"^=head([12]) (.*)$", page.read_text("utf-8", "replace"), flags=re.MULTILINE)[1:]
        for level, heading, body in zip(sections[::3], sections[1::3], sections[2::3], strict=True):
            if heading in ("NAME", "VERSION", "DESCRIPTION", "AUTHOR AND COPYRIGHT"):
                continue
            body = without_markup(re.sub(r"^=\w+.*$", "", body, flags=re.MULTILINE)).strip()
            heading = without_markup(heading)
            if level == "2":
                entry += 1
                if heading.endswith("?") and len(body.split()) >= ANSWER_WORDS_MIN:
                    questions.append(("perlfaq", name, f"Entry {entry}", heading))
                heading = f"Entry {entry}"
            lines.append(f"{'#' * int(level)} {heading}\n\n{body}\n")
        documents[name] = "\n".join(lines)
    return documents, questions


def project_documents():
    documents = {page: (ROOT / page).read_text() for page in PAGES}
    questions = []
    for line in (ROOT / "benches/retrieval/questions.tsv").read_text().splitlines()[1:]:
        page, heading, question = line.split("\t")
        if not re.search(rf"^#+ {re.escape(heading)}$", documents[page], flags=re.MULTILINE):
            sys.exit(f"benches/retrieval/questions.tsv: {page} has no heading {heading!r}; correct the label.")
        questions.append(("project", page.replace("/", "-"), heading, question))
    return {page.replace("/", "-"): text for page, text in documents.items()}, questions


def half_of(question):
    return "tune" if hashlib.sha256(question.encode()).digest()[0] % 2 else "report"


def call(url, body=None, kind="application/json"):
    if body is not None and kind == "application/json":
        body = json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, {"content-type": kind}), timeout=600) as answer:
        return json.load(answer)


def upload(url, name, text):
    boundary = uuid.uuid4().hex
    fields = [('name="collection"', COLLECTION), (f'name="file"; filename="{name}"', text)]
    parts = [f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n{body}\r\n" for head, body in fields]
    body = "".join([*parts, f"--{boundary}--\r\n"]).encode()
    call(url + "/api/v1/documents/upload", body, f"multipart/form-data; boundary={boundary}")


def ingest(url, documents):
    for name, text in documents.items():
        upload(url, name, text)
    call(url + "/api/v1/search", {"query": "documents", "collections": [COLLECTION], "wait": True})
    listed = call(f"{url}/api/v1/documents?collection={urllib.parse.quote(COLLECTION)}")
    listed = [item for items in listed.values() if isinstance(items, list) for item in items]
    failed = [item for item in listed if item["status"] != "ready"]
    if failed:
        sys.exit(f"not every document was read: {json.dumps(failed, indent=2)}")


@contextlib.contextmanager
def own_server(binary, model):
    with tempfile.TemporaryDirectory(prefix="hearth-retrieval-") as folder:
        with server(binary, folder, "--embedding-model", model) as url:
            yield url


def rank(url, fields, file, heading, question):
    """Place of the first hit, from 1, or None."""
    body = {"query": question, "collections": [COLLECTION], "top_k": TOP_K, "min_similarity": 0, **fields}
    for place, passage in enumerate(call(url + "/api/v1/search", body)["passages"], 1):
        if passage["filename"] == file and passage["title"].split(" > ")[-1] == heading:
            return place
    return None


def reranks(url):
    """Whether the server honours `rerank`: it refuses the field without a model for it, and names it if unknown."""
    body = json.dumps({"query": "rerank", "collections": [COLLECTION], **MODES["reranked"]}).encode()
    request = urllib.request.Request(url + "/api/v1/search", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return "rerank" not in (answer.headers.get("x-hearth-ignored") or "")
    except urllib.error.HTTPError as error:
        error.close()
        return False


def wilson(hits, total):
    """95 % interval of a share."""
    z, share = 1.96, hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return middle - half, middle + half


def bootstrap(values):
    """95 % interval of a mean."""
    rng = random.Random(1)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(RESAMPLES))
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]


def reciprocal(place):
    return 1 / place if place else 0.0


def report(asked, modes):
    for part in ["project", "perlfaq", "all"]:
        rows = [row for row in asked if part in (row["part"], "all")]
        print(f"\n{part}: {len(rows)} questions\n")
        print("| | hit@1 | hit@5 | MRR@10 | fused less this, MRR |\n|---|---|---|---|---|")
        for mode in modes:
            places = [row["ranks"][mode] for row in rows]
            cells = []
            for limit in (1, 5):
                hits = sum(place is not None and place <= limit for place in places)
                low, high = wilson(hits, len(places))
                cells.append(f"{100 * hits / len(places):.1f} % ({100 * low:.0f} to {100 * high:.0f})")
            values = [reciprocal(place) for place in places]
            low, high = bootstrap(values)
            cells.append(f"{sum(values) / len(values):.3f} ({low:.3f} to {high:.3f})")
            # Paired: the same questions, resampled together.
            gains = [reciprocal(row["ranks"]["fused"]) - value for row, value in zip(rows, values, strict=True)]
            low, high = bootstrap(gains)
            cells.append("" if mode == "fused" else f"{sum(gains) / len(gains):+.3f} ({low:+.3f} to {high:+.3f})")
            print(f"| {mode} | {' | '.join(cells)} |")


def main():
    options = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1])
    options.add_argument("--url")
    options.add_argument("--binary")
    options.add_argument("--embedding-model", default=str(ROOT / "models/hearth-embed.gguf"))
    options.add_argument("--half", choices=["all", "tune", "report"], default="all")
    options.add_argument("--out", type=pathlib.Path)
    options = options.parse_args()
    built = [ROOT / "target" / profile / "hearth" for profile in ("release", "debug")]
    binary = options.binary or next((path for path in built if path.exists()), None)
    if not (options.url or binary):
        sys.exit("There is no binary: build one (cargo build --release), or name a running server with --url.")

    parts = [project_documents(), perl_documents()]
    questions = [row for _, rows in parts for row in rows if options.half in ("all", half_of(row[3]))]
    with contextlib.nullcontext(options.url) if options.url else own_server(binary, options.embedding_model) as url:
        ingest(url, {name: text for documents, _ in parts for name, text in documents.items()})
        modes = dict(MODES)
        if not reranks(url):
            print("The server does not rerank: that line is left out.", file=sys.stderr)
            del modes["reranked"]
        asked = [
            {"part": part, "file": file, "heading": heading, "question": question, "half": half_of(question),
             "ranks": {mode: rank(url, fields, file, heading, question) for mode, fields in modes.items()}}
            for part, file, heading, question in questions
        ]
    report(asked, modes)
    if options.out:
        # The questions of the FAQ are other people's text: they are named by their place.
        rows = [row if row["part"] == "project" else {**row, "question": None} for row in asked]
        options.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
