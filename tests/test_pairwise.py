"""Pairwise ranking prompting against an oracle: exact orders, the papers' counts of calls, ties and nonsense."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import best_first, shown, shuffled, with_top

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.calls import Call
from rerank.errors import InputError, PromptError
from rerank.prompts import load_prompt
from rerank.strategies import load_strategy
from rerank.types import Ranking

PROMPT = load_prompt("pairwise")  # read once: the files take longer than the test
ALGORITHMS = ["allpair", "heapsort", "sliding"]
SORTERS = ALGORITHMS[1:]
AGGREGATES = ["wins", "bradley-terry", "kemeny", "path"]


def ranked(n: int, script: Callable[[Call], str | list[float]], **options: object) -> Ranking:
    ranker = rerank.load("pairwise", backbone=ScriptedBackbone(script), **{"prompt": PROMPT, **options})
    (ranking,) = ranker.rank_many([shuffled(n)[0]])
    return ranking


def paper_bound(algorithm: str, n: int, k: int) -> float:
    """Calls, two a comparison: sliding compares n - t neighbours in pass t; a binary heap is built with 2n
    comparisons, and each of the k - 1 passages after the first costs two on each of at most log2(n) levels."""
    if algorithm == "sliding":
        return 2 * sum(n - t for t in range(1, k + 1) if t < n)
    return 2 * (2 * n + 2 * (k - 1) * math.log2(n))


@pytest.mark.parametrize("n", range(1, 31))
def test_an_oracle_gives_the_exact_order_of_all(n: int) -> None:
    relevance = shuffled(n)[1]
    ranking = ranked(n, oracle(relevance), algorithm="allpair")
    assert ranking.doc_ids == best_first(relevance)
    assert ranking.usage.calls == n * (n - 1) == load_strategy("pairwise", prompt=PROMPT, algorithm="allpair").calls(n)
    assert [hit.score for hit in ranking] == [n - hit.rank for hit in ranking]  # as many wins


@pytest.mark.parametrize("algorithm", SORTERS)
@pytest.mark.parametrize("n", range(1, 31))
def test_an_oracle_gives_the_exact_top_within_the_papers_bound(algorithm: str, n: int) -> None:
    relevance = shuffled(n)[1]
    for k in (1, 3, 10, 40):
        ranking = ranked(n, oracle(relevance), algorithm=algorithm, k=k)
        most = load_strategy("pairwise", prompt=PROMPT, algorithm=algorithm, k=k).calls(n)
        assert ranking.doc_ids[:k] == best_first(relevance)[:k]
        if algorithm == "heapsort":
            assert ranking.doc_ids == with_top(relevance, k)
        assert ranking.usage.calls <= most <= paper_bound(algorithm, n, k)
        assert ranking.outcomes.clean == ranking.usage.calls


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 13, 20, 30])
def test_an_oracle_gives_the_exact_order_however_it_is_aggregated(aggregate: str, soft: bool, n: int) -> None:
    n = min(n, {"kemeny": 20, "path": 3 if soft else 30}.get(aggregate, 30))  # soft paths: test_aggregation.py
    relevance = shuffled(n)[1]
    ranking = ranked(n, oracle(relevance), algorithm="allpair", aggregate=aggregate, soft=soft)
    assert ranking.doc_ids == best_first(relevance)
    assert ranking.usage.calls == ranking.outcomes.clean == n * (n - 1)
    if aggregate in ("kemeny", "path"):
        assert [hit.score for hit in ranking] == list(range(n, 0, -1))  # ranks


def test_strengths_are_log_odds() -> None:
    """A tie between two, and both win against the third; each pair has 0.1 of a tie more."""
    relevance = {"d0": 0.0, "d1": 1.0, "d2": 1.0}
    ranking = ranked(3, oracle(relevance), algorithm="allpair", aggregate="bradley-terry")
    assert ranking.doc_ids == ["d1", "d2", "d0"]
    assert ranking[0].score == pytest.approx(ranking[1].score)
    # of 1.1 comparisons with each, the third won 0.05
    assert ranking[0].score - ranking[2].score == pytest.approx(math.log(1.05 / 0.05))


def test_a_cycle_is_broken_where_the_fewest_preferences_are() -> None:
    """d0 > d1 > d2 > d3 > d0 and d0 > d2; d1 and d3 tie. Kemeny's order goes against one answer only, d3 > d0."""
    beats = {("d0", "d1"), ("d1", "d2"), ("d2", "d3"), ("d3", "d0"), ("d0", "d2")}

    def script(call: Call) -> list[float]:
        pair = (shown(call)[0], shown(call)[1])
        return A if pair in beats else B if pair[::-1] in beats else EVEN

    assert ranked(4, script, algorithm="allpair", aggregate="kemeny").doc_ids == ["d0", "d1", "d2", "d3"]
    assert ranked(4, script, algorithm="allpair", aggregate="path").doc_ids == ["d0", "d1", "d2", "d3"]
    wins = {hit.passage.doc_id: hit.score for hit in ranked(4, script, algorithm="allpair")}
    assert wins == {"d0": 2, "d1": 1.5, "d2": 1, "d3": 1.5}


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_nonsense_keeps_the_given_order_however_it_is_aggregated(aggregate: str) -> None:
    for answer in ([math.nan, math.nan], []):
        ranking = ranked(19, lambda _, said=answer: said, algorithm="allpair", aggregate=aggregate)  # type: ignore[misc]
        assert ranking.doc_ids == [f"d{i}" for i in range(19)]
        assert ranking.outcomes.failed == ranking.usage.calls == 19 * 18


