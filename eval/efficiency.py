"""What runs cost, and which of them nothing beats: as good for less, or better for as much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from rerank.errors import InputError, UnknownNameError
from rerank.types import Usage

Axis = Literal["calls", "tokens", "seconds", "money"]


@dataclass(frozen=True, slots=True)
class Prices:
    """Of a million tokens, in any currency."""

    prompt: float = 0.0
    generated: float = 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run took, over all its queries."""

    queries: int
    usage: Usage

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise InputError(f"a run of {self.queries} queries has no cost per query")

    def money(self, prices: Prices) -> float:
        return (self.usage.prompt_tokens * prices.prompt + self.usage.generated_tokens * prices.generated) / 1e6

    def per_query(self, axis: Axis, prices: Prices | None = None) -> float:
        """`tokens` are those read and those written. Raises InputError for money without prices."""
        if axis not in get_args(Axis):
            raise UnknownNameError("cost", axis, get_args(Axis))
        if axis == "money":
            if prices is None:
                raise InputError("what a run cost in money needs prices: --price-in, --price-out")
            return self.money(prices) / self.queries
        read, written = self.usage.prompt_tokens, self.usage.generated_tokens
        total = {"calls": self.usage.calls, "tokens": read + written, "seconds": self.usage.seconds}[axis]
        return total / self.queries


def frontier(points: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """The names of the (cost, value) points that no other dominates, the cheapest first.

    A point dominates what costs no less and is no better, unless both are equal; so of equal points all stay.
    """
    order = sorted(points, key=lambda name: (points[name][0], -points[name][1]))
    found: list[str] = []
    for name in order:
        if not found or points[name][1] > points[found[-1]][1] or points[name] == points[found[-1]]:
            found.append(name)
    return tuple(found)
