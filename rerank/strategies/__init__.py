"""The paradigms by name. A new one is a file and a line here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import get_type_hints

from pydantic import TypeAdapter, ValidationError

from rerank.errors import InputError, UnknownNameError
from rerank.prompts import Prompt, load_prompt
from rerank.strategies.base import Steps, Strategy, Verdict, by_score
from rerank.strategies.listwise import First, Listwise
from rerank.strategies.pointwise import Pointwise

STRATEGIES: Mapping[str, type[Strategy]] = MappingProxyType(
    {"pointwise": Pointwise, "listwise": Listwise, "first": First}
)


def options_of(strategy: type[Strategy]) -> list[str]:
    """What can be set, beside the prompt."""
    return [name for name in inspect.signature(strategy).parameters if name != "prompt"]


def load_strategy(name: str, *, prompt: str | Prompt | None = None, **options: object) -> Strategy:
    """A strategy by name, with its prompt (by name, `name@version` or path) and its options."""
    if name not in STRATEGIES:
        raise UnknownNameError("strategy", name, STRATEGIES)
    make = STRATEGIES[name]
    types = get_type_hints(make)
    known = options_of(make)
    for option, value in options.items():
        if option not in known:
            raise UnknownNameError(f"{name} option", option, known)
        try:
            options[option] = TypeAdapter(types[option]).validate_python(value)
        except ValidationError as error:
            raise InputError(f"option {option}={value!r} of strategy {name!r}: {error.errors()[0]['msg']}") from None
    if prompt is not None:
        options["prompt"] = prompt if isinstance(prompt, Prompt) else load_prompt(prompt)
    return make(**options)


__all__ = [
    "STRATEGIES",
    "First",
    "Listwise",
    "Pointwise",
    "Steps",
    "Strategy",
    "Verdict",
    "by_score",
    "load_strategy",
    "options_of",
]
