"""Pairwise answers that share a calibration: a label's bias is taken away, what the passages say is not."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import best_first, given_order, shown, shuffled, with_top

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.calls import Call
from rerank.errors import InputError, PromptError
from rerank.prompts import load_prompt
from rerank.strategies import load_strategy
from rerank.strategies.pairwise import label_bias, preference
from rerank.types import Candidates, Outcomes, Query, Ranking

PROMPT = load_prompt("pairwise")  # read once: the files take longer than the test
ALGORITHMS = ["allpair", "heapsort", "sliding"]
AGGREGATES = ["wins", "bradley-terry", "kemeny", "path"]
Script = Callable[[Call], list[float]]


def leaning(relevance: Mapping[str, float], bias: float) -> Script:
    """A perfect judge, but for what it adds to A's logit. Relevances lie in 0..3: 4 decides for A always."""

    def script(call: Call) -> list[float]:
        first, second = shown(call)
        return [relevance[first] + bias, relevance[second]]

    return script


def ranked(n: int, script: Script, **options: object) -> Ranking:
    ranker = rerank.load("pairwise", backbone=ScriptedBackbone(script), **{"prompt": PROMPT, **options})
    (ranking,) = ranker.rank_many([shuffled(n)[0]])
    return ranking


def calls(n: int, **options: object) -> int:
    return load_strategy("pairwise", prompt=PROMPT, **options).calls(n)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 60),
    k=st.integers(1, 12),
    algorithm=st.sampled_from(ALGORITHMS),
    bias=st.sampled_from([-300.0, -4.0, 0.0, 0.3, 4.0, 300.0]),
)
def test_a_judge_that_leans_is_exact_again(n: int, k: int, algorithm: str, bias: float) -> None:
    n = min(n, 30) if algorithm == "allpair" else n
    relevance = shuffled(n)[1]
    options: dict[str, object] = {"algorithm": algorithm} | ({} if algorithm == "allpair" else {"k": k})
    ranking = ranked(n, leaning(relevance, bias), calibrate=True, **options)
    if algorithm == "allpair":
        assert ranking.doc_ids == best_first(relevance)
        assert [hit.score for hit in ranking] == [n - hit.rank for hit in ranking]
    elif algorithm == "heapsort":
        assert ranking.doc_ids == with_top(relevance, k)
    else:
        assert ranking.doc_ids[:k] == best_first(relevance)[:k]
    assert ranking.outcomes.clean == ranking.usage.calls <= calls(n, calibrate=True, **options)
    if abs(bias) >= 4:
        tied = ranked(n, leaning(relevance, bias), **options)
        assert tied.doc_ids == given_order(n)
        if algorithm == "allpair":
            assert [hit.score for hit in tied] == [(n - 1) / 2] * n


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("n", [1, 2, 3, 15])
def test_every_aggregate_is_exact_again(aggregate: str, n: int) -> None:
    relevance = shuffled(n)[1]
    ranking = ranked(n, leaning(relevance, -7.0), algorithm="allpair", aggregate=aggregate, calibrate=True)
    assert ranking.doc_ids == best_first(relevance)


def test_soft_scores_are_of_the_calibrated_odds() -> None:
    relevance = shuffled(9)[1]
    ranking = ranked(9, leaning(relevance, 40.0), algorithm="allpair", soft=True, calibrate=True)
    scores = {hit.passage.doc_id: hit.score for hit in ranking}
    for i in relevance:
        expected = sum(1 / (1 + math.exp(relevance[j] - relevance[i])) for j in relevance if j != i)
        assert scores[i] == pytest.approx(expected)
    flat = ranked(9, leaning(relevance, 40.0), algorithm="allpair", soft=True)
    assert [hit.score for hit in flat] == pytest.approx([8 / 2] * 9)