def test_kemeny_of_too_many_is_refused_before_anything_is_asked() -> None:
    backbone = ScriptedBackbone(oracle(shuffled(21)[1]))
    ranker = rerank.load("pairwise", backbone=backbone, algorithm="allpair", aggregate="kemeny")
    with pytest.raises(InputError, match="at most 20 passages, not 21"):
        list(ranker.rank_many([shuffled(21)[0]]))
    assert backbone.batches == []


def test_ten_are_sorted_unless_said_otherwise() -> None:
    relevance = shuffled(30)[1]
    assert ranked(30, oracle(relevance)).doc_ids == with_top(relevance, 10)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_both_orders_are_asked_and_no_pair_twice(algorithm: str) -> None:
    asked: list[tuple[str, ...]] = []
    judge = oracle(shuffled(17)[1])

    def script(call: Call) -> str | list[float]:
        asked.append(tuple(shown(call)))
        return judge(call)  # type: ignore[return-value]

    ranked(17, script, algorithm=algorithm)
    assert len(asked) == len(set(asked))
    assert {(b, a) for a, b in asked} == set(asked)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "answer", [[0.0, -3.0], [-3.0, 0.0], [-0.7, -0.7], [math.nan, math.nan], [math.nan, 0.0], [0.0]]
)
def test_a_model_that_leans_to_a_place_or_says_nothing_keeps_the_given_order(
    algorithm: str, answer: list[float]
) -> None:
    """A tie moves nothing, in a heap either."""
    ranking = ranked(20, lambda _: answer, algorithm=algorithm)
    assert ranking.doc_ids == [f"d{i}" for i in range(20)]
    readable = len(answer) == 2 and all(map(math.isfinite, answer))
    assert (ranking.outcomes.clean if readable else ranking.outcomes.failed) == ranking.usage.calls > 0
    if algorithm == "allpair":
        assert [hit.score for hit in ranking] == [19 / 2] * 20


A, B, EVEN, NONSENSE = [-0.1, -2.0], [-2.0, -0.1], [-0.7, -0.7], [math.nan, -0.1]


