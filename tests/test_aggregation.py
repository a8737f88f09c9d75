"""One order of many preferences or of many orders, against brute force over all orders and the papers' equations."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank import aggregation
from rerank.aggregation import borda, bradley_terry, kemeny, kemeny_of_orders, path, wins
from rerank.errors import InputError

Matrix = list[list[float]]
TIES = (0.0, 0.25, 0.5, 0.75, 1.0)  # their sums are exact, so that equal is equal


def drawn(n: int, seed: int, values: tuple[float, ...] = ()) -> Matrix:
    draw = random.Random(seed)
    p = [[0.5] * n for _ in range(n)]
    for i, j in itertools.combinations(range(n), 2):
        p[i][j] = draw.choice(values) if values else draw.random()
        p[j][i] = 1 - p[i][j]
    return p


def of_order(order: list[int]) -> Matrix:
    """Everyone wins against all that stand behind."""
    place = {i: at for at, i in enumerate(order)}
    n = len(order)
    return [[0.5 if i == j else float(place[i] < place[j]) for j in range(n)] for i in range(n)]


def agreement(p: Matrix, order: tuple[int, ...] | list[int]) -> float:
    return sum(p[i][j] for i, j in itertools.combinations(order, 2))


def weight(p: Matrix, order: tuple[int, ...] | list[int]) -> float:
    return sum(p[i][j] for i, j in itertools.pairwise(order))


def by_strength(p: Matrix) -> list[int]:
    scores = bradley_terry(p)
    return sorted(range(len(p)), key=lambda i: -scores[i])


def by_wins(p: Matrix) -> list[int]:
    scores = wins(p)
    return sorted(range(len(p)), key=lambda i: -scores[i])


@pytest.mark.parametrize("ordered", [by_wins, by_strength, kemeny, path])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 15, 16, 17, 40])
def test_preferences_that_never_contradict_each_other_have_one_order(
    ordered: Callable[[Matrix], list[int]], n: int
) -> None:
    order = random.Random(n).sample(range(n), n)
    if ordered is not kemeny or n <= aggregation.KEMENY_EXACT:
        assert ordered(of_order(order)) == order
        assert ordered([[0.5] * n for _ in range(n)]) == list(range(n))  # what is tied stays


@pytest.mark.parametrize(("found", "value"), [(kemeny, agreement), (path, weight)])
@pytest.mark.parametrize("n", range(1, 7))
@pytest.mark.parametrize("seed", range(6))
def test_the_exact_searches_find_the_first_of_the_best_orders(
    found: Callable[[Matrix], list[int]], value: Callable[[Matrix, tuple[int, ...]], float], n: int, seed: int
) -> None:
    p = drawn(n, seed, TIES)
    every = list(itertools.permutations(by_wins(p) if found is path else range(n)))
    values = [value(p, order) for order in every]
    assert tuple(found(p)) == every[values.index(max(values))]
    p = drawn(n, seed)
    assert value(p, tuple(found(p))) == pytest.approx(max(value(p, order) for order in every))


def test_of_probabilities_the_heaviest_path_is_not_the_order_they_agree_on() -> None:
    p = [[1 / (1 + math.exp(3 * (i - j) / 7)) for j in range(8)] for i in range(8)]
    assert path(p) == [0, 2, 4, 6, 1, 3, 5, 7]
    assert kemeny(p) == by_strength(p) == by_wins(p) == list(range(8))


@pytest.mark.parametrize("seed", range(4))
def test_the_path_of_a_long_list_is_near_the_best_and_no_exchange_betters_it(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = drawn(12, seed)
    best = weight(p, path(p))
    monkeypatch.setattr(aggregation, "PATH_EXACT", 1)
    order = path(p)
    assert 0.95 * best <= weight(p, order) <= best + 1e-9
    for i, j, k in itertools.combinations(range(13), 3):
        assert weight(p, [*order[:i], *order[j:k], *order[i:j], *order[k:]]) <= weight(p, order) + 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_kemeny_of_long_orders_is_near_the_best_and_no_move_betters_it(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    orders = [draw.sample(range(10), 10) for _ in range(5)]
    shares = [[sum(o.index(i) < o.index(j) for o in orders) / 5 for j in range(10)] for i in range(10)]
    best = agreement(shares, kemeny_of_orders(orders))
    monkeypatch.setattr(aggregation, "KEMENY_EXACT", 1)
    order = kemeny_of_orders(orders)
    assert 0.97 * best <= agreement(shares, order) <= best + 1e-9
    assert agreement(shares, order) >= agreement(shares, borda(orders))
    for i, j in itertools.product(range(10), range(10)):
        moved = order.copy()
        moved.insert(j, moved.pop(i))
        assert agreement(shares, moved) <= agreement(shares, order) + 1e-6


def test_long_orders_are_merged_exactly_where_they_fall_into_short_parts() -> None:
    """Five orders of 60 that agree on which are the first six, the next six, …: each six by itself is as by force."""
    draw = random.Random(5)
    blocks = [[draw.sample(range(at, at + 6), 6) for at in range(0, 60, 6)] for _ in range(5)]
    merged = kemeny_of_orders([[i for block in each for i in block] for each in blocks])
    for at in range(0, 60, 6):
        orders = [each[at // 6] for each in blocks]
        shares = {(i, j): sum(o.index(i) < o.index(j) for o in orders) for i in orders[0] for j in orders[0]}
        every = list(itertools.permutations(range(at, at + 6)))
        agreed = [sum(shares[pair] for pair in itertools.combinations(order, 2)) for order in every]
        assert tuple(merged[at : at + 6]) == every[agreed.index(max(agreed))]


def test_strengths_solve_the_likelihood_equations() -> None:
    """At the maximum the expected wins are the observed ones, the added ties included."""
    p, tie = drawn(9, 3), 0.1
    strengths = bradley_terry(p, tie=tie)
    assert sum(strengths) == pytest.approx(0)
    for i in range(9):
        others = [j for j in range(9) if j != i]
        expected = sum((1 + tie) / (1 + math.exp(strengths[j] - strengths[i])) for j in others)
        assert expected == pytest.approx(sum(p[i][j] + tie / 2 for j in others), abs=1e-6)


def test_of_two_passages_the_strengths_are_their_log_odds() -> None:
    for won in (0.0, 0.3, 1.0):
        first, second = bradley_terry([[0.5, won], [1 - won, 0.5]], tie=0.1)
        assert first - second == pytest.approx(math.log((won + 0.05) / (1 - won + 0.05)), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), seed=st.integers(0, 10**6))
def test_strengths_order_as_wins_do_and_are_finite(n: int, seed: int) -> None:
    p = drawn(n, seed, TIES)
    assert by_strength(p) == by_wins(p)
    assert all(map(math.isfinite, bradley_terry(p)))


def test_kemeny_and_borda_part_ways() -> None:
    """Three of five prefer 0 to 1, yet 1 stands at the head more often or close behind (Condorcet against Borda)."""
    orders = [[0, 1, 2]] * 3 + [[1, 2, 0]] * 2
    assert borda(orders) == [1, 0, 2]  # places add up to 0: 4, 1: 3, 2: 8
    assert kemeny_of_orders(orders) == [0, 1, 2]  # 3 of 5, 3 of 5 and 5 of 5 pairs agree


def test_equal_sums_of_places_keep_the_given_order() -> None:
    assert borda([[2, 1, 0], [0, 1, 2]]) == [0, 1, 2]
    assert kemeny_of_orders([[2, 1, 0], [0, 1, 2]]) == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), count=st.integers(1, 7), seed=st.integers(0, 10**6), long=st.booleans())
def test_merged_orders_hold_each_once_and_unanimity_wins(n: int, count: int, seed: int, long: bool) -> None:
    n = n if long else min(n, 12)
    draw = random.Random(seed)
    orders = [draw.sample(range(n), n) for _ in range(count)]
    for merge in (borda, kemeny_of_orders):
        assert sorted(merge(orders)) == list(range(n))
        assert merge([orders[0]] * count) == orders[0]


def test_a_few_noisy_orders_together_are_better_than_one() -> None:
    def noisy(draw: random.Random) -> list[int]:
        return sorted(range(20), key=lambda i: i + draw.gauss(0, 4))

    orders = [noisy(random.Random(seed)) for seed in range(9)]
    truth = of_order(list(range(20)))
    one = sum(agreement(truth, order) for order in orders) / len(orders)
    for merge in (borda, kemeny_of_orders):
        assert agreement(truth, merge(orders)) > one + 0.05 * 190


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: kemeny([[0.5] * 21 for _ in range(21)]),
            "at most 20 passages, not 21; give fewer, or aggregate by wins",
        ),
        (lambda: wins([]), "give a square"),
        (lambda: path([[0.5, 1.0], [0.0]]), "2 rows of [1, 2] values; give a square"),
        (lambda: kemeny([[0.5, 0.7], [0.7, 0.5]]), "p[j][i] be 1 - p[i][j]"),
        (lambda: path([[0.5, 1.5], [-0.5, 0.5]]), "must lie in [0, 1]"),
        (lambda: wins([[0.5, math.nan], [math.nan, 0.5]]), "must lie in [0, 1]"),
        (lambda: bradley_terry([[0.5]], tie=0.0), "tie is 0.0; give more than 0"),
        (lambda: borda([]), "at least one order"),
        (lambda: borda([[0, 1], [0, 0]]), "each of 0..n-1 once"),
        (lambda: kemeny_of_orders([[0, 1], [0, 1, 2]]), "each of 0..n-1 once"),
    ],
)
def test_what_is_no_preference_or_order_is_refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
