"""Listwise: windows of passages, slid from the back of the list to its head (RankGPT; Sun et al., EMNLP 2023).

Each call orders one window in place, so that a good passage is carried forward by the overlap. The
windows of a query follow one another; those of different queries run together. How a window is ordered is
the prompt's affair: by a generated permutation (RankGPT), or by the logits of one token (FIRST; Reddy et
al., EMNLP 2024). `first-permutation` has written what `first-identifier` has a FIRST model say in one token.

What a model says of a window depends on the order in which it is shown. Permutation self-consistency shows it in
several and takes the order that is nearest to all answers (Tang et al., NAACL 2024).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from rerank.calls import Answer, Call, Kind
from rerank.errors import InputError, PromptError
from rerank.prompts import Prompt, load_prompt
from rerank.prompts.read import Order
from rerank.strategies.base import (
    Asking,
    Steps,
    Verdict,
    as_read,
    check_passage_tokens,
    check_prompt,
    check_stable,
    is_stable,
    with_budget,
)
from rerank.types import Candidates, Passage, Query


def windows(n: int, size: int, step: int) -> list[tuple[int, int]]:
    """The windows [start, end) over n positions, last first. The first `size` positions are always the
    last window: where the stride does not land on 0 the window is moved, not shortened (the reference
    code shortens it, and for some n never compares the head at all).

    >>> windows(100, 20, 10)[0], windows(100, 20, 10)[-1], len(windows(100, 20, 10))
    ((80, 100), (0, 20), 9)
    >>> windows(25, 20, 10)
    [(5, 25), (0, 20)]
    """
    starts = [*range(n - size, 0, -step), 0]
    return [(start, min(start + size, n)) for start in starts]


@dataclass(frozen=True, slots=True)
class Listwise:
    """Sliding windows of `window` passages, `step` apart; 20 and 10 are the paper's. They slide `passes` times over
    the list: each carries `window - step` passages to the head, and later ones also put right what lies behind.
    `stop_when_stable` is a k: a query whose first k passages came out of a pass as they went in is done. (What lies
    behind them may have moved, and could have gone further in the passes that are spared.)

    With `shuffles` above 1 each window is asked about that often, in one batch: as it stands, then in orders drawn with
    `seed` (the paper draws them all). The answers are merged by their sums of places (`merge` "borda") or by the
    least Kendall distance to all (`kemeny`, the paper's: exact for windows of at most 20, Borda's order and
    moves that improve it above). An answer that cannot be read has no vote, and passages that one leaves out stand
    in it as the window has them; without any answer the window stands as it is.

    Scores are the labels' log-probabilities where one call saw the whole list and the prompt gives them;
    else descending ranks. `passage_tokens` cuts every passage to that many tokens. `reason_tokens` bounds each thought
    of a prompt that has thoughts written: `listwise-reasoning` is ReasonRank's (Liu et al., arXiv 2508.07050).
    """

    source: ClassVar[str] = (
        "RankGPT: Sun et al., EMNLP 2023; permutation self-consistency: Tang et al., NAACL 2024; "
        "ReasonRank: Liu et al. 2025"
    )
    formula: ClassVar[str] = "passes shuffles (1 + ceil(max(0, n - window) / step))"
    prompt: Prompt = field(default_factory=lambda: load_prompt("listwise-permutation"))
    window: int = 20
    step: int = 10
    passage_tokens: int | None = None
    passes: int = 1
    shuffles: int = 1
    merge: Literal["borda", "kemeny"] = "borda"
    seed: int = 0
    reason_tokens: int | None = None
    stop_when_stable: int | None = None

    def __post_init__(self) -> None:
        check_prompt("listwise", self.prompt, "many")
        check_passage_tokens(self.passage_tokens)
        object.__setattr__(self, "prompt", with_budget(self.prompt, self.reason_tokens))
        if not 1 <= self.step <= self.window or self.window < 2:
            raise InputError(f"window {self.window} and step {self.step}: give 1 <= step <= window, window >= 2")
        most = self.prompt.max_passages
        if most is not None and self.window > most:
            raise InputError(f"window {self.window}: prompt {self.prompt.name!r} can name {most} passages")
        for name in ("passes", "shuffles"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give at least 1")
        check_stable(self.stop_when_stable, "passes is 1; give passes of 2 or more" if self.passes == 1 else None)
        for name, default in (("merge", "borda"), ("seed", 0)):
            if self.shuffles == 1 and getattr(self, name) != default:
                raise InputError(
                    f"{name} is {getattr(self, name)}, but nothing is shuffled; leave {name} out, or give shuffles of "
                    "2 or more"
                )

    def calls(self, n: int) -> int:
        return self.passes * self.shuffles * len(windows(n, self.window, self.step)) if n > 1 else 0

    def rank(self, candidates: Candidates) -> Steps:
        n, shuffler, heard = len(candidates), random.Random(self.seed), list[Order]()
        order, scores = list(range(n)), None
        for _ in range(self.passes if n > 1 else 0):
            before = list(order)
            for start, end in windows(n, self.window, self.step):
                shown = order[start:end]
                passages = [candidates.passages[i] for i in shown]
                ranked = yield from self._ordered(candidates.query, passages, shuffler)
                order[start:end] = [shown[position] for position in ranked.positions]
                heard.append(ranked)
                scores = ranked.scores if len(shown) == n else None
            if is_stable(before, order, self.stop_when_stable):
                break
        return as_read(Verdict(tuple(order), scores), heard)

    def _ordered(self, query: Query, passages: Sequence[Passage], shuffler: random.Random) -> Asking[Order]:
        """One window's order, by one call, or merged of several."""
        n = len(passages)
        asked = [list(range(n)), *(shuffler.sample(range(n), n) for _ in range(self.shuffles - 1))]
        shown = [[passages[i] for i in places] for places in asked]
        answers = yield [self._ask(query, order) for order in shown]
        read = [self._read(answer, order) for answer, order in zip(answers, shown, strict=True)]
        if self.shuffles == 1:
            return read[0]
        votes = [
            _vote(places, ranked) for places, ranked in zip(asked, read, strict=True) if not ranked.outcomes.failed
        ]
        merged = self._merged(votes) if votes else asked[0]
        told = as_read(Verdict(tuple(merged)), read)
        return Order(merged, None, told.outcomes, told.reasoning)

    def _merged(self, votes: Sequence[Sequence[int]]) -> list[int]:
        from rerank import aggregation  # numpy, for those who need it

        return aggregation.borda(votes) if self.merge == "borda" else aggregation.kemeny_of_orders(votes)

    def _ask(self, query: Query, passages: Sequence[Passage]) -> Call:
        return self.prompt.ask(query, passages, self.passage_tokens)

    def _read(self, answer: Answer, passages: Sequence[Passage]) -> Order:
        return self.prompt.order(answer, len(passages), passages=passages)


def _vote(places: Sequence[int], ranked: Order) -> list[int]:
    """The answer about passages that were shown at these places of the window. Those that it leaves out come last in
    it; they stand as the window has them, and not as they were shown."""
    named = len(places) - ranked.outcomes.missing
    order = [places[position] for position in ranked.positions]
    return order[:named] + sorted(order[named:])


@dataclass(frozen=True, slots=True)
class First(Listwise):
    """The windows of `Listwise`, each ordered by a single next token: no text is generated."""

    source: ClassVar[str] = "FIRST: Reddy et al., EMNLP 2024"
    prompt: Prompt = field(default_factory=lambda: load_prompt("first-identifier"))

    def __post_init__(self) -> None:
        Listwise.__post_init__(self)  # a class with slots has no super() here
        if self.prompt.needs is not Kind.LABELS:
            raise PromptError(
                f"prompt {self.prompt.name!r} has the whole order written, and strategy 'first' reads one token; "
                "give the prompt to strategy 'listwise', or 'first' a prompt such as 'first-identifier'"
            )
