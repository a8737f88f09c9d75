"""`rerank bench SUITE.yaml`: datasets by rankers, measured, tested and priced."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table as Screen

from rerank.backbones import check_answers, engine_of
from rerank.backbones.embedded import cache_folder
from rerank.cli import options as opt
from rerank.cli.cascade import Plan, plan
from rerank.cli.compare_table import PRINT, Format
from rerank.cli.progress import watching
from rerank.errors import InputError, RerankError
from rerank.eval import no_kemeny, stars
from rerank.eval.report.words import TESTS

if TYPE_CHECKING:
    from rerank.bench.cells import Contestant
    from rerank.bench.standings import Column, Standings
    from rerank.bench.suite import RankerPart

Table = tuple[list[str], list[list[str]]]


def suite(
    file: Annotated[
        Path, typer.Argument(metavar="SUITE", help="A YAML file with datasets and rankers.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to; default: runs/ and the suite's name.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where every suite's rankings are kept; default: the user's cache folder."),
    ] = None,
    style: Annotated[Format, typer.Option("--format", "-f", help="How it is printed.")] = Format.TABLE,
) -> None:
    """Run the rankers of a suite on its datasets, and hold them against a baseline.

    Every query's ranking is kept as it comes, by all that it depends on, and is not asked for again, in this suite or
    another; a suite that was killed goes on. A cell that fails is told of, holds up no other, and is tried again the
    next time; the exit status is 1 then. DIR gets each cell's TREC run with its card, the judgments of the queries that
    took part, results.json, and report.html, a page to look at.
    """
    from rerank.bench.run_suite import REPORT, RESULTS, run_suite
    from rerank.bench.suite import read_suite

    opt.show_log()
    read, trials = read_suite(file)
    contestants = [_contestant(part, file) for part in read.rankers]
    folder, kept = out or Path("runs") / read.name, cache or cache_folder("bench")
    try:
        found = run_suite(read, trials, contestants, folder, kept, command=opt.command_line(), watching=watching)
    except KeyboardInterrupt:
        opt.notes.print(f"{file}: what is ranked is kept in {kept}; the same command goes on from there")
        raise
    opt.notes.print(f"{folder / REPORT}: written", style="dim")
    if style is Format.JSON:
        typer.echo((folder / RESULTS).read_text(encoding="utf-8"), nl=False)
    else:
        _print(found, style)
    if failures := found.failures:
        for line in failures:
            opt.notes.print(f"failed: {line}")
        raise typer.Exit(1)


def _contestant(part: RankerPart, file: Path) -> Contestant:
    from rerank.bench.cache import identity_of
    from rerank.bench.cells import Contestant

    options = opt.words(part.backbone_options) or None
    engine = opt.Engine(part.model, part.adapter, part.backbone, options, part.device, part.dtype)
    try:
        planned = plan(part.strategy, engine, part.prompt, opt.words(part.options) or None)
        for strategy, own in planned.asking:
            check_answers(own.backbone, strategy.prompt.needs)
        if part.prices is not None and len({(own.backbone, own.model) for _, own in planned.asking}) > 1:
            raise InputError("its stages have several models, and 'prices' are for one; leave them out")
    except RerankError as error:
        raise InputError(f"{file}: ranker {part.title!r}: {error}") from error
    return Contestant(
        part.title,
        planned.settings,
        planned.calls,
        lambda show: planned.load(on_progress=show),
        partial(identity_of, planned.settings),
        partial(_made, planned),
        None if part.prices is None else part.prices.told,
    )


def _made(planned: Plan) -> str:
    """Where its rankings are made, which their seconds depend on."""
    from rerank.bench.machine import Machine
    from rerank.runs import versions

    engines = [own for _, own in planned.asking]
    local = next((own for own in engines if {"torch", "vllm"} & set(engine_of(own.backbone).requires)), None)
    if local is None:
        return f"{', '.join(own.backbone for own in engines)}; rerank-llm {versions().get('rerank-llm', 'unknown')}"
    from rerank.backbones.hardware import choose_device, choose_dtype

    place = choose_device(local.device)
    return str(Machine.here(str(place), local.dtype or str(choose_dtype(None, place)).removeprefix("torch.")))


def _print(found: Standings, style: Format) -> None:
    for number, (header, rows) in enumerate((_results(found), _costs(found), _datasets(found))):
        if number:
            typer.echo()
        _table(header, rows) if style is Format.TABLE else PRINT[style](header, rows)
    suite, level = found.suite, f"{found.suite.level:.0%}"
    corrected = f", {suite.corrected_by}" if suite.corrected_by != "none" else ""
    opt.notes.print(
        f"±: half the {level} t interval of the difference to {suite.baseline}; *, **, ***: p below .05, .01, .001 by "
        f"{TESTS[suite.test]}{corrected} over the rankers of a dataset. Costs are means per query, of when it was "
        "ranked.",
        style="dim",
    )
    if found.overall and (missing := no_kemeny(max(map(len, found.overall.values())))):
        opt.notes.print(missing)
    sources = {figure.source for column in found.columns for figure in column.published}
    if sources:
        opt.notes.print(f"published: as {', '.join(sorted(sources))}, on the same queries and candidates", style="dim")
    known = sum(cell.known for cell in found.cells)
    for made in dict.fromkeys(each for cell in found.cells for each in cell.made):
        opt.notes.print(f"made by {made}", style="dim")
    if known:
        opt.notes.print(f"{known} rankings were known and not asked for again", style="dim")


def _table(header: list[str], rows: list[list[str]]) -> None:
    """Cells fold between words where the terminal is narrow; none is cut."""
    table = Screen(box=None, header_style="bold", pad_edge=False)
    # a name is harder to read in pieces than a figure, but nothing may be cut
    widest = min(18, max((len(row[0]) for row in rows), default=0)) if opt.screen.width >= 90 else 1
    for number, name in enumerate(header):
        table.add_column(
            name, justify="right" if number else "left", overflow="fold", min_width=0 if number else widest
        )
    for row in rows:
        table.add_row(*row)
    opt.show(table)


def _results(found: Standings) -> Table:
    """Rankers by datasets, the best order of the candidates, and what others published."""
    header = ["ranker", *(f"{column.name} {column.measure}" for column in found.columns), *found.overall]
    rows = []
    for name in found.rankers:
        values = [_value(column, name) for column in found.columns]
        for way, each in found.overall.items():
            values.append(_number(each.get(name), ".4f" if way == "mean" else ".1f"))
        rows.append([name, *values])
    blank = [""] * len(found.overall)
    if any(column.ceiling is not None for column in found.columns):
        rows.append(["best order of these", *(_number(column.ceiling, ".4f") for column in found.columns), *blank])
    by_name = [{figure.ranker: figure.value for figure in column.published} for column in found.columns]
    for name in dict.fromkeys(name for figures in by_name for name in figures):
        rows.append([f"{name} (published)", *(_number(figures.get(name), ".4f") for figures in by_name), *blank])
    return header, rows


def _value(column: Column, name: str) -> str:
    if name not in column.evaluations:
        return "failed"
    value = f"{column.evaluations[name].mean[column.measure]:.4f}"
    rows = column.comparison.rows if column.comparison is not None else ()
    row = next((row for row in rows if row.name == name), None)
    if row is None or row.interval is None:
        return value
    low, high = row.interval
    if math.isinf(high):  # of one query
        return value
    return f"{value}{stars(row.p)} ±{(high - low) / 2:.4f}"


def _costs(found: Standings) -> Table:
    """Means per query over all datasets; money for all queries together."""
    priced = any(found.rankers.values())
    header = ["ranker", "queries", "calls", "tokens in", "out", "seconds", *(["money, all"] if priced else [])]
    rows = []
    for name in found.rankers:
        cost = found.cost(name)
        if cost is None or not cost.usage.calls:
            continue  # what failed everywhere, and the first stage
        queries, usage = cost.queries, cost.usage
        each = (usage.calls, usage.prompt_tokens, usage.generated_tokens)
        row = [name, f"{queries:,}", *(f"{value / queries:,.1f}" for value in each), f"{usage.seconds / queries:.2f}"]
        rows.append(row + ([_number(found.money(name), ".4f")] if priced else []))
    return header, rows


def _datasets(found: Standings) -> Table:
    from rerank.bench.suite import FIRST_STAGE

    header = ["dataset", "queries", "depth", "first stage", "judged@10 of it", "licence"]
    rows = []
    for column in found.columns:
        if column.task is None:
            continue
        queries = f"{len(column.task.judged):,}" + ("" if column.task.whole else ", sample")
        licence = column.trial.entry.licence if column.trial.entry is not None else ""
        held = f"{column.judged[FIRST_STAGE]:.3f}"
        rows.append([column.name, queries, str(column.trial.depth), column.task.first_stage, held, licence])
    return header, rows


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
