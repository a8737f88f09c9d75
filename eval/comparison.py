"""Runs beside a baseline: differences with their intervals and tests, and what stands behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rerank.errors import InputError
from rerank.eval.measures import Evaluation, Qrels, Run, evaluate, order_of_scores
from rerank.eval.significance import SAMPLES, Correction, Test, corrected, interval, p_values
from rerank.measure import Measure

SIGNIFICANT = 0.05
_STARS = ((0.001, "***"), (0.01, "**"), (SIGNIFICANT, "*"))
SAME = 1e-9  # two values of a query that differ by less are a tie


@dataclass(frozen=True, slots=True)
class Compared:
    """One run against the baseline. `p` is for all runs together; the baseline itself has neither p nor difference."""

    name: str
    mean: float
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    wins: int = 0
    ties: int = 0
    losses: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """`rows` as the runs were given, the baseline first; `per_query[name][query_id]` are the values."""

    measure: str
    queries: int
    rows: tuple[Compared, ...]
    per_query: Mapping[str, Mapping[str, float]]
    test: Test
    correction: Correction
    level: float = 0.95  # of the intervals
    samples: int = SAMPLES  # and `seed`: of the test
    seed: int = 0

    def moved(self, name: str, count: int) -> list[tuple[str, float]]:
        """The queries that the run's value differs most on, with the difference; ties by query_id."""
        baseline, own = self.per_query[self.rows[0].name], self.per_query[name]
        changes = [(query_id, own[query_id] - value) for query_id, value in baseline.items()]
        changed = [each for each in changes if abs(each[1]) > SAME]
        return sorted(changed, key=lambda each: (-abs(each[1]), each[0]))[:count]


def compare(
    runs: Mapping[str, Evaluation],
    measure: str,
    *,
    test: Test = "randomisation",
    correction: Correction = "holm",
    level: float = 0.95,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Comparison:
    """The first run is the baseline. Raises InputError where there is none to compare with it, or queries differ.

    `tukey` is for all pairs already, so it takes no correction but "none"; then pass that.
    """
    if len(runs) < 2:
        raise InputError(f"there are {len(runs)} runs to compare; give a baseline and at least one more")
    if test == "tukey" and correction != "none":
        raise InputError(f"tukey is for all pairs together, and {correction} would correct that again; give none")
    found = {name: each.per_query[measure] for name, each in runs.items()}
    names = list(found)
    queries = list(found[names[0]])
    for name, values in found.items():
        if values.keys() != found[names[0]].keys():
            raise InputError(f"{name} and {names[0]} were measured on different queries")
    table = np.array([[each[query_id] for query_id in queries] for each in found.values()], dtype=float)
    ps = corrected(p_values(table, test, samples=samples, seed=seed), correction)
    rows = [Compared(names[0], float(table[0].mean()))]
    for name, own, p in zip(names[1:], table[1:], ps, strict=True):
        change = own - table[0]
        wins, losses = int((change > SAME).sum()), int((change < -SAME).sum())
        rows.append(
            Compared(
                name,
                float(own.mean()),
                float(change.mean()),
                interval(own, table[0], level),
                p,
                wins,
                len(queries) - wins - losses,
                losses,
            )
        )
    return Comparison(measure, len(queries), tuple(rows), found, test, correction, level, samples, seed)


def stars(p: float | None) -> str:
    """* below .05, ** below .01, *** below .001."""
    return "" if p is None else next((mark for bound, mark in _STARS if p < bound), "")


def judged_at(run: Run, qrels: Qrels, k: int) -> float:
    """judged@k: the share of the first k places, over the judged queries, whose document has a label at all.

    A place that the run leaves empty is not counted; a query that it lacks adds nothing. 0 where no place is filled.
    """
    if k < 1:
        raise InputError(f"judged@{k}: a cutoff starts at 1")
    order, places, seen = order_of_scores(run), 0, 0
    for query_id, labels in qrels.items():
        best = order.get(query_id, [])[:k]
        places += len(best)
        seen += sum(doc_id in labels for doc_id in best)
    return seen / places if places else 0.0


def ceiling(run: Run, qrels: Qrels, measure: str) -> Evaluation:
    """What the best order of the run's own documents would measure: as far as a reranker of it can come."""
    Measure.parse(measure)
    best = {
        query_id: {doc_id: float(qrels.get(query_id, {}).get(doc_id, 0)) for doc_id in docs}
        for query_id, docs in run.items()
    }
    return evaluate(best, qrels, [measure])


Consensus = Literal["mean", "borda", "kemeny"]


def consensus(scores: Mapping[str, Mapping[str, float]]) -> dict[Consensus, dict[str, float]]:
    """One order of systems over several datasets, `scores[system][dataset]`, in three ways, more is better.

    `mean`, the usual one, lets the dataset with the widest spread decide. `borda` is the number of systems that one is
    above, half for ties, as a mean over datasets; `kemeny` n - place in the order that contradicts the fewest
    comparisons within datasets (Colombo et al., "What are the best Systems?", NeurIPS 2022). Its search is exact, so of
    more systems than that allows there is no `kemeny` (`no_kemeny` says why). Raises InputError where a system lacks a
    dataset.
    """
    from rerank.aggregation import kemeny, wins

    names = list(scores)
    if not names:
        raise InputError("there is no system to put in order; give at least one")
    datasets = list(scores[names[0]])
    for name, own in scores.items():
        if missing := [each for each in datasets if each not in own] + [each for each in own if each not in datasets]:
            raise InputError(f"{name} and {names[0]} were not measured on the same datasets: {missing[0]!r}")
    table = np.array([[scores[name][each] for each in datasets] for name in names])  # [systems, datasets]
    above = (table[:, None] > table[None, :]).mean(2) + (table[:, None] == table[None, :]).mean(2) / 2
    found: dict[Consensus, dict[str, float]] = {
        "mean": dict(zip(names, map(float, table.mean(1)), strict=True)),
        "borda": dict(zip(names, wins(above.tolist()), strict=True)),
    }
    if no_kemeny(len(names)) is None:
        order = kemeny(above.tolist())
        found["kemeny"] = {names[system]: float(len(names) - 1 - place) for place, system in enumerate(order)}
    return found


def no_kemeny(systems: int) -> str | None:
    """Why so many systems have no Kemeny order, where they have none."""
    from rerank.aggregation import KEMENY_EXACT

    if systems <= KEMENY_EXACT:
        return None
    return f"no Kemeny order: it is found exactly, for at most {KEMENY_EXACT} rankers, and there are {systems}"
