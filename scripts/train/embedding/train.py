#!/usr/bin/env python3
"""Train the model (model.py) to give every text the vector that the teacher gave it (teacher.py).

A batch is made of groups (texts.py), of each a query and a document, so that it is a small search. The loss has three
parts. The first is one minus the cosine between the model's vector and the teacher's. The second compares rankings:
each text of the batch ranks all others by similarity, and the model's ranking, as a distribution, shall be the
teacher's. The third is the search itself: a query shall find its own group's document before the batch's others. Two
thirds of the groups are runs of neighbouring passages, so there are near misses; the rest is from the dictionary.

A run lasts a given number of minutes, so that it ends when the machine is needed; the learning rate is warmed up and
decays to zero along the clock. The seed fixes the start and the order of the texts; how many steps fit is the
machine's doing and is written to the log, and --steps repeats a run of that length exactly.

Every other batch starts at a random position, so that rows that short texts never reach are trained as well.

Run by torchrun, each process computes a batch of its own on one thread, and the gradients are averaged: on a busy
machine that is faster than threads that wait for one another. --weights goes on from a saved model's weights. Texts are
of all lengths, which fragments the C library's heap by gigabytes an hour; jemalloc (LD_PRELOAD) does not.

usage: [torchrun --nproc-per-node 2] train.py --minutes 60 [--data target/train] [--out target/train/embedding/model]
"""

import argparse
import os
import pathlib
import random
import time

import numpy as np
import torch
import torch.distributed
from tokenizers import Tokenizer
from torch.nn import functional

from model import Model, Shape, load
from teacher import read_groups, read_vectors, text_hash

RUN, RUNS, DICTIONARY_ENTRIES = 8, 6, 24
TEMPERATURE = 0.05
PEAK_RATE, TABLE_RATE, WARM_UP = 1e-3, 1.5e-2, 0.02
SEARCH_WEIGHT = 0.2


class Examples:
    """Groups whose texts are tokens and whose vectors are rows of the teacher's; texts without a vector are left out."""

    def __init__(self, folder, tokenizer, longest):
        rows, self.vectors = read_vectors(folder)
        tokenizer.enable_truncation(longest)
        numbers, groups = {}, []
        for group in read_groups(folder):
            for side in ("queries", "documents"):
                known = [text for text in group[side] if text_hash(text) in rows]
                group[side] = [numbers.setdefault(text, len(numbers)) for text in known]
            if group["queries"] and group["documents"]:
                groups.append(group)
        texts = list(numbers)
        self.row = np.array([rows[text_hash(text)] for text in texts])
        self.tokens = [np.array(encoding.ids, np.int16) for encoding in tokenizer.encode_batch_fast(texts)]
        tokenizer.enable_truncation(Shape.positions)
        self.passages, self.dictionary = (
            [group for group in groups if group["kind"] == kind and not group["validation"]] for kind in ("passage", "entry")
        )
        self.validation = {
            kind: {texts[group["queries"][0]]: texts[group["documents"][0]] for group in groups if group["kind"] == kind and group["validation"]}
            for kind in ("passage", "entry")
        }

    def batches(self, seed):
        """For ever: topics, and the texts' numbers, first a query and then a document for each of the topics."""
        chance = random.Random(seed)
        runs, entries = [], []
        while True:
            if len(runs) < RUNS:
                shift = chance.randrange(RUN)
                runs = [range(max(start, 0), min(start + RUN, len(self.passages))) for start in range(-shift, len(self.passages), RUN)]
                chance.shuffle(runs)
            if len(entries) < DICTIONARY_ENTRIES:
                entries = list(range(len(self.dictionary)))
                chance.shuffle(entries)
            groups = [self.passages[index] for _ in range(RUNS) for index in runs.pop()]
            groups += [self.dictionary[entries.pop()] for _ in range(DICTIONARY_ENTRIES)]
            chosen = [chance.choice(group[side]) for side in ("queries", "documents") for group in groups]
            yield [group["topic"].lower() for group in groups], chosen


def loss_of(ours, theirs, topics):
    """The three parts: distance, divergence of the rankings, cross-entropy of the search."""
    distance = (1 - (ours * theirs).sum(1)).mean()
    others = ~torch.eye(len(ours), dtype=torch.bool)
    ranking = [(vectors @ vectors.T / TEMPERATURE)[others].view(len(ours), -1).log_softmax(1) for vectors in (ours, theirs)]
    divergence = functional.kl_div(ranking[0], ranking[1], log_target=True, reduction="batchmean")
    count = len(topics)
    numbers = {topic: number for number, topic in enumerate(topics)}
    number = torch.tensor([numbers[topic] for topic in topics])
    # Another document of the same topic is no wrong answer.
    same = (number[:, None] == number[None, :]) & ~torch.eye(count, dtype=torch.bool)
    scores = (ours[:count] @ ours[count:].T / TEMPERATURE).masked_fill(same, -1e4)
    search = functional.cross_entropy(scores, torch.arange(count))
    return distance, divergence, search


