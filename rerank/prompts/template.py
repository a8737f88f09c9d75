"""The templates of a prompt file: turns, turns repeated for every passage, and how placeholders are filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter

from pydantic import BaseModel, ConfigDict, Field

from rerank.calls import Role, Span


class Turn(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Role
    content: str


class Each(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    each: tuple[Turn, ...] = Field(min_length=1)


def fields(template: str) -> set[str]:
    """The placeholders of a template; attribute access, indices and conversions are refused."""
    names = set()
    for _, name, spec, conversion in Formatter().parse(template):
        if name is None:
            continue
        if not name.isidentifier() or spec or conversion:
            raise ValueError(f"placeholder {{{name}}} is not a plain name; double the braces to write them")
        names.add(name)
    return names


def fill(template: str, values: Mapping[str, Sequence[Span]]) -> tuple[Span, ...]:
    """The template with its placeholders filled; a filled text is never parsed again."""
    spans: list[Span] = []
    for literal, name, _, _ in Formatter().parse(template):
        if literal:
            spans.append(Span(literal))
        if name is not None:
            spans += values[name]
    return tuple(spans)
