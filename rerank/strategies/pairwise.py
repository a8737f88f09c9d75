"""Pairwise ranking prompting, PRP: which of two passages is the better one? (Qin et al., Findings of NAACL 2024).

Both orders of a pair are always asked, since models lean to a place. One passage wins only if both answers
are for it; all else, an answer that cannot be read included, is a tie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import ClassVar, Literal

from rerank.calls import Kind
from rerank.errors import InputError, PromptError
from rerank.prompts import Prompt, load_prompt
from rerank.prompts.prompt import Order
from rerank.strategies.base import Asking, Steps, Verdict, by_score, check_passage_tokens, check_prompt
from rerank.strategies.sorting import bubble_questions, bubble_top, heap_questions, heap_top
from rerank.types import Candidates, Outcomes

TOP = 10  # the paper's K: what nDCG@10 sees
_PAIRS_AT_ONCE = 512  # the pairs of 100 passages, rendered all at once, would hold 9,900 prompts


@dataclass(frozen=True, slots=True)
class Pairwise:
    """By `algorithm`. `allpair`: a passage's score is its wins and half its ties, over all others; n(n - 1) calls.
    `heapsort`: the best k by a binary heap. `sliding`: the best k by k passes from the tail that swap
    neighbours where the lower one wins. `k` is 10 unless given.

    `soft` lets allpair take probabilities in place of wins: (σ(a - b) + σ(a' - b')) / 2, with the labels'
    log-probabilities in both orders. `aggregate` is how allpair makes one order of all its preferences, by the
    functions of `aggregation`: `wins` adds them up; `bradley-terry` gives log-strengths; `kemeny` agrees with the most
    of them, for at most 20 passages; `path` is TSPRank's, which bears mistakes worse than the others.
    The last two and the sorters give ranks, no scores.

    A prompt that generates an order may take the place of one with labels; the passage that it names first is
    preferred then. `passage_tokens` cuts every passage to that many tokens.
    """

    source: ClassVar[str] = "PRP: Qin et al., NAACL 2024"
    prompt: Prompt = field(default_factory=lambda: load_prompt("pairwise"))
    algorithm: Literal["allpair", "heapsort", "sliding"] = "heapsort"
    k: int | None = None
    soft: bool = False
    aggregate: Literal["wins", "bradley-terry", "kemeny", "path"] = "wins"
    passage_tokens: int | None = None

    def __post_init__(self) -> None:
        check_prompt("pairwise", self.prompt, "many")
        check_passage_tokens(self.passage_tokens)
        if self.algorithm == "allpair" and self.k is not None:
            raise InputError(f"k is {self.k}, but allpair orders all passages; leave k out, or give algorithm=heapsort")
        if self.k is not None and self.k < 1:
            raise InputError(f"k is {self.k}; give at least 1, the passages to put in order")
        if self.soft and self.algorithm != "allpair":
            raise InputError(f"soft takes probabilities, which {self.algorithm} does not; give algorithm=allpair")
        if self.soft and self.prompt.needs is not Kind.LABELS:
            raise PromptError(f"soft needs the probabilities of labels; prompt {self.prompt.name!r} generates text")

        if self.aggregate != "wins" and self.algorithm != "allpair":
            raise InputError(
                f"aggregate={self.aggregate} needs the preferences of all pairs, and {self.algorithm} does not ask for "
                "them; give algorithm=allpair"
            )

    def calls(self, n: int) -> int:
        k = self.k or TOP
        match self.algorithm:
            case "allpair":
                return n * (n - 1)
            case "heapsort":
                return 2 * sum(shown - 1 for shown in heap_questions(n, k, 2))
            case "sliding":
                return 2 * len(bubble_questions(n, k, 2))

    def rank(self, candidates: Candidates) -> Steps:
        n, k, outcomes = len(candidates), self.k or TOP, list[Outcomes]()
        known: dict[tuple[int, int], float] = {}  # no pair is asked about twice

        def best(shown: Sequence[int]) -> Asking[int]:
            winner = shown[0]
            for other in shown[1:]:
                pair = (min(winner, other), max(winner, other))
                if pair not in known:
                    (known[pair],) = yield from self._prefer(candidates, [pair], outcomes)
                winner = other if known[pair] == (1 if other == pair[0] else 0) else winner
            return winner

        match self.algorithm:
            case "allpair":
                verdict = yield from self._all(candidates, outcomes)
                return replace(verdict, outcomes=sum(outcomes, Outcomes()))
            case "heapsort":
                order = yield from heap_top(n, k, 2, best)
            case "sliding":
                order = yield from bubble_top(n, k, 2, best)
        return Verdict(tuple(order), outcomes=sum(outcomes, Outcomes()))

    def _all(self, candidates: Candidates, outcomes: list[Outcomes]) -> Steps:
        from rerank.strategies import aggregation  # numpy, for those who need it

        n = len(candidates)
        if self.aggregate == "kemeny":
            aggregation.check_kemeny(n)  # before anything is asked
        p = [[0.5] * n for _ in range(n)]
        pairs = list(combinations(range(n), 2))
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            part = pairs[start : start + _PAIRS_AT_ONCE]
            preferences = yield from self._prefer(candidates, part, outcomes)
            for (i, j), preference in zip(part, preferences, strict=True):
                p[i][j], p[j][i] = preference, 1 - preference
        match self.aggregate:
            case "wins":
                return by_score([(score, Outcomes()) for score in aggregation.wins(p)])
            case "bradley-terry":
                return by_score([(score, Outcomes()) for score in aggregation.bradley_terry(p)])
            case "kemeny":
                return Verdict(tuple(aggregation.kemeny(p)))
            case "path":
                return Verdict(tuple(aggregation.path(p)))

    def _prefer(
        self, candidates: Candidates, pairs: Sequence[tuple[int, int]], outcomes: list[Outcomes]
    ) -> Asking[list[float]]:
        """How much the first of each pair is preferred: 1 it wins, 0 the other wins, 1/2 a tie."""
        passages = candidates.passages
        shown = [order for i, j in pairs for order in ((i, j), (j, i))]
        answers = yield [
            self.prompt.ask(candidates.query, [passages[i], passages[j]], self.passage_tokens) for i, j in shown
        ]
        read = [self.prompt.order(answer, 2) for answer in answers]
        outcomes += [ranked.outcomes for ranked in read]
        leanings = [_leaning(ranked, self.soft) for ranked in read]
        means = [(there + 1 - back) / 2 for there, back in zip(leanings[::2], leanings[1::2], strict=True)]
        return means if self.soft else [mean if mean in (0, 1) else 0.5 for mean in means]


def _leaning(ranked: Order, soft: bool) -> float:
    """How much an answer is for the passage shown first: 1, 0, or 1/2 where it does not tell."""
    if ranked.outcomes.failed:
        return 0.5
    if ranked.scores is None:
        return float(ranked.positions[0] == 0)
    first, second = (ranked.scores[ranked.positions.index(place)] for place in (0, 1))
    if soft:
        return 1 / (1 + math.exp(min(second - first, 700.0)))  # exp overflows beyond 709
    return 0.5 if first == second else float(first > second)
