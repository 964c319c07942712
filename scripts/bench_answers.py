#!/usr/bin/env python3
"""Measures answers from documents: how many are right, cited, wrong or refused, for each chat model and way of grounding.

Two sets, each in a collection of its own:
- "squad": 300 questions of SQuAD 2.0 (CC BY-SA 4.0), in the half of its development set that the course CS224N of Stanford
  publishes. The paragraphs of twelve articles are the documents, an article a file. 150 questions are answered in them; 75 are
  "near": asked about a paragraph that only seems to answer them; 75 are "elsewhere": about articles that are not there. Which
  questions, and which of them are for choosing constants ("tune") and which for figures ("report"), their hashes say.
- "project": this project's own pages and benches/answers/questions.tsv, 40 questions with an answer and 20 without.

An answer is right if one of the question's gold strings is in it and it cites the document that has it. It is a refusal if it
is the fixed sentence. It loops if six words come three times.

usage: bench_answers.py [--squad FILE] [--binary PATH] [--embedding-model PATH] [--chat-model PATH]... [--grounding NAME]...
                        [--half tune|report|all] [--set squad|project]... [--out FILE]
       Without --squad it fetches the file. Without --chat-model it asks without one, which leaves `extract` alone. Prints a
       table; each answer's verdict goes to FILE as JSON.
"""

import argparse
import hashlib
import json
import pathlib
import re
import statistics
import sys
import tempfile
import time
import urllib.request
import uuid

from bench_server import server

