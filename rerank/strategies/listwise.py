"""Listwise: windows of passages, slid from the back of the list to its head (RankGPT; Sun et al., EMNLP 2023).

Each call orders one window in place, so that a good passage is carried forward by the overlap. The
windows of a query follow one another; those of different queries run together. How a window is ordered is
the prompt's affair: by a generated permutation (RankGPT), or by the logits of one token (FIRST; Reddy et
al., EMNLP 2024). `first-permutation` has written what `first-identifier` has a FIRST model say in one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rerank.calls import Kind
from rerank.errors import InputError, PromptError
from rerank.prompts import Prompt, load_prompt
from rerank.prompts.prompt import Order
from rerank.strategies.base import Asking, Steps, Verdict, check_passage_tokens, check_prompt
from rerank.types import Candidates, Outcomes, Passage, Query


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
    """Sliding windows of `window` passages, `step` apart; 20 and 10 are the paper's.

    Scores are the labels' log-probabilities where one call saw the whole list and the prompt gives them;
    else descending ranks. `passage_tokens` cuts every passage to that many tokens.
    """

    prompt: Prompt = field(default_factory=lambda: load_prompt("listwise-permutation"))
    window: int = 20
    step: int = 10
    passage_tokens: int | None = None

    def __post_init__(self) -> None:
        check_prompt("listwise", self.prompt, "many")
        check_passage_tokens(self.passage_tokens)
        if not 1 <= self.step <= self.window or self.window < 2:
            raise InputError(f"window {self.window} and step {self.step}: give 1 <= step <= window, window >= 2")
        most = self.prompt.max_passages
        if most is not None and self.window > most:
            raise InputError(f"window {self.window}: prompt {self.prompt.name!r} can name {most} passages")

    def calls(self, n: int) -> int:
        return len(windows(n, self.window, self.step)) if n > 1 else 0

    def rank(self, candidates: Candidates) -> Steps:
        n = len(candidates)
        order, scores, outcomes = list(range(n)), None, Outcomes()
        for start, end in windows(n, self.window, self.step) if n > 1 else ():
            shown = order[start:end]
            passages = [candidates.passages[i] for i in shown]
            ranked = yield from self._ordered(candidates.query, passages)
            order[start:end] = [shown[position] for position in ranked.positions]
            outcomes += ranked.outcomes
            scores = ranked.scores if len(shown) == n else None
        return Verdict(tuple(order), scores, outcomes)

    def _ordered(self, query: Query, passages: Sequence[Passage]) -> Asking[Order]:
        """One window's order, by one call."""
        (answer,) = yield [self.prompt.ask(query, passages, self.passage_tokens)]
        return self.prompt.order(answer, len(passages))


@dataclass(frozen=True, slots=True)
class First(Listwise):
    """The windows of `Listwise`, each ordered by a single next token: no text is generated."""

    prompt: Prompt = field(default_factory=lambda: load_prompt("first-identifier"))

    def __post_init__(self) -> None:
        Listwise.__post_init__(self)  # a class with slots has no super() here
        if self.prompt.needs is not Kind.LABELS:
            raise PromptError(
                f"prompt {self.prompt.name!r} has the whole order written, and strategy 'first' reads one token; "
                "give the prompt to strategy 'listwise', or 'first' a prompt such as 'first-identifier'"
            )
