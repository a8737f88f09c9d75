"""How an answer is read. Reading never guesses: what could not be read is an outcome.

A prompt file names one of these kinds under `answer`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
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


class _Grades(_Spec):
    grades: dict[str, float] = Field(min_length=2)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.grades)

    def score(self, logprobs: tuple[float, ...]) -> float:
        weights = [math.exp(value) for value in logprobs]
        return sum(w * v for w, v in zip(weights, self.grades.values(), strict=True)) / sum(weights)


class Graded(_Grades):
    """The expected value over graded labels (Zhuang et al., NAACL 2024, "Beyond Yes and No", ER)."""

    kind: Literal["graded"]


class GradedEach(_Grades):
    """The same of one passage, `{asked}`, among several: a call for each, and what they begin with is shared."""

    kind: Literal["graded-each"]
    identifiers: Identifiers = "numbers"


class Likelihood(_Spec):
    """Query likelihood: the mean log-probability of the query's tokens (Sachan et al., EMNLP 2022, eq. 2)."""

    kind: Literal["likelihood"]

    def score(self, logprobs: tuple[float, ...]) -> float:
        return sum(logprobs) / len(logprobs) if logprobs else 0.0


class Score(_Spec):
    """The number that the model's own head gives a query and a passage, as a cross-encoder does."""

    kind: Literal["score"]


