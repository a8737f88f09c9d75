"""What a suite found: its runs measured and held against the baseline, over all datasets together, and what they cost.

Every figure is of a run's file, so that `rerank eval`, trec_eval and others find the same in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path

from rerank.bench.cells import Cell, Contestant, Task
from rerank.bench.suite import FIRST_STAGE, Suite, Trial
from rerank.data import catalogue, read_run
from rerank.eval import (
    Compared,
    Comparison,
    Cost,
    Evaluation,
    Prices,
    ceiling,
    compare,
    consensus,
    evaluate,
    frontier,
    judged_at,
)
from rerank.eval.efficiency import Axis
from rerank.eval.report import Section
from rerank.runs import run_card, versions
from rerank.types import Usage

_SAME = 0.0005  # two figures of the same candidates differ by less: published ones are rounded, ties vary


@dataclass(frozen=True, slots=True)
class Figure:
    """A published one of the same dataset, queries, first stage and depth."""

    ranker: str
    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Column:
    """A dataset. `comparison` is of its first measure, the baseline first; `evaluations` are of all its measures.
    Where it could not be read, `error` says why, and there is nothing else."""

    name: str
    trial: Trial
    task: Task | None
    comparison: Comparison | None = None
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    judged: Mapping[str, float] = field(default_factory=dict)  # judged@10
    ceiling: float | None = None
    published: tuple[Figure, ...] = ()
    error: str | None = None

    @property
    def measure(self) -> str:
        return self.trial.measures[0]


@dataclass(frozen=True, slots=True)
class Standings:
    """`rankers` by name, the first stage among them, and their prices; `overall` has those that have every dataset."""

    suite: Suite
    rankers: Mapping[str, Prices | None]
    columns: tuple[Column, ...]
    cells: tuple[Cell, ...]
    overall: Mapping[str, Mapping[str, float]]

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """By the dataset's name, where there was something to compare."""
        return {each.name: each.comparison for each in self.columns if each.comparison is not None}

    @property
    def sections(self) -> list[Section]:
        """The same for a report, with the runs, what was asked, and where the runs come from."""
        found = []
        for each in self.columns:
            if each.comparison is None or each.task is None:
                continue
            own = {c.ranker: c.run for c in self.cells if c.dataset == each.name and c.run is not None}
            runs = {name: read_run(file) for name, file in own.items()}
            cards = {name: run_card(file) for name, file in own.items()}
            texts = {asked.query.query_id: asked for asked in each.task.requests}
            prices = {name: price for name, price in self.prices.items() if name in own}
            found.append(Section(each.name, each.comparison, runs, each.task.judged, texts, cards, prices))
        return found

    @property
    def prices(self) -> dict[str, Prices]:
        """Of those that have any; the first stage is free where others are not."""
        own = {name: prices for name, prices in self.rankers.items() if prices is not None}
        return {FIRST_STAGE: Prices(), **own} if own else {}

    @property
    def axis(self) -> Axis:
        """What the frontier goes by: money where every ranker has a price."""
        return "money" if self.prices and self.prices.keys() == self.rankers.keys() else "tokens"

    def frontier(self, column: Column) -> tuple[str, ...]:
        """The rankers of a dataset that no other dominates."""
        own = [cell for cell in self.cells if cell.dataset == column.name and cell.ranker in column.evaluations]
        return frontier(
            {
                cell.ranker: (
                    Cost(cell.totals.queries, cell.totals.usage).per_query(self.axis, self.prices.get(cell.ranker)),
                    column.evaluations[cell.ranker].mean[column.measure],
                )
                for cell in own
            }
        )

    @property
    def failures(self) -> list[str]:
        """What went wrong, a line each."""
        lines = [f"{each.name}: {each.error}" for each in self.columns if each.error]
        for cell in self.cells:
            if cell.error:
                lines.append(f"{cell.ranker} on {cell.dataset}: {cell.error}")
            elif errors := cell.totals.errors:
                lines.append(
                    f"{cell.ranker} on {cell.dataset}: {len(errors)} of {cell.totals.queries} queries could not be "
                    f"asked and kept their order: {errors[0]}"
                )
        return lines

    def cost(self, ranker: str) -> Cost | None:
        """Over all datasets: what it took when it was done. None where nothing was ranked."""
        own = [cell.totals for cell in self.cells if cell.ranker == ranker and cell.run is not None]
        return Cost(sum(each.queries for each in own), sum((each.usage for each in own), Usage())) if own else None

    def money(self, ranker: str) -> float | None:
        """What the tokens of all its queries cost; None where no price is given, or nothing was ranked."""
        prices, cost = self.rankers[ranker], self.cost(ranker)
        return None if prices is None or cost is None else cost.money(prices)


def standings(
    suite: Suite, tasks: Sequence[Task | tuple[Trial, str]], contestants: Iterable[Contestant], cells: Sequence[Cell]
) -> Standings:
    """Measures the runs. A dataset that could not be read stands among the tasks with the reason."""
    prices = {FIRST_STAGE: None, **{each.name: each.prices for each in contestants}}
    columns = []
    for task in tasks:
        if isinstance(task, Task):
            runs = {c.ranker: c.run for c in cells if c.dataset == task.trial.name and c.run is not None}
            columns.append(_column(suite, task, {name: runs[name] for name in prices if name in runs}))
        else:
            trial, reason = task
            columns.append(Column(trial.name, trial, None, error=reason))
    return Standings(suite, prices, tuple(columns), tuple(cells), _overall(columns, list(prices)))