@pytest.mark.parametrize(
    ("there", "back", "wins"),
    [
        (A, B, 1.0),  # both for the first
        (B, A, 0.0),  # both for the second
        (A, A, 0.5),
        (B, B, 0.5),
        (A, EVEN, 0.5),
        (EVEN, A, 0.5),
        (NONSENSE, B, 0.5),
        (B, NONSENSE, 0.5),
        (NONSENSE, NONSENSE, 0.5),
    ],
)
def test_a_win_needs_both_answers(there: list[float], back: list[float], wins: float) -> None:
    def script(call: Call) -> list[float]:
        return there if shown(call) == ["d0", "d1"] else back

    ranking = ranked(2, script, algorithm="allpair")
    assert {hit.passage.doc_id: hit.score for hit in ranking} == {"d0": wins, "d1": 1 - wins}
    for algorithm in SORTERS:
        assert ranked(2, script, algorithm=algorithm).doc_ids == (["d0", "d1"] if wins else ["d1", "d0"])


def test_scores_are_wins_and_half_the_ties() -> None:
    relevance = {"d0": 1.0, "d1": 2.0, "d2": 1.0, "d3": 0.0}
    ranking = ranked(4, oracle(relevance), algorithm="allpair")
    assert {hit.passage.doc_id: hit.score for hit in ranking} == {"d1": 3, "d0": 1 + 1 / 2, "d2": 1 + 1 / 2, "d3": 0}
    assert ranking.doc_ids == ["d1", "d0", "d2", "d3"]


def test_soft_scores_are_the_mean_probabilities() -> None:
    odds = {("d0", "d1"): 0.4, ("d1", "d0"): -2.0, ("d0", "d2"): 1.0, ("d2", "d0"): 3.0}
    odds |= {("d1", "d2"): -5000.0, ("d2", "d1"): 5000.0}

    def script(call: Call) -> list[float]:
        return [odds[shown(call)[0], shown(call)[1]], 0.0]

    def p(i: str, j: str) -> float:
        def sigmoid(x: float) -> float:
            return 0.5 * (1 + math.tanh(x / 2))

        return (sigmoid(odds[i, j]) + sigmoid(-odds[j, i])) / 2

    ranking = ranked(3, script, algorithm="allpair", soft=True)
    scores = {hit.passage.doc_id: hit.score for hit in ranking}
    assert scores["d0"] == pytest.approx(p("d0", "d1") + p("d0", "d2"))
    assert scores["d1"] == pytest.approx(p("d1", "d0") + p("d1", "d2"))
    assert scores["d2"] == pytest.approx(p("d2", "d0") + p("d2", "d1"))
    assert [hit.score for hit in ranking] == sorted(scores.values(), reverse=True)


def test_soft_takes_half_for_an_answer_that_cannot_be_read() -> None:
    def script(call: Call) -> list[float]:
        return [math.nan, 0.0] if shown(call) == ["d0", "d1"] else [0.0, -2.0]

    ranking = ranked(2, script, algorithm="allpair", soft=True)
    assert ranking.outcomes.failed == ranking.outcomes.clean == 1
    assert ranking.doc_ids == ["d1", "d0"]
    assert ranking[1].score == pytest.approx((1 / 2 + 1 - 1 / (1 + math.exp(-2.0))) / 2)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), k=st.integers(1, 12), algorithm=st.sampled_from(ALGORITHMS), seed=st.integers(0, 10**6))
def test_whatever_is_answered_every_passage_is_kept_once(n: int, k: int, algorithm: str, seed: int) -> None:
    noise = random.Random(seed)
    aggregate = noise.choice(AGGREGATES if n <= 14 else ["wins", "bradley-terry", "path"])

    def script(_: Call) -> list[float]:
        return noise.choice([[noise.gauss(0, 1), noise.gauss(0, 1)], EVEN, NONSENSE, []])

    options: dict[str, object] = {"aggregate": aggregate} if algorithm == "allpair" else {"k": k}
    ranking = ranked(n, script, algorithm=algorithm, **options)
    assert sorted(ranking.doc_ids) == sorted(f"d{i}" for i in range(n))
    assert ranking.usage.calls <= load_strategy("pairwise", prompt=PROMPT, algorithm=algorithm, **options).calls(n)
    assert ranking.outcomes.clean + ranking.outcomes.failed == ranking.usage.calls


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_comparator_that_errs_now_and_then_still_ranks_well(aggregate: str) -> None:
    """One answer in ten is wrong; then few pairs are decided wrongly, since both answers have to be. The heaviest path
    goes round the many ties, and so is less right."""
    n = 20 if aggregate == "kemeny" else 30
    relevance = shuffled(n)[1]
    judge, noise = oracle(relevance), random.Random(0)

    def script(call: Call) -> list[float]:
        first, second = judge(call)
        assert isinstance(first, float) and isinstance(second, float)
        return [second, first] if noise.random() < 0.1 else [first, second]

    ranking = ranked(n, script, algorithm="allpair", aggregate=aggregate)
    pairs = list(itertools.combinations(ranking.doc_ids, 2))
    right = sum(relevance[a] > relevance[b] for a, b in pairs)
    assert (0.75 if aggregate == "path" else 0.95) * len(pairs) < right < len(pairs)


