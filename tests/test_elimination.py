"""Iterative elimination against an oracle: exact orders, windows at the tail, prompts of both ways round, nonsense."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import best_first, given_order, shown, shuffled, with_top

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.calls import Call, GenerateCall
from rerank.errors import InputError, PromptError
from rerank.prompts import load_prompt
from rerank.prompts.answers import read_permutation
from rerank.strategies import load_strategy
from rerank.training.objectives import check_prompt
from rerank.types import Outcomes, Passage, Query, Ranking

PROMPT = load_prompt("elimination")  # read once: the files take longer than the test
WRITTEN = load_prompt("elimination-permutation")
Script = Callable[[Call], str | list[float]]


def ranked(n: int, script: Script, **options: object) -> Ranking:
    ranker = rerank.load("elimination", backbone=ScriptedBackbone(script), **{"prompt": PROMPT, **options})
    (ranking,) = ranker.rank_many([shuffled(n)[0]])
    return ranking


def calls(n: int, **options: object) -> int:
    return load_strategy("elimination", **{"prompt": PROMPT, **options}).calls(n)


@pytest.mark.parametrize("prompt", ["elimination", "elimination-permutation", "first-identifier", "full-ranking"])
@pytest.mark.parametrize("n", [1, 2, 3, 13, 20])
def test_an_oracle_gives_the_exact_order_whichever_way_round_it_is_asked(prompt: str, n: int) -> None:
    relevance, loaded = shuffled(n)[1], load_prompt(prompt)
    for drop in (1, 2, 5, 19):
        ranking = ranked(n, oracle(relevance), prompt=loaded, drop=drop)
        assert ranking.doc_ids == best_first(relevance)
        assert ranking.outcomes == Outcomes(clean=ranking.usage.calls)
        assert ranking.usage.calls == calls(n, drop=drop) == math.ceil((n - 1) / drop)
        assert [hit.score for hit in ranking] == sorted({hit.score for hit in ranking}, reverse=True)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), window=st.integers(2, 26), seed=st.integers(0, 99), data=st.data())
def test_an_oracle_orders_the_best_that_a_window_holds(n: int, window: int, seed: int, data: st.DataObject) -> None:
    drop = data.draw(st.integers(1, window - 1))
    candidates, relevance = shuffled(n, seed)
    backbone = ScriptedBackbone(oracle(relevance))
    ranker = rerank.load("elimination", prompt=PROMPT, window=window, drop=drop, backbone=backbone)
    (ranking,) = ranker.rank_many([candidates])
    assert ranking.doc_ids[: window - drop] == best_first(relevance)[: window - drop]
    assert sorted(ranking.doc_ids) == sorted(relevance)
    assert ranking.usage.calls == calls(n, window=window, drop=drop) == math.ceil((n - 1) / drop)


def test_a_window_lies_at_the_tail_and_the_head_comes_last() -> None:
    asked: list[list[str]] = []
    worst = iter(["d9", "d6", "d8"])

    def script(call: Call) -> list[float]:
        asked.append(shown(call))
        named = next(worst, shown(call)[-1])
        return [0.0 if doc_id == named else -1.0 for doc_id in shown(call)]

    ranking = ranked(10, script, window=4)
    d = given_order(10)
    assert asked[:4] == [d[6:], d[5:9], [d[4], d[5], d[7], d[8]], [d[3], d[4], d[5], d[7]]]
    assert [len(ids) for ids in asked] == [4, 4, 4, 4, 4, 4, 4, 3, 2]
    assert ranking.doc_ids == [*d[:6], "d7", "d8", "d6", "d9"]


def test_the_least_relevant_are_asked_for_and_no_more() -> None:
    asked: list[Call] = []
    judge = oracle(shuffled(9)[1])

    def script(call: Call) -> str | list[float]:
        asked.append(call)
        return judge(call)  # type: ignore[return-value]

    assert ranked(9, script, prompt=WRITTEN, drop=3).doc_ids == best_first(shuffled(9)[1])
    first, *_, last = asked
    assert isinstance(first, GenerateCall) and isinstance(last, GenerateCall)
    texts = ["".join(span.text for message in call.dialogue.messages for span in message.spans) for call in asked]
    assert "Of the 9 passages above 3 must be left out" in texts[0] and first.max_tokens == 3 * 6
    assert "Of the 3 passages above 2 must be left out" in texts[-1] and last.max_tokens == 2 * 6


@pytest.mark.parametrize(
    ("answer", "prompt", "outcomes"),
    [
        ([], PROMPT, Outcomes(failed=1)),
        ([math.nan] * 5, PROMPT, Outcomes(failed=1)),
        ([-1.0] * 5, PROMPT, Outcomes(clean=1)),
        ("", WRITTEN, Outcomes(failed=1)),
        ("I cannot leave any of [1] and [2] out.", WRITTEN, Outcomes(failed=1)),
        ("[77]", WRITTEN, Outcomes(failed=1)),
        ("HTTP error [503]", load_prompt("listwise-permutation"), Outcomes(failed=1)),
    ],
)
def test_what_cannot_be_read_removes_the_last_and_says_so(answer: object, prompt: object, outcomes: Outcomes) -> None:
    for drop in (1, 4):
        ranking = ranked(5, lambda _: answer, prompt=prompt, drop=drop)  # type: ignore[arg-type, return-value]
        assert ranking.doc_ids == given_order(5)
        first = Outcomes(outcomes.clean, failed=outcomes.failed)
        if drop == 4:
            assert ranking.outcomes == first
        elif answer != [-1.0] * 5:  # of fewer passages five answers are none
            assert ranking.outcomes.failed == ranking.usage.calls == 4


def test_a_written_answer_that_lacks_some_is_repaired_and_takes_the_last() -> None:
    ranking = ranked(6, lambda _: "[2] > [2] > [9]", prompt=WRITTEN, drop=5)
    assert ranking.doc_ids == ["d0", "d2", "d3", "d4", "d5", "d1"]
    assert ranking.outcomes == Outcomes(repaired=1, duplicate=1, foreign=1, missing=4)


def test_a_judge_that_errs_now_and_then_still_ranks_well() -> None:
    """One answer in ten names any of the passages."""
    relevance, noise = shuffled(30)[1], random.Random(0)

    def script(call: Call) -> list[float]:
        worst = min(shown(call), key=relevance.__getitem__)
        named = noise.choice(shown(call)) if noise.random() < 0.1 else worst
        return [0.0 if doc_id == named else -1.0 for doc_id in shown(call)]

    pairs = list(itertools.combinations(ranked(30, script, window=26).doc_ids, 2))
    right = sum(relevance[a] > relevance[b] for a, b in pairs)
    assert 0.85 * len(pairs) < right < len(pairs)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 60),
    window=st.integers(2, 26),
    prompt=st.sampled_from([PROMPT, WRITTEN, load_prompt("setwise")]),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_whatever_is_answered_every_passage_is_kept_once(
    n: int, window: int, prompt: object, seed: int, data: st.DataObject
) -> None:
    drop, noise = data.draw(st.integers(1, window - 1)), random.Random(seed)

    def script(call: Call) -> str | list[float]:
        size = len(shown(call))
        if isinstance(call, GenerateCall):
            return noise.choice(["", "no", f"[{noise.randint(0, 30)}]", "[2] > [1] > [2] > [40]", "see [3]"])
        return noise.choice([[noise.gauss(0, 1) for _ in range(size)], [0.0] * size, [math.nan] * size, []])

    ranking = ranked(n, script, prompt=prompt, window=window, drop=drop)
    assert sorted(ranking.doc_ids) == sorted(given_order(n))
    assert ranking.usage.calls == calls(n, window=window, drop=drop)
    outcomes = ranking.outcomes
    assert outcomes.clean + outcomes.repaired + outcomes.failed == ranking.usage.calls


def test_the_queries_go_in_step() -> None:
    backbone = ScriptedBackbone(oracle(shuffled(12)[1]))
    list(rerank.load("elimination", prompt=PROMPT, backbone=backbone).rank_many([shuffled(12)[0]] * 6))
    assert backbone.batches == [6] * 11


@given(n=st.integers(1, 20), seed=st.integers(0, 99), data=st.data())
def test_an_order_that_begins_with_the_least_relevant_is_read_backwards(n: int, seed: int, data: st.DataObject) -> None:
    written = random.Random(seed).sample(range(n), data.draw(st.integers(1, n)))
    text = " > ".join(f"[{i + 1}]" for i in written)
    order, outcomes = read_permutation(text, n, len(written), least_first=True)
    assert order == [i for i in range(n) if i not in written] + written[::-1]
    assert outcomes == Outcomes(clean=1)
    assert outcomes == read_permutation(text, n, len(written))[1]


def test_prompts_of_other_strategies_keep_the_identity_that_runs_recorded() -> None:
    """The field that says which way round an answer is came later than they."""
    assert load_prompt("setwise").identity == "setwise@1#accd54a1"
    assert load_prompt("listwise-permutation").identity == "listwise-permutation@1#80589f9d"
    turned = load_prompt("setwise").answer.model_copy(update={"least_first": True})
    assert load_prompt("setwise").model_copy(update={"answer": turned}).identity != load_prompt("setwise").identity


@pytest.mark.parametrize(
    ("strategy", "options"), [("setwise", {"k": 9}), ("pairwise", {"k": 9}), ("first", {}), ("tournament", {})]
)
def test_other_strategies_read_the_prompt_the_right_way_round(strategy: str, options: dict[str, object]) -> None:
    relevance = shuffled(9)[1]
    ranker = rerank.load(strategy, prompt=PROMPT, backbone=ScriptedBackbone(oracle(relevance)), **options)
    (ranking,) = ranker.rank_many([shuffled(9)[0]])
    count = 2 if strategy == "tournament" else 9
    assert set(ranking.doc_ids[:count]) == set(best_first(relevance)[:count])
    if strategy != "tournament":
        assert ranking.doc_ids == with_top(relevance, 9)


def test_soft_preferences_turn_too() -> None:
    """The log-odds of being the worse one, both ways, with their sign turned."""

    def script(call: Call) -> list[float]:
        return [-2.0, -0.5] if shown(call) == ["d0", "d1"] else [-0.25, -1.5]

    backbone = ScriptedBackbone(script)
    ranker = rerank.load("pairwise", prompt=PROMPT, algorithm="allpair", soft=True, backbone=backbone)
    (ranking,) = ranker.rank_many([shuffled(2)[0]])

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    assert ranking.doc_ids == ["d0", "d1"]
    assert ranking[0].score == pytest.approx((sigmoid(-0.5 - -2.0) + 1 - sigmoid(-1.5 - -0.25)) / 2)


def test_what_is_not_offered_is_refused() -> None:
    with pytest.raises(PromptError, match="asks for the least relevant passage"):
        check_prompt("setwise", PROMPT)
    with pytest.raises(PromptError, match=r"for a top it must say \{top\}"):  # its top would be the worst
        load_strategy("full-ranking", prompt=WRITTEN, top=3)
    assert not WRITTEN.asks_top and WRITTEN.asks_bottom
    assert load_prompt("full-ranking").asks_top and not load_prompt("full-ranking").asks_bottom
    with pytest.raises(InputError, match="can name 26 passages, not 27"):
        PROMPT.ask(Query("q"), [Passage("text", f"d{i}") for i in range(27)])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"window": 27}, InputError, "window 27: prompt 'elimination' can name 26 passages"),
        ({"window": 1}, InputError, "window 1 and drop 1: give 1 <= drop < window"),
        ({"drop": 0}, InputError, "window 20 and drop 0"),
        ({"drop": 20}, InputError, "window 20 and drop 20"),
        ({"prompt": "pointwise-yes-no"}, PromptError, "strategy 'elimination' needs many; prompts that fit: elim"),
        ({"passage_tokens": 0}, PromptError, "at least 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        load_strategy("elimination", **options)  # type: ignore[arg-type]
    assert words in str(caught.value)
