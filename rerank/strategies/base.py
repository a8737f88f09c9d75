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
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal, Protocol, TypeVar

from rerank.calls import Answer, Call
from rerank.errors import InputError, PromptError
from rerank.prompts import Prompt, list_prompts
from rerank.prompts.read import Order
from rerank.types import Candidates, Outcomes


@dataclass(frozen=True, slots=True)
class Verdict:
    """The order of the passages, as positions in the candidates, best first.

    `scores` stand beside `order`; None where the strategy only orders, and the rank serves as the score. `reasoning`
    has the thoughts that were written, an answer each, as they came.
    """

    order: tuple[int, ...]
    scores: tuple[float, ...] | None = None
    outcomes: Outcomes = Outcomes()
    reasoning: tuple[str, ...] = ()


T = TypeVar("T")
Asking = Generator[Sequence[Call], Sequence[Answer], T]  # a part of a strategy that asks, and returns a T
Steps = Asking[Verdict]


class Strategy(Protocol):
    """One paradigm: the paper's algorithm, with its options as fields.

    Its class may have a `source`, authors and venue, and say in its docstring what the options mean: `rerank ls
    strategies` shows both. An option named `seed` says that it draws at random.
    """

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


def as_read(verdict: Verdict, read: Sequence[Order]) -> Verdict:
    """The verdict with the outcomes and the thoughts of the answers behind it."""
    outcomes = sum((ranked.outcomes for ranked in read), Outcomes())
    return replace(verdict, outcomes=outcomes, reasoning=tuple(chain(*(ranked.reasoning for ranked in read))))


def check_prompt(
    strategy: str,
    prompt: Prompt,
    shows: Literal["one", "many"],
    *,
    scores_each: bool = False,
    best_will_do: bool = False,
) -> None:
    """Refuse a prompt that this strategy cannot read, when they are put together.

    `best_will_do` says that it needs the best of several passages only, and no order.
    """

    def fits(found: Prompt) -> bool:
        enough = best_will_do or not found.names_best
        return found.ranks and found.shows == shows and found.scores_each == scores_each and enough

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
        asked = "a score each" if prompt.scores_each else "the best one only" if prompt.names_best else "their order"
        needed = "a score each" if scores_each else "their order"
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


def with_budget(prompt: Prompt, reason_tokens: int | None) -> Prompt:
    """The prompt with so many tokens for each thought; None for as many as it says itself."""
    if reason_tokens is None:
        return prompt
    if not prompt.reasons:
        thinking = sorted({found.name for found in list_prompts() if found.reasons})
        raise PromptError(
            f"reason_tokens is {reason_tokens}, but prompt {prompt.name!r} has no thought written; prompts that have: "
            f"{', '.join(thinking)}"
        )
    if reason_tokens < 1:
        raise PromptError(f"reason_tokens is {reason_tokens}; give at least 1, or None for the prompt's own")
    return prompt.model_copy(update={"answer": prompt.answer.model_copy(update={"reason_tokens": reason_tokens})})


def check_stable(k: int | None, needs: str | None) -> None:
    """Refuse a `stop_when_stable` that is no count, or where there is nothing to stop: `needs` says what to do then."""
    if k is not None and needs is not None:
        raise InputError(f"stop_when_stable is {k}, but {needs}, or leave stop_when_stable out")
    if k is not None and k < 1:
        raise InputError(f"stop_when_stable is {k}; give at least 1, the passages at the head that must stay in place")


def is_stable(before: Sequence[int], after: Sequence[int], k: int | None) -> bool:
    """Whether a pass left the first k as they were; never, where k is None."""
    return k is not None and before[:k] == after[:k]
