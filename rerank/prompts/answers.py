"""How an answer is read. Reading never guesses: what could not be read is an outcome.

A prompt file names one of these kinds under `answer`.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rerank.calls import Regex
from rerank.types import Outcome, Outcomes

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
Identifiers = Literal["letters", "numbers"]


def names(identifiers: Identifiers, n: int) -> tuple[str, ...]:
    """What n passages are called, in their order: A, B, … or 1, 2, …"""
    return LETTERS[:n] if identifiers == "letters" else tuple(str(i + 1) for i in range(n))


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Binary(_Spec):
    """Relevance generation: the log-odds of two labels, logit(positive) - logit(negative)."""

    kind: Literal["binary"]
    positive: str
    negative: str

    @model_validator(mode="after")
    def _distinct(self) -> Binary:
        if self.positive == self.negative:
            raise ValueError(f"positive and negative are the same label {self.positive!r}")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.positive, self.negative)

    def score(self, logprobs: tuple[float, ...]) -> float:
        return logprobs[0] - logprobs[1]


class Graded(_Spec):
    """The expected value over graded labels (Zhuang et al., NAACL 2024, "Beyond Yes and No", ER)."""

    kind: Literal["graded"]
    grades: dict[str, float] = Field(min_length=2)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.grades)

    def score(self, logprobs: tuple[float, ...]) -> float:
        weights = [math.exp(value) for value in logprobs]
        return sum(w * v for w, v in zip(weights, self.grades.values(), strict=True)) / sum(weights)


class Likelihood(_Spec):
    """Query likelihood: the mean log-probability of the query's tokens (Sachan et al., EMNLP 2022, eq. 2)."""

    kind: Literal["likelihood"]

    def score(self, logprobs: tuple[float, ...]) -> float:
        return sum(logprobs) / len(logprobs) if logprobs else 0.0


class Score(_Spec):
    """The number that the model's own head gives a query and a passage, as a cross-encoder does."""

    kind: Literal["score"]


class Identifier(_Spec):
    """FIRST: the identifiers by descending logit of the single next token (Reddy et al., EMNLP 2024, 3.1).

    With `least_first` the prompt asks for the least relevant passage, and the order is by ascending logit.
    """

    kind: Literal["identifier"]
    identifiers: Literal["letters"] = "letters"
    least_first: bool = False


class Permutation(_Spec):
    """RankGPT: `[2] > [1] > …` (Sun et al., EMNLP 2023, section 4), or by letters `[B] > [A] > …`.

    `tokens_per_item` bounds the answer: that many tokens for each passage asked for. Generation ends at
    any of `stop`. `constrained` has the engine write nothing but identifiers and `>`, as many as passages.
    With `least_first` the prompt asks for the least relevant passage first, and the answer is read backwards.
    """

    kind: Literal["permutation"]
    identifiers: Identifiers = "numbers"
    tokens_per_item: int = Field(gt=0)
    stop: tuple[str, ...] = ()
    constrained: bool = False
    least_first: bool = False

    def constraint(self, n: int, wanted: int) -> Regex | None:
        """`wanted` of n identifiers in a row; that none comes twice is not asked, and seen when the answer is read."""
        one = rf"\[({'|'.join(names(self.identifiers, n))})\]"
        return Regex(rf"{one}( > {one}){{{wanted - 1}}}") if self.constrained else None


class Text(_Spec):
    """What the model writes, as it is, up to `max_tokens` or any of `stop`: a query, say. It orders nothing."""

    kind: Literal["text"]
    max_tokens: int = Field(gt=0)
    stop: tuple[str, ...] = ()


AnswerSpec = Annotated[
    Binary | Graded | Likelihood | Score | Identifier | Permutation | Text, Field(discriminator="kind")
]

_IDENTIFIER: dict[Identifiers, re.Pattern[str]] = {
    "numbers": re.compile(r"\[\s*(\d{1,6})\s*\]"),
    "letters": re.compile(r"\[\s*([A-Za-z])\s*\]"),
}
_SEPARATOR = re.compile(r"[\s>,;=.\-→]*")


def read_permutation(
    text: str, n: int, top: int | None = None, identifiers: Identifiers = "numbers", least_first: bool = False
) -> tuple[list[int], Outcomes]:
    """The longest chain of bracketed identifiers, `[2]` or `[B]`, of n passages, as 0-based positions.

    A chain is an answer when it is written with `>`, or when nothing but identifiers is there; an error
    message or a sentence in which numbers happen to stand is not.
    clean: each of the n once. repaired: repeats and foreign identifiers dropped, missing ones appended in the
    given order, all counted. failed: no answer; the given order stands. Where only `top` were asked for, only
    what those lack is missing. With `least_first` the last of the order is written first: what was named goes
    to the end, backwards, and what was not stays before it.

    >>> read_permutation("[2] > [1] > [2] > [9]", 3)[0]
    [1, 0, 2]
    >>> read_permutation("[B] > [A] > [C]", 3, identifiers="letters")[0]
    [1, 0, 2]
    >>> read_permutation("[1] > [3]", 4, top=2, least_first=True)[0]
    [1, 3, 2, 0]
    >>> str(read_permutation("HTTP error [429], see section [2]", 3)[1])
    '1 failed'
    """
    identifier = _IDENTIFIER[identifiers]
    chains: list[tuple[list[int], bool]] = []
    end = -1
    for match in identifier.finditer(text):
        gap = _SEPARATOR.fullmatch(text, end, match.start()) if chains else None
        if gap is None:
            chains.append(([], False))
        named, ordered = chains[-1]
        position = LETTERS.index(match[1].upper()) if identifiers == "letters" else int(match[1]) - 1
        chains[-1] = ([*named, position], ordered or (gap is not None and ">" in gap[0]))
        end = match.end()
    bare = not _SEPARATOR.sub("", identifier.sub("", text))
    chain = max((named for named, ordered in chains if ordered or bare), key=len, default=[])
    order = list(dict.fromkeys(i for i in chain if 0 <= i < n))
    if not order:
        return list(range(n)), Outcomes.of(Outcome.FAILED)
    foreign = sum(not 0 <= i < n for i in chain)
    duplicate = len(chain) - foreign - len(order)
    rest = [i for i in range(n) if i not in set(order)]
    missing = max(0, (n if top is None else min(top, n)) - len(order))
    clean = not (foreign or duplicate or missing)
    return rest + order[::-1] if least_first else order + rest, Outcomes.of(
        Outcome.CLEAN if clean else Outcome.REPAIRED, duplicate=duplicate, foreign=foreign, missing=missing
    )