class Logit(_Spec):
    """The logit of one label as it is, before any normalisation, where that is what the model was trained to score
    with. Only the model itself gives it; servers tell log-probabilities."""

    kind: Literal["logit"]
    label: str = Field(min_length=1)


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
    With `reason_tokens`, the bound of a thought, it asks for `<think>…</think> <answer>[2] > [1] > …</answer>`
    (ReasonRank; Liu et al., arXiv 2508.07050).
    """

    kind: Literal["permutation"]
    identifiers: Identifiers = "numbers"
    tokens_per_item: int = Field(gt=0)
    stop: tuple[str, ...] = ()
    constrained: bool = False
    least_first: bool = False
    reason_tokens: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _free_to_think(self) -> Permutation:
        if self.constrained and self.reason_tokens is not None:
            raise ValueError("a constrained answer is identifiers only; take out constrained, or reason_tokens")
        return self

    def max_tokens(self, wanted: int) -> int:
        thought = 0 if self.reason_tokens is None else self.reason_tokens + _TAG_TOKENS
        return thought + self.tokens_per_item * wanted

    def read(self, text: str, n: int, top: int | None) -> tuple[list[int], Outcomes]:
        return read_permutation(text, n, top, self.identifiers, self.least_first)

    def constraint(self, n: int, wanted: int) -> Regex | None:
        """`wanted` of n identifiers in a row; that none comes twice is not asked, and seen when the answer is read."""
        one = rf"\[({'|'.join(names(self.identifiers, n))})\]"
        return Regex(rf"{one}( > {one}){{{wanted - 1}}}") if self.constrained else None


class ReasonedIdentifier(_Spec):
    """Rank-R1: the one best passage, `<think>…</think> <answer>[3]</answer>` (Zhuang et al., arXiv 2503.06034).

    `reason_tokens` bounds the thought. The others keep the given order behind the one that is named.
    """

    kind: Literal["reasoned-identifier"]
    identifiers: Identifiers = "numbers"
    reason_tokens: int = Field(gt=0)
    stop: tuple[str, ...] = ()

    @property
    def max_tokens(self) -> int:
        return self.reason_tokens + _TAG_TOKENS

    def read(self, text: str, n: int, top: int | None) -> tuple[list[int], Outcomes]:
        return read_identifier(text, n, self.identifiers)


class Scores(_Spec):
    """GroupRank: `<reason>…</reason><answer>{"[1]": 5, …}</answer>`, every passage 0 to `highest` (Sun et al., 2025).

    `tokens_per_item` bounds the answer, and `reason_tokens` the reasoning before it; without these it is the answer
    only. `constrained` has the engine write this form, each passage once, in whole numbers; its reasoning holds no `<`.
    """

    kind: Literal["scores"]
    identifiers: Identifiers = "numbers"
    highest: int = Field(default=10, gt=0)
    tokens_per_item: int = Field(gt=0)
    reason_tokens: int | None = Field(default=None, gt=0)
    stop: tuple[str, ...] = ()
    constrained: bool = False

    @model_validator(mode="after")
    def _whole(self) -> Scores:
        if self.constrained and self.stop:
            raise ValueError("a constrained answer ends by itself; it has no stop")
        return self

    def max_tokens(self, n: int) -> int:
        return (self.reason_tokens or 0) + _TAG_TOKENS + self.tokens_per_item * n

    def constraint(self, n: int) -> Regex | None:
        score = f"({'|'.join(str(value) for value in range(self.highest + 1))})"
        pairs = ", ".join(rf'"\[{name}\]": {score}' for name in names(self.identifiers, n))
        reason = "<reason>[^<]+</reason>" if self.reason_tokens is not None else ""
        return Regex(rf"{reason}<answer>\{{{pairs}\}}</answer>") if self.constrained else None


_TAG_TOKENS = 32  # the four tags and the braces, or one identifier, for tokenizers that spell them out


class Text(_Spec):
    """What the model writes, as it is, up to `max_tokens` or any of `stop`: a query, say. It orders nothing."""

    kind: Literal["text"]
    max_tokens: int = Field(gt=0)
    stop: tuple[str, ...] = ()


AnswerSpec = Annotated[
    Binary
    | Graded
    | GradedEach
    | Likelihood
    | Score
    | Logit
    | Identifier
    | Permutation
    | ReasonedIdentifier
    | Scores
    | Text,
    Field(discriminator="kind"),
]

_IDENTIFIER: dict[Identifiers, re.Pattern[str]] = {
    "numbers": re.compile(r"\[\s*(\d{1,6})\s*\]"),
    "letters": re.compile(r"\[\s*([A-Za-z])\s*\]"),
}
_REASON = re.compile(r"<reason>(.*?)(?:</reason>|(?=<answer>)|\Z)", re.DOTALL)
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
        chains[-1] = ([*named, _position(match)], ordered or (gap is not None and ">" in gap[0]))
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


def read_identifier(text: str, n: int, identifiers: Identifiers = "numbers") -> tuple[list[int], Outcomes]:
    """The one of n passages that is named, as a 0-based position, before the others in the given order.

    clean: its identifier alone. repaired: the same one repeated. failed: another, several, words, or none.

    >>> read_identifier("[3]", 4)[0]
    [2, 0, 1, 3]
    >>> str(read_identifier("[3] or [1]", 4)[1])
    '1 failed'
    """
    identifier, given = _IDENTIFIER[identifiers], list(range(n))
    named = [_position(match) for match in identifier.finditer(text)]
    bare = not _SEPARATOR.sub("", identifier.sub("", text))
    if not bare or len(set(named)) != 1 or named[0] not in given:
        return given, Outcomes.of(Outcome.FAILED)
    outcome = Outcome.CLEAN if len(named) == 1 else Outcome.REPAIRED
    return sorted(given, key=lambda i: i != named[0]), Outcomes.of(outcome, duplicate=len(named) - 1)


def read_scores(
    text: str, n: int, highest: int = 10, identifiers: Identifiers = "numbers"
) -> tuple[list[float | None], Outcomes]:
    """The scores of n passages from the JSON object after the last `<answer>`; None where a passage has none.

    clean: the object alone, each identifier once, all numbers within 0 and `highest`. repaired: repeated, foreign and
    missing identifiers, counted (of repeats the first stands; what is no number is missing); and, with no count of
    their own, numbers out of range, which are clipped, words beside the object, and one object without the tag, outside
    of `<reason>`. failed: no score of any passage, or no object or several. That `</answer>` lacks is no
    repair: generation stops there.

    >>> read_scores('<answer>{"[2]": 7, "[1]": 0.5}</answer>', 2)[0]
    [0.5, 7.0]
    >>> values, outcomes = read_scores('<answer>{"[2]": 12, "[4]": 3}', 2)
    >>> values, str(outcomes)
    ([None, 10.0], '1 repaired, 1 foreign, 1 missing')
    """
    values: list[float | None] = [None] * n
    _, tag, said = text.rpartition("<answer>")
    said = said.partition("</answer>")[0] if tag else _REASON.sub("", text)
    objects = _objects(said)
    pairs, written = objects[0] if len(objects) == 1 else ((), "")
    exact, named, foreign, duplicate = bool(tag) and said.strip() == written, set[int](), 0, 0
    for key, value in pairs:
        match = _IDENTIFIER[identifiers].fullmatch(key)
        position = -1 if match is None else _position(match)
        if not 0 <= position < n:
            foreign += 1
        elif position in named:
            duplicate += 1
        else:
            named.add(position)
            if isinstance(value, int | float) and not isinstance(value, bool):
                values[position] = float(min(max(value, 0), highest))
                exact &= 0 <= value <= highest
    missing = values.count(None)
    if missing == n:
        return values, Outcomes.of(Outcome.FAILED)
    clean = exact and not (foreign or duplicate or missing)
    return values, Outcomes.of(
        Outcome.CLEAN if clean else Outcome.REPAIRED, duplicate=duplicate, foreign=foreign, missing=missing
    )


def read_reasoning(text: str, called: Sequence[str], identifiers: Identifiers = "numbers") -> str:
    """What stands between `<reason>` and `</reason>`, or the end where it was broken off; "" if nothing does.

    The n-th passage's identifier is replaced by what it is `called`: to a reader `[3]` says nothing.

    >>> read_reasoning("<reason> [2] is better than [1]. </reason>", ["d7", "d4"])
    '[d4] is better than [d7].'
    """

    found = _REASON.search(text)
    return name_passages(found[1], called, identifiers) if found else ""


def name_passages(text: str, called: Sequence[str], identifiers: Identifiers = "numbers") -> str:
    """The text with the n-th passage's identifier replaced by what it is `called`, without white space around it."""

    def name(match: re.Match[str]) -> str:
        position = _position(match)
        return f"[{called[position]}]" if 0 <= position < len(called) else match[0]

    return _IDENTIFIER[identifiers].sub(name, text).strip()


def identified(text: str, identifiers: Identifiers = "numbers") -> list[tuple[int, int]]:
    """Every identifier in a text, as a 0-based position, -1 for [0], with where it ends.

    >>> identified("[2] > [1]")
    [(1, 3), (0, 9)]
    """
    return [(_position(match), match.end()) for match in _IDENTIFIER[identifiers].finditer(text)]


def _position(identifier: re.Match[str]) -> int:
    """0-based; what is no letter is a number."""
    said = identifier[1]
    return int(said) - 1 if said.isdigit() else LETTERS.index(said.upper())


def _objects(text: str) -> list[tuple[tuple[tuple[str, object], ...], str]]:
    """The JSON objects of a text, as pairs, since a dict would hide a key that comes twice; and as they are written."""
    decoder = json.JSONDecoder(object_pairs_hook=tuple, parse_constant=lambda _: None)  # NaN is no JSON
    found, start = [], text.find("{")
    while start >= 0:
        try:
            pairs, end = decoder.raw_decode(text, start)
            found.append((pairs, text[start:end]))
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, a depth of thousands
            end = start + 1
        start = text.find("{", end)
    return found
