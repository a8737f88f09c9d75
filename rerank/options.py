"""Options by name, for whatever is made from a user's words: their names, and their values checked and converted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Set
from typing import get_type_hints

from pydantic import TypeAdapter, ValidationError

from rerank.errors import InputError, UnknownNameError


def names(make: Callable[..., object], *, without: Set[str] = frozenset()) -> list[str]:
    """The parameters of `make` that can be set."""
    return [name for name in inspect.signature(make).parameters if name not in without]


def checked(
    what: str, make: Callable[..., object], values: Mapping[str, object], *, without: Set[str] = frozenset()
) -> dict[str, object]:
    """The values, converted to the types of the parameters: "20" is a number where a number is wanted.

    Raises UnknownNameError for a name that `make` does not take, InputError for a value that does not fit.
    """
    known = names(make, without=without)
    for name in values:
        if name not in known:
            raise UnknownNameError(f"{what} option", name, known)
    types = get_type_hints(make)
    found = {}
    for name, value in values.items():
        try:
            found[name] = TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            raise InputError(f"{what} option {name}={value!r}: {error.errors()[0]['msg']}") from None
    return found
