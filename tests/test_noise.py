"""One answer in ten wrong: no strategy is worse than its paper's algorithm, written down plainly and asked the same.

What is wrong depends on the seed and on the question alone, so that both hear the same answer to the same question. The
references are the papers' loops with no question spared and none put together in a batch.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from judged import shuffled

import rerank
from rerank.backbones import ScriptedBackbone
from rerank.calls import Call, log_softmax

Said = Callable[[tuple[str, ...]], list[str]]  # the passages that are shown, in the order that is answered
Reference = Callable[[list[str], Said], list[str]]
N, K, WRONG, SEEDS = 30, 10, 0.1, 60


def noisy(relevance: dict[str, float], seed: int) -> Said:
    """The right order of what is shown, but that one time in ten two neighbours stand the wrong way round."""

    def said(shown: tuple[str, ...]) -> list[str]:
        draw = random.Random(f"{seed} {shown}")
        order = sorted(shown, key=lambda doc_id: -relevance[doc_id])
        for i in range(len(order) - 1):
            if draw.random() < WRONG:
                order[i], order[i + 1] = order[i + 1], order[i]
        return order

    return said


def script(said: Said, call: Call) -> list[float]:
    shown = tuple(passage.doc_id for passage in call.dialogue.passages)
    order = said(shown)
    return log_softmax([-float(order.index(doc_id)) for doc_id in shown])


def wins(said: Said, one: str, other: str) -> float:
    """PRP: 1 where both orders say so, 0 where both say the other, else ½."""
    return sum(said(shown)[0] == one for shown in ((one, other), (other, one))) / 2


def all_pairs(docs: list[str], said: Said) -> list[str]:
    points = {one: sum(wins(said, one, other) for other in docs if other != one) for one in docs}
    return sorted(docs, key=lambda doc_id: -points[doc_id])


def bubbles(docs: list[str], said: Said) -> list[str]:
    """PRP-Sliding-K: from the back, a neighbour goes up on a consistent win."""
    order = list(docs)
    for done in range(K):
        for i in range(len(order) - 1, done, -1):
            if wins(said, order[i], order[i - 1]) == 1:
                order[i - 1], order[i] = order[i], order[i - 1]
    return order


def heap(docs: list[str], best: Callable[[list[str]], str], children: int) -> list[str]:
    """The c-ary heap of Setwise's code, and for two children and a comparison that of PRP's."""
    heap, found = list(docs), []

    def sift(i: int, n: int) -> None:
        family = [i, *range(children * i + 1, min(children * (i + 1) + 1, n))]
        if len(family) > 1:
            shown = [heap[j] for j in family]
            largest = family[shown.index(best(shown))]
            if largest != i:
                heap[i], heap[largest] = heap[largest], heap[i]
                sift(largest, n)

    for i in range(len(heap) // children, -1, -1):
        sift(i, len(heap))
    for n in range(len(heap) - 1, len(heap) - 1 - K, -1):
        found.append(heap[0])
        heap[0], heap[n] = heap[n], heap[0]
        sift(0, n)
    return found + heap[: len(docs) - K]


def of_pairs(said: Said, shown: list[str]) -> str:
    """The largest of a node and its two children, by two comparisons; a tie is not greater."""
    largest = shown[0]
    for other in shown[1:]:
        if wins(said, other, largest) == 1:
            largest = other
    return largest


def of_sets(said: Said, shown: list[str]) -> str:
    return said(tuple(shown))[0]


def set_bubbles(docs: list[str], said: Said) -> list[str]:
    """Setwise's bubble sort with windows of three: the best changes places with the window's head."""
    order = list(docs)
    for done in range(K):
        start = max(len(order) - 3, done)
        while True:
            window = order[start : start + 3]
            where = start + window.index(said(tuple(window))[0])
            order[start], order[where] = order[where], order[start]
            if start == done:
                break
            start = max(start - 2, done)
    return order


def slides(docs: list[str], said: Said) -> list[str]:
    """RankGPT's loop; 30, 20 and 10 leave nothing over."""
    order = list(docs)
    for start in range(N - 20, -1, -10):
        order[start : start + 20] = said(tuple(order[start : start + 20]))
    return order


CASES: list[tuple[str, dict[str, object], Reference]] = [
    ("pairwise", {"algorithm": "allpair"}, all_pairs),
    ("pairwise", {"algorithm": "heapsort"}, lambda docs, said: heap(docs, partial(of_pairs, said), 2)),
    ("pairwise", {"algorithm": "sliding"}, bubbles),
    ("setwise", {"algorithm": "heapsort"}, lambda docs, said: heap(docs, partial(of_sets, said), 2)),
    ("setwise", {"algorithm": "heapsort", "children": 9}, lambda docs, said: heap(docs, partial(of_sets, said), 9)),
    ("setwise", {"algorithm": "bubblesort"}, set_bubbles),
    ("first", {}, slides),
]


def ndcg(order: Sequence[str], relevance: dict[str, float]) -> float:
    def dcg(gains: Sequence[float]) -> float:
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains[:K], start=1))

    return dcg([relevance[doc_id] for doc_id in order]) / dcg(sorted(relevance.values(), reverse=True))


@pytest.mark.parametrize(("name", "options", "reference"), CASES, ids=[f"{n}-{o}" for n, o, _ in CASES])
def test_one_wrong_answer_in_ten_costs_no_more_than_the_papers_loop(
    name: str, options: dict[str, object], reference: Reference
) -> None:
    differences, found = [], []
    for seed in range(SEEDS):
        request, relevance = shuffled(N, seed=seed)
        said = noisy(relevance, seed)
        ranker = rerank.load(name, backbone=ScriptedBackbone(partial(script, said)), **options)
        (ranking,) = ranker.rank_many([request])
        found.append(ndcg(ranking.doc_ids, relevance))
        naive = reference([passage.doc_id for passage in request.passages], said)
        assert sorted(naive) == sorted(ranking.doc_ids)
        differences.append(found[-1] - ndcg(naive, relevance))
    error = statistics.stdev(differences) / math.sqrt(SEEDS)
    assert statistics.mean(differences) >= -2 * error
    assert statistics.mean(found) < 1  # the noise is heard