def _column(suite: Suite, task: Task, runs: Mapping[str, Path]) -> Column:
    measure = task.trial.measures[0]
    loaded = {name: read_run(file) for name, file in runs.items()}
    found = {name: evaluate(run, task.judged, task.trial.measures) for name, run in loaded.items()}
    given = loaded[FIRST_STAGE]
    return Column(
        task.trial.name,
        task.trial,
        task,
        _comparison(suite, found, measure),
        found,
        {name: judged_at(run, task.judged, 10) for name, run in loaded.items()},
        ceiling(given, task.judged, measure).mean[measure],
        _published(task, found[FIRST_STAGE].mean[measure]),
    )


def _comparison(suite: Suite, found: Mapping[str, Evaluation], measure: str) -> Comparison | None:
    """With the baseline first; None where that failed, or is alone."""
    if suite.baseline not in found or len(found) < 2:
        return None
    ordered = {suite.baseline: found[suite.baseline], **found}
    return compare(ordered, measure, test=suite.test, correction=suite.corrected_by, level=suite.level, seed=suite.seed)


def _published(task: Task, given: float) -> tuple[Figure, ...]:
    """The figures that are of these candidates and queries, which ours may stand beside."""
    entry = task.trial.entry
    if entry is None or not task.whole or len(task.judged) != entry.queries:
        return ()
    if task.trial.measures[0] != entry.measures[0]:
        return ()
    known = entry.first_stages.get(task.first_stage)
    if known is not None and abs(known.value - given) > _SAME:
        return ()
    return tuple(
        Figure(ranker, value, catalogue().sources[each.source].title)
        for each in entry.published
        if (each.first_stage, each.depth) == (task.first_stage, task.trial.depth)
        for ranker, value in each.values.items()
    )


def _overall(columns: Sequence[Column], rankers: Sequence[str]) -> dict[str, dict[str, float]]:
    """By `mean`, `borda` and `kemeny`, of the rankers that have every dataset. Parts of one dataset count as
    one; the mean is of one measure only."""
    read = [column for column in columns if column.error is None]
    parts: dict[str, list[Column]] = {}
    for column in read:
        entry = column.trial.entry
        parts.setdefault((entry.part_of if entry else None) or column.name, []).append(column)
    whole = [name for name in rankers if all(name in column.evaluations for column in read)]
    if len(parts) < 2 or not whole:
        return {}
    scores = {name: {part: _mean(name, own) for part, own in parts.items()} for name in whole}
    found = {str(way): values for way, values in consensus(scores).items()}
    if len({column.measure for column in read}) > 1:
        del found["mean"]
    return found


def _mean(ranker: str, columns: Sequence[Column]) -> float:
    return sum(column.evaluations[ranker].mean[column.measure] for column in columns) / len(columns)


def record(found: Standings) -> dict[str, object]:
    """For results.json."""
    return {
        "suite": found.suite.told,
        "versions": versions(),
        "datasets": [_column_record(found, column) for column in found.columns],
        "overall": {way: dict(values) for way, values in found.overall.items()},
        "money": {name: money for name in found.rankers if (money := found.money(name)) is not None},
        "frontier_cost": found.axis,
        "failures": found.failures,
    }


def _column_record(found: Standings, column: Column) -> dict[str, object]:
    told: dict[str, object] = {"name": column.name, "dataset": column.trial.spec, "measure": column.measure}
    if column.task is None:
        return told | {"error": column.error}
    told |= {
        "queries": len(column.task.judged),
        "whole": column.task.whole,
        "depth": column.trial.depth,
        "first_stage": column.task.first_stage,
        "ceiling": column.ceiling,
        "published": [asdict(figure) for figure in column.published],
    }
    if column.comparison is not None:
        told |= {"baseline": found.suite.baseline, "test": column.comparison.test}
        told |= {"correction": column.comparison.correction, "level": found.suite.level}
    compared = {row.name: row for row in column.comparison.rows} if column.comparison is not None else {}
    own = [cell for cell in found.cells if cell.dataset == column.name]
    return told | {"rankers": [_cell_record(found, cell, column, compared.get(cell.ranker)) for cell in own]}


def _cell_record(found: Standings, cell: Cell, column: Column, row: Compared | None) -> dict[str, object]:
    if cell.run is None:
        return {"ranker": cell.ranker, "error": cell.error}
    measured, prices = column.evaluations[cell.ranker], found.prices.get(cell.ranker)
    told: dict[str, object] = {
        "ranker": cell.ranker,
        "run": f"{cell.run.parent.name}/{cell.run.name}",
        "mean": measured.mean,
        "judged@10": column.judged[cell.ranker],
        "cost": {"queries": cell.totals.queries, **asdict(cell.totals.usage)},
        "money": None if prices is None else Cost(cell.totals.queries, cell.totals.usage).money(prices),
        "frontier": cell.ranker in found.frontier(column),
        "outcomes": asdict(cell.totals.outcomes),
        "errors": cell.totals.errors,
        "known": cell.known,
        "made": cell.made,
    }
    if row is not None and row.difference is not None and row.interval is not None:
        bounded = isfinite(row.interval[1])  # of one query it is not, and JSON has no infinity
        told |= {"difference": row.difference, "interval": row.interval if bounded else None, "p": row.p}
        told |= {"wins": row.wins, "ties": row.ties, "losses": row.losses}
    return told | {"per_query": measured.per_query}
