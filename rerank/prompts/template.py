"""Templates: text with placeholders in braces. What fills one is never parsed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter

from rerank.calls import Span


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
    """The template with its placeholders filled."""
    spans: list[Span] = []
    for literal, name, _, _ in Formatter().parse(template):
        if literal:
            spans.append(Span(literal))
        if name is not None:
            spans += values[name]
    return tuple(spans)
