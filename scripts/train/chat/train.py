"""Train the chat model on the CPU, for a number of minutes or of steps.

Several processes of one thread each compute gradients on samples of their own and average them every step: beside
other work on a machine that is faster than threads that wait for each other. The learning rate rises, stays, and
falls to zero at the end of the given time. A checkpoint is written every few minutes and at the end.

usage: train.py [--data target/train] [--minutes 80 | --steps N] [--workers 3] [--seed 1] [--from CHECKPOINT]
"""

import argparse
import dataclasses
import os
import pathlib
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer

from dialogues import Source
from model import Config, Model
from muon import Muon

BATCH_TOKENS = 2048, 4096  # of one process, at the beginning and at the end: many small steps first, then sure ones
COPIES_BELOW = 2.0  # loss on repeated tokens
WARM_UP, DECAY_FROM = 0.01, 0.3


def batches(source, progress, seed):
    """Batches of samples of like length: (ids, weights) [rows, length]. `progress()` is asked for every pool."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        samples = sorted((source.sample(progress()) for _ in range(100)), key=lambda s: len(s[0]))
        groups, group = [], []
        most = BATCH_TOKENS[0] + progress() * (BATCH_TOKENS[1] - BATCH_TOKENS[0])
        for sample in samples:
            if len(sample[0]) > source.longest:
                continue
            if group and len(sample[0]) * (len(group) + 1) > most:
                groups.append(group)
                group = []
            group.append(sample)
        for index in torch.randperm(len(groups), generator=generator).tolist():
            longest = max(len(ids) for ids, _ in groups[index])
            ids = torch.zeros(len(groups[index]), longest, dtype=torch.long)
            weights = torch.zeros(len(groups[index]), longest)
            for row, (sample, weight) in enumerate(groups[index]):
                ids[row, : len(sample)] = torch.tensor(sample)
                weights[row, : len(sample)] = torch.tensor(weight)
            yield ids, weights


def rate(progress):
    """Share of the full learning rate."""
    return min(1.0, progress / WARM_UP + 0.02, max(0.0, (1 - progress) / (1 - DECAY_FROM)))


@torch.no_grad()
def answers_right(ids, target_positions, wrong, assistant, weights):
    """(share of answers whose every token is the likeliest, share whose first token is)"""
    answer = (ids == assistant).flatten().cumsum(0)[target_positions]
    full = weights == 1.0
    missed = torch.zeros(int(answer.max()) + 1).scatter_reduce(0, answer[full], wrong[full].float(), "amax")
    first = (ids.flatten()[target_positions] == assistant) & full
    seen = answer[first]
    return (
        ((1 - missed[seen]).mean().item(), (1 - wrong[first].float()).mean().item())
        if len(seen)
        else (float("nan"),) * 2
    )


def work(rank, options):
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(options.port))
    dist.init_process_group("gloo", rank=rank, world_size=options.workers)
    folder = options.data / "chat"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assistant = tokenizer.token_to_id("<|assistant|>")
    boundaries = [i for i in map(tokenizer.token_to_id, (".", "\u010a", "\u010a\u010a")) if i is not None]
    model = Model(Config(vocabulary=tokenizer.get_vocab_size()), boundaries)
    if options.checkpoint:
        model.load_state_dict(torch.load(options.checkpoint)["model"])
    source = Source(options.data, tokenizer, options.seed * 1000 + rank)
    source.longest = model.config.context_length
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and not name.startswith("embedding")]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or name.startswith("embedding")]
    parameters = list(model.parameters())
    # one buffer for what the processes share: gradients, then how far the training is and whether the model copies
    gradients = torch.zeros(sum(p.numel() for p in parameters) + 2)
    offset = 0
    for p in matrices + others:
        p.grad = gradients[offset : offset + p.numel()].view_as(p)
        offset += p.numel()
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)
    if rank == 0:
        print(f"{sum(p.numel() for p in parameters)} parameters, {len(source.passages)} passages", flush=True)

    start, saved, step, tokens, progress = time.time(), time.time(), 0, 0, 0.0
    stream = batches(
        source, lambda: max(progress, options.curriculum) if source.copies else 0.05, options.seed * 1000 + rank
    )
    shown = dict(loss=0.0, answer=0.0, right=0.0, first=0.0, repeat=0.0)
    while progress < 1:
        ids, weights = next(stream)
        context_weight = 0.5 - 0.4 * progress
        draw = torch.rand(weights.shape)
        weights = torch.where(weights < 0, (draw < 0.25) * context_weight, weights)[:, 1:]
        inputs, targets = ids[:, :-1], ids[:, 1:].flatten()
        weights = weights.flatten()
        positions = weights.nonzero()[:, 0]
        weights, targets = weights[positions], targets[positions]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(inputs, positions)
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        tokens += inputs.numel()

        now = step / options.steps if options.steps else (time.time() - start) / (60 * options.minutes)
        gradients[-2:] = torch.tensor([now, 0 < shown["repeat"] < COPIES_BELOW]) * (rank == 0)
        dist.all_reduce(gradients)
        progress = gradients[-2].item()
        source.copies = source.copies or gradients[-1].item() > 0
        norm = gradients[:-2].norm().item() / options.workers
        gradients /= options.workers * max(1.0, norm)
        muon.step(options.muon_rate * rate(progress), rank, options.workers)
        for group in adam.param_groups:
            group["lr"] = options.adam_rate * rate(progress)
        adam.step()
        gradients.zero_()
        step += 1

        if rank:
            continue
        right, first = answers_right(inputs, positions, logits.argmax(-1) != targets, assistant, weights)
        full, repeated = weights == 1.0, weights == weights.new_tensor(0.9)
        for name, value in dict(
            loss=loss.item(),
            answer=losses[full].mean().item(),
            right=right,
            first=first,
            repeat=losses[repeated].mean().item(),
        ).items():
            if value == value:
                shown[name] = 0.95 * shown[name] + 0.05 * value if step > 20 else value
        if step % 50 == 0:
            figures = " ".join(f"{name} {value:.3f}" for name, value in shown.items())
            print(
                f"{time.time() - start:.0f} s, step {step}, {100 * progress:.1f} %, {tokens * options.workers} tokens, "
                f"{figures}",
                flush=True,
            )
        if time.time() - saved > 60 * options.save_minutes or progress >= 1:
            saved = time.time()
            checkpoint = dict(
                model=model.state_dict(),
                config=dataclasses.asdict(model.config),
                step=step,
                tokens=tokens * options.workers,
                progress=progress,
                seconds=round(time.time() - start),
                seed=options.seed,
            )
            torch.save(checkpoint, folder / "checkpoint.tmp")
            os.replace(folder / "checkpoint.tmp", folder / f"checkpoint{options.name}.pt")
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("target/train"))
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--from", dest="checkpoint")
    parser.add_argument("--name", default="")
    parser.add_argument(
        "--curriculum", type=float, default=0.0, help="where the lengthening of the samples begins, 0 to 1"
    )
    parser.add_argument("--save-minutes", type=float, default=5)
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--adam-rate", type=float, default=3e-3)
    parser.add_argument("--port", type=int, default=29541)
    options = parser.parse_args()
    # Batches have hundreds of shapes, and oneDNN would keep what it made for each: gigabytes within an hour.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
    torch.multiprocessing.spawn(work, (options,), nprocs=options.workers)


if __name__ == "__main__":
    main()
