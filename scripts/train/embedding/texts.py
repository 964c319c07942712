#!/usr/bin/env python3
"""Make the texts on which the embedding model learns, in groups: what one might ask, and what answers it.

Two sources. The training passages (corpus.py, general.py) are what people index: each gives its heading, a question
made from it and a few of its words as someone would type them into a search box; and its opening, a sentence or two
from anywhere in it, and every other passage whole, for long texts are what costs time. WordNet, a dictionary that
Debian packages, adds the general words of English: each entry's words, and its definition.

A heading that many passages share ("Examples") asks nothing, so it is written after the page's title. Groups keep the
order of the passages, so neighbours are about similar things, which makes them worth telling apart. One document in
forty is left to validation: the choice of settings looks at those, never at the held-out documents.

usage: texts.py [--data target/train]        reads passages.jsonl and general.jsonl, writes embedding/groups.jsonl
needs: apt-get and dpkg-deb
"""

import argparse
import collections
import hashlib
import json
import pathlib
import random
import re
import subprocess

WHOLE_CHARACTERS, OPENING_CHARACTERS, PIECE_CHARACTERS = 1400, 300, 250
SHARED_HEADING = 3
VALIDATION = 40
QUESTIONS = ["What is {}?", "How does {} work?", "How do I use {}?", "{}: how?", "Where can I read about {}?", "Explain {}."]
ACTION_QUESTIONS = ["How do I {}?", "How can one {}?", "What is the way to {}?"]
STOP_WORDS = set(
    "the and for that this with are can not you from but will has have was its which when then than all any may one "
    "use used also such into only each other been more some there they their your what how does must same like these "
    "those using were should would could between where while".split()
)


def read_passages(data):
    everything = []
    for name in ("passages.jsonl", "general.jsonl"):
        with open(data / name, encoding="utf-8") as lines:
            everything += [passage for passage in map(json.loads, lines) if passage["split"] == "train"]
    return everything


def one_in(count, name):
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % count == 0


def read_dictionary(folder):
    """(words, definition with its examples) of WordNet's entries; the format is wndb(5WN)."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("wordnet-base_*.deb")):
        subprocess.run(["apt-get", "download", "-qq", "wordnet-base"], cwd=folder, check=True)
    subprocess.run(["dpkg-deb", "-x", next(folder.glob("wordnet-base_*.deb")), folder / "wordnet-base"], check=True)
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / "wordnet-base/usr/share/wordnet" / f"data.{part}").read_text().splitlines():
            entry, bar, definition = line.partition(" | ")
            if line.startswith(" ") or not bar:
                continue
            fields = entry.split()
            words = [re.sub(r"\(.*\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
            yield words, definition.strip()


def sentences(text):
    """A rough split, good enough to cut where a reader would pause."""
    return [part for part in re.split(r"(?<=[.!?:])\s+(?=[A-Z`'\"(])|\n\s*\n", text) if part.strip()]


def piece(text, random_numbers):
    """One or two sentences from anywhere in the text."""
    parts = sentences(text)
    start = random_numbers.randrange(len(parts))
    return " ".join(parts[start : start + random_numbers.randint(1, 2)])[:PIECE_CHARACTERS]


def question(heading, random_numbers):
    """`Creating a table` becomes `How do I create a table?`, near enough; other headings get a general question."""
    topic = heading[0].lower() + heading[1:] if heading[1:2].islower() else heading
    first, _, others = topic.partition(" ")
    if first.endswith("ing") and len(first) > 5 and others:
        stem = first[:-3]
        if stem[-1] == stem[-2] and stem[-1] not in "ls":
            stem = stem[:-1]
        return random_numbers.choice(ACTION_QUESTIONS).format(f"{stem} {others}")
    return random_numbers.choice(QUESTIONS).format(topic)


def key_words(text, random_numbers):
    """Two to five of the text's words, in their order."""
    words = [word for word in re.findall(r"[A-Za-z][\w-]{2,}", text) if word.lower() not in STOP_WORDS]
    count = min(random_numbers.randint(2, 5), len(words))
    start = random_numbers.randrange(max(1, len(words) - 12))
    nearby = range(start, min(start + 12, len(words)))
    return " ".join(words[index] for index in sorted(random_numbers.sample(nearby, min(count, len(nearby))))).lower()


def passage_group(passage, shared, random_numbers):
    heading, text = passage["heading"], passage["text"]
    if shared[heading] >= SHARED_HEADING and passage["title"] != heading:
        heading = f"{passage['title']}: {heading}"
    return dict(
        kind="passage",
        topic=heading,
        queries=[heading, question(heading, random_numbers), key_words(text, random_numbers)],
        documents=[text[:WHOLE_CHARACTERS]] * one_in(2, text) + [text[:OPENING_CHARACTERS], piece(text, random_numbers)],
        validation=one_in(VALIDATION, f"validation {passage['document']}"),
    )


def dictionary_group(words, definition):
    return dict(
        kind="entry",
        topic=words[0],
        queries=[words[0], ", ".join(words[:4])],
        documents=[definition[:OPENING_CHARACTERS], re.split(r'; "', definition)[0][:OPENING_CHARACTERS]],
        validation=one_in(VALIDATION, f"validation {words[0]}"),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("target/train"))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    random_numbers = random.Random(arguments.seed)
    passages = read_passages(arguments.data)
    shared = collections.Counter(passage["heading"] for passage in passages)
    groups = [passage_group(passage, shared, random_numbers) for passage in passages if passage["heading"].strip()]
    from_passages = len(groups)
    groups += [dictionary_group(words, definition) for words, definition in read_dictionary(arguments.data / "debs")]
    for group in groups:
        for side in ("queries", "documents"):
            group[side] = list(dict.fromkeys(text.strip() for text in group[side] if text.strip()))

    groups = [group for group in groups if group["queries"] and group["documents"]]
    folder = arguments.data / "embedding"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "groups.jsonl", "w", encoding="utf-8") as out:
        out.writelines(json.dumps(group, ensure_ascii=False) + "\n" for group in groups)
    texts = {text for group in groups for text in group["queries"] + group["documents"]}
    print(f"{from_passages} passages and {len(groups) - from_passages} dictionary entries: {len(texts)} texts, {sum(map(len, texts)) / 1e6:.1f} M characters")


if __name__ == "__main__":
    main()