ROOT = pathlib.Path(__file__).resolve().parent.parent
SQUAD_URL = "https://raw.githubusercontent.com/chrischute/squad/85623adeb9e6639f145081fea9cae2d8f3a26379/data/dev-v2.0.json"
SQUAD_SHA256 = "e67e5969b6dc6c1642154740806b79263b77fc048c7c11ee60d534eb48ef81e8"
# Not the README: it shows answers.
PAGES = ["ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "models/*.md"]
ARTICLES_INSIDE, ANSWERABLE, NEAR, ELSEWHERE = 12, 150, 75, 75
REFUSAL = "The knowledge base holds nothing on this question."
MAX_TOKENS, LOOP_WORDS = 96, 6


def hashed(text):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def squad(path):
    """(documents by name, questions) of SQuAD."""
    if path is None:
        path = ROOT / "target/answers/squad-dev-v2.0.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            urllib.request.urlretrieve(SQUAD_URL, path)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SQUAD_SHA256:
        sys.exit(f"{path} does not have the sha256 {SQUAD_SHA256}")
    articles = sorted(json.loads(content)["data"], key=lambda article: hashed(article["title"]))
    inside, outside = articles[:ARTICLES_INSIDE], articles[ARTICLES_INSIDE:]
    documents, found = {}, []
    for article in inside:
        title = article["title"]
        paragraphs = "\n\n".join(paragraph["context"] for paragraph in article["paragraphs"])
        documents[title + ".md"] = f"# {title.replace('_', ' ')}\n\n{paragraphs}"
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                kind = "near" if question["is_impossible"] else "answerable"
                if article in outside:
                    kind = None if question["is_impossible"] else "elsewhere"
                gold = sorted({answer["text"] for answer in question["answers"]}) if kind == "answerable" else []
                key = hashed(question["question"] + paragraph["context"][:50])
                found.append((kind, key, article["title"] + ".md", question["question"], gold))
    chosen = []
    for kind, count in (("answerable", ANSWERABLE), ("near", NEAR), ("elsewhere", ELSEWHERE)):
        chosen += sorted((row for row in found if row[0] == kind), key=lambda row: row[1])[:count]
    questions = [
        {"set": "squad", "half": "report" if place % 2 else "tune", "kind": kind, "file": file, "question": question, "gold": gold}
        for place, (kind, _, file, question, gold) in enumerate(chosen)
    ]
    return documents, questions


def project():
    pages = [page for pattern in PAGES for page in sorted(ROOT.glob(pattern))]
    documents = {str(page.relative_to(ROOT)).replace("/", "-"): page.read_text() for page in pages}
    questions = []
    for line in (ROOT / "benches/answers/questions.tsv").read_text().splitlines()[1:]:
        page, gold, question = line.split("\t")
        if page and not any(words(text) in words((ROOT / page).read_text()) for text in gold.split(" / ")):
            sys.exit(f"benches/answers/questions.tsv: {page} does not have {gold!r}; correct the question.")
        questions.append({
            "set": "project", "half": "report", "kind": "answerable" if page else "elsewhere",
            "file": page.replace("/", "-"), "question": question, "gold": gold.split(" / ") if page else [],
        })
    return documents, questions


def words(text):
    return " " + re.sub(r"\W+", " ", text.lower()).strip() + " "


def call(url, body=None, kind="application/json"):
    if body is not None and kind == "application/json":
        body = json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, {"content-type": kind}), timeout=600) as answer:
        return json.load(answer)


def ingest(url, collection, documents):
    for name, text in documents.items():
        boundary = uuid.uuid4().hex
        fields = [('name="collection"', collection), (f'name="file"; filename="{name}"', text)]
        parts = [f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n{body}\r\n" for head, body in fields]
        body = "".join([*parts, f"--{boundary}--\r\n"]).encode()
        call(url + "/api/v1/documents/upload", body, f"multipart/form-data; boundary={boundary}")
    call(url + "/api/v1/search", {"query": "documents", "collections": [collection], "wait": True})


def loops(answer):
    said = words(answer).split()
    runs = [tuple(said[at : at + LOOP_WORDS]) for at in range(len(said) - LOOP_WORDS + 1)]
    return any(runs.count(run) >= 3 for run in set(runs))


def ask(url, row, grounding):
    body = {"question": row["question"], "collections": [row["set"]], "max_tokens": MAX_TOKENS, "timeout": 120}
    began = time.perf_counter()
    answer = call(url + "/ask", {**body, "grounding": grounding})
    seconds = time.perf_counter() - began
    text, sources = answer["answer"], answer["sources"]
    cited = {sources[int(mark) - 1]["filename"] for mark in re.findall(r"\[(\d+)\]", text) if 0 < int(mark) <= len(sources)}
    return {
        "refused": text.strip() == REFUSAL,
        "has_gold": any(words(gold) in words(text) for gold in row["gold"]),
        "cited": row["file"] in cited,
        "loops": loops(text),
        "unsupported": len(answer.get("unsupported") or []),
        "grounding": answer["grounding"],
        "seconds": round(seconds, 3),
    }


def percent(rows, test):
    return f"{100 * sum(map(test, rows)) / len(rows):.0f} %" if rows else ""


def line(name, rows):
    answerable = [row for row in rows if row["kind"] == "answerable"]
    near, elsewhere = ([row for row in rows if row["kind"] == kind] for kind in ("near", "elsewhere"))
    cells = [
        name,
        percent(answerable, lambda row: row["has_gold"] and row["cited"]),
        percent(answerable, lambda row: row["has_gold"]),
        percent(answerable, lambda row: row["cited"]),
        percent(answerable, lambda row: not row["refused"] and not row["has_gold"]),
        percent(answerable, lambda row: row["refused"]),
        percent(elsewhere, lambda row: row["refused"]),
        percent(near, lambda row: row["refused"]),
        str(sum(row["loops"] for row in rows)),
        f"{statistics.median(row['seconds'] for row in rows):.2f}",
        f"{sorted(row['seconds'] for row in rows)[int(0.95 * len(rows))]:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main():
    options = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1])
    options.add_argument("--squad", type=pathlib.Path)
    options.add_argument("--binary")
    options.add_argument("--embedding-model", default=str(ROOT / "models/all-MiniLM-L6-v2"))
    options.add_argument("--chat-model", action="append", default=[])
    options.add_argument("--grounding", action="append", default=[])
    options.add_argument("--half", choices=["tune", "report", "all"], default="report")
    options.add_argument("--set", action="append", default=[], dest="sets", choices=["squad", "project"])
    options.add_argument("--out", type=pathlib.Path)
    options = options.parse_args()
    built = [ROOT / "target" / profile / "hearth" for profile in ("release", "debug")]
    binary = options.binary or next((path for path in built if path.exists()), None)
    if not binary:
        sys.exit("There is no binary: build one (cargo build --release), or name it with --binary.")

    sets = {}
    if "squad" in (options.sets or ["squad"]):
        sets["squad"] = squad(options.squad)
    if "project" in (options.sets or ["project"]):
        sets["project"] = project()
    questions = [row for _, rows in sets.values() for row in rows if options.half in ("all", row["half"])]
    asked = []
    with tempfile.TemporaryDirectory(prefix="hearth-answers-") as folder:
        for chat_model in options.chat_model or [None]:
            arguments = ["--models-dir", folder + "/models", "--embedding-model", options.embedding_model]
            with server(binary, folder, *arguments, *(["-m", chat_model] if chat_model else [])) as url:
                if not asked:
                    for name, (documents, _) in sets.items():
                        ingest(url, name, documents)
                for grounding in options.grounding or (["extract", "quote", "free"] if chat_model else ["extract"]):
                    name = f"{pathlib.Path(chat_model).stem if chat_model else 'no chat model'}, {grounding}"
                    for row in questions:
                        asked.append({"run": name, **row, **ask(url, row, grounding)})
                    print(name, "done", file=sys.stderr)

    for name in sets:
        rows = [row for row in asked if row["set"] == name]
        count = {kind: sum(row["kind"] == kind and row["run"] == rows[0]["run"] for row in rows) for kind in ("answerable", "elsewhere", "near")}
        print(f"\n{name}: {count['answerable']} answerable, {count['elsewhere']} elsewhere, {count['near']} near\n")
        print("| | right | gold in it | cited | wrong | refused wrongly | elsewhere refused | near refused | loops | median s | p95 s |")
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        for run in dict.fromkeys(row["run"] for row in rows):
            print(line(run, [row for row in rows if row["run"] == run]))
    if options.out:
        # SQuAD's questions are other people's text: they are named by their place.
        rows = [{key: value for key, value in row.items() if row["set"] == "project" or key not in ("question", "gold")} for row in asked]
        options.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