def test_it_is_off_unless_asked_for() -> None:
    relevance = shuffled(20)[1]
    for algorithm in ALGORITHMS:
        assert ranked(20, leaning(relevance, 4.0), algorithm=algorithm).doc_ids == given_order(20)
        assert calls(20, algorithm=algorithm, calibrate=False) == calls(20, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_judge_without_a_lean_is_left_alone(algorithm: str) -> None:
    relevance = shuffled(25)[1]
    orders = [
        ranked(25, oracle(relevance), algorithm=algorithm, calibrate=calibrate).doc_ids  # type: ignore[arg-type]
        for calibrate in (False, True)
    ]
    assert orders[0] == orders[1]


def test_each_query_has_a_bias_of_its_own() -> None:
    candidates, relevance = shuffled(12)
    queries = [Candidates(Query("a query", f"q{i}"), candidates.passages) for i in range(3)]
    lean = {"q0": 5.0, "q1": -5.0, "q2": 50.0}
    backbone = ScriptedBackbone(lambda call: leaning(relevance, lean[call.dialogue.query.query_id])(call))
    for algorithm in ALGORITHMS:
        ranker = rerank.load("pairwise", backbone=backbone, algorithm=algorithm, calibrate=True)
        assert [ranking.doc_ids[:10] for ranking in ranker.rank_many(queries)] == [best_first(relevance)[:10]] * 3


def test_ties_stay_ties() -> None:
    """Two grades: between equals the answers are nothing but bias."""
    relevance = {f"d{i}": float(i % 2) for i in range(14)}
    ranking = ranked(14, leaning(relevance, 3.3), algorithm="allpair", calibrate=True)
    assert ranking.doc_ids == given_order(14)[1::2] + given_order(14)[::2]
    assert [hit.score for hit in ranking] == [7 + 6 / 2] * 7 + [6 / 2] * 7


@pytest.mark.parametrize("algorithm", ["heapsort", "sliding"])
@pytest.mark.parametrize("n", [1, 2, 5, 60])
def test_sorters_ask_neighbours_first_and_no_pair_twice(algorithm: str, n: int) -> None:
    asked: list[tuple[str, ...]] = []
    judge = leaning(shuffled(n)[1], 4.0)
    ranked(n, lambda call: asked.append(tuple(shown(call))) or judge(call), algorithm=algorithm, calibrate=True)
    first = [(f"d{i}", f"d{i + 1}") for i in range(0, n - 1, 2)][:16]
    assert asked[: 2 * len(first)] == [order for pair in first for order in (pair, pair[::-1])]
    assert len(asked) == len(set(asked))
    assert calls(n, algorithm=algorithm, calibrate=True) == calls(n, algorithm=algorithm) + 2 * len(first)


def test_the_bias_is_the_mean_over_pairs_read_in_both_orders() -> None:
    noise = random.Random(0)
    pairs = [(noise.gauss(2, 3), noise.gauss(2, 3)) for _ in range(50)]
    assert label_bias(pairs) == pytest.approx(fmean(itertools.chain(*pairs)))
    assert label_bias([*pairs, (None, 90.0), (-90.0, None), (None, None)]) == label_bias(pairs)
    assert label_bias([]) == label_bias([(None, 1.0)]) == 0
    assert preference((None, -1.0), 5.0) == preference((1.0, 2.0), 1.0) == 0.5


def test_an_answer_that_cannot_be_read_moves_no_other() -> None:
    """One order of a pair alone would count what the passages say as bias."""
    relevance = shuffled(10)[1]
    judge, best = leaning(relevance, 4.0), best_first(relevance)

    def script(call: Call) -> list[float]:
        return [math.nan, 0.0] if shown(call)[0] == best[0] else judge(call)

    ranking = ranked(10, script, algorithm="allpair", calibrate=True)
    assert ranking.outcomes == Outcomes(clean=81, failed=9)
    # all pairs of the best one are ties; the others are as they were
    assert {hit.passage.doc_id: hit.score for hit in ranking} == {best[0]: 4.5} | {
        doc_id: 0.5 + 8 - place for place, doc_id in enumerate(best[1:])
    }


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nonsense_keeps_the_given_order(algorithm: str) -> None:
    for answer in ([math.nan, 0.0], [], [-0.7, -0.7], [0.0, -9.0]):
        ranking = ranked(19, lambda _, said=answer: said, algorithm=algorithm, calibrate=True)  # type: ignore[misc]
        assert ranking.doc_ids == given_order(19)
        readable = len(answer) == 2 and all(map(math.isfinite, answer))
        assert (ranking.outcomes.clean if readable else ranking.outcomes.failed) == ranking.usage.calls > 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_judge_that_leans_and_errs_is_nearly_as_good_as_one_that_only_errs(algorithm: str) -> None:
    """One answer in ten is flipped, before the bias is added. How many of the best ten are found, of ten."""

    relevance = shuffled(30)[1]

    def found(bias: float, calibrate: bool) -> float:
        hits = []
        for seed in range(10):
            noise = random.Random(seed)

            def script(call: Call, noise: random.Random = noise) -> list[float]:
                first, second = (relevance[doc_id] for doc_id in shown(call))
                return [(second - first if noise.random() < 0.1 else first - second) + bias, 0.0]

            ids = ranked(30, script, algorithm=algorithm, calibrate=calibrate).doc_ids
            hits.append(len(set(ids[:10]) & set(best_first(relevance)[:10])))
        return fmean(hits)

    fair, tied, calibrated = found(0.0, False), found(6.0, False), found(6.0, True)
    assert fair - 0.8 <= calibrated <= 10
    assert tied + 0.5 < calibrated


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), algorithm=st.sampled_from(ALGORITHMS), seed=st.integers(0, 10**6))
def test_whatever_is_answered_every_passage_is_kept_once(n: int, algorithm: str, seed: int) -> None:
    n, noise = (min(n, 25) if algorithm == "allpair" else n), random.Random(seed)
    answers = [[0.0, -3.0], [math.nan, 0.0], [], [-0.7, -0.7]]
    ranking = ranked(
        n,
        lambda _: noise.choice([[noise.gauss(3, 1), noise.gauss(0, 1)], noise.choice(answers)]),
        algorithm=algorithm,
        calibrate=True,
    )
    assert sorted(ranking.doc_ids) == sorted(given_order(n))
    assert ranking.usage.calls <= calls(n, algorithm=algorithm, calibrate=True)
    assert ranking.outcomes.clean + ranking.outcomes.failed == ranking.usage.calls


def test_wrong_options_are_refused() -> None:
    for prompt in ("listwise-permutation", "setwise-reasoning"):
        with pytest.raises(
            PromptError, match=f"calibrate needs the log-probabilities of labels; prompt '{prompt}' gen"
        ):
            load_strategy("pairwise", prompt=prompt, calibrate=True)
    with pytest.raises(InputError, match="calibrate='perhaps'"):
        load_strategy("pairwise", calibrate="perhaps")
    assert load_strategy("pairwise", calibrate="true") == load_strategy("pairwise", calibrate=True)
