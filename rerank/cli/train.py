"""`rerank train`: a recipe in, an adapter out."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rerank.cli.one import counted
from rerank.cli.options import notes, say, screen, show_log
from rerank.cli.progress import NOTE_S, STATE, clock, drawn
from rerank.training.feature_recipe import is_of_features, read_feature_recipe
from rerank.training.recipe import read_recipe

if TYPE_CHECKING:
    from rerank.training.trainer import Moment


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, a YAML file.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to; default: runs/ and the recipe's name.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Empty the folder first instead of going on.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only check the recipe.")] = False,
) -> None:
    """Train a reranker as a recipe says, or go on with a training that was stopped.

    For several processes: accelerate launch -m rerank train RECIPE
    """
    if is_of_features(recipe):
        _features(recipe, out, fresh, check)
        return
    read = read_recipe(recipe)
    first = os.environ.get("RANK", "0") == "0"  # of several processes one tells
    if first:
        show_log()
    if check:
        from rerank.training.checks import check_options

        check_options(read)
        sources = counted(len(read.data), "source", "sources")
        screen.print(f"{recipe}: a sound recipe: {read.name}, {read.strategy}, {sources}", soft_wrap=True)
        return
    folder = out or Path("runs") / read.name
    if first:
        say(f"training {read.name} into {folder}")
    from rerank.training.train import train as run

    with Steps(read.name, read.evaluation.measure if read.evaluation is not None else "") as steps:
        result = run(recipe, folder, fresh=fresh, watch=steps.show)
    if not first:
        return
    parts = [counted(result.steps, "step", "steps")]
    if result.loss is not None:
        parts.append(f"loss {result.loss:.4f}")
    if read.evaluation is not None and result.measure is not None:
        parts.append(f"{read.evaluation.measure} {result.measure:.4f}")
    parts += [f"{name.replace('_', ' ')} {value:.4f}" for name, value in result.gauges.items()]
    screen.print(", ".join([*parts, f"{result.tokens_per_s:,.0f} tokens/s"]), soft_wrap=True)
    if read.adapter.compress is not None:
        screen.print(f"rank {read.adapter.compress} keeps {result.kept:.1%} of the adapter")
    screen.print(f"{result.folder}\n{folder / 'curve.png'}", soft_wrap=True)


def _features(recipe: Path, out: Path | None, fresh: bool, check: bool) -> None:
    """A recipe of strategy `features`: a network in place of an adapter."""
    from rerank.training.features import check_features, train_features

    read = read_feature_recipe(recipe)
    show_log()
    if check:
        check_features(read)
        screen.print(f"{recipe}: a sound recipe: {read.name}, {read.strategy}", soft_wrap=True)
        return
    folder = out or Path("runs") / read.name
    say(f"training {read.name} into {folder}")
    measure = read.evaluation.measure if read.evaluation is not None else ""
    with Steps(read.name, measure) as steps:
        result = train_features(recipe, folder, fresh=fresh, watch=steps.show)
    parts = [counted(result.steps, "step", "steps"), f"loss {result.loss:.4f}"]
    if result.measure is not None:
        parts.append(f"{measure} {result.measure:.4f}")
    screen.print(", ".join([*parts, f"{result.lists_per_s:,.0f} lists/s"]), soft_wrap=True)
    screen.print(f"{result.folder}\n{folder / 'curve.png'}", soft_wrap=True)


class Steps:
    """Shows `Moment` values: a bar on a terminal, else a line now and then."""

    def __init__(self, title: str, measure: str) -> None:
        self._measure = measure
        self._started: float | None = None
        self._noted = time.monotonic()
        self._progress = drawn(STATE)
        self._task = self._progress.add_task(title, total=None, state="reading data and model")

    def show(self, moment: Moment) -> None:
        now = time.monotonic()
        if self._started is None:  # loading does not count
            self._started = now
        done = moment.step - moment.resumed
        state = self._state(moment, (now - self._started) / done * (moment.steps - moment.step) if done > 0 else None)
        self._progress.update(self._task, total=moment.steps, completed=moment.step, state=state)
        if not notes.is_terminal and now - self._noted >= NOTE_S:
            self._noted = now
            notes.print(state)

    def _state(self, moment: Moment, left: float | None) -> str:
        parts = [f"{moment.step:,}/{moment.steps:,} steps"]
        if moment.loss is not None:
            parts.append(f"loss {moment.loss:.4f}")
        if moment.reward is not None:
            parts.append(f"reward {moment.reward:.3f}")
        if moment.measure is not None:
            parts.append(f"{self._measure} {moment.measure:.4f} (best {moment.best:.4f})")
        if moment.tokens_per_s:
            parts.append(f"{moment.tokens_per_s:,.0f} tokens/s")
        if left is not None:
            parts.append(f"{clock(left)} left")
        return ", ".join(parts)

    def __enter__(self) -> Steps:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
