"""A run as a table and as a plot. The plot is drawn by scripts/peers/plot.py in the virtual environment, which has
matplotlib.
"""

import sys
from pathlib import Path

from .llama_cpp import checked_call

TITLES = {
    "prefill": "prefill, {prompt} tokens",
    "decode": "decode, one stream",
    "depth": "decode after {depth} tokens",
    "streams8": "decode, 8 streams",
    "streams16": "decode, 16 streams",
}
HEADER = (
    *("model", "measure", "Hearth", "llama.cpp", "its best setting", "ratio", "lower bound", "least to most", "pairs"),
    *("MiB, Hearth", "MiB, llama.cpp"),
)


def title(entry):
    return TITLES[entry["measure"]].format(**entry["work"])


def spelled(setting):
    repack = "repacked" if setting["repack"] else "not repacked"
    return f"{repack}, flash attention {'on' if setting['flash_attention'] else 'off'}"


def row(*cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table(run):
    """The pages' table, with what it was measured on."""
    machine, hearth, peer = run["machine"], run["hearth"], run["llama.cpp"]
    cpu = machine["lscpu"].get("Model name", "unknown processor")
    commit = str(hearth["checkout"])[:12] + (", changed" if hearth["changed"] else "")
    lines = [
        f"{cpu}, {run['options']['threads']} threads, {machine['memory_mib'] or 0} MiB, {machine['kernel']}, governor "
        f"{machine['governor']}. {hearth['version']} (checkout {commit}); llama.cpp {peer['commit']} of "
        f"{peer['package']}, {peer['compiler']}:",
        "",
        f"`{peer['system_info']}`",
        "",
        "Tokens a second, medians. The ratio is the median of the pairs' ratios, the bound its one-sided lower 95 %",
        "bound by order statistics. Peak memory is the process's largest resident set, with the mapped file's pages.",
        "",
        row(*HEADER),
        "|---" * len(HEADER) + "|",
    ]
    for entry in run["measured"].values():
        if not (result := entry.get("summary")):
            continue
        bound, peak = result["ratio_lower_95"], result["peak_mib"]
        bound = "too few pairs" if bound is None else f"{bound:.2f}"
        speeds = (f"{result['hearth']:.1f}", f"{result['llama.cpp']:.1f}", spelled(entry["setting"]))
        spread = f"{result['ratio_least']:.2f} to {result['ratio_most']:.2f}"
        ratios = (f"{result['ratio']:.2f}", bound, spread, result["pairs"])
        memory = (f"{peak['hearth']:.0f}", f"{peak['llama.cpp']:.0f}")
        lines.append(row(entry["model"], title(entry), *speeds, *ratios, *memory))
    if "embeddings" in run:
        lines += ["", embeddings_sentence(run["embeddings"])]
    lines += ["", "| file | MB | tensors |", "|---|---|---|"]
    for model in run["models"].values():
        kinds = ", ".join(f"{count} {kind}" for kind, count in model["tensor_types"].items())
        lines.append(f"| {model['file']} | {model['bytes'] / 1e6:.0f} | {kinds} |")
    return "\n".join(lines) + "\n"


def embeddings_sentence(result):
    speeds, versions = result["texts_per_second"], result["versions"]
    bound = "too few pairs" if result["ratio_lower_95"] is None else f"{result['ratio_lower_95']:.2f}"
    return (
        f"Embeddings of {result['texts']} texts, all-MiniLM-L6-v2: Hearth {speeds['hearth']:.0f} texts a second, "
        f"sentence-transformers {versions['sentence-transformers']} "
        f"on torch {versions['torch']} {speeds['torch']:.0f}; "
        f"ratio {result['ratio']:.2f}, lower bound {bound}, "
        f"{result['ratio_least']:.2f} to {result['ratio_most']:.2f} in {len(result['seconds']['torch'])} pairs."
    )


def write(run, out, venv):
    (out / "peers.md").write_text(table(run))
    plot = Path(__file__).with_name("plot.py")
    log = out / "plot.log"
    checked_call(
        [venv / "bin/python", plot, out / "peers.json", out / "peers.svg", out / "peers.png"], log, "drawing the plot"
    )
    log.unlink()


if __name__ == "__main__":
    sys.exit(__doc__)
