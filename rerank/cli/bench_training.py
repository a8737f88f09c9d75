"""`rerank bench losses` and `rerank bench training`: what a recipe's training is worth, and how fast it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table as Screen

from rerank.cli import options as opt
from rerank.cli.one import counted
from rerank.cli.train import Steps
from rerank.errors import InputError

if TYPE_CHECKING:
    from rerank.bench import losses as losses_
    from rerank.bench import training as training_
    from rerank.training.trainer import Watch

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, a YAML file.", show_default=False)]


def losses(
    recipe: Recipe,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            "--loss",
            "-l",
            metavar="NAME",
            help="A loss, as ranknet or ranknet:sigma=5; may be repeated. Default: ten for graded labels.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Runs of each loss, from the recipe's seed on.")] = 3,
    lists: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Lists of each run; default: the recipe's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to; default: runs/ and NAME-losses.")
    ] = None,
) -> None:
    """Train a recipe with several losses, and rank its evaluation queries with each.

    All losses get the same data, lists and budget; a seed draws other lists. Every loss is checked before anything
    is trained. A comparison that was stopped goes on where it was; losses and seeds can be added to it.
    """
    from rerank.bench import losses as bench
    from rerank.training.recipe import read_recipe

    opt.show_log()
    folder = out or Path("runs") / f"{read_recipe(recipe).name}-losses"
    opt.say(f"comparing losses in {folder}")
    chosen = list(dict.fromkeys(loss or bench.LOSSES))
    found = bench.compare(recipe, folder, chosen, seeds=seeds, lists=lists, watching=_watching)
    (folder / "losses.json").write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    (folder / "losses.md").write_text(bench.markdown(found), encoding="utf-8")
    bench.draw(found, folder / "losses.png")
    _print_losses(found, folder)


@contextmanager
def _watching(title: str) -> Iterator[Watch]:
    opt.say(title)
    with Steps(title, "") as steps:
        yield steps.show


def _print_losses(found: losses_.Comparison, folder: Path) -> None:
    from rerank.bench.losses import HEADERS, cells

    opt.screen.print(str(found.machine), soft_wrap=True)
    opt.screen.print(
        f"{found.measure} on {found.queries} queries of {found.dataset}; {found.lists} lists a run, "
        f"seeds {', '.join(map(str, found.seeds))}; untrained {found.untrained:.4f}",
        soft_wrap=True,
    )
    shown = Screen(box=None, header_style="bold", pad_edge=False)
    for name in HEADERS:
        shown.add_column(name, justify="left" if name == "loss" else "right")
    for each in found.rows:
        shown.add_row(*cells(each))
    opt.show(shown)
    opt.screen.print(str(folder / "losses.png"), soft_wrap=True)


def training(
    recipe: Recipe,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Steps of the optimiser in each round.")] = 2,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Rounds, of which medians are taken.")] = 3,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Processor threads of all; default: what torch takes.")
    ] = None,
    output: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write every figure to FILE.")] = None,
) -> None:
    """Time a recipe's training steps beside a plain loop over PEFT.

    Both take the same lists, prompts, adapter, numbers and optimiser, in turns; a first step warms up. That both
    compute the same loss is checked before anything is timed, and again after one step.
    The plain loop pads the prompts of a piece of a batch to the longest one.

    Tokens are those of the prompts, each counted in full, without padding. 'computed' is at how many positions the
    model is computed for each of them.
    """
    opt.show_log()
    if output is not None and not Path(output).absolute().parent.is_dir():
        raise InputError(f"--json {output}: there is no such folder to write in")
    from rerank.backbones import BACKBONES
    from rerank.bench import limit_threads
    from rerank.bench.training import compare

    BACKBONES["transformers"].loader("transformers")  # says what to install where torch is missing
    limit_threads(threads)
    found = compare(recipe, steps=steps, rounds=rounds, say=opt.say)
    if output is not None:
        Path(output).write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    _print_training(found)


def _print_training(found: training_.Figures) -> None:
    opt.screen.print(str(found.machine), soft_wrap=True)
    opt.screen.print(
        f"{found.recipe}, {found.model}: {counted(found.rounds, 'round', 'rounds')} of "
        f"{counted(found.steps, 'step', 'steps')} of {counted(found.batch, 'list', 'lists')}, "
        f"{found.prompts:,} prompts, {found.tokens:,} tokens; medians of the rounds",
        soft_wrap=True,
    )
    shown = Screen(box=None, header_style="bold", pad_edge=False)
    shown.add_column("", no_wrap=True)
    for name in ("tokens/s", "x plain loop", "computed", "first loss", "after a step"):
        shown.add_column(name, justify="right")
    for row in found.rows:
        shown.add_row(
            row.name,
            f"{row.tokens_per_second:,.0f}",
            f"{row.times:.2f}",
            f"{row.computed:.2f}",
            f"{row.loss:.4f}",
            "" if row.loss_after is None else f"{row.loss_after:.4f}",
        )
    opt.show(shown)
