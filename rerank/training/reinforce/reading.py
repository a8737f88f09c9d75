"""An answer as its strategy reads it, and how much of the form that was asked for it keeps.

What is rewarded must be what is read: orders and scores come from the prompt's own readers. Only the form is looked at
more strictly than by a ranker, which repairs what it can.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rerank.calls import Answer, GenerateCall
from rerank.prompts import Prompt
from rerank.prompts.answers import Scores
from rerank.training.written import asked_for
from rerank.types import Outcomes, Passage, Query

_CLOSING = "</answer>"  # generation stops there, so that it may lack


@dataclass(frozen=True, slots=True)
class Reading:
    """`order` has positions, best first; None where nothing could be read. `scores` stand beside the passages shown,
    where the prompt asks for scores. `tags` is the share of the form's tags that stand once and in their place;
    `formed` says that the text is that form, thought and answer filled, and nothing else."""

    order: tuple[int, ...] | None
    scores: tuple[float | None, ...] | None
    outcomes: Outcomes
    tags: float
    formed: bool


def read(prompt: Prompt, answer: Answer, n: int) -> Reading:
    """What the answer says of the n passages shown. Passages without a score are behind those with one, as given."""
    tags, formed = _form(prompt, answer)
    shown = [Passage("", str(i)) for i in range(n)]
    if isinstance(prompt.answer, Scores):
        scored = prompt.scores([answer], shown)
        if scored.outcomes.failed:
            return Reading(None, None, scored.outcomes, tags, formed)
        order = sorted(range(n), key=lambda i: -1.0 if (value := scored.values[i]) is None else value, reverse=True)
        return Reading(tuple(order), tuple(scored.values), scored.outcomes, tags, formed)
    found = prompt.order(answer, n, asked_for(prompt), passages=shown)
    return Reading(None if found.outcomes.failed else tuple(found.positions), None, found.outcomes, tags, formed)


def longest(prompt: Prompt, n: int) -> tuple[int, tuple[str, ...]]:
    """How many tokens an answer about n passages has at most, and where it stops."""
    shown = [Passage("", str(i)) for i in range(n)]
    call = prompt.ask(Query("q"), shown, None, asked_for(prompt))
    assert isinstance(call, GenerateCall)
    return call.max_tokens, call.stop


def form(prompt: Prompt) -> tuple[str, ...]:
    """The tags that an answer to this prompt must have, in order, but for the last one of all; none where it asks for
    the bare answer."""
    if isinstance(prompt.answer, Scores):
        return ("<reason>", "</reason>", "<answer>") if prompt.reasons else ("<answer>",)
    return ("<think>", "</think>", "<answer>") if prompt.reasons else ()


def _form(prompt: Prompt, answer: Answer) -> tuple[float, bool]:
    """How many of the tags are right, and whether all is. Of a prompt without tags that is, that the answer ended."""
    tags, text = form(prompt), prompt.begun + answer.text
    if not tags:
        return float(not answer.truncated), not answer.truncated
    words = "(?:(?!" + "|".join(map(re.escape, (*tags, _CLOSING))) + r").)*+"  # possessive: a model may run on
    filled = rf"(?=\s*[^\s<]|\s*<(?!/)){words}"  # a thought of blanks is none
    between = [filled, r"\s*+", filled] if len(tags) == 3 else [filled]
    pattern = r"\s*+" + "".join(re.escape(tag) + part for tag, part in zip(tags, between, strict=True))
    formed = re.fullmatch(rf"{pattern}(?:{_CLOSING})?\s*", text, re.DOTALL) is not None
    return _in_place(text, tags), formed and not answer.truncated


def _in_place(text: str, tags: Sequence[str]) -> float:
    """The share of tags that stand once, each behind those before it."""
    kept, end = 0, -1
    for tag in tags:
        place = text.find(tag)
        if place > end and text.count(tag) == 1:
            kept, end = kept + 1, place
    return kept / len(tags)
