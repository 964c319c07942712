#!/usr/bin/env python3
"""Let the teacher, all-MiniLM-L6-v2, say what every training text means: one normalized vector each.

This is the only thing the student gets from it. A vector is stored with the hash of its text, in shards, so that an
interrupted run goes on where it stopped and a corpus that has grown costs only what is new. Texts of like length run
together, shortest first, so that almost nothing is padding. bfloat16 is several times faster than float32 where the
processor has instructions for it, and moves a vector by less than a hundredth of its length. Shards are computed by
processes of one thread each, which a busy machine slows down less than threads that wait for one another.

usage: teacher.py TEACHER_DIRECTORY [--data target/train]        reads embedding/groups.jsonl, writes embedding/vectors/*.npz
"""

import argparse
import concurrent.futures
import hashlib
import json
import pathlib
import time

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

SHARD, TOKENS_AT_ONCE, LONGEST = 4096, 4096, 256


def text_hash(text):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def read_groups(folder):
    with open(folder / "groups.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_vectors(folder):
    """Hash of a text to its row, and the rows `[texts, 384]` as 16-bit floats."""
    shards = [np.load(path) for path in sorted((folder / "vectors").glob("shard-*.npz"))]
    if not shards:
        return {}, np.empty((0, 384), np.float16)
    hashes = np.concatenate([shard["hashes"] for shard in shards])
    return {int(value): row for row, value in enumerate(hashes)}, np.concatenate([shard["vectors"] for shard in shards])


class Teacher:
    """Each process loads its own, once."""

    def __init__(self, directory):
        torch.set_num_threads(1)
        self.tokenizer, self.model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()

    @torch.inference_mode()
    def embed(self, texts):
        """The mean of the last states, normalized, as sentence-transformers computes it for this model."""
        encoded = self.tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
        vectors = np.empty((len(texts), 384), np.float32)
        start = 0
        while start < len(order):
            end = start + 1
            while end < len(order) and len(encoded[order[end]]) * (end + 1 - start) <= TOKENS_AT_ONCE:
                end += 1
            batch = self.tokenizer.pad({"input_ids": [encoded[index] for index in order[start:end]]}, return_tensors="pt")
            with torch.autocast("cpu", torch.bfloat16):
                states = self.model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1)
            means = (states * mask).sum(1) / mask.sum(1)
            vectors[order[start:end]] = torch.nn.functional.normalize(means, dim=1).numpy()
            start = end
        return vectors.astype(np.float16)


def start_process(directory):
    global teacher
    teacher = Teacher(directory)


def write_shard(folder, number, texts):
    hashes = np.array([text_hash(text) for text in texts], np.uint64)
    unfinished = folder / f"unfinished-{number:04}.npz"
    np.savez(unfinished, hashes=hashes, vectors=teacher.embed(texts))
    unfinished.rename(folder / f"shard-{number:04}.npz")
    return len(texts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", help="the directory of sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("target/train"))
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    folder = arguments.data / "embedding"
    (folder / "vectors").mkdir(parents=True, exist_ok=True)
    known, _ = read_vectors(folder)
    wanted = dict.fromkeys(text for group in read_groups(folder) for text in group["queries"] + group["documents"])
    texts = sorted((text for text in wanted if text_hash(text) not in known), key=len)
    print(f"{len(wanted)} texts, {len(texts)} of them new", flush=True)

    start = time.monotonic()
    first_shard = 1 + max((int(path.stem[6:]) for path in (folder / "vectors").glob("shard-*.npz")), default=-1)
    parts = [texts[first : first + SHARD] for first in range(0, len(texts), SHARD)]
    with concurrent.futures.ProcessPoolExecutor(arguments.processes, initializer=start_process, initargs=(arguments.teacher,)) as pool:
        shards = [pool.submit(write_shard, folder / "vectors", first_shard + index, part) for index, part in enumerate(parts)]
        done = 0
        for shard in concurrent.futures.as_completed(shards):
            done += shard.result()
            print(f"{done} of {len(texts)} texts, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
