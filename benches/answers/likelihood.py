#!/usr/bin/env python3
"""Compares ways to choose the sentence that answers: the embedding model's cosine, and the likelihoods of a chat model.

For each answerable question the nine sentences of the five nearest passages with the best cosine (each embedded below its
document's title) are put in order
- by cosine,
- by the mean log-probability of the sentence after the question ("answer"),
- by that less the sentence's own without a question ("gain"),
- by the mean log-probability of the question after the sentence ("question").
A choice is right if the first sentence has the gold string and is from the gold document. Questions are those of
scripts/bench_answers.py: the half "tune" of SQuAD, and this project's.

usage: likelihood.py --chat-model PATH [--squad FILE] [--binary PATH] [--embedding-model PATH] [--out FILE]
"""

import argparse
import json
import pathlib
import re
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import bench_answers  # noqa: E402
from bench_server import server  # noqa: E402

BEST = 9


def sentences(text):
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if len(part.split()) > 3]


def embed(url, texts):
    answer = bench_answers.call(url + "/v1/embeddings", {"model": EMBEDDER, "input": texts})
    return [row["embedding"] for row in answer["data"]]


def mean_logprob(url, before, text):
    """Of the tokens of `text` after `before`."""
    body = {"model": CHAT, "prompt": before + text, "max_tokens": 1, "echo": True, "logprobs": 0, "temperature": 0}
    found = bench_answers.call(url + "/v1/completions", body)["choices"][0]["logprobs"]
    pairs = zip(found["text_offset"], found["token_logprobs"])
    of_text = [value for at, value in pairs if len(before) <= at + 1 and at < len(before + text) and value is not None]
    return sum(of_text) / len(of_text)


def candidates(url, row):
    body = {"query": row["question"], "collections": [row["set"]], "top_k": 5, "min_similarity": 0.0}
    passages = bench_answers.call(url + "/api/v1/search", body)["passages"]
    found = [(passage["filename"], passage["title"], text) for passage in passages for text in sentences(passage["text"])]
    question, *vectors = embed(url, [row["question"], *(f"{title}\n{text}" for _, title, text in found)])
    scored = [(sum(a * b for a, b in zip(question, vector)), *each) for vector, each in zip(vectors, found)]
    return sorted(scored, reverse=True)[:BEST]


def measure(url, row):
    question, found = row["question"], candidates(url, row)
    scores = {"cosine": [], "answer": [], "gain": [], "question": []}
    for cosine, _, title, text in found:
        answer = mean_logprob(url, f"Question: {question}\nAnswer:", " " + text)
        scores["cosine"].append(cosine)
        scores["answer"].append(answer)
        scores["gain"].append(answer - mean_logprob(url, "Answer:", " " + text))
        scores["question"].append(mean_logprob(url, f"{title}: {text}\nQuestion:", " " + question))
    words = bench_answers.words
    right = [
        file == row["file"] and any(words(gold) in words(text) for gold in row["gold"]) for _, file, _, text in found
    ]
    chosen = {name: right[max(range(len(found)), key=values.__getitem__)] for name, values in scores.items()}
    return {"set": row["set"], "among": any(right), **chosen}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--chat-model", required=True)
parser.add_argument("--squad", type=pathlib.Path)
parser.add_argument("--binary", default=ROOT / "target/release/hearth")
parser.add_argument("--embedding-model", default=ROOT / "models/all-MiniLM-L6-v2")
parser.add_argument("--out")
options = parser.parse_args()

rows = []
with tempfile.TemporaryDirectory() as folder:
    models = ["-m", options.chat_model, "--embedding-model", options.embedding_model]
    with server(options.binary, folder, *models) as url:
        listed = bench_answers.call(url + "/v1/models")["data"]
        CHAT = next(model["id"] for model in listed if model["capabilities"]["chat"])
        EMBEDDER = next(model["id"] for model in listed if model["capabilities"]["embeddings"])
        for name, (documents, questions) in (
            ("squad", bench_answers.squad(options.squad)), ("project", bench_answers.project())
        ):
            bench_answers.ingest(url, name, documents)
            asked = [
                row for row in questions if row["kind"] == "answerable" and (name == "project" or row["half"] == "tune")
            ]
            of_set = [measure(url, row) for row in asked]
            rows += of_set
            shares = {key: sum(row[key] for row in of_set) / len(of_set) for key in list(of_set[0])[1:]}
            print(name, len(of_set), {key: f"{100 * share:.0f} %" for key, share in shares.items()}, flush=True)
if options.out:
    pathlib.Path(options.out).write_text("".join(json.dumps(row) + "\n" for row in rows))
