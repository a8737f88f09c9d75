"""What runs cost, and the frontier against its definition by brute force."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.errors import InputError
from rerank.eval import Cost, Prices, frontier
from rerank.types import Usage

coarse = st.integers(0, 4).map(float)  # few values, so that there are ties


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.tuples(coarse, coarse), max_size=8))
def test_the_frontier_is_what_nothing_dominates(points: dict[str, tuple[float, float]]) -> None:
    def dominated(cost: float, value: float) -> bool:
        return any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points.values())

    found = frontier(points)
    assert set(found) == {name for name, point in points.items() if not dominated(*point)}
    assert [points[name][0] for name in found] == sorted(points[name][0] for name in found)


def test_costs_are_per_query() -> None:
    cost = Cost(4, Usage(calls=8, prompt_tokens=1000, generated_tokens=200, seconds=6.0))
    assert [cost.per_query(axis) for axis in ("calls", "tokens", "seconds")] == [8 / 4, 1200 / 4, 6 / 4]
    assert cost.per_query("money", Prices(2, 10)) == pytest.approx((1000 * 2 + 200 * 10) / 1e6 / 4)


def test_wrong_input() -> None:
    with pytest.raises(InputError, match="0 queries"):
        Cost(0, Usage())
    with pytest.raises(InputError, match="needs prices"):
        Cost(1, Usage()).per_query("money")
    with pytest.raises(InputError, match="unknown cost 'call'; did you mean 'calls'"):
        Cost(1, Usage()).per_query("call")  # type: ignore[arg-type]
