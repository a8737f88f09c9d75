"""Sorting by questions: the best k of n passages, where a question shows a few of them and finds the best.

A passage is its place in the first stage's order, 0..n-1. `best` asks about some passages and returns one of
them; where the answer does not tell them apart it returns the first that it was given. `*_questions` say how
many passages each question shows, at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from rerank.calls import Answer, Call
from rerank.strategies.base import Asking, T, is_stable
from rerank.strategies.listwise import windows

Best = Callable[[Sequence[int]], Asking[int]]


def heap_top(n: int, k: int, children: int, best: Best) -> Asking[list[int]]:
    """Heapsort with `children` below each node: the best k in order, then the others as the first stage had them.

    A question shows a node and its children in the first stage's order, where the papers' code shows the node
    first: what ties then keeps that order, where a heap of ties would come out backwards. Building asks
    about all nodes of a level together, since their subtrees are apart.
    """
    heap, top = list(range(n)), list[int]()

    def sift(node: int) -> Asking[None]:
        while below := heap[children * node + 1 : children * (node + 1) + 1]:
            winner = yield from best(sorted([heap[node], *below]))
            if winner == heap[node]:
                return
            place = children * node + 1 + below.index(winner)
            heap[node], heap[place] = winner, heap[node]
            node = place

    for level in reversed(_levels(n, children)):
        yield from together([sift(node) for node in level])
    while heap and len(top) < k:
        top.append(heap[0])
        last = heap.pop()
        if heap and len(top) < k:
            heap[0] = last
            yield from sift(0)
    return top + [i for i in range(n) if i not in set(top)]


def heap_questions(n: int, k: int, children: int) -> list[int]:
    """At most: every sift goes down to the leftmost leaf, which is as deep as any."""

    def sift(node: int, size: int) -> list[int]:
        shown = []
        while (first := children * node + 1) < size:
            shown.append(1 + min(children, size - first))
            node = first
        return shown

    building = [shown for level in _levels(n, children) for node in level for shown in sift(node, n)]
    return building + [shown for taken in range(1, min(k, n)) for shown in sift(0, n - taken)]


def _levels(n: int, children: int) -> list[range]:
    """The nodes of a heap, level by level from the root."""
    levels, start = [], 0
    while start < n:
        levels.append(range(start, min(children * start + 1, n)))
        start = children * start + 1
    return levels


def bubble_top(n: int, k: int, size: int, best: Best, stable: int | None = None) -> Asking[list[int]]:
    """k passes of a window of `size` from the tail; the best goes to the window's head, and the next window ends there.

    Pass t stops at place t. The others of a window keep their order, where Setwise's code swaps two. A pass that left
    the first `stable` as they were is the last one.
    """
    order = list(range(n))
    for done in range(min(k, n - 1)):
        before = list(order)
        for start, end in windows(n - done, size, size - 1):
            shown = order[done + start : done + end]
            winner = yield from best(shown)
            order[done + start : done + end] = [winner, *(i for i in shown if i != winner)]
        if is_stable(before, order, stable):
            break
    return order


def bubble_questions(n: int, k: int, size: int) -> list[int]:
    """Every window of every pass; one that comes again need not be asked again."""
    return [end - start for done in range(min(k, n - 1)) for start, end in windows(n - done, size, size - 1)]


def together(tasks: Sequence[Asking[T]]) -> Asking[list[T]]:
    """Independent tasks in step: what they ask at a time is one batch. What each returned, in their order."""
    found: dict[int, T] = {}
    told: dict[int, Sequence[Answer] | None] = dict.fromkeys(range(len(tasks)))
    while told:
        asked: dict[int, Sequence[Call]] = {}
        for i, answers in told.items():
            try:
                asked[i] = next(tasks[i]) if answers is None else tasks[i].send(answers)
            except StopIteration as stop:
                found[i] = stop.value
        flat = iter((yield [call for calls in asked.values() for call in calls]) if asked else ())
        told = {i: list(islice(flat, len(calls))) for i, calls in asked.items()}
    return [found[i] for i in range(len(tasks))]
