"""Tournaments: passages meet in groups, and the best of each go on to the next stage (TourRank; Chen et al., WWW 2025).

A passage gets a point for each stage that it survives. The groups of a stage are independent of one another, and so
are the tournaments: what all of them ask in a stage is one batch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

from rerank.errors import InputError
from rerank.prompts import Prompt, load_prompt
from rerank.prompts.read import Order
from rerank.strategies.base import Asking, Steps, as_read, by_score, check_passage_tokens, check_prompt
from rerank.strategies.sorting import together
from rerank.types import Candidates, Outcomes

_SMALLEST = 3  # a stage leaves two in five at the least, so that groups of 3 can each send one on


def stages(n: int) -> list[int]:
    """How many are left after each stage: the numbers 1, 2, 5, 10, 20, 50, … below n, down to 2.

    For 100 these are the paper's; for other n the rule is ours. Of two passages one is chosen.

    >>> stages(100), stages(30), stages(2)
    ([50, 20, 10, 5, 2], [20, 10, 5, 2], [1])
    """
    series = [m * 10**power for power in range(len(str(n))) for m in (1, 2, 5)]
    return [left for left in reversed(series) if left < n and (left > 1 or n == 2)]


def groups(passages: Sequence[int], left: int, most: int) -> list[tuple[list[int], int]]:
    """The groups of a stage, of at most `most` passages, and how many of each go on, `left` in all.

    Passages are dealt out like cards, so that every group has its share of the first stage's best. There are as few
    groups as can be, or up to twice as many where all can then be equal, as the five groups of ten in the paper:

    >>> [(len(group), best) for group, best in groups(range(50), 20, 20)]
    [(10, 4), (10, 4), (10, 4), (10, 4), (10, 4)]
    >>> [(len(group), best) for group, best in groups(range(47), 20, 20)]
    [(16, 7), (16, 7), (15, 6)]
    """
    n = len(passages)
    fewest = -(-n // most)
    count = next((c for c in range(fewest, 2 * fewest + 1) if n % c == left % c == 0), fewest)
    return [(list(passages[i::count]), left // count + (i < left % count)) for i in range(count)]


@dataclass(frozen=True, slots=True)
class Tournament:
    """The points of `rounds` tournaments, added up; of equals the first stage's first. Groups hold `group` at most.

    100 passages and groups of 20 are the paper's five stages, 13 calls a tournament. The tournaments deal by the same
    rule and differ in the order in which each group is shown, which `seed` shuffles. The authors' code runs ten; 2 is
    ours, for its cost.

    The best of a group are the first of the order that the prompt gives: by the labels of one token, where the paper
    has them written; a prompt that says how many are wanted (`full-ranking`) comes closest to it. Where an answer
    cannot be read, the first stage's best of the group go on. A group of which all go on is not asked about.
    `passage_tokens` cuts every passage to that many tokens.
    """

    source: ClassVar[str] = "TourRank: Chen et al., WWW 2025"
    formula: ClassVar[str] = "rounds sum(ceil(n_t / group), t the stages with n_t passages left)"
    prompt: Prompt = field(default_factory=lambda: load_prompt("first-identifier"))
    rounds: int = 2
    group: int = 20
    seed: int = 0
    passage_tokens: int | None = None

    def __post_init__(self) -> None:
        check_prompt("tournament", self.prompt, "many")
        check_passage_tokens(self.passage_tokens)
        if self.rounds < 1:
            raise InputError(f"rounds is {self.rounds}; give at least 1")
        if self.group < _SMALLEST:
            raise InputError(f"group is {self.group}; give at least {_SMALLEST}, so that a best one is left of each")
        most = self.prompt.max_passages
        if most is not None and self.group > most:
            raise InputError(f"group {self.group}: prompt {self.prompt.name!r} can name {most} passages")

    def calls(self, n: int) -> int:
        dealt = [groups(range(now), left, self.group) for now, left in pairwise([n, *stages(n)])]
        return self.rounds * sum(best < len(group) for stage in dealt for group, best in stage)

    def rank(self, candidates: Candidates) -> Steps:
        n, heard = len(candidates), list[Order]()
        points = [0.0] * n

        def tournament(shuffler: random.Random) -> Asking[None]:
            going = list(range(n))
            for left in stages(n):
                dealt = groups(going, left, self.group)
                chosen = yield from together([choose(group, best, shuffler) for group, best in dealt])
                going = sorted(i for group in chosen for i in group)
                for i in going:
                    points[i] += 1

        def choose(group: list[int], best: int, shuffler: random.Random) -> Asking[list[int]]:
            if best == len(group):
                return group
            shown, top = shuffler.sample(group, len(group)), best if self.prompt.asks_top else None
            passages = [candidates.passages[i] for i in shown]
            (answer,) = yield [self.prompt.ask(candidates.query, passages, self.passage_tokens, top)]
            ranked = self.prompt.order(answer, len(shown), top, passages=passages)
            heard.append(ranked)
            return group[:best] if ranked.outcomes.failed else [shown[place] for place in ranked.positions[:best]]

        yield from together([tournament(random.Random(f"{self.seed}, {turn}")) for turn in range(self.rounds)])
        return as_read(by_score([(score, Outcomes()) for score in points]), heard)
