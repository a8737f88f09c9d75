"""Pairwise ranking prompting, PRP: which of two passages is the better one? (Qin et al., Findings of NAACL 2024).

Both orders of a pair are always asked, since models lean to a place. One passage wins only if both answers
are for it; all else, an answer that cannot be read included, is a tie. A model that leans far ties everything, unless
its lean is estimated and taken away (`calibrate`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import ClassVar, Literal

from rerank.calls import Kind
from rerank.errors import InputError, PromptError
from rerank.prompts import Prompt, load_prompt
from rerank.prompts.read import Order
from rerank.strategies.base import (
    Asking,
    Steps,
    Verdict,
    as_read,
    by_score,
    check_passage_tokens,
    check_prompt,
    check_stable,
)
from rerank.strategies.sorting import bubble_questions, bubble_top, heap_questions, heap_top
from rerank.types import Candidates, Outcomes

TOP = 10  # the paper's K: what nDCG@10 sees
_PAIRS_AT_ONCE = 512  # the pairs of 100 passages, rendered all at once, would hold 9,900 prompts
_SAMPLE = 16  # pairs that sorters calibrate on: their mean then errs by a quarter of what pairs differ by

Pair = tuple[int, int]
Margins = tuple[float | None, float | None]
"""Of a pair (i, j): how much i was preferred when shown first, and j when it was: their log-odds, ±inf where text named
one, None where it could not be read."""


@dataclass(frozen=True, slots=True)
class Pairwise:
    """By `algorithm`. `allpair`: a passage's score is its wins and half its ties, over all others; n(n - 1) calls.
    `heapsort`: the best k by a binary heap. `sliding`: the best k by k passes from the tail that swap
    neighbours where the lower one wins. `k` is 10 unless given.

    `soft` lets allpair take probabilities in place of wins: (σ(a - b) + σ(a' - b')) / 2, with the labels'
    log-probabilities in both orders. `aggregate` is how allpair makes one order of all its preferences, by the
    functions of `aggregation`: `wins` adds them up; `bradley-terry` gives log-strengths; `kemeny` agrees with the most
    of them, for at most 20 passages; `path` is TSPRank's, which bears mistakes worse than the others.
    The last two and the sorters give ranks, no scores. With `stop_when_stable`, a number of passages, sliding is done
    after a pass that left so many at the head as they were. No pair of neighbours there was out of order then, and no
    passage came from behind: judges that do not contradict themselves would have no later pass change them.

    `calibrate` has the answers of a query share one calibration: its label bias (see `label_bias`) is subtracted from
    the log-odds of every answer before it counts. PRP has no such step, and without it is PRP. For allpair the bias
    is that of all its pairs. Sorters need it before they decide anything, since a comparison whose rule changes on
    the way is none to sort by; they first ask about up to 16 pairs of neighbours from the head of the list.

    A prompt that generates an order, or names the best, may take the place of one with labels; the passage that it
    names first is preferred then. `passage_tokens` cuts every passage to that many tokens.
    """

    source: ClassVar[str] = "PRP: Qin et al., NAACL 2024"
    formula: ClassVar[str] = "heapsort 4n + 4(k-1) log2(n) at most; allpair n(n-1); sliding 2 sum(n-t, t=1..k)"
    prompt: Prompt = field(default_factory=lambda: load_prompt("pairwise"))
    algorithm: Literal["allpair", "heapsort", "sliding"] = "heapsort"
    k: int | None = None
    soft: bool = False
    aggregate: Literal["wins", "bradley-terry", "kemeny", "path"] = "wins"
    calibrate: bool = False
    passage_tokens: int | None = None
    stop_when_stable: int | None = None

    def __post_init__(self) -> None:
        check_prompt("pairwise", self.prompt, "many", best_will_do=True)
        check_passage_tokens(self.passage_tokens)
        if self.algorithm == "allpair" and self.k is not None:
            raise InputError(f"k is {self.k}, but allpair orders all passages; leave k out, or give algorithm=heapsort")
        if self.k is not None and self.k < 1:
            raise InputError(f"k is {self.k}; give at least 1, the passages to put in order")
        if self.soft and self.algorithm != "allpair":
            raise InputError(f"soft takes probabilities, which {self.algorithm} does not; give algorithm=allpair")
        if self.soft and self.prompt.needs is not Kind.LABELS:
            raise PromptError(f"soft needs the probabilities of labels; prompt {self.prompt.name!r} generates text")
        if self.calibrate and self.prompt.needs is not Kind.LABELS:
            raise PromptError(
                f"calibrate needs the log-probabilities of labels; prompt {self.prompt.name!r} generates text"
            )
        check_stable(
            self.stop_when_stable,
            None if self.algorithm == "sliding" else f"{self.algorithm} makes no passes; give algorithm=sliding",
        )
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
                pairs = sum(shown - 1 for shown in heap_questions(n, k, 2))
            case "sliding":
                pairs = len(bubble_questions(n, k, 2))
        return 2 * (pairs + (len(neighbours(n)) if self.calibrate else 0))

    def rank(self, candidates: Candidates) -> Steps:
        n, k, heard = len(candidates), self.k or TOP, list[Order]()
        if self.algorithm == "allpair":
            verdict = yield from self._all(candidates, heard)
            return as_read(verdict, heard)
        known: dict[Pair, Margins] = {}  # no pair is asked about twice
        if self.calibrate:
            sample = neighbours(n)
            known = dict(zip(sample, (yield from self._ask(candidates, sample, heard)), strict=True))
        bias = label_bias(known.values())

        def best(shown: Sequence[int]) -> Asking[int]:
            winner = shown[0]
            for other in shown[1:]:
                pair = (min(winner, other), max(winner, other))
                if pair not in known:
                    (known[pair],) = yield from self._ask(candidates, [pair], heard)
                wins = 1 if other == pair[0] else 0
                winner = other if preference(known[pair], bias) == wins else winner
            return winner

        if self.algorithm == "heapsort":
            order = yield from heap_top(n, k, 2, best)
        else:
            order = yield from bubble_top(n, k, 2, best, self.stop_when_stable)
        return as_read(Verdict(tuple(order)), heard)

    def _all(self, candidates: Candidates, heard: list[Order]) -> Steps:
        from rerank import aggregation  # numpy, for those who need it

        n = len(candidates)
        if self.aggregate == "kemeny":
            aggregation.check_kemeny(n)  # before anything is asked
        pairs, margins = list(combinations(range(n), 2)), list[Margins]()
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            margins += yield from self._ask(candidates, pairs[start : start + _PAIRS_AT_ONCE], heard)
        bias = label_bias(margins) if self.calibrate else 0.0
        p = [[0.5] * n for _ in range(n)]
        for (i, j), asked in zip(pairs, margins, strict=True):
            p[i][j] = preference(asked, bias, soft=self.soft)
            p[j][i] = 1 - p[i][j]
        match self.aggregate:
            case "wins":
                return by_score([(score, Outcomes()) for score in aggregation.wins(p)])
            case "bradley-terry":
                return by_score([(score, Outcomes()) for score in aggregation.bradley_terry(p)])
            case "kemeny":
                return Verdict(tuple(aggregation.kemeny(p)))
            case "path":
                return Verdict(tuple(aggregation.path(p)))

    def _ask(self, candidates: Candidates, pairs: Sequence[Pair], heard: list[Order]) -> Asking[list[Margins]]:
        """What the answers in both orders of each pair say."""
        shown = [[candidates.passages[place] for place in order] for i, j in pairs for order in ((i, j), (j, i))]
        answers = yield [self.prompt.ask(candidates.query, passages, self.passage_tokens) for passages in shown]
        read = [
            self.prompt.order(answer, 2, passages=passages) for answer, passages in zip(answers, shown, strict=True)
        ]
        heard += read
        margins = [_margin(ranked) for ranked in read]
        return list(zip(margins[::2], margins[1::2], strict=True))


def preference(margins: Margins, bias: float = 0.0, *, soft: bool = False) -> float:
    """How much the first of a pair is preferred: 1 it wins, 0 the other wins, 1/2 a tie; between them where `soft`.

    >>> preference((2.5, 1.5)), preference((2.5, 1.5), bias=2.0)
    (0.5, 1.0)
    """
    there, back = (_leaning(margin, bias, soft) for margin in margins)
    mean = (there + 1 - back) / 2
    return mean if soft or mean in (0, 1) else 0.5


def label_bias(margins: Iterable[Margins]) -> float:
    """How much more a query's answers are for the passage shown first than the passages give cause for, in nats:

        b = mean of log p(A) - log p(B) over all pairs that were read in both orders.

    What the passages add to one order of a pair it takes from the other, so that b is what a constant added to a
    label's logit comes to, however many of the passages are relevant. It is Batch Calibration (Zhou et al., ICLR 2024):
    a label's mean over a batch is its bias, and is subtracted. There the means are of probabilities and the batch is
    any inputs; here they are of log-odds, in which a constant is constant, and the batch is one query's pairs.
    Without any such pair it is 0. A bias for each pair alone would leave no ties, however little a model can tell.

    >>> label_bias([(2.5, 1.5), (0.0, 4.0), (9.0, None)])
    2.0
    """
    both = [(there + back) / 2 for there, back in margins if there is not None and back is not None]
    return fmean(both) if both else 0.0


def neighbours(n: int) -> list[Pair]:
    """Up to 16 pairs of the first stage's neighbours, from its head, where the best stand.

    >>> neighbours(5)
    [(0, 1), (2, 3)]
    """
    return [(i, i + 1) for i in range(0, n - 1, 2)][:_SAMPLE]


def _margin(ranked: Order) -> float | None:
    """Of the passage shown first over the other."""
    if ranked.outcomes.failed:
        return None
    if ranked.scores is None:
        return math.inf if ranked.positions[0] == 0 else -math.inf
    first, second = (ranked.scores[ranked.positions.index(place)] for place in (0, 1))
    return first - second


def _leaning(margin: float | None, bias: float, soft: bool) -> float:
    """How much an answer is for the passage shown first: 1, 0, or 1/2 where it does not tell."""
    if margin is None or margin == bias:
        return 0.5
    if soft:
        return 1 / (1 + math.exp(min(bias - margin, 700.0)))  # exp overflows beyond 709
    return float(margin > bias)
