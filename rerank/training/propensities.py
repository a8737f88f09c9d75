"""What a run from clicks learnt about positions: a learner for a recipe, its state in checkpoints, its curve on disk.

In the output folder: `propensities.jsonl`, a line a moment; `propensities.json`, the last curve, which `ipw` takes;
`propensities.png`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from rerank.errors import InputError
from rerank.training.click_parts import Clicks
from rerank.training.learners import CLIP, DualLearning, InversePropensity, Learner, Naive, RegressionEM

if TYPE_CHECKING:
    import torch

TrueCurve = Callable[[float], list[float] | None]  # of the progress, 0 to 1

_DEEPEST = 10_000  # far below what users see; a number of milliseconds, say, would fill memory and the journal


class Line(TypedDict, total=False):
    step: int
    learnt: list[float]
    true: list[float]


def learner_of(clicks: Clicks, base: Path, positions: int, device: torch.device) -> Learner:
    """`positions` is the last one that is shown. Raises InputError where given propensities end before it: now, and not
    at the first step that has such a session."""
    if clicks.learner == "naive":
        return Naive()
    if clicks.learner == "ipw":
        given = clicks.given(base)
        if len(given) < positions:
            raise InputError(f"clicks.propensities has {len(given)} positions, and a session has position {positions}")
        return InversePropensity(given, device, clicks.clip)
    if positions > _DEEPEST:
        raise InputError(
            f"a session has position {positions}, and each position up to it would have a propensity of its own; is it "
            f"a position? {clicks.learner} takes {_DEEPEST:,} at most"
        )
    if clicks.learner == "regression-em":
        return RegressionEM(positions, device, rate=clicks.rate or 0.05)
    return DualLearning(positions, device, learning_rate=clicks.learning_rate or 0.03, clip=clicks.clip or CLIP)


@dataclass(frozen=True, slots=True)
class Journal:
    """The learnt curve, and the true one where users are simulated, at the moments of a run."""

    out: Path
    learner: Learner
    true: TrueCurve

    @property
    def _file(self) -> Path:
        return self.out / "propensities.jsonl"

    def begin(self, step: int) -> None:
        """Goes on after `step`: what a killed run wrote later is computed again."""
        kept = [line for line in read_propensities(self._file) if line["step"] <= step]
        self._file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def note(self, step: int, steps: int) -> None:
        learnt = self.learner.curve()
        if learnt is None:
            return
        line: Line = {"step": step, "learnt": learnt}
        if (true := self.true(step / steps)) is not None:
            line["true"] = true
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def finish(self) -> None:
        lines = read_propensities(self._file)
        if not lines:
            self._file.unlink(missing_ok=True)
            return
        (self.out / "propensities.json").write_text(json.dumps(lines[-1]["learnt"]) + "\n", encoding="utf-8")
        draw_propensities(lines, self.out / "propensities.png")


def read_propensities(file: Path) -> list[Line]:
    """The lines; a last one that a kill cut off is left out."""
    if not file.is_file():
        return []
    found: list[Line] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def draw_propensities(lines: Sequence[Line], target: Path) -> None:
    """Left the last curve over positions, right some positions over steps; the true ones are dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    last = lines[-1]
    places = range(1, len(last["learnt"]) + 1)
    left.plot(places, last["learnt"], color="#c44e52", marker="o", ms=4, label="learnt")
    if "true" in last:
        left.plot(places, last["true"], color="#333333", ls="--", label="of the simulated users")
    left.set_xlabel("position")
    left.set_ylabel("propensity, relative to position 1")
    left.legend()
    shown = [place for place in (2, 3, 5, 10) if place <= len(last["learnt"])]
    for place, colour in zip(shown, ("#4c72b0", "#55a868", "#8172b2", "#c44e52"), strict=False):
        steps = [line["step"] for line in lines]
        right.plot(steps, [line["learnt"][place - 1] for line in lines], color=colour, label=f"position {place}")
        if "true" in last:
            right.plot(steps, [line["true"][place - 1] for line in lines], color=colour, ls="--", lw=1)
    right.set_xlabel("step")
    right.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize="small")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(target, dpi=120)
