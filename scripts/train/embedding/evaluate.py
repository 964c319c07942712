#!/usr/bin/env python3
"""Measure embedding models as a search over documents that no training saw, through Hearth itself.

The questions are the headings of held-out passages, the pool all held-out passages, the right answer the passage under
the heading. A heading that occurs twice in the corpus is no question that has one answer, and is left out. Reported
are hit@1, hit@5 and the mean reciprocal rank of the first ten, beside BM25 (k1 1.2, b 0.75) over the same pool.

There are three pools: held-out documents of the corpus, which is the figure that counts; held-out documents of the
other fields (general.py); and the field that was held out as a whole. Markdown files can be a fourth (--documents),
such as the project's own documentation: headings, and what stands under them without code. Two models' vectors are
compared as well: a student should lie near its teacher.

With --check FOLDER, the vectors of the first model are compared with those of the training code for the model saved
there: they must differ by the quantization alone.

usage: evaluate.py MODEL... [--hearth target/release/hearth] [--data target/train] [--check FOLDER]
                             [--documents FILE.md...]
"""

import argparse
import collections
import json
import pathlib
import re
import subprocess

import numpy as np

from general import HELD_OUT_WHOLE

WORDS_MIN = 15


def held_out(path, belongs=lambda passage: True):
    """Passages, and (heading, index of its passage)."""
    with open(path, encoding="utf-8") as lines:
        everything = [json.loads(line) for line in lines]
    occurrences = collections.Counter(passage["heading"].lower() for passage in everything)
    passages = [passage for passage in everything if passage["split"] == "heldout" and belongs(passage)]
    pairs = [(p["heading"], index) for index, p in enumerate(passages) if occurrences[p["heading"].lower()] == 1]
    return [passage["text"] for passage in passages], pairs


def pools(data, documents):
    yield "held-out documents", held_out(data / "passages.jsonl")
    yield "other fields", held_out(data / "general.jsonl", lambda passage: passage["source"] != HELD_OUT_WHOLE)
    yield "a field not met", held_out(data / "general.jsonl", lambda passage: passage["source"] == HELD_OUT_WHOLE)
    if documents:
        yield "Markdown files", sections(documents)


def sections(paths):
    """The same of Markdown files."""
    passages = []
    for path in paths:
        prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        for section in re.split(r"^#+ ", prose, flags=re.MULTILINE)[1:]:
            heading, _, text = section.partition("\n")
            if len(text.split()) >= WORDS_MIN:
                passages.append((heading.strip("` "), text))
    occurrences = collections.Counter(heading.lower() for heading, _ in passages)
    pairs = [(heading, index) for index, (heading, _) in enumerate(passages) if occurrences[heading.lower()] == 1]
    return [text for _, text in passages], pairs


def embed(hearth, model, texts, side):
    """Vectors `[texts, dimensions]`; `side` is --query or --passage, for models that tell them apart."""
    lines = "".join(" ".join(text.split()) + "\n" for text in texts)
    command = [hearth, "embed", "--embedding-model", model, side, "--truncate"]
    answer = subprocess.run(command, input=lines, stdout=subprocess.PIPE, text=True, check=True).stdout
    return np.array([json.loads(line)["embedding"] for line in answer.splitlines()], np.float32)


def bm25(queries, documents, k1=1.2, b=0.75):
    """Scores `[queries, documents]`."""
    words = [collections.Counter(re.findall(r"\w+", text.lower())) for text in documents]
    lengths = np.array([sum(counts.values()) for counts in words])
    frequency = collections.Counter(word for counts in words for word in counts)
    scores = np.zeros((len(queries), len(documents)), np.float32)
    for row, query in enumerate(queries):
        for word in set(re.findall(r"\w+", query.lower())) & frequency.keys():
            count = np.array([counts[word] for counts in words])
            rarity = np.log(1 + (len(documents) - frequency[word] + 0.5) / (frequency[word] + 0.5))
            scores[row] += rarity * count * (k1 + 1) / (count + k1 * (1 - b + b * lengths / lengths.mean()))
    return scores


def report(name, scores, answers):
    own = scores[np.arange(len(answers)), answers]
    # A tie counts against the answer: a score that says nothing finds nothing.
    place = (scores >= own[:, None]).sum(1)
    reciprocal = np.where(place <= 10, 1 / place, 0)
    print(f"{name}: hit@1 {np.mean(place <= 1):.3f}  hit@5 {np.mean(place <= 5):.3f}  MRR@10 {reciprocal.mean():.3f}", flush=True)


def check(hearth, model, folder, texts):
    import model as training

    network, tokenizer = training.load(folder)
    cosine = (embed(hearth, model, texts, "--passage") * network.embed_texts(tokenizer, texts)).sum(1)
    print(f"{len(texts)} texts, cosine of Hearth's vectors to the training code's: lowest {cosine.min():.5f}, mean {cosine.mean():.5f}")


def compare(hearth, models, name, passages, pairs):
    print(f"{name}: {len(pairs)} headings, {len(passages)} passages")
    headings, answers = [heading for heading, _ in pairs], np.array([index for _, index in pairs])
    report("BM25", bm25(headings, passages), answers)
    vectors = []
    for model in models:
        queries, documents = embed(hearth, model, headings, "--query"), embed(hearth, model, passages, "--passage")
        report(model, queries @ documents.T, answers)
        vectors.append((queries, documents))
    if len(models) == 2:
        agreement = [(first * second).sum(1).mean() for first, second in zip(*vectors)]
        print(f"mean cosine between the two models' vectors: headings {agreement[0]:.3f}, passages {agreement[1]:.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a GGUF file or a model directory")
    parser.add_argument("--hearth", default="target/release/hearth")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("target/train"))
    parser.add_argument("--documents", type=pathlib.Path, nargs="*", default=[], metavar="FILE.md")
    parser.add_argument("--check", metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.check:
        passages, pairs = held_out(arguments.data / "passages.jsonl")
        texts = [heading for heading, _ in pairs[:10]] + passages[:: max(1, len(passages) // 10)][:10]
        check(arguments.hearth, arguments.models[0], arguments.check, texts)
    for name, (passages, pairs) in pools(arguments.data, arguments.documents):
        compare(arguments.hearth, arguments.models, name, passages, pairs)


if __name__ == "__main__":
    main()
