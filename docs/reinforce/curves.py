"""A picture and a table of several seeds: `python curves.py rank-r1.png work/rank-r1-1 work/rank-r1-2`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STEPS = 10  # together: a point stands for the answers of so many


def points(folder: Path) -> list[tuple[float, float, float]]:
    """The share of answers that keep the form, that name a best passage, and that would by chance."""
    with (folder / "completions.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    found = []
    for start in range(1, max(row["step"] for row in rows) + 1, STEPS):
        own = [row for row in rows if start <= row["step"] < start + STEPS]
        labels = [[passage[1] for passage in row["passages"]] for row in own]
        found.append(
            (
                mean(row["parts"]["format"] for row in own),
                mean(row["parts"]["right"] for row in own),
                mean(each.count(max(each)) / len(each) for each in labels),
            )
        )
    return found


def main(out: str, *folders: str) -> None:
    runs = [points(Path(folder)) for folder in folders]
    steps = [STEPS * (i + 1) for i in range(min(map(len, runs)))]
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for column, (name, colour) in enumerate((("form kept", "#0072b2"), ("right", "#d55e00"), ("chance", "#777777"))):
        for run in runs:
            axes.plot(steps, [point[column] for point in run[: len(steps)]], color=colour, alpha=0.3, linewidth=1)
        middle = [mean(run[i][column] for run in runs) for i in range(len(steps))]
        axes.plot(steps, middle, color=colour, linewidth=2, label=name, linestyle="--" if column == 2 else "-")
        print(f"{name:10}", " ".join(f"{value:.2f}" for value in middle))
    axes.set(xlabel="step", ylabel="share of answers", ylim=(0, 1.02))
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(out, dpi=90)


main(*sys.argv[1:])
