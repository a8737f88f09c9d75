"""A ranker's score as the number between 0 and 1 that clients expect. Each map keeps the order.

- `exp`: e^s. Of a query likelihood, which is the mean log-probability of the query's tokens: their geometric mean.
- `sigmoid`: 1 / (1 + e^-s). Of a logit, or of a head's score: what model cards of rerankers print.
- `min-max`: (s - least) / (most - least) within the list, 0.5 where all are equal. Of ranks, sums and windows, whose
  scores mean something within one list only.

Of `exp` and `sigmoid` a threshold means the same for every query, of `min-max` it does not: the first always has 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from rerank.calls import Kind
from rerank.reranker import Cascade, Ranker, Reranker
from rerank.strategies.pointwise import Pointwise

ScoreMap = Literal["exp", "sigmoid", "min-max"]


def usual(ranker: Ranker) -> ScoreMap:
    """By what the last stage's scores are."""
    if isinstance(ranker, Cascade):
        ranker = ranker.stages[-1].ranker
    if isinstance(ranker, Reranker) and isinstance(ranker.strategy, Pointwise):
        return "exp" if ranker.strategy.prompt.needs == Kind.LIKELIHOOD else "sigmoid"
    return "min-max"


def mapped(name: ScoreMap, scores: Sequence[float]) -> list[float]:
    """Infinite scores go to the ends.

    >>> mapped("min-max", [3.0, 2.0, 1.0, -math.inf])
    [1.0, 0.5, 0.0, 0.0]
    """
    if name == "exp":
        return [math.exp(min(score, 0.0)) for score in scores]
    if name == "sigmoid":
        return [_sigmoid(score) for score in scores]
    finite = [score for score in scores if math.isfinite(score)]
    least, most = min(finite, default=0.0), max(finite, default=0.0)
    return [_between(score, least, most) for score in scores]


def _sigmoid(score: float) -> float:
    if score >= 0:
        return 1 / (1 + math.exp(-score))
    return math.exp(score) / (1 + math.exp(score))  # e^-score would overflow


def _between(score: float, least: float, most: float) -> float:
    if not math.isfinite(score):
        return 1.0 if score > 0 else 0.0
    return 0.5 if least == most else (score - least) / (most - least)
