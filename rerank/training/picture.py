"""The curves of a training run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rerank.training.gauges import NAMES


def draw_curve(curve: Sequence[dict[str, float]], target: Path, measure: str) -> None:
    """Loss and, where there are any, the gauges and the development set's measure, over steps."""
    from matplotlib.figure import Figure

    losses = [(line["step"], line["loss"]) for line in curve if "loss" in line]
    gauges = {name: [(line["step"], line[name]) for line in curve if name in line] for name in NAMES}
    values = [(line["step"], line["measure"]) for line in curve if "measure" in line]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    lines = []
    if losses:
        lines += axes.plot(*zip(*losses, strict=True), color="#4c72b0", label="loss (left)")
    if values or any(gauges.values()):
        other = axes.twinx()
        other.set_ylabel(f"{measure}, development set" if values else "of the training lists")
        for (name, told), color in zip(gauges.items(), ("#55a868", "#8172b3", "#ccb974"), strict=True):
            if told:
                label = f"{name.replace('_', ' ')}, training (right)"
                lines += other.plot(*zip(*told, strict=True), color=color, lw=1, label=label)
        if values:
            label = f"{measure} (right)"
            lines += other.plot(*zip(*values, strict=True), color="#c44e52", marker="o", ms=4, label=label)
    if lines:
        axes.legend(handles=lines, loc="best")
    figure.savefig(target, dpi=120)
