"""The small questions that strategies ask a backbone, and the answers.

A call holds a rendered dialogue, never token ids: a strategy does not know a tokenizer. It also carries
the query and the passages that it is about, so that a scripted backbone can answer from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from rerank.types import Passage, Query

Role = Literal["system", "user", "assistant"]


class Kind(StrEnum):
    """What a backbone can be asked."""

    LABELS = "labels"
    LIKELIHOOD = "likelihood"
    GENERATE = "generate"
    SCORE = "score"
    LOGIT = "logit"


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer is one of these texts."""

    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Regex:
    """The answer matches this regular expression as a whole."""

    pattern: str


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The answer is JSON of this schema, itself given as JSON text."""

    schema: str


Constraint = Choice | Regex | JsonSchema


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a message. Only passage spans may be shortened, from their end, to fit the context."""

    text: str
    passage: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Chat messages and the first words of the assistant's answer.

    With `pieces` the messages are no turns of a chat but the pieces of the prompt as it is: no template is put around
    them, each is tokenised by itself, and so are the labels; "special" has the tokenizer's own first and last tokens
    around them all, "bare" has none. Pieces of the prompt's may hold control tokens; passages are cleared of them.
    `passage_tokens` is the most that any one passage may take, None for what the context allows. `asked` is the
    position of the one passage that is asked about, where several are shown. `least_first` says that the least
    relevant passage is asked for first; like `query` it is there for scripted backbones.
    """

    messages: tuple[Message, ...]
    prefix: str
    query: Query
    passages: tuple[Passage, ...]
    passage_tokens: int | None = None
    asked: int | None = None
    least_first: bool = False
    pieces: Literal["bare", "special"] | None = None


@dataclass(frozen=True, slots=True)
class LabelCall:
    """How probable is each label, among these labels, as the next token?"""

    dialogue: Dialogue
    labels: tuple[str, ...]
    kind: Literal[Kind.LABELS] = Kind.LABELS


@dataclass(frozen=True, slots=True)
class LikelihoodCall:
    """How probable is this continuation, token by token?"""

    dialogue: Dialogue
    continuation: str
    kind: Literal[Kind.LIKELIHOOD] = Kind.LIKELIHOOD


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """What does the model write, greedily, up to `max_tokens` or the first of `stop`?

    A `constraint` shapes what it can write; a backbone that does not honour its kind refuses the call.
    """

    dialogue: Dialogue
    max_tokens: int
    stop: tuple[str, ...] = ()
    constraint: Constraint | None = None
    kind: Literal[Kind.GENERATE] = Kind.GENERATE


@dataclass(frozen=True, slots=True)
class ScoreCall:
    """What does the model's own head say of the dialogue's query and its one passage?"""

    dialogue: Dialogue
    kind: Literal[Kind.SCORE] = Kind.SCORE


@dataclass(frozen=True, slots=True)
class LogitCall:
    """What is the logit of this label as the next token?"""

    dialogue: Dialogue
    label: str
    kind: Literal[Kind.LOGIT] = Kind.LOGIT


Call = LabelCall | LikelihoodCall | GenerateCall | ScoreCall | LogitCall


@dataclass(frozen=True, slots=True)
class Answer:
    """`logprobs`: one per label, normalised over the labels asked for (the only form that every engine
    gives alike), or one per token of the continuation, in nats. `score`: the answer to a score or logit call. `text`:
    what was generated, without the answer prefix and the stop; `truncated` says that it ran into `max_tokens`. `cut`:
    how many passages were shortened. `missing`: for how many labels the engine gave no log-probability; theirs
    are upper bounds then. An engine that gave none for any label answers without `logprobs`.
    """

    logprobs: tuple[float, ...] = ()
    score: float | None = None
    text: str = ""
    truncated: bool = False
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cut: int = 0
    missing: int = 0


def log_softmax(values: Iterable[float]) -> tuple[float, ...]:
    """The log-probabilities among themselves: each less the logarithm of the sum of all exponentials."""
    found = tuple(values)
    top = max(found)
    total = top + math.log(math.fsum(math.exp(value - top) for value in found))
    return tuple(value - total for value in found)
