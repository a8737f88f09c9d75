"""Passages whose relevance is known, for the tests of strategies."""

from __future__ import annotations

import random

from rerank.calls import Call
from rerank.types import Candidates, Passage, Query


def shuffled(n: int, seed: int = 0) -> tuple[Candidates, dict[str, float]]:
    """n passages whose relevances are all different and in no order. They lie in 0..3, the graded scale."""
    relevances = [3 * i / max(1, n - 1) for i in range(n)]
    random.Random(seed).shuffle(relevances)
    passages = tuple(Passage(f"text {i}", f"d{i}") for i in range(n))
    return Candidates(Query("a query", "q"), passages), {f"d{i}": r for i, r in enumerate(relevances)}


def best_first(relevance: dict[str, float]) -> list[str]:
    return sorted(relevance, key=lambda doc_id: -relevance[doc_id])


def with_top(relevance: dict[str, float], k: int) -> list[str]:
    """The best k in order, the others as they were given."""
    top = best_first(relevance)[:k]
    return top + [doc_id for doc_id in relevance if doc_id not in top]


def shown(call: Call) -> list[str]:
    """The doc ids of the passages that a call shows, in their order."""
    return [passage.doc_id for passage in call.dialogue.passages]


def given_order(n: int) -> list[str]:
    """The doc ids of `shuffled(n)` as the first stage has them."""
    return [f"d{i}" for i in range(n)]
