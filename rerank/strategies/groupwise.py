"""Groupwise: random groups of passages, each of them scored beside the others of its group (GroupRank; Sun et al.,
arXiv 2511.11653, 2025).

A prompt sees a whole group, so that its scores compare; groups are independent, so that all are one batch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice
from statistics import fmean
from typing import ClassVar

from rerank.errors import InputError
from rerank.prompts import Prompt, load_prompt
from rerank.strategies.base import Steps, Verdict, check_passage_tokens, check_prompt, with_budget
from rerank.types import Candidates, Outcomes, Passage


@dataclass(frozen=True, slots=True)
class Groupwise:
    """A passage's score is the mean of what its groups' answers gave it; ties keep the first stage's order.

    The passages are split `shuffles` times anew, at random by `seed`, into ceil(n / `group`) groups: random groups are
    better than ones of neighbours, and more than about 4 splits gain little, says the paper, whose group is 20.
    `fusion` times the first stage's signal (see `first_stage`) is added, in points of the prompt's scale.
    `reason_tokens` bounds the reasoning of a prompt that has some written.

    A passage that its group's answer left out keeps its place by the first stage among the group, and a passage
    none of whose answers could be read keeps its place among all (see `placed`), where scoring it 0 would put it last;
    the outcomes count both. Where the model's probabilities can be read, prompt `groupwise-expected` asks for the
    score of each passage beside its group by one token, and takes the expected value: nothing is written, ties are
    rare, and it is a call for each passage. The paper uses such values to break the ties of written scores.

    `passage_tokens` cuts every passage to that many tokens.
    """

    source: ClassVar[str] = "GroupRank: Sun et al. 2025"
    formula: ClassVar[str] = "shuffles ceil(n / group); shuffles n where a prompt scores one passage"
    prompt: Prompt = field(default_factory=lambda: load_prompt("groupwise"))
    group: int = 20
    shuffles: int = 1
    fusion: float = 0.0
    seed: int = 0
    passage_tokens: int | None = None
    reason_tokens: int | None = None

    def __post_init__(self) -> None:
        check_prompt("groupwise", self.prompt, "many", scores_each=True)
        check_passage_tokens(self.passage_tokens)
        object.__setattr__(self, "prompt", with_budget(self.prompt, self.reason_tokens))
        for name in ("group", "shuffles"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give at least 1")
        if not 0 <= self.fusion < math.inf:
            raise InputError(f"fusion is {self.fusion}; give 0 or more, the points that the first stage's best gains")
        most = self.prompt.max_passages
        if most is not None and self.group > most:
            raise InputError(f"group {self.group}: prompt {self.prompt.name!r} can name {most} passages")

    def calls(self, n: int) -> int:
        return self.shuffles * sum(self.prompt.calls_each(size) for size in sizes(n, self.group))

    def rank(self, candidates: Candidates) -> Steps:
        n, shuffler = len(candidates), random.Random(self.seed)
        groups = [group for _ in range(self.shuffles) for group in split(n, self.group, shuffler)]
        shown = [[candidates.passages[i] for i in group] for group in groups]
        asked = [self.prompt.ask_each(candidates.query, passages, self.passage_tokens) for passages in shown]
        answers = iter((yield list(chain(*asked))))
        read = [
            self.prompt.scores(list(islice(answers, len(calls))), passages)
            for calls, passages in zip(asked, shown, strict=True)
        ]
        outcomes = sum((one.outcomes for one in read), Outcomes())
        reasoning = tuple(one.reasoning for one in read if one.reasoning)
        given: list[list[float]] = [[] for _ in range(n)]
        for group, one in zip(groups, read, strict=True):
            if any(value is not None for value in one.values):
                got = dict(sorted(zip(group, one.values, strict=True)))  # in the first stage's order
                for i, score in zip(got, placed(list(got.values())), strict=True):
                    given[i].append(score)
        if not any(given):
            return Verdict(tuple(range(n)), None, outcomes, reasoning)
        means = placed([fmean(scores) if scores else None for scores in given])
        signal = first_stage(candidates.passages)
        scores = [mean + self.fusion * more for mean, more in zip(means, signal, strict=True)]
        order = sorted(range(n), key=lambda i: -scores[i])
        return Verdict(tuple(order), tuple(scores[i] for i in order), outcomes, reasoning)


def split(n: int, size: int, shuffler: random.Random) -> list[list[int]]:
    """The groups of 0..n-1, each in the order drawn, which is also the order shown: a new draw then moves every
    passage in its prompt, though there be one group only."""
    drawn = iter(shuffler.sample(range(n), n))
    return [list(islice(drawn, group)) for group in sizes(n, size)]


def sizes(n: int, size: int) -> list[int]:
    """Of the ceil(n / size) groups; they differ by one at most, where the last of groups of `size` could be left with
    a passage or two to compare.

    >>> sizes(41, 20)
    [14, 14, 13]
    """
    count = math.ceil(n / size)
    return [(n - first - 1) // count + 1 for first in range(count)]


def placed(scores: Sequence[float | None]) -> list[float]:
    """Scores in the first stage's order, of which some are known, with one for each of the others that keeps its place:
    the known ones take the other places, best first, and an unknown one gets the mean of the nearest before it and the
    nearest after it, or the only one there is. Where these two are equal it is tied with them.

    >>> placed([2.0, None, 8.0, 5.0, None])
    [2.0, 6.5, 8.0, 5.0, 2.0]
    """
    best_first = iter(sorted((score for score in scores if score is not None), reverse=True))
    row = [None if score is None else next(best_first) for score in scores]
    before = accumulate(row, _latest)
    after = list(accumulate(reversed(row), _latest))[::-1]
    nearest = [[s for s in pair if s is not None] for pair in zip(before, after, strict=True)]
    return [fmean(near) if score is None else score for score, near in zip(scores, nearest, strict=True)]


def _latest(before: float | None, score: float | None) -> float | None:
    return before if score is None else score


def first_stage(passages: Sequence[Passage]) -> list[float]:
    """What the first stage thought of its passages, 1 for the best to 0 for the worst: their scores, (s - min) /
    (max - min), where all have one; else their ranks r, (n - r) / (n - 1). All 0 where it made no difference.

    >>> first_stage([Passage("a", "a", score=9.0), Passage("b", "b", score=6.0), Passage("c", "c", score=5.0)])
    [1.0, 0.25, 0.0]
    >>> first_stage([Passage("a", "a"), Passage("b", "b", score=6.0), Passage("c", "c")])
    [1.0, 0.5, 0.0]
    """
    values = [passage.score for passage in passages if passage.score is not None and math.isfinite(passage.score)]
    if len(values) < len(passages):
        values = [float(-rank) for rank in range(len(passages))]
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]