def from_first(value, processes):
    """What the first process says, in all of them: clocks differ."""
    value = torch.tensor(value, dtype=torch.float64)
    if processes > 1:
        torch.distributed.broadcast(value, 0)
    return value.item()


def average_gradients(model, processes):
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if processes > 1:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(part.view_as(gradient) / processes)


def rate(progress, begin):
    """Warm-up from `begin`, then a half cosine to zero; `progress` runs from 0 to 1."""
    return max(0.0, min((progress - begin) / WARM_UP, 0.5 + 0.5 * float(np.cos(np.pi * min(progress, 1.0)))))


def validation(model, tokenizer, kinds):
    """hit@5 of what one would ask, among its own kind."""
    found = []
    for kind, pairs in kinds.items():
        with torch.autocast("cpu", torch.bfloat16):
            queries, documents = model.embed_texts(tokenizer, list(pairs)), model.embed_texts(tokenizer, list(pairs.values()))
        scores = queries @ documents.T
        hits = np.mean((scores > np.diag(scores)[:, None]).sum(1) < 5)
        found.append(f"{kind} {hits:.4f} of {len(pairs)}")
    return f"validation hit@5: {', '.join(found)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("target/train"))
    parser.add_argument("--out", type=pathlib.Path)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float)
    length.add_argument("--steps", type=int)
    parser.add_argument("--layers", type=int, default=Shape.layers)
    parser.add_argument("--feed-forward", type=int, default=Shape.feed_forward)
    parser.add_argument("--weights", type=pathlib.Path, help="the folder of a saved model")
    parser.add_argument("--table-rate", type=float, default=TABLE_RATE)
    parser.add_argument("--rate", type=float, default=PEAK_RATE)
    parser.add_argument("--bag-of-words", type=float, default=0.1, help="share of the run without the layers")
    parser.add_argument("--longest", type=int, default=200, help="tokens of a text that are read")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    process, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1:
        torch.distributed.init_process_group("gloo")

    folder = arguments.data / "embedding"
    out = arguments.out or folder / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    examples = Examples(folder, tokenizer, arguments.longest)
    vectors = torch.from_numpy(examples.vectors)
    shape = Shape(vocabulary=tokenizer.get_vocab_size(), layers=arguments.layers, feed_forward=arguments.feed_forward)
    model = load(arguments.weights)[0].train() if arguments.weights else Model(shape)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(examples.passages)} passages, {len(examples.dictionary)} entries, {sum(map(len, examples.tokens)) / 1e6:.2f} M tokens; {parameters / 1e6:.2f} M parameters, {shape}", flush=True)

    table = [model.token_embd.weight]
    matrices = [parameter for parameter in model.blk.parameters() if parameter.ndim == 2]
    rest = [parameter for parameter in model.parameters() if not any(parameter is other for other in table + matrices)]
    optimizer = torch.optim.AdamW(
        [
            dict(params=table, peak=arguments.table_rate, begin=0.0, weight_decay=0.0),
            dict(params=matrices, peak=arguments.rate, begin=arguments.bag_of_words, weight_decay=0.01),
            dict(params=rest, peak=arguments.rate, begin=0.0, weight_decay=0.0),
        ],
        lr=0.0,
        betas=(0.9, 0.98),
    )

    chance = random.Random(arguments.seed)
    start = saved = time.monotonic()
    seen, means = 0, np.zeros(3)
    for step, (topics, chosen) in enumerate(examples.batches(arguments.seed * 1000 + process)):
        now = time.monotonic()
        progress = (now - start) / (60 * arguments.minutes) if arguments.minutes else step / arguments.steps
        progress = from_first(progress, processes)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate(progress, group["begin"])
        model.depth = 0 if progress < arguments.bag_of_words else shape.layers
        with torch.autocast("cpu", torch.bfloat16):
            ours = model.embed([examples.tokens[index] for index in chosen], chance.randrange(shape.positions) if step % 2 else 0)
        parts = loss_of(ours, vectors[examples.row[chosen]].float(), topics)
        optimizer.zero_grad()
        (parts[0] + parts[1] + SEARCH_WEIGHT * parts[2]).backward()
        average_gradients(model, processes)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        seen += processes * sum(len(examples.tokens[index]) for index in chosen)
        if process > 0:
            continue
        means += max(0.02, 1 / (step + 1)) * (np.array([part.item() for part in parts]) - means)
        if step % 50 == 0:
            print(f"step {step} progress {progress:.3f} cosine {1 - means[0]:.4f} divergence {means[1]:.4f} search {means[2]:.4f} {seen / (time.monotonic() - start):.0f} tokens/s", flush=True)
        if now - saved > 240:
            model.save(tokenizer, out)
            print(f"saved; {validation(model, tokenizer, examples.validation)}", flush=True)
            saved = now
    if process > 0:
        return
    model.save(tokenizer, out)
    print(f"{step} steps, {seen / 1e6:.2f} M tokens: cosine {1 - means[0]:.4f}, divergence {means[1]:.4f}, search {means[2]:.4f}")
    print(validation(model, tokenizer, examples.validation))


if __name__ == "__main__":
    main()
