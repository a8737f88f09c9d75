"""`rerank compare`: runs beside a baseline, with intervals, tests, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple, cast

import typer

from rerank.cli.compare_table import Format, Told, print_overall, print_records, print_rows
from rerank.cli.compare_texts import has_texts, show_movers, texts_of
from rerank.cli.evaluate import QrelsFile, judgments, of_queries, read
from rerank.cli.options import command_line, notes, screen
from rerank.errors import CacheError, InputError
from rerank.eval import Prices, ceiling, compare, evaluate, judged_at
from rerank.eval.report import RunCard, Section, write_report
from rerank.eval.report.words import TESTS, lacks
from rerank.eval.significance import SAMPLES, Correction, Test
from rerank.runs import run_card

PLACE = "{}"  # where the name of one of several datasets goes
_DEPTH, _MOVERS = 10, 5  # of the page


class CostAxis(StrEnum):
    CALLS = "calls"
    TOKENS = "tokens"
    SECONDS = "seconds"
    MONEY = "money"


def compare_runs(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="The baseline and more, as 'rerank eval' takes them; NAME=FILE names one."),
    ],
    qrels: QrelsFile = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", "-d", metavar="NAME", help="A dataset: its judgments, unless --qrels has them, and its texts."
        ),
    ] = None,
    over: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Several datasets, as dl19,scifact: each name in turn stands for {} in RUN, --qrels and --dataset.",
        ),
    ] = None,
    measure: Annotated[str, typer.Option("--measure", "-m", metavar="NAME", help="One measure.")] = "nDCG@10",
    run_queries: Annotated[
        bool, typer.Option("--run-queries", help="Only the judged queries that the baseline has.")
    ] = False,
    test: Annotated[
        str, typer.Option(metavar="NAME", help="randomisation (Fisher's), t, or tukey (randomised HSD).")
    ] = "randomisation",
    correction: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="holm, bonferroni, benjamini-hochberg or none. Default: holm; tukey needs none."
        ),
    ] = None,
    level: Annotated[float, typer.Option(metavar="P", help="Of the intervals.")] = 0.95,
    samples: Annotated[
        int | None, typer.Option(metavar="N", min=100, help=f"Random samples of a test. Default: {SAMPLES:,}.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Of those. Default: 0.")] = None,
    movers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Show the N queries that each run moves most; the page shows 5 by default."
        ),
    ] = None,
    price_in: Annotated[float, typer.Option(metavar="MONEY", min=0, help="Of a million prompt tokens.")] = 0.0,
    price_out: Annotated[float, typer.Option(metavar="MONEY", min=0, help="Of a million generated tokens.")] = 0.0,
    cost: Annotated[
        CostAxis | None,
        typer.Option(help="What the cost frontier goes by. Default: money if priced, else tokens."),
    ] = None,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a page with tables, charts and passages too.")
    ] = None,
    style: Annotated[Format, typer.Option("--format", "-f", help="How it is printed.")] = Format.TABLE,
) -> None:
    """Compare runs with the first one, query by query.

    A run of this package has its card beside it, which says what it cost. Texts of passages come from --dataset, and
    from runs that are given as candidates (.json, .jsonl).
    """
    prices = Prices(price_in, price_out) if price_in or price_out else None
    axis = cost or (CostAxis.MONEY if prices else CostAxis.TOKENS)
    if axis is CostAxis.MONEY and prices is None:
        raise InputError("what a run cost in money needs prices: --price-in, --price-out")
    if test == "t" and (unused := [name for name, n in (("--samples", samples), ("--seed", seed)) if n is not None]):
        raise InputError(f"{unused[0]} is for tests that draw samples, and t draws none; leave it out, or give another")
    tested = _Tested(measure, test, correction, level, SAMPLES if samples is None else samples, seed or 0)
    wanted = bool(html or movers)
    sections: dict[str | None, Section] = {}
    for name in _datasets(over, [*runs, qrels, dataset]):
        given = [each if name is None or each is None else each.replace(PLACE, name) for each in (qrels, dataset)]
        files = {run: file if name is None else file.replace(PLACE, name) for run, file in _named(runs).items()}
        sections[name] = _section(name, files, given[0], given[1], run_queries, wanted, tested)
    parts = {name: _told(section, prices, axis) for name, section in sections.items()}
    if cost is not None and not any(any(each.costs.values()) for each in parts.values()):
        raise InputError(f"there is no frontier by {cost}: no run has a card that says what it cost")
    if html is not None:
        write_report(
            html,
            list(sections.values()),
            prices=prices,
            axis=axis.value,
            movers=_MOVERS if movers is None else movers,
            depth=_DEPTH,
            command=command_line(),
        )
        notes.print(f"{html}: written", style="dim")
    if style is Format.JSON:
        print_records(parts)
        return
    for name, told in parts.items():
        if name is not None:
            screen.print(f"\n{name}", style="bold")
        print_rows(told, style)
        notes.print(_method(told), style="dim")
        each = sections[name]
        if each.lacking:
            notes.print(lacks(each.lacking, told.found.queries))
        if movers:
            show_movers(each.comparison, each.runs, each.qrels, each.texts, movers)
    if over is not None:
        screen.print("\nall datasets", style="bold")
        print_overall({str(name): told for name, told in parts.items()}, style)


class _Tested(NamedTuple):
    """How runs are measured and tested."""

    measure: str
    test: str
    correction: str | None
    level: float
    samples: int
    seed: int


def _datasets(over: str | None, given: Sequence[str | None]) -> list[str | None]:
    """None stands for the one dataset that needs no name."""
    if over is None:
        return [None]
    names = [name.strip() for name in over.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise InputError(f"--over {over!r}: give distinct names with commas between them, as dl19,scifact")
    if not any(PLACE in each for each in given if each is not None):
        raise InputError(f"--over puts names in the place of {PLACE}, and no RUN, --qrels or --dataset has one")
    return list(names)


def _section(
    name: str | None,
    files: Mapping[str, str],
    qrels: str | None,
    dataset: str | None,
    run_queries: bool,
    with_texts: bool,
    tested: _Tested,
) -> Section:
    judged = judgments(qrels, None if qrels is not None else dataset)
    loaded = {run: read(file) for run, file in files.items()}
    if run_queries:
        judged = of_queries(judged, next(iter(loaded.values())))
    found = compare(
        {run: evaluate(each, judged, [tested.measure]) for run, each in loaded.items()},
        tested.measure,
        test=cast("Test", tested.test),
        correction=cast("Correction", tested.correction or ("none" if tested.test == "tukey" else "holm")),
        level=tested.level,
        samples=tested.samples,
        seed=tested.seed,
    )
    sources = ([] if dataset is None else [dataset]) + [file for file in files.values() if has_texts(file)]
    texts = texts_of(sources, loaded, _DEPTH) if with_texts else {}
    cards = {run: _card(Path(file)) for run, file in files.items()}
    title = name or str(dataset or qrels)
    return Section(Path(title).name if Path(title).is_file() else title, found, loaded, judged, texts, cards)


def _card(file: Path) -> RunCard:
    try:
        return run_card(file)
    except CacheError as error:
        notes.print(f"{error}; its cost is left out")
        return RunCard(file.name)


def _told(section: Section, prices: Prices | None, axis: CostAxis) -> Told:
    held = {name: judged_at(run, section.qrels, 10) for name, run in section.runs.items()}
    costs = {name: section.card(name).cost for name in section.names}
    measure = section.comparison.measure
    best = ceiling(section.runs[section.names[0]], section.qrels, measure).mean[measure]
    return Told(section.comparison, held, costs, best, prices, axis.value)


def _method(told: Told) -> str:
    found = told.found
    said = f"{found.queries} queries; differences to {found.rows[0].name}, {found.level:.0%} t intervals; p by "
    said += TESTS[found.test]
    said += f", {found.correction}" if found.correction != "none" else ""
    said += f". The best order of {found.rows[0].name}'s documents: {told.best:.4f}"
    return said + (f". The frontier goes by {told.axis}" if any(told.costs.values()) else "")


def _named(runs: Sequence[str]) -> dict[str, str]:
    """NAME=FILE, or the file's name; two of one name keep their paths."""
    files: dict[str, str] = {}
    stems = [Path(run).name.replace(PLACE, "").lstrip(".-_") for run in runs]
    for run, stem in zip(runs, stems, strict=True):
        name, equals, file = run.partition("=")
        if not equals or Path(run).exists():
            name, file = (stem if stem and stems.count(stem) == 1 else run), run
        if name in files:
            raise InputError(f"{name} is given twice; leave one out, or name them: NAME=FILE")
        files[name] = file
    return files
