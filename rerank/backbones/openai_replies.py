"""Reading what an OpenAI-compatible server answered: exactly one choice, of the form that was asked for.

Nothing is guessed: what lacks a part, or has one that was not asked for, is a BackboneError that names it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rerank.calls import Answer, Choice, GenerateCall, JsonSchema, Regex, log_softmax
from rerank.errors import BackboneError, InputError

C = TypeVar("C", bound="CompletionChoice | ChatChoice")

_FLOOR = -9999.0  # vLLM's own stand-in for minus infinity
_ENDED = ("stop", "length", "eos_token", "stop_sequence")  # the last two are TGI's


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


# a little above 0 is rounding; more is no log-probability
Logprob = Annotated[float, Field(le=0.01, allow_inf_nan=False)]


class CompletionLogprobs(_Part):
    tokens: list[str]
    token_logprobs: list[Logprob | None]
    top_logprobs: list[dict[str, Logprob] | None] | None = None


class CompletionChoice(_Part):
    index: int = 0
    text: str
    finish_reason: str | None = None
    logprobs: CompletionLogprobs | None = None

    @property
    def written(self) -> str:
        return self.text


class _Token(_Part):
    token: str
    logprob: Logprob
    bytes: list[Annotated[int, Field(ge=0, le=255)]] | None = None

    @property
    def said(self) -> str:
        """Its text, from its own bytes where the server gives them; what is a part of a character is no text."""
        if self.bytes is None:
            return self.token
        return bytearray(self.bytes).decode("utf-8", "surrogateescape")


class _Position(_Part):
    top_logprobs: list[_Token]


class _ChatLogprobs(_Part):
    content: list[_Position] | None = None


class _Message(_Part):
    content: str | None = None


class ChatChoice(_Part):
    index: int = 0
    message: _Message
    finish_reason: str | None = None
    logprobs: _ChatLogprobs | None = None

    @property
    def written(self) -> str | None:
        return self.message.content


class _Usage(_Part):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Reply(_Part, Generic[C]):
    choices: Annotated[list[C], Field(min_length=1, max_length=1)]
    usage: _Usage | None = None

    @property
    def choice(self) -> C:
        return self.choices[0]

    @property
    def prompt_tokens(self) -> int:
        return self.usage.prompt_tokens if self.usage else 0

    @property
    def generated_tokens(self) -> int:
        return self.usage.completion_tokens if self.usage else 0


def parsed(form: type[Reply[C]], reply: Mapping[str, object]) -> Reply[C]:
    """The reply as the form that was asked for, with its one choice."""
    try:
        made = form.model_validate(reply)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BackboneError(f"the server's answer is not of the form asked for: {where}: {first['msg']}") from None
    if made.choice.index != 0:
        raise BackboneError(f"the server answered choice {made.choice.index} where only choice 0 was asked for")
    return made


def label_answer(labels: Sequence[str], top: Mapping[str, float], most: int, prompt_tokens: int) -> Answer:
    """The labels' log-probabilities, from the texts of the `most` most probable tokens and perhaps the one drawn.

    A label that is not among them is less probable than each of the `most`, so the last of these is an upper bound
    of it, and stands in for it, counted. With no label among them there is nothing to go by.
    """
    missing = sum(label not in top for label in labels)
    if missing == len(labels):
        return Answer(prompt_tokens=prompt_tokens)
    bound = sorted(top.values(), reverse=True)[:most][-1]
    return Answer(normalised(top.get(label, bound) for label in labels), prompt_tokens=prompt_tokens, missing=missing)


def normalised(logprobs: Iterable[float]) -> tuple[float, ...]:
    """Among themselves."""
    return log_softmax(max(value, _FLOOR) for value in logprobs)


def reported(choice: ChatChoice) -> dict[str, float]:
    """The log-probability of each text at the first position. Tokens of one text, such as those with and without
    a word boundary that is not shown, add up: what is asked is how probable the text is."""
    content = choice.logprobs.content if choice.logprobs else None
    if not content or not content[0].top_logprobs:
        raise BackboneError("the server gave no log-probabilities (logprobs.content[0].top_logprobs)")
    found: dict[str, float] = {}
    for token in content[0].top_logprobs:
        before = found.get(token.said, -math.inf)
        high, low = max(before, token.logprob), min(before, token.logprob)
        found[token.said] = high + math.log1p(math.exp(low - high))
    return found


def generated(call: GenerateCall, reply: Reply[C], prompt_tokens: int) -> Answer:
    """What was written, up to the first stop. A text that breaks its constraint is an error: the server does not
    know the constraint's field, and would have its free text read as an answer."""
    choice = reply.choice
    if choice.written is None:
        raise BackboneError(
            f"the server answered no text (its content is null, finish_reason {choice.finish_reason!r})"
        )
    if choice.finish_reason not in _ENDED:
        raise BackboneError(f"the server's answer ended for the reason {choice.finish_reason!r}; it may not be whole")
    end = min((choice.written.index(mark) for mark in call.stop if mark in choice.written), default=None)
    text, truncated = choice.written[:end], end is None and choice.finish_reason == "length"
    if not truncated and not _obeys(call, text):
        raise BackboneError(f"the server did not keep to the {type(call.constraint).__name__} asked for: {text[:80]!r}")
    return Answer(text=text, truncated=truncated, prompt_tokens=prompt_tokens, generated_tokens=reply.generated_tokens)


def _obeys(call: GenerateCall, text: str) -> bool:
    match call.constraint:
        case Choice(options):
            return text in options
        case Regex(pattern):
            return re.fullmatch(pattern, text) is not None
        case JsonSchema():
            try:
                json.loads(text)
            except ValueError:
                return False
    return True


def check_readable(call: GenerateCall) -> None:
    """Refuse a constraint whose keeping could not be checked."""
    try:
        match call.constraint:
            case Regex(pattern):
                re.compile(pattern)
            case JsonSchema(schema):
                json.loads(schema)
    except (re.error, ValueError) as error:
        raise InputError(f"the constraint {call.constraint} cannot be read: {error}") from None
