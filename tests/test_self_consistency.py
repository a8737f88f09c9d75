"""Windows asked about in several orders and slid several times: what is asked, how answers vote, what it costs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import best_first, shown, shuffled

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.calls import Call, GenerateCall
from rerank.errors import InputError
from rerank.prompts import load_prompt
from rerank.strategies import load_strategy, options_of
from rerank.strategies.listwise import Listwise
from rerank.types import Outcomes, Ranking

PROMPTS = {"listwise": load_prompt("listwise-permutation"), "first": load_prompt("first-identifier")}  # read once
MERGES = ["borda", "kemeny"]


def ranked(n: int, backbone: ScriptedBackbone, name: str = "listwise", **options: object) -> Ranking:
    ranker = rerank.load(name, backbone=backbone, **{"prompt": PROMPTS.get(name), **options})
    (ranking,) = ranker.rank_many([shuffled(n)[0]])
    assert ranking.usage.calls == ranker.strategy.calls(n)
    return ranking


def permutation(order: Sequence[int]) -> str:
    return " > ".join(f"[{i + 1}]" for i in order)


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("n", [1, 2, 7, 20, 45])
def test_an_oracle_gives_the_best_whatever_the_shuffles(name: str, merge: str, n: int) -> None:
    relevance = shuffled(n)[1]
    for shuffles in (2, 5):
        ranking = ranked(n, ScriptedBackbone(oracle(relevance)), name, shuffles=shuffles, merge=merge)
        assert ranking.doc_ids[:10] == best_first(relevance)[:10]
        assert n > 20 or ranking.doc_ids == best_first(relevance)
        assert ranking.outcomes.clean == ranking.usage.calls == (0 if n == 1 else shuffles * (1 if n <= 20 else 4))


def test_each_window_is_one_batch_first_as_given_then_shuffled_by_the_seed() -> None:
    def asked(**options: object) -> tuple[list[list[str]], list[int]]:
        seen: list[list[str]] = []
        judge = oracle(shuffled(30)[1])

        def script(call: Call) -> str | Sequence[float]:
            seen.append(shown(call))
            return judge(call)

        backbone = ScriptedBackbone(script)
        ranked(30, backbone, shuffles=4, **options)
        return seen, backbone.batches

    seen, batches = asked(seed=3)
    assert batches == [4, 4]  # windows (10, 30) and (0, 20)
    assert seen[0] == [f"d{i}" for i in range(10, 30)]
    assert len({tuple(each) for each in seen[:4]}) == 4
    assert all(sorted(each) == sorted(seen[0]) for each in seen[:4])
    assert asked(seed=3)[0] == seen
    assert asked(seed=4)[0][1] != seen[1]


def test_one_shuffle_is_listwise_as_ever() -> None:
    relevance = shuffled(60)[1]
    plain, told = ScriptedBackbone(oracle(relevance)), ScriptedBackbone(oracle(relevance))
    assert ranked(60, plain).doc_ids == ranked(60, told, shuffles=1, passes=1, merge="borda", seed=0).doc_ids
    assert plain.batches == told.batches == [1] * 5


@pytest.mark.parametrize("merge", MERGES)
def test_a_model_that_leans_to_a_place_is_put_right(merge: str) -> None:
    """It ranks rightly, but for what it is shown first: that it always calls the best."""
    relevance = shuffled(12)[1]

    def script(call: Call) -> str:
        values = [relevance[doc_id] for doc_id in shown(call)]
        return permutation(sorted(range(len(values)), key=lambda i: (i > 0, -values[i])))

    once = ranked(12, ScriptedBackbone(script))
    assert once.doc_ids != best_first(relevance)
    often = ranked(12, ScriptedBackbone(script), shuffles=15, merge=merge)
    assert pairs_right(often.doc_ids, relevance) > pairs_right(once.doc_ids, relevance)


def pairs_right(doc_ids: list[str], relevance: dict[str, float]) -> int:
    return sum(relevance[a] > relevance[b] for a, b in itertools.combinations(doc_ids, 2))


@pytest.mark.parametrize("merge", MERGES)
def test_a_noisy_model_is_better_with_more_shuffles(merge: str) -> None:
    """One pair in ten of what it compares is judged wrongly."""
    relevance = shuffled(20)[1]

    def script(noise: random.Random) -> ScriptedBackbone:
        def judge(call: Call) -> str:
            ids = shown(call)
            flipped = {pair: noise.random() < 0.1 for pair in itertools.combinations(range(len(ids)), 2)}
            beaten = [0] * len(ids)
            for (i, j), wrong in flipped.items():
                beaten[j if (relevance[ids[i]] > relevance[ids[j]]) != wrong else i] += 1
            return permutation(sorted(range(len(ids)), key=lambda i: beaten[i]))

        return ScriptedBackbone(judge)

    alone = [pairs_right(ranked(20, script(random.Random(seed))).doc_ids, relevance) for seed in range(10)]
    merged = ranked(20, script(random.Random(0)), shuffles=10, merge=merge)
    assert pairs_right(merged.doc_ids, relevance) > sum(alone) / 10


@pytest.mark.parametrize("merge", MERGES)
def test_an_answer_that_cannot_be_read_has_no_vote(merge: str) -> None:
    """The first three of five answers are nonsense; the given order they stand for does not count."""
    relevance, count = shuffled(10)[1], itertools.count()
    judge = oracle(relevance)

    def script(call: Call) -> str | Sequence[float]:
        return "I cannot rank these." if next(count) < 3 else judge(call)

    ranking = ranked(10, ScriptedBackbone(script), shuffles=5, merge=merge)
    assert ranking.doc_ids == best_first(relevance)
    assert ranking.outcomes == Outcomes(clean=2, failed=3)


@pytest.mark.parametrize("answer", ["", "I cannot rank these.", "Error code: 429 - rate limit [20] reached"])
def test_without_any_answer_the_given_order_stands_and_says_so(answer: str) -> None:
    ranking = ranked(25, ScriptedBackbone(lambda _: answer), shuffles=3)
    assert ranking.doc_ids == [f"d{i}" for i in range(25)]
    assert ranking.outcomes == Outcomes(failed=6)


def test_passages_that_an_answer_leaves_out_stand_as_given_not_as_shown() -> None:
    """Each answer names the best passage only."""
    relevance = shuffled(9)[1]
    best = best_first(relevance)[0]
    backbone = ScriptedBackbone(lambda call: f"[{shown(call).index(best) + 1}] >")
    ranking = ranked(9, backbone, shuffles=6)
    assert ranking.doc_ids == [best, *(f"d{i}" for i in range(9) if f"d{i}" != best)]
    assert ranking.outcomes == Outcomes(repaired=6, missing=6 * 8)


def test_merged_orders_have_ranks_for_scores_and_one_order_its_log_probabilities() -> None:
    relevance = shuffled(5)[1]
    once = ranked(5, ScriptedBackbone(oracle(relevance)), "first")
    assert once[0].score < 0
    merged = ranked(5, ScriptedBackbone(oracle(relevance)), "first", shuffles=3)
    assert [hit.score for hit in merged] == [5, 4, 3, 2, 1]


@pytest.mark.parametrize("name", PROMPTS)
def test_further_passes_order_what_lies_behind_the_head(name: str) -> None:
    """A pass carries ten passages to the head, so t passes order the first 10 t of them, and cost t times as much."""
    relevance = shuffled(60)[1]
    for passes in (1, 2, 3, 5):
        ranking = ranked(60, ScriptedBackbone(oracle(relevance)), name, passes=passes)
        assert ranking.doc_ids[: 10 * passes] == best_first(relevance)[: 10 * passes]
        assert ranking.usage.calls == 5 * passes


def test_full_ranking_may_be_shuffled_too() -> None:
    relevance = shuffled(40)[1]
    ranking = ranked(40, ScriptedBackbone(oracle(relevance)), "full-ranking", shuffles=3, merge="kemeny")
    assert ranking.doc_ids == best_first(relevance)
    assert ranking.usage.calls == 3


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), data=st.data())
def test_whatever_is_answered_every_passage_is_kept_once(n: int, data: st.DataObject) -> None:
    window = data.draw(st.integers(2, 26))
    options = {
        "window": window,
        "step": data.draw(st.integers(max(1, window // 2), window)),
        "passes": data.draw(st.integers(1, 2)),
        "shuffles": data.draw(st.integers(2, 4)),
        "seed": data.draw(st.integers(0, 99)),
        # an exact merge of 20 passages that nobody agrees on takes most of a second
        "merge": data.draw(st.sampled_from(MERGES)) if not 13 < min(n, window) <= 20 else "borda",
    }
    answers = st.text(alphabet="[]0123456789> ,a", max_size=40)
    name = data.draw(st.sampled_from(sorted(PROMPTS)))
    noise = random.Random(data.draw(st.integers(0, 10**6)))

    def script(call: Call) -> str | list[float]:
        if isinstance(call, GenerateCall):
            return data.draw(answers)
        return [noise.gauss(0, 1) for _ in shown(call)] if noise.random() < 0.8 else []

    ranking = ranked(n, ScriptedBackbone(script), name, **options)
    assert sorted(ranking.doc_ids) == sorted(f"d{i}" for i in range(n))
    assert ranking.outcomes.clean + ranking.outcomes.repaired + ranking.outcomes.failed == ranking.usage.calls


def test_a_run_records_the_options() -> None:
    made = load_strategy("listwise", shuffles="3", merge="kemeny", passes="2", seed="5")
    assert isinstance(made, Listwise) and made.calls(100) == 3 * 2 * 9
    recorded = {name: getattr(made, name) for name in options_of(type(made))}
    assert {"passes": 2, "shuffles": 3, "merge": "kemeny", "seed": 5}.items() <= recorded.items()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("listwise", {"shuffles": 0}, "shuffles is 0; give at least 1"),
        ("first", {"passes": 0}, "passes is 0; give at least 1"),
        ("listwise", {"merge": "kemeny"}, "nothing is shuffled; leave merge out, or give shuffles of 2 or more"),
        ("first", {"seed": 7}, "seed is 7, but nothing is shuffled"),
        ("listwise", {"merge": "mean", "shuffles": 2}, "'borda' or 'kemeny'"),
        ("full-ranking", {"top": 5, "shuffles": 2}, "leave one of them out"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_strategy(name, **options)  # type: ignore[arg-type]
    assert words in str(caught.value)
