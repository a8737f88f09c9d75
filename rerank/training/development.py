"""The development set: judged queries that the model ranks again and again while it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rerank.data import load_dataset, read_run
from rerank.errors import InputError
from rerank.eval import evaluate
from rerank.reranker import Reranker
from rerank.training.parts import Evaluation
from rerank.training.sources import BM25, placed
from rerank.types import Candidates

if TYPE_CHECKING:
    from rerank.backbones.base import Backbone
    from rerank.strategies.base import Strategy


@dataclass(frozen=True, slots=True)
class Development:
    """`judged` has the judgments of every request's query."""

    requests: Sequence[Candidates]
    judged: Mapping[str, Mapping[str, int]]
    measure: str

    def value(self, strategy: Strategy, backbone: Backbone) -> float:
        rankings = list(Reranker(strategy, backbone).rank_many(self.requests))
        return evaluate(rankings, self.judged, (self.measure,)).mean[self.measure]


def read_development(part: Evaluation, base: Path) -> Development:
    """What a recipe's evaluation names, with paths from `base`. Raises InputError where nothing in it is judged."""
    dataset = load_dataset(placed(part.dataset, base))
    if dataset.qrels is None:
        raise InputError(f"evaluation: {part.dataset} has no judgments")
    if part.run == BM25:
        candidates = dataset.candidates(part.depth, queries=dataset.queries.values())
    else:
        candidates = dataset.candidates(part.depth, run=read_run(base / part.run) if part.run is not None else None)
    requests = [each for each in candidates if each.query.query_id in dataset.qrels][: part.queries]
    if not requests:
        raise InputError(f"evaluation: no query of {part.dataset} has both judgments and candidates")
    judged = {each.query.query_id: dataset.qrels[each.query.query_id] for each in requests}
    return Development(requests, judged, part.measure)
