"""The development measure of several seeds: `python curves.py pg-rank.png START work/pg-rank-0 work/pg-rank-1 ...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(out: str, start: str, *folders: str) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for number, folder in enumerate(folders):
        lines = (Path(folder) / "curve.jsonl").read_text("utf-8").splitlines()
        measured = [(each["step"], each["measure"]) for line in lines if "measure" in (each := json.loads(line))]
        axes.plot(*zip((0, float(start)), *measured, strict=True), marker="o", label=f"seed {number}")
    axes.set(xlabel="step", ylabel="nDCG@10, development")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(out, dpi=90)


main(*sys.argv[1:])
