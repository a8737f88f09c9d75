"""How --strategy is written: one strategy, or a cascade of them, each with its own options where it needs them.

    pointwise(backbone=bi-encoder) % 50 >> 0.2*first-stage + 0.8*pointwise % 20 >> first(window=10, step=5)

    cascade  = stage, { ">>", stage }
    stage    = term, { "+", term }, [ "%", number ]      a sum of scores, each brought to mean 0 and variance 1
    term     = [ weight, "*" ], name, [ "(", option, { ",", option }, ")" ]
    option   = name, "=", value        a value with a space, a comma or a bracket stands in quotes

A name is a strategy's, or `first-stage`, the order that the passages came in. An option is the strategy's, or `prompt`,
`model`, `adapter` or `backbone`, which stand for --prompt, --model and so on, for this stage alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rerank.errors import InputError

_NAME = re.compile(r"[A-Za-z][\w-]*")
_STAGE = re.compile(r"[A-Za-z~./][\w~./-]*")  # a released reranker's name, or the path of its directory
_NUMBER = re.compile(r"\d+")
_WEIGHT = re.compile(r"(\d+(?:\.\d+)?)\s*\*")
_VALUE = re.compile(r"""'[^']*'|"[^"]*"|[^\s,()'"]+""")


@dataclass(frozen=True, slots=True)
class Term:
    """A ranker as it was written; `weight` is what its scores count in a sum."""

    name: str
    options: dict[str, str]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Written:
    """A stage as it was written: one term, or a sum."""

    terms: tuple[Term, ...]
    keep: int | None


def parse(text: str) -> tuple[Written, ...]:
    """The stages.

    >>> parse("pointwise%20 >> first(window=10, prompt='my prompt.yaml')")[1].terms[0].options
    {'window': '10', 'prompt': 'my prompt.yaml'}
    """
    reader = _Reader(text)
    stages = [_stage(reader)]
    while reader.has(">>"):
        stages.append(_stage(reader))
    if reader.rest:
        raise reader.error("'>>', '+', '%', '(' or the end")
    return tuple(stages)


def _stage(reader: _Reader) -> Written:
    first, weighed = _term(reader)
    terms, keep = [first], None
    while reader.has("+"):
        terms.append(_term(reader)[0])
    if weighed and len(terms) == 1:
        raise InputError(
            f"--strategy: the weight of {first.name} changes nothing where it stands alone; add another, as in "
            f"'0.2*first-stage + 0.8*{first.name}', or leave the weight out"
        )
    if reader.has("%"):
        keep = int(reader.take(_NUMBER, "a number of passages"))
        if keep < 1:
            raise InputError(f"--strategy: {first.name} % {keep} leaves nothing; give at least 1")
    return Written(tuple(terms), keep)


def _term(reader: _Reader) -> tuple[Term, bool]:
    """The term, and whether it was given a weight."""
    weight = reader.weight()
    name, options = reader.take(_STAGE, "a strategy's name"), dict[str, str]()
    if reader.has("("):
        _option(reader, options)
        while reader.has(","):
            _option(reader, options)
        if not reader.has(")"):
            raise reader.error("',' or ')'")
    if weight == 0:
        raise InputError(f"--strategy: {name} has the weight 0; leave it out, or give it another")
    return Term(name, options, 1.0 if weight is None else weight), weight is not None


def _option(reader: _Reader, options: dict[str, str]) -> None:
    name = reader.take(_NAME, "an option's name").replace("-", "_")
    if not reader.has("="):
        raise reader.error(f"'=' after the option {name!r}")
    value = reader.take(_VALUE, f"a value for {name!r}")
    if name in options:
        raise InputError(f"--strategy gives a stage {name} twice; leave out one")
    options[name] = value[1:-1] if value[0] in ("'", '"') else value


class _Reader:
    def __init__(self, text: str) -> None:
        self._text, self.rest = text, text.strip()

    def has(self, mark: str) -> bool:
        """Whether this comes next; then it is read."""
        if not self.rest.startswith(mark):
            return False
        self.rest = self.rest[len(mark) :].lstrip()
        return True

    def weight(self) -> float | None:
        """The number before a '*', if that comes next; then both are read."""
        if (match := _WEIGHT.match(self.rest)) is None:
            return None
        self.rest = self.rest[match.end() :].lstrip()
        return float(match[1])

    def take(self, pattern: re.Pattern[str], what: str) -> str:
        if (match := pattern.match(self.rest)) is None:
            raise self.error(what)
        self.rest = self.rest[match.end() :].lstrip()
        return match[0]

    def error(self, expected: str) -> InputError:
        where = f"at {self.rest!r}" if self.rest else "at the end"
        return InputError(
            f"--strategy {self._text!r}: {where} there should be {expected}; stages are written as in "
            "'pointwise % 20 >> first(window=10)'"
        )