def test_a_prompt_that_generates_may_compare() -> None:
    relevance = shuffled(12)[1]
    for algorithm in ALGORITHMS:
        ranking = ranked(12, oracle(relevance), algorithm=algorithm, prompt="listwise-permutation")
        assert ranking.doc_ids[:10] == best_first(relevance)[:10]
    ranking = ranked(12, lambda _: "Passage [1] is better", algorithm="sliding", prompt="listwise-permutation")
    assert ranking.doc_ids == [f"d{i}" for i in range(12)]
    assert ranking.outcomes.failed == ranking.usage.calls


def test_what_does_not_depend_on_an_answer_is_one_batch() -> None:
    """All pairs; and in a heap all nodes of a level, of all queries."""
    backbones = {name: ScriptedBackbone(oracle(shuffled(15)[1])) for name in ("allpair", "heapsort", "many")}
    requests = [shuffled(15)[0]]
    list(rerank.load("pairwise", algorithm="allpair", backbone=backbones["allpair"]).rank_many(requests))
    assert backbones["allpair"].batches == [15 * 14]
    list(rerank.load("pairwise", k=1, backbone=backbones["heapsort"]).rank_many(requests))
    # the level above 8 leaves has 4 nodes: each compares its children, then itself, two calls a comparison
    assert backbones["heapsort"].batches[:2] == [8, 8]
    assert len(backbones["heapsort"].batches) <= 2 * (1 + 2 + 3)  # a level's sifts go down together
    list(rerank.load("pairwise", k=1, backbone=backbones["many"]).rank_many(requests * 8))
    assert backbones["many"].batches == [8 * size for size in backbones["heapsort"].batches]


def test_all_pairs_of_a_long_list_come_in_parts() -> None:
    backbone = ScriptedBackbone(oracle(shuffled(60)[1]))
    list(rerank.load("pairwise", algorithm="allpair", backbone=backbone).rank_many([shuffled(60)[0]]))
    assert sum(backbone.batches) == 60 * 59
    assert max(backbone.batches) == 1024


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"algorithm": "bubble"}, InputError, "'allpair', 'heapsort' or 'sliding'"),
        ({"algorithm": "allpair", "k": 10}, InputError, "allpair orders all passages; leave k out"),
        ({"k": 0}, InputError, "k is 0; give at least 1"),
        ({"soft": True}, InputError, "give algorithm=allpair"),
        ({"aggregate": "path"}, InputError, "aggregate=path needs the preferences of all pairs, and heapsort does not"),
        ({"aggregate": "kemeny", "algorithm": "sliding"}, InputError, "give algorithm=allpair"),
        ({"aggregate": "mean"}, InputError, "'wins', 'bradley-terry', 'kemeny' or 'path'"),
        ({"soft": True, "algorithm": "allpair", "prompt": "listwise-permutation"}, PromptError, "generates text"),
        ({"prompt": "pointwise-yes-no"}, PromptError, "strategy 'pairwise' needs many; prompts that fit: elim"),
        ({"passage_tokens": 0}, PromptError, "at least 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        load_strategy("pairwise", **options)  # type: ignore[arg-type]
    assert words in str(caught.value)
