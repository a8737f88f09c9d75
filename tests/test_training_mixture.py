"""The mixture: which lists come when, and what stands in them."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import mean

import numpy as np
import pytest

from rerank.errors import InputError
from rerank.training.mixture import Curriculum, Mixture, draw, ease
from rerank.training.sources import Pool, Source
from rerank.types import Passage, Query


def pool(labels: Sequence[float], name: str = "q", source: str = "s", ranked: bool = True) -> Pool:
    passages = tuple(Passage(f"text {i}", str(i)) for i in range(len(labels)))
    return Pool(Query("what", name), passages, tuple(map(float, labels)), source, ranked)


def source(**settings: object) -> Source:
    return Source.model_validate({"dataset": "d"} | settings)


def mixture(sizes: Sequence[int] = (7, 30), *, total: int | None = 200, seed: int = 3, **settings: object) -> Mixture:
    parts = []
    for number, size in enumerate(sizes):
        own = [pool([2, 0, 1, 0, 0, 1, 0, 3, 0, 0, 0], f"{number}.{i}", str(number)) for i in range(size)]
        parts.append((source(size=4, weight=1 + 2 * number, **settings), own))
    return Mixture(parts, seed=seed, total=total)


def test_a_list_depends_on_the_seed_and_its_number_only() -> None:
    straight = list(mixture())
    fresh, longer = mixture(), mixture(total=900)
    for i in (199, 3, 120, 0, 77):
        assert fresh[i] == straight[i] == longer[i] == pickle.loads(pickle.dumps(fresh))[i]
    assert fresh[-1] == straight[199] and len(fresh) == len(straight) == 200
    with pytest.raises(IndexError):
        fresh[200]
    other = list(mixture(seed=4))
    assert sum(a == b for a, b in zip(straight, other, strict=True)) < 20


@pytest.mark.parametrize("seed", range(5))
def test_every_beginning_has_the_shares_that_the_weights_give(seed: int) -> None:
    weights = [1.0, 0.5, 7.0, 2.5]
    parts = [(source(weight=w), [pool([0, 1], source=str(i))] * 3) for i, w in enumerate(weights)]
    lists = [x.source for x in Mixture(parts, seed=seed, total=1000)]
    for i in (1, 10, 100, 999, 1000):
        counts = Counter(lists[:i])
        for number, weight in enumerate(weights):
            share = weight / sum(weights)
            assert abs(counts[str(number)] - share * i) <= 1 + share * len(weights)


def test_all_pools_are_shown_before_one_comes_again_and_each_pass_has_its_own_order() -> None:
    names = [x.query.query_id for x in mixture(total=400) if x.source == "0"]
    assert len(names) == pytest.approx(100, abs=3)
    passes = [tuple(names[i : i + 7]) for i in range(0, 7 * (len(names) // 7), 7)]
    assert all(len(set(each)) == 7 for each in passes)
    assert len(set(passes)) > 1
    assert len(mixture(total=None)) == 37


@pytest.mark.parametrize("sample", ["spread", "top", "random"])
@pytest.mark.parametrize("order", ["shuffled", "first-stage", "mixed"])
def test_a_drawn_list_has_distinct_passages_and_orders_something(sample: str, order: str) -> None:
    for labels in ([0] * 30 + [1], [1] * 30 + [0], list(range(12)), [0, 1], [3, 3, 2, 2, 1]):
        for size in (2, 3, 8, 20):
            for seed in range(5):
                own, wanted = pool(labels), source(sample=sample, order=order, size=size)
                shown = draw(own, wanted, np.random.default_rng(seed))
                assert len(shown) == len(set(shown)) == min(size, len(labels))
                assert len({labels[i] for i in shown}) > 1
                if order == "first-stage":
                    assert shown == sorted(shown)


def test_mixed_order_is_the_first_stage_s_half_of_the_time() -> None:
    own, wanted, n = pool(range(50)), source(order="mixed", size=10), 400
    drawn = [draw(own, wanted, np.random.default_rng(seed)) for seed in range(n)]
    in_order = sum(shown == sorted(shown) for shown in drawn)
    assert abs(in_order - n / 2) < 4 * (n / 4) ** 0.5  # four standard deviations


def test_spread_holds_every_grade_and_top_scores_from_all_over() -> None:
    graded = [0] * 90 + [1] * 7 + [2, 2] + [3]
    for seed in range(50):
        shown = draw(pool(graded), source(size=6), np.random.default_rng(seed))
        assert {graded[i] for i in shown} == {0, 1, 2, 3}
    scored = np.random.default_rng(0).permutation(97)
    for seed in range(50):
        shown = draw(pool(scored.tolist()), source(size=9), np.random.default_rng(seed))
        found = sorted((int(scored[i]) for i in shown), reverse=True)
        assert found[0] == 96
        # the other 96, best first, in 8 slices of 12: one of each
        assert [(95 - label) // 12 for label in found[1:]] == list(range(8))


def test_spread_and_random_reach_every_passage() -> None:
    for sample in ("spread", "random"):
        own, wanted = pool([0] * 8 + [1, 1]), source(sample=sample, size=4)
        seen = {i for seed in range(60) for i in draw(own, wanted, np.random.default_rng(seed))}
        assert seen == set(range(10))


def test_top_takes_a_best_passage_and_the_head() -> None:
    labels = [0] * 40 + [1] + [0] * 9
    for seed in range(50):
        shown = draw(pool(labels), source(sample="top", size=5), np.random.default_rng(seed))
        assert 40 in shown and all(i < 8 for i in shown if i != 40)


# Curriculum


def test_ease_is_the_paper_s_for_a_pair_and_its_mean_for_a_list() -> None:
    labels = [0, 2, 1, 0, 2]
    own = pool(labels)

    def paper(better: int, worse: int) -> float:
        return (1 / (better + 1) - 1 / (worse + 1) + 1) / 2

    assert ease(own, [1, 3]) == pytest.approx(paper(1, 3))
    assert ease(own, [3, 1]) == pytest.approx(paper(1, 3))
    pairs = [(i, j) if labels[i] > labels[j] else (j, i) for i, j in combinations(range(5), 2)]
    expected = mean(paper(i, j) for i, j in pairs if labels[i] != labels[j])
    assert ease(own, [4, 0, 3, 2, 1]) == pytest.approx(expected)


def test_weights_go_from_ease_to_one() -> None:
    curriculum = Curriculum(0.4)
    assert [curriculum.weight(0.3, t) for t in (0, 0.1, 0.4, 0.9)] == pytest.approx([0.3, 0.3 + 0.25 * 0.7, 1, 1])
    parts = [(source(size=2), [pool([0, 1]), pool([1, 0])])]
    weights = [x.weight for x in Mixture(parts, seed=0, total=100, curriculum=curriculum)]
    assert set(weights[40:]) == {1.0}
    eases = {curriculum.weight(e, i / 100) for i in range(40) for e in (0.25, 0.75)}  # (1/2 -+ 1/2 + 1) / 2
    assert {round(w, 9) for w in weights[:40]} <= {round(w, 9) for w in eases}
    assert {x.weight for x in Mixture(parts, seed=0, total=9)} == {1.0}


def test_what_needs_a_first_stage_is_refused_without_one() -> None:
    own = [pool([0, 1], ranked=False)]
    Mixture([(source(), own)], seed=0, total=5)
    with pytest.raises(InputError, match="d has no first stage, which order and curriculum go by"):
        Mixture([(source(), own)], seed=0, total=5, curriculum=Curriculum())
    with pytest.raises(InputError, match="d has no first stage"):
        Mixture([(source(order="mixed"), own)], seed=0, total=5)
    for bad in ({"seed": -1}, {"seed": 0, "total": 0}):
        with pytest.raises(InputError, match="give a seed of at least 0 and a total of at least 1"):
            Mixture([(source(), own)], **bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="d has no pools"):
        Mixture([(source(), [])], seed=0)
    with pytest.raises(InputError, match="until 0"):
        Curriculum(0.0)
