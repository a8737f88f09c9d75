"""`rerank bench`: suites of datasets and rankers, and how fast this library is beside what one would use in its place.

Suites are in `bench_suite`. What is measured of training is in `bench_training`, of strategies in `bench_strategies`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table as Screen
from typer.core import TyperGroup

from rerank import bench
from rerank.backbones import BACKBONES
from rerank.backbones.embedded import EMBEDDED, resolve
from rerank.backbones.hardware import choose_device, choose_dtype
from rerank.cli import options as opt
from rerank.cli.bench_strategies import strategies
from rerank.cli.bench_suite import suite
from rerank.cli.bench_training import losses, training
from rerank.data import load_dataset
from rerank.errors import InputError, UnknownNameError


class _SuiteFirst(TyperGroup):
    """`rerank bench SUITE.yaml` is `rerank bench suite SUITE.yaml`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if args and args[0] not in self.commands and (Path(args[0]).suffix in SUITES or "/" in args[0]):
            args = ["suite", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_SuiteFirst)
SUITES = (".yaml", ".yml")

UNITS = {"pointwise": "pairs", "first": "windows"}
TITLES = {"pointwise": "Pointwise, yes or no", "first": "FIRST, windows of 20 passages"}


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    """Run a suite of datasets and rankers: rerank bench SUITE.yaml. Or measure how fast this machine ranks and trains,
    which strategy ranks best, and which loss trains best."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def engines(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Whose passages to rank; see 'rerank ls datasets'.")
    ] = "sample:scifact",
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", "-e", metavar="NAME", help="Only this engine; may be repeated. Default: all."),
    ] = None,
    model: opt.Model = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    pairs: Annotated[int, typer.Option(metavar="N", min=0, help="Pairs to judge pointwise.")] = 300,
    windows: Annotated[int, typer.Option(metavar="N", min=0, help="Windows of 20 passages to order by FIRST.")] = 20,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Slices that these are cut into.")] = 5,
    depth: Annotated[int, typer.Option("--depth", "-k", metavar="N", min=1, help="Candidates for each query.")] = 100,
    passage_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="What is read of each passage.")] = 100,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Processor threads of every engine; default: what torch takes."),
    ] = None,
    output: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write every figure to FILE.")] = None,
) -> None:
    """Time engines on the same calls, in one run.

    All engines get the same prompts, weights, dtype and threads. In each round every engine does one slice of the
    pairs and one of the windows in its turn; medians of the rounds are shown. Loading and one slice of its own to
    warm up are not counted.

    The time of 'rerank' holds all of rank_many, from passages to rankings. That of the others begins with prompts
    already rendered and cut as text, and holds tokenising, the model and the scores.

    Scores are compared with those of the plain loop. 'of peak' is useful arithmetic against the best rate of
    matrix products measured in the same rounds: 2 x parameters without embeddings x tokens, and 2 x attention
    width x layers x length squared; every prompt in full, then with shared beginnings counted once.
    """
    opt.show_log()
    chosen = list(dict.fromkeys(engine or bench.ENGINES))
    for name in chosen:
        if name not in bench.ENGINES:
            raise UnknownNameError("engine", name, bench.ENGINES)
    if not pairs and not windows:
        raise InputError("there is nothing to measure: give --pairs or --windows")
    if output is not None and not Path(output).absolute().parent.is_dir():
        raise InputError(f"--json {output}: there is no such folder to write in")
    BACKBONES["transformers"].loader("transformers")  # says what to install where torch is missing
    bench.limit_threads(threads)
    opt.say(f"reading {dataset}")
    requests = list(load_dataset(dataset).candidates(depth))
    place = choose_device(device)
    numbers = str(choose_dtype(dtype, place)).removeprefix("torch.")
    path = str(resolve(progress=opt.say)) if model is None else model
    known = bench.Model.read(model or EMBEDDED, path)
    work: dict[bench.Task, list[bench.Slice]] = {}
    counts: dict[bench.Task, int] = {"pointwise": pairs, "first": windows}
    for task, cut in bench.WORK.items():
        if counts[task]:
            size = -(-counts[task] // rounds)
            work[task] = cut(requests, known.encoder, slices=rounds + 1, size=size, passage_tokens=passage_tokens)
    labels = work["pointwise"][0].prompts[0].labels if "pointwise" in work else ()
    setup = bench.Setup(model, path, str(place), numbers, passage_tokens, labels)
    contenders, absent = bench.enter(chosen, setup, work, opt.say)
    if not contenders:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise InputError(f"none of the engines can do any of this here ({reasons or 'they score pairs only'})")
    shapes = bench.product_shapes(setup.device, known.hidden, known.intermediate)
    peaks: list[float] = []
    try:
        courses = bench.race(
            contenders,
            work,
            setup.device,
            between=lambda: peaks.append(bench.product_peak(setup.device, numbers, shapes)),
            say=opt.say,
        )
    finally:
        for contender in contenders.values():
            contender.close()
    run = max(len(course.seconds) for found in courses.values() for course in found.values())
    tables = [
        bench.table(
            task, parts[1 : 1 + run], courses[task], bench.without(task, chosen, absent), known.cost, max(peaks)
        )
        for task, parts in work.items()
    ]
    machine = bench.Machine.here(setup.device, numbers)
    settings: dict[str, object] = {
        "dataset": dataset,
        "model": model or EMBEDDED,
        "pairs": pairs,
        "windows": windows,
        "rounds": run,
        "depth": depth,
        "passage_tokens": passage_tokens,
        "threads": threads,
        "engines": chosen,
    }
    if output is not None:
        figures = {
            "machine": asdict(machine),
            "settings": settings,
            "peak": {"flops": max(peaks), "rounds": peaks, "shapes": shapes},
            "model": asdict(known.cost),
            "tasks": [asdict(one) for one in tables],
        }
        Path(output).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    _print(machine, settings, max(peaks), tables)


app.command()(suite)
app.command()(strategies)
app.command()(losses)
app.command()(training)


def _print(machine: bench.Machine, settings: Mapping[str, object], peak: float, tables: Iterable[bench.Table]) -> None:
    opt.screen.print(str(machine), soft_wrap=True)
    opt.screen.print(
        f"{settings['model']}, {settings['dataset']}, {settings['passage_tokens']} tokens of each passage; matrix "
        f"products reach {peak / 1e9:,.0f} GFLOP/s; medians of {settings['rounds']} rounds",
        soft_wrap=True,
    )
    for one in tables:
        opt.screen.print(
            f"\n{TITLES[one.task]}: {one.prompts} {UNITS[one.task]}, {one.tokens:,} prompt tokens, "
            f"{one.flops / 1e9:,.0f} GFLOP ({one.flops_shared_once / one.flops:.0%} with shared beginnings once)",
            soft_wrap=True,
        )
        opt.show(_screen(one))


def _screen(one: bench.Table) -> Screen:
    shown = Screen(box=None, header_style="bold", pad_edge=False)
    shown.add_column("engine", no_wrap=True)
    bases = [name for name in bench.BASELINES if any(name in row.times for row in one.rows)]
    columns = [f"{UNITS[one.task]}/s", "tokens/s", *(f"x {name}" for name in bases), "of peak", "shared once"]
    for name in [*columns, "differs: median", "largest, nats"]:
        shown.add_column(name, justify="right")
    shown.add_column("")
    for row in one.rows:
        gap = row.difference
        shown.add_row(
            row.engine,
            f"{row.per_second:,.2f}",
            f"{row.tokens_per_second:,.0f}",
            *(f"{row.times[name]:.2f}" for name in bases),
            f"{row.share:.1%}",
            f"{row.share_once:.1%}",
            *(("reference", "") if gap is None else (f"{gap.median:.4f}", f"{gap.largest:.4f}")),
            "" if row.agrees else f"its scores are not those of {one.reference}",
        )
    for name, reason in one.absent.items():
        shown.add_row(name, *[""] * (len(columns) + 2), reason)
    return shown
