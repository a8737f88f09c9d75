"""The rewards of a training run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_PARTS = "part/"
_COLOURS = ("#4c72b0", "#55a868", "#c44e52", "#8172b3", "#937860", "#64b5cd")


def draw_rewards(curve: Sequence[dict[str, float]], target: Path, measure: str) -> None:
    """The reward and its parts over steps, each as it was and as a mean over a tenth of them; how long answers are; and
    the development set's measure, where it was measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    names = ["reward", *sorted({name for line in curve for name in line if name.startswith(_PARTS)})]
    for name, colour in zip(names, _COLOURS, strict=False):
        points = [(line["step"], line[name]) for line in curve if name in line]
        if points:
            steps, values = zip(*points, strict=True)
            upper.plot(steps, values, color=colour, alpha=0.2)
            upper.plot(steps, smooth(values), color=colour, label=name.removeprefix(_PARTS))
    measured = [(line["step"], line["measure"]) for line in curve if "measure" in line]
    if measured:
        upper.plot(*zip(*measured, strict=True), color="black", marker="o", ms=4, label=f"{measure}, development set")
    upper.grid(alpha=0.3)
    upper.legend(loc="best", fontsize=8)
    lengths = [(line["step"], line[_LENGTH]) for line in curve if _LENGTH in line]
    if lengths:
        lower.plot(*zip(*lengths, strict=True), color="#4c72b0")
    lower.set_ylabel("tokens of an answer")
    lower.set_xlabel("step")
    lower.grid(alpha=0.3)
    figure.savefig(target, dpi=90)


_LENGTH = "completions/mean_length"


def smooth(values: Sequence[float]) -> list[float]:
    """The mean over the last tenth of all values.

    >>> smooth([0.0, 1.0, 1.0])
    [0.0, 1.0, 1.0]
    """
    width = max(1, len(values) // 10)
    return [sum(own := values[max(0, i + 1 - width) : i + 1]) / len(own) for i in range(len(values))]
