"""Pairs of measurements, what follows from them, and one process as a sample."""

import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time


def median_lower_bound(values, confidence=0.95):
    """The one-sided lower bound of the median by order statistics, or None where there are too few values (below five).

    The k-th smallest value is above the median only if fewer than k of n values are below it, which has the
    probability P(Binomial(n, 1/2) < k). It needs no assumption about how the values are distributed, beside their
    independence.
    """
    n, below, bound = len(values), 0.0, None
    for k, value in enumerate(sorted(values)):
        below += math.comb(n, k) / 2**n
        if below > 1 - confidence:
            break
        bound = value
    return bound


def summary(pairs):
    """Medians of both, and of the ratio of each pair, with its lower bound and its spread."""
    ratios = [pair["hearth"]["value"] / pair["llama.cpp"]["value"] for pair in pairs]
    return {
        "pairs": len(pairs),
        "hearth": statistics.median(pair["hearth"]["value"] for pair in pairs),
        "llama.cpp": statistics.median(pair["llama.cpp"]["value"] for pair in pairs),
        "ratio": statistics.median(ratios),
        "ratio_lower_95": median_lower_bound(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
        "peak_mib": {
            who: statistics.median(pair[who]["peak_mib"] for pair in pairs) for who in ("hearth", "llama.cpp")
        },
    }


def busy_seconds():
    """Processor time of all processes together, and what a virtual machine's host took; None if unknown."""
    try:
        first = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _waiting, irq, soft_irq, steal = (int(ticks) for ticks in first[1:9])
    return (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")


def busy_share():
    """The share of the machine that is taken, looked at for a second; 0 if unknown."""
    if (before := busy_seconds()) is None:
        return 0.0
    began = time.monotonic()
    time.sleep(1.0)
    return (busy_seconds() - before) / (time.monotonic() - began) / (os.cpu_count() or 1)


def sample(command, read, prefix):
    """Runs one process; gives its samples in tokens per second, their median, its memory, and what else ran.

    The memory is the kernel's largest resident set of the process (`ru_maxrss`, which is VmHWM). It counts the pages of
    a mapped file, and is never below this script's own, some 30 MiB, because the kernel counts from before the exec.
    `others` is the share of the machine's processor time that was not this process's.
    """
    command = [*prefix, *(str(part) for part in command)]
    before, began = busy_seconds(), time.time()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds, after = time.time() - began, busy_seconds()
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        errors.seek(0)
        said = errors.read()
    command = " ".join(command)
    if process.returncode:
        sys.exit(f"{command}\nended with status {process.returncode}:\n{said[-3000:]}")
    try:
        samples = read(output)
        value = statistics.median(samples)
    except (ValueError, KeyError, IndexError) as error:
        said = f"{output[-2000:]}\n{said[-2000:]}"
        sys.exit(f"{command}\nprinted no samples ({type(error).__name__}: {error}):\n{said}")
    per_mib = 2**20 if sys.platform == "darwin" else 2**10
    own = usage.ru_utime + usage.ru_stime
    others = None if before is None else max(after - before - own, 0.0) / (seconds * (os.cpu_count() or 1))
    return {
        "value": value,
        "samples": samples,
        "peak_mib": usage.ru_maxrss / per_mib,
        "began": round(began, 1),
        "seconds": round(seconds, 2),
        "own_cpu_seconds": round(own, 2),
        "others": None if others is None else round(others, 4),
    }


def disturbed(sample, most):
    """Whether other programs took more than this share of the machine while the sample was measured."""
    return sample["others"] is not None and sample["others"] > most
