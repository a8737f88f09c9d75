"""Effectiveness measures with trec_eval's conventions, computed by ranx. Their names: see rerank.measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rerank.errors import InputError
from rerank.measure import Measure
from rerank.types import Ranking

if TYPE_CHECKING:
    from numpy.typing import NDArray

Run = Mapping[str, Mapping[str, float]]  # query_id -> doc_id -> score
Qrels = Mapping[str, Mapping[str, int]]  # query_id -> doc_id -> label

_RANX = {
    "nDCG": "ndcg",
    "RR": "reciprocal_rank",
    "AP": "average_precision",
    "R": "recall",
    "P": "precision",
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`mean[measure]` and `per_query[measure][query_id]`; the keys are the names that were asked for."""

    mean: dict[str, float]
    per_query: dict[str, dict[str, float]]


def evaluate(
    run: Run | Iterable[Ranking],
    qrels: Qrels,
    measures: Sequence[str] = ("nDCG@10",),
    *,
    judged_only: bool = False,
) -> Evaluation:
    """Measure a run, as `trec_eval -c` does.

    The mean is over every query of the qrels: one that the run lacks, or that has no relevant document,
    counts as 0. Queries without judgments are left out. nDCG's gain is the label itself; labels below 1
    gain nothing. A run of scores is ordered by score as float32, ties by descending doc id; rankings keep
    their order. `judged_only` drops documents without a label, or with a negative one, before measuring
    (`trec_eval -J`).
    """
    names = (measures,) if isinstance(measures, str) else tuple(measures)
    parsed = {name: Measure.parse(name) for name in names}
    order = order_of_scores(run) if isinstance(run, Mapping) else _order_of_rankings(run)
    if not order.keys() & qrels.keys():
        raise InputError(
            f"the run and the qrels share no query: the run has {_example(order)}, the qrels have {_example(qrels)}"
        )
    if judged_only:
        order = {
            query_id: [doc_id for doc_id in doc_ids if qrels.get(query_id, {}).get(doc_id, -1) >= 0]
            for query_id, doc_ids in order.items()
        }
    labels, hits = _tables(order, qrels)
    per_query = {name: dict(zip(qrels, _score(measure, labels, hits), strict=True)) for name, measure in parsed.items()}
    return Evaluation({name: sum(values.values()) / len(values) for name, values in per_query.items()}, per_query)


def _score(measure: Measure, labels: NDArray[np.float64], hits: NDArray[np.float64]) -> list[float]:
    import ranx.metrics

    # The metric itself, not ranx.evaluate: that one sorts unstably, so that ties change a score, compares
    # documents by hashes rounded to 53 bits, and fails on an empty run and on one measure per query.
    metric = getattr(ranx.metrics, _RANX[measure.name])
    scores: list[float] = metric(labels, hits, measure.cutoff or 0, measure.rel or 1).tolist()
    return scores


def _tables(order: Mapping[str, list[str]], qrels: Qrels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """ranx's dense input, [queries, documents, (document number, value)].

    A query's documents with a label of 1 or more are numbered from 1, best label first, as ranx wants for
    the ideal ranking. Number 0 is every other document and the padding; with label 0 ranx ignores it.
    """
    judged = [
        sorted(((doc_id, label) for doc_id, label in docs.items() if label > 0), key=lambda pair: -pair[1])
        for docs in qrels.values()
    ]
    retrieved = [order.get(query_id, []) for query_id in qrels]
    labels = np.zeros((len(judged), max(1, *map(len, judged)), 2))
    hits = np.zeros((len(judged), max(1, *map(len, retrieved)), 2))
    for row, (pairs, doc_ids) in enumerate(zip(judged, retrieved, strict=True)):
        number = {doc_id: index for index, (doc_id, _) in enumerate(pairs, start=1)}
        labels[row, : len(pairs), 0] = list(number.values())
        labels[row, : len(pairs), 1] = [label for _, label in pairs]
        hits[row, : len(doc_ids), 0] = [number.get(doc_id, 0) for doc_id in doc_ids]
    return labels, hits


def order_of_scores(run: Run) -> dict[str, list[str]]:
    order = {}
    for query_id, docs in run.items():
        scores = np.fromiter(docs.values(), dtype=np.float32, count=len(docs))  # trec_eval's precision
        if np.isnan(scores).any():
            raise InputError(f"the run gives query {query_id!r} a score that is not a number")
        ranked = sorted(zip(scores.tolist(), docs, strict=True), reverse=True)
        order[query_id] = [doc_id for _, doc_id in ranked]
    return order


def _order_of_rankings(rankings: Iterable[Ranking]) -> dict[str, list[str]]:
    order: dict[str, list[str]] = {}
    for ranking in rankings:
        query_id = ranking.query.query_id
        if query_id in order:
            raise InputError(f"two rankings of query {query_id!r}; give each query once")
        order[query_id] = [hit.passage.doc_id for hit in sorted(ranking.hits, key=lambda hit: hit.rank)]
    return order


def _example(ids: Iterable[str]) -> str:
    first = next(iter(ids), None)
    return "none" if first is None else f"{first!r}"
