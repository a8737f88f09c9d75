"""Significance: against scipy and by hand, what differs and what does not, and how often nothing is found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rerank.errors import InputError, UnknownNameError
from rerank.eval import Evaluation, ceiling, compare, consensus, evaluate, judged_at, no_kemeny
from rerank.eval.significance import corrected, interval, paired_t, randomisation, tukey_hsd

RNG = np.random.default_rng


def systems(differences: list[float], queries: int = 50, seed: int = 0, noise: float = 0.1) -> np.ndarray:
    """Values in which the queries differ more than the systems, as they do: [systems, queries]."""
    generator = RNG(seed)
    own = generator.beta(2, 2, queries)
    return own + np.array(differences)[:, None] + noise * generator.standard_normal((len(differences), queries))


def test_t_is_scipys_and_copes_with_what_scipy_does_not() -> None:
    one, other = systems([0.0, 0.05])
    assert paired_t(other, one) == pytest.approx(stats.ttest_rel(other, one).pvalue)
    assert paired_t(one, one) == 1.0
    assert paired_t(one + 0.5, one) == 0.0


def test_randomisation_counts_every_exchange_where_there_are_few() -> None:
    difference = np.array([0.3, -0.1, 0.2, 0.25, 0.05])
    sums = [
        abs(sum(s * d for s, d in zip(signs, difference, strict=True)))
        for signs in itertools.product((1, -1), repeat=5)
    ]
    expected = np.mean([value >= abs(difference.sum()) - 1e-9 for value in sums])
    assert randomisation(difference, np.zeros(5)) == pytest.approx(expected)
    assert randomisation(np.zeros(5), np.zeros(5)) == 1.0


def test_randomisation_by_samples_comes_near_all_exchanges_and_is_never_zero() -> None:
    one, other = systems([0.0, 0.04], queries=12)
    whole = randomisation(other, one, samples=2**12)
    drawn = randomisation(other, one, samples=4000)
    assert drawn == pytest.approx(whole, abs=4 * (whole * (1 - whole) / 4000) ** 0.5 + 1e-3)
    assert randomisation(other, one, samples=4000) == drawn  # seeded
    assert randomisation(one + 5, one, samples=999) == pytest.approx(1 / 1000)


def test_what_differs_is_found_and_what_does_not_is_not() -> None:
    values = systems([0.0, 0.08, 0.0, 0.1], seed=3)
    for test in (paired_t, randomisation):
        assert test(values[1], values[0]) < 0.01
        assert test(values[2], values[0]) > 0.05
    p = tukey_hsd(values, samples=2000)
    assert p[0, 1] < 0.01 and p[0, 3] < 0.01
    assert p[0, 2] > 0.05 and p[1, 3] > 0.05
    assert np.allclose(p, p.T) and (p.diagonal() == 1).all()


@pytest.mark.parametrize("test", [paired_t, lambda a, b: randomisation(a, b, samples=500)], ids=["t", "randomisation"])
def test_equal_systems_are_found_to_differ_as_often_as_the_level_says(test: object) -> None:
    """400 pairs that do not differ: at the level .05 between 2.5 and 8 % are found, 4 standard errors each way being
    4.4."""
    found = [test(*systems([0.0, 0.0], queries=30, seed=seed)) < 0.05 for seed in range(400)]  # type: ignore[operator]
    assert 0.006 < np.mean(found) < 0.094
    assert 0.025 <= np.mean(found) <= 0.08


def test_tukey_holds_the_level_for_all_pairs_together() -> None:
    """Six equal systems have fifteen pairs: the chance that any is found is .05, where t tests by themselves find one
    in a third of the cases."""
    alone, together = [], []
    for seed in range(150):
        values = systems([0.0] * 6, queries=25, seed=seed)
        alone.append(min(paired_t(a, b) for a, b in itertools.combinations(values, 2)) < 0.05)
        together.append(tukey_hsd(values, samples=400, seed=seed).min() < 0.05)
    assert np.mean(alone) > 0.2
    assert np.mean(together) < 0.05 + 3 * (0.05 * 0.95 / 150) ** 0.5


def test_an_interval_holds_the_difference_as_often_as_it_says() -> None:
    held = []
    for seed in range(300):
        one, other = systems([0.0, 0.05], queries=20, seed=seed)
        low, high = interval(other, one, 0.9)
        held.append(low <= 0.05 <= high)
    assert np.mean(held) == pytest.approx(0.9, abs=4 * (0.09 / 300) ** 0.5)
    one, other = systems([0.0, 0.05])
    expected = stats.ttest_rel(other, one).confidence_interval(0.95)
    assert interval(other, one) == pytest.approx((expected.low, expected.high))
    assert interval(one[:1], other[:1]) == (-np.inf, np.inf)
    assert paired_t(one[:1], other[:1]) == randomisation(one[:1], other[:1]) == 1  # of one query nothing is known
    with pytest.raises(InputError, match="level is 95"):
        interval(one, other, 95)


def test_corrections_by_hand() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert corrected(p, "none") == p
    assert corrected(p, "bonferroni") == pytest.approx([0.04, 0.16, 0.12, 0.02])
    assert corrected(p, "holm") == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert corrected(p, "benjamini-hochberg") == pytest.approx([0.02, 0.04, 0.04, 0.02])
    with pytest.raises(UnknownNameError, match="did you mean 'holm'"):
        corrected(p, "hulm")  # type: ignore[arg-type]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_corrections_only_ever_raise_p_and_keep_its_order(p: list[float]) -> None:
    hochberg = corrected(p, "benjamini-hochberg")
    assert hochberg == pytest.approx(list(stats.false_discovery_control(p)) if p else [])
    for found in (corrected(p, "bonferroni"), corrected(p, "holm"), hochberg):
        assert all(raised >= own - 1e-12 and raised <= 1 for raised, own in zip(found, p, strict=True))
        order = np.argsort(p, kind="stable")
        assert list(np.array(found)[order]) == sorted(found)


def evaluations(values: np.ndarray) -> dict[str, Evaluation]:
    return {
        f"s{i}": Evaluation({"nDCG@10": float(row.mean())}, {"nDCG@10": {f"q{j}": v for j, v in enumerate(row)}})
        for i, row in enumerate(values)
    }


def test_runs_are_compared_with_the_first() -> None:
    values = systems([0.0, 0.1, 0.0], seed=1)
    values[2] = values[0]
    found = compare(evaluations(values), "nDCG@10", samples=2000)
    first, better, same = found.rows
    assert (first.name, first.difference, first.p) == ("s0", None, None)
    assert better.difference == pytest.approx(values[1].mean() - values[0].mean())
    assert better.interval is not None and better.interval[0] < better.difference < better.interval[1]
    assert better.p is not None and better.p < 0.01
    assert better.wins + better.ties + better.losses == found.queries == 50
    assert (same.p, same.wins, same.ties, same.losses) == (1.0, 0, 50, 0)
    moved = found.moved("s1", 3)
    changes = {f"q{j}": values[1, j] - values[0, j] for j in range(50)}
    assert [query for query, _ in moved] == sorted(changes, key=lambda q: -abs(changes[q]))[:3]
    assert found.moved("s2", 3) == []
    tukey = compare(evaluations(values), "nDCG@10", test="tukey", correction="none", samples=500)
    assert tukey.rows[1].p == tukey_hsd(values, samples=500)[0, 1]


def test_what_cannot_be_compared_is_said() -> None:
    values = evaluations(systems([0.0, 0.1]))
    with pytest.raises(InputError, match="there are 1 runs to compare"):
        compare({"s0": values["s0"]}, "nDCG@10")
    with pytest.raises(InputError, match="holm would correct that again"):
        compare(values, "nDCG@10", test="tukey")
    with pytest.raises(InputError, match="s1 and s0 were measured on different queries"):
        compare({"s0": values["s0"], "s1": evaluations(systems([0.0, 0.0], queries=9))["s1"]}, "nDCG@10")
    with pytest.raises(UnknownNameError, match="did you mean 'tukey'"):
        compare(values, "nDCG@10", test="tuky", correction="none")  # type: ignore[arg-type]


def test_holes_in_the_judgments_and_the_ceiling() -> None:
    qrels = {"q1": {"a": 2, "b": 0}, "q2": {"c": 1}}
    run = {"q1": {"b": 3.0, "x": 2.0, "a": 1.0}, "q3": {"a": 1.0}}
    assert judged_at(run, qrels, 1) == 1.0
    assert judged_at(run, qrels, 2) == 0.5
    assert judged_at(run, qrels, 10) == pytest.approx(2 / 3)
    assert judged_at({"q9": {"a": 1.0}}, qrels, 5) == 0.0
    with pytest.raises(InputError, match="judged@0"):
        judged_at(run, qrels, 0)
    best = ceiling(run, qrels, "nDCG@10")
    assert best.per_query["nDCG@10"] == {"q1": 1.0, "q2": 0.0}
    assert best.mean["nDCG@10"] >= evaluate(run, qrels).mean["nDCG@10"]


def test_consensus_over_datasets() -> None:
    """`b` is best on two of three, and `a` so far ahead on the third that the mean prefers it."""
    scores = {
        "a": {"x": 0.30, "y": 0.30, "z": 0.90},
        "b": {"x": 0.31, "y": 0.31, "z": 0.20},
        "c": {"x": 0.10, "y": 0.31, "z": 0.10},
    }
    found = consensus(scores)
    assert max(found["mean"], key=lambda name: found["mean"][name]) == "a"
    assert found["borda"] == pytest.approx({"a": 1 / 3 + 2 / 3, "b": 2 / 3 + 2.5 / 3, "c": 1 / 3 + 0.5 / 3})
    assert found["kemeny"] == {"b": 2.0, "a": 1.0, "c": 0.0}
    with pytest.raises(InputError, match="c and a were not measured on the same datasets: 'z'"):
        consensus({**scores, "c": {"x": 0.1, "y": 0.2}})
    with pytest.raises(InputError, match="no system"):
        consensus({})


def test_of_many_systems_there_is_no_exact_order_and_the_others_remain() -> None:
    few, many = ({f"s{i}": {"x": i / 100, "y": i / 50} for i in range(n)} for n in (20, 21))
    assert set(consensus(few)) == {"mean", "borda", "kemeny"} and no_kemeny(len(few)) is None
    found = consensus(many)
    assert set(found) == {"mean", "borda"}
    assert found["borda"]["s20"] == 20
    assert "for at most 20 rankers, and there are 21" in (no_kemeny(len(many)) or "")
