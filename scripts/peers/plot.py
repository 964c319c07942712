#!/usr/bin/env python3
"""Draws the ratios of a run of scripts/bench_peers: a dot for each pair, a line for the median, a bracket for its
lower bound.

usage: plot.py peers.json OUT.svg OUT.png ...
needs: matplotlib
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from peers.report import title

STEPS = (0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5)
AHEAD, BEHIND = "#2b6cb0", "#c05621"


def main():
    source, *targets = sys.argv[1:]
    run = json.loads(Path(source).read_text())
    rows = [entry for entry in run["measured"].values() if entry.get("summary")]
    if not rows:
        sys.exit(f"{source} has no pairs yet: nothing can be drawn")
    plt.rcParams["svg.hashsalt"] = "peers"
    figure, axes = plt.subplots(figsize=(10, 1.6 + 0.36 * (len(rows) + len(run["models"]))))
    labels, places, place, model = [], [], 0.0, None
    lowest = min(entry["summary"]["ratio_least"] for entry in rows)
    highest = max(entry["summary"]["ratio_most"] for entry in rows)
    left, right = min(lowest, 1.0) * 0.94, max(highest, 1.0) * 1.06
    # Figures stand in a column beside the axes, whatever the dots do.
    beside = axes.get_yaxis_transform()
    for entry in rows:
        if entry["model"] != model:
            model = entry["model"]
            place += 0.9 if labels else 0.0
            name = axes.text(0.0, place, model, transform=beside, fontweight="bold", va="center", ha="left", fontsize=9)
            # It may stand on the line at 1.
            name.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
            place += 0.85
        result = entry["summary"]
        ratios = [pair["hearth"]["value"] / pair["llama.cpp"]["value"] for pair in entry["pairs"]]
        color = AHEAD if result["ratio"] >= 1 else BEHIND
        axes.scatter(ratios, [place] * len(ratios), s=14, color=color, alpha=0.35, linewidths=0, zorder=2)
        axes.plot([result["ratio"]] * 2, [place - 0.32, place + 0.32], color=color, linewidth=2.5, zorder=3)
        if (bound := result["ratio_lower_95"]) is not None:
            axes.hlines(place, bound, result["ratio"], color=color, linewidth=1.2, zorder=3)
            axes.vlines(bound, place - 0.16, place + 0.16, color=color, linewidth=1.2, zorder=3)
        axes.text(
            1.01,
            place,
            f"{result['ratio']:.2f}   {result['hearth']:.0f} : {result['llama.cpp']:.0f} t/s",
            transform=beside,
            va="center",
            ha="left",
            fontsize=8.5,
        )
        labels.append(title(entry))
        places.append(place)
        place += 0.8
    axes.axvline(1.0, color="#444444", linewidth=1, zorder=1)
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    # Round values alone: the ticks of a logarithmic axis are powers of ten.
    steps = [step for step in STEPS if left <= step <= right]
    while len(steps) > 9:
        steps = [step for step in steps[::2] if step != 1] + [1]
        steps.sort()
    axes.set_xticks(steps)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    axes.set_yticks(places, labels, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place, -0.8)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    pairs = sorted({entry["summary"]["pairs"] for entry in rows})
    counted = f"{pairs[0]}" if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    axes.set_xlabel(
        f"Hearth's tokens per second to llama.cpp's: {counted} pairs each, their median and its lower 95 % bound",
        fontsize=9,
    )
    cpu = run["machine"]["lscpu"].get("Model name", "unknown processor")
    peer = f"llama.cpp {run['llama.cpp']['commit']} with its best setting of each"
    axes.set_title(f"{cpu}, {run['options']['threads']} threads; {peer}", fontsize=10, loc="left")
    for target in targets:
        metadata = {"Date": None} if target.endswith(".svg") else None
        figure.savefig(target, bbox_inches="tight", dpi=130, metadata=metadata)


if __name__ == "__main__":
    main()
