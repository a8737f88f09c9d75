"""What a strategy is: a generator that yields batches of calls, is sent their answers, and returns a verdict.

    def rank(self, candidates):
        answers = yield [self.prompt.ask(candidates.query, [p]) for p in candidates.passages]
        return by_score([self.prompt.score(answer) for answer in answers])

It knows nothing of tokens, batches or other queries: the scheduler advances many of these generators
together. Calls yielded together are independent of one another.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from rerank.calls import Answer, Call
from rerank.errors import PromptError
from rerank.prompts import Prompt, list_prompts
from rerank.types import Candidates, Outcomes


@dataclass(frozen=True, slots=True)
class Verdict:
    """The order of the passages, as positions in the candidates, best first.

    `scores` stand beside `order`; None where the strategy only orders, and the rank serves as the score.
    """

    order: tuple[int, ...]
    scores: tuple[float, ...] | None = None
    outcomes: Outcomes = Outcomes()
    reasoning: tuple[str, ...] = ()


T = TypeVar("T")
Asking = Generator[Sequence[Call], Sequence[Answer], T]  # a part of a strategy that asks, and returns a T
Steps = Asking[Verdict]


class Strategy(Protocol):
    """One paradigm: the paper's algorithm, with its options as fields."""

    @property
    def prompt(self) -> Prompt: ...

    def rank(self, candidates: Candidates) -> Steps: ...

    def calls(self, n: int) -> int:
        """How many calls n passages cost; an upper bound where it depends on the answers."""
        ...


def by_score(read: Sequence[tuple[float, Outcomes]]) -> Verdict:
    """The verdict that orders by descending score.

    Ties keep the first stage's order. A passage without a score (NaN) goes last, with the lowest score
    that another got, and is counted as failed in the outcomes.
    """
    floor = min((score for score, _ in read if not math.isnan(score)), default=0.0)
    scores = [floor if math.isnan(score) else score for score, _ in read]
    order = sorted(range(len(read)), key=lambda i: (math.isnan(read[i][0]), -scores[i]))
    outcomes = sum((outcome for _, outcome in read), Outcomes())
    return Verdict(tuple(order), tuple(scores[i] for i in order), outcomes)


def check_prompt(strategy: str, prompt: Prompt, shows: Literal["one", "many"], *, scores_each: bool = False) -> None:
    """Refuse a prompt that this strategy cannot read, when they are put together."""

    def fits(found: Prompt) -> bool:
        return found.ranks and found.shows == shows and found.scores_each == scores_each

    if fits(prompt):
        return
    # pieces are some one model's own form
    fitting = sorted({found.name for found in list_prompts() if fits(found) and not found.pieces})
    if not prompt.ranks:
        raise PromptError(
            f"prompt {prompt.name!r} has a text written and orders no passages; prompts that fit strategy "
            f"{strategy!r}: {', '.join(fitting)}"
        )
    if prompt.shows == shows:
        asked, needed = ("a score each", "their order") if prompt.scores_each else ("their order", "a score each")
        raise PromptError(
            f"prompt {prompt.name!r} asks of several passages {asked}, and strategy {strategy!r} needs {needed}; "
            f"prompts that fit: {', '.join(fitting)}"
        )
    raise PromptError(
        f"prompt {prompt.name!r} shows {prompt.shows} passage{'s' * (prompt.shows == 'many')} in a call, and "
        f"strategy {strategy!r} needs {shows}; prompts that fit: {', '.join(fitting)}"
    )


def check_passage_tokens(passage_tokens: int | None) -> None:
    if passage_tokens is not None and passage_tokens < 1:
        raise PromptError(f"passage_tokens is {passage_tokens}; give at least 1, or None for no limit")
