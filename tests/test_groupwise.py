"""Groupwise scores against an oracle: splits, means, what has no score, the first stage's part, and the reader."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from itertools import chain, combinations
from statistics import fmean

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from judged import best_first, given_order, shown, shuffled

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.calls import Call
from rerank.errors import CapabilityError, InputError, PromptError
from rerank.prompts import Prompt, load_prompt
from rerank.strategies import load_strategy
from rerank.strategies.groupwise import first_stage, placed, split
from rerank.types import Candidates, Outcomes, Passage, Query, Ranking

PROMPT = load_prompt("groupwise")  # read once: the files take longer than the test
PROMPTS = ["groupwise", "groupwise-plain", "groupwise-plain-constrained"]
Script = Callable[[Call], str]


def says(scores: Sequence[float | None]) -> str:
    """An answer; None leaves a passage out."""
    given = {f"[{i}]": score for i, score in enumerate(scores, 1) if score is not None}
    return f"<reason>why</reason><answer>{json.dumps(given)}</answer>"


def scoring(relevance: dict[str, float | None]) -> Script:
    return lambda call: says([relevance[doc_id] for doc_id in shown(call)])


def ranked(passages: int | Candidates, script: Script, **options: object) -> Ranking:
    candidates = shuffled(passages)[0] if isinstance(passages, int) else passages
    ranker = rerank.load("groupwise", backbone=ScriptedBackbone(script), **{"prompt": PROMPT, **options})
    (ranking,) = ranker.rank_many([candidates])
    return ranking


def calls(n: int, **options: object) -> int:
    return load_strategy("groupwise", **{"prompt": PROMPT, **options}).calls(n)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), group=st.integers(1, 60), shuffles=st.integers(1, 4), seed=st.integers(0, 99))
def test_an_oracle_gives_the_exact_order_and_its_own_scores(n: int, group: int, shuffles: int, seed: int) -> None:
    relevance = shuffled(n)[1]
    options = {"group": group, "shuffles": shuffles, "seed": seed}
    ranking = ranked(n, scoring(relevance), **options)  # type: ignore[arg-type]
    assert ranking.doc_ids == best_first(relevance)
    assert [hit.score for hit in ranking] == pytest.approx(sorted(relevance.values(), reverse=True))
    assert ranking.usage.calls == calls(n, **options) == shuffles * math.ceil(n / group)
    assert ranking.outcomes == Outcomes(clean=ranking.usage.calls)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_shipped_oracle_answers_every_prompt(prompt: str) -> None:
    relevance = shuffled(45)[1]
    ranking = ranked(45, oracle(relevance), prompt=prompt)  # type: ignore[arg-type]
    assert ranking.doc_ids == best_first(relevance)
    assert ranking.outcomes == Outcomes(clean=3)


@given(n=st.integers(1, 60), size=st.integers(1, 60), seed=st.integers(0, 99))
def test_a_split_has_every_passage_once_in_even_groups(n: int, size: int, seed: int) -> None:
    groups = split(n, size, random.Random(seed))
    assert sorted(i for group in groups for i in group) == list(range(n))
    assert len(groups) == math.ceil(n / size)
    assert max(map(len, groups)) <= min(size, min(map(len, groups)) + 1)


def test_all_groups_of_all_splits_and_queries_are_one_batch() -> None:
    candidates, relevance = shuffled(50)
    backbone = ScriptedBackbone(scoring(relevance))  # type: ignore[arg-type]
    list(rerank.load("groupwise", shuffles=4, backbone=backbone).rank_many([candidates] * 3))
    assert backbone.batches == [3 * 4 * 3]


def test_splits_are_random_by_the_seed_and_drawn_anew() -> None:
    def run(**options: object) -> list[list[str]]:
        asked: list[list[str]] = []
        ranked(20, lambda call: asked.append(shown(call)) or says([1] * len(shown(call))), **options)
        return asked

    asked = run(group=10, shuffles=2, seed=1)
    assert [len(group) for group in asked] == [10] * 4
    for half in (asked[:2], asked[2:]):
        assert sorted(chain(*half)) == sorted(given_order(20))
    assert {frozenset(group) for group in asked[:2]} != {frozenset(group) for group in asked[2:]}
    assert sorted(asked[0]) != sorted(given_order(10))
    assert run(group=10, shuffles=2, seed=1) == asked != run(group=10, shuffles=2, seed=2)
    one = run(group=20, shuffles=3)  # one group only: what changes is where a passage stands
    assert len({tuple(group) for group in one}) == 3


def test_scores_are_the_means_over_the_splits() -> None:
    noise, got = random.Random(0), {f"d{i}": list[float]() for i in range(30)}

    def script(call: Call) -> str:
        scores = [noise.randint(0, 10) for _ in shown(call)]
        for doc_id, score in zip(shown(call), scores, strict=True):
            got[doc_id].append(score)
        return says(scores)

    ranking = ranked(30, script, group=7, shuffles=4)
    assert {len(scores) for scores in got.values()} == {4}
    assert {hit.passage.doc_id: hit.score for hit in ranking} == {name: fmean(scores) for name, scores in got.items()}
    assert ranking.doc_ids == sorted(got, key=lambda doc_id: (-fmean(got[doc_id]), int(doc_id[1:])))


def test_ties_go_to_the_first_stage() -> None:
    ranking = ranked(40, lambda call: says([int(doc_id[1:]) % 2 for doc_id in shown(call)]), group=9)
    assert ranking.doc_ids == [*given_order(40)[1::2], *given_order(40)[::2]]


def test_more_splits_outweigh_a_model_that_errs() -> None:
    """One score in ten is any other: nine pairs in ten are right, and nearly all where splits are averaged."""
    relevance, noise = {f"d{i}": float(i % 11) for i in range(44)}, random.Random(0)

    def script(call: Call) -> str:
        return says([noise.randint(0, 10) if noise.random() < 0.1 else relevance[doc_id] for doc_id in shown(call)])

    def right(shuffles: int) -> float:
        pairs = [
            relevance[better] > relevance[worse]
            for _ in range(5)
            for better, worse in combinations(ranked(44, script, shuffles=shuffles).doc_ids, 2)
            if relevance[better] != relevance[worse]
        ]
        return sum(pairs) / len(pairs)

    one, many = right(1), right(12)
    assert 0.85 < one < 0.97 < many


@pytest.mark.parametrize(
    "answer", ["", "I cannot score these.", "error [503]", "<answer>[1] > [2]</answer>", '<answer>{"1": 5}</answer>']
)
def test_answers_that_cannot_be_read_keep_the_given_order_and_say_so(answer: str) -> None:
    ranking = ranked(50, lambda _: answer, shuffles=2, fusion=1.0)
    assert ranking.doc_ids == given_order(50)
    assert ranking.outcomes == Outcomes(failed=6)
    assert [hit.score for hit in ranking] == list(range(50, 0, -1))  # ranks: nothing was scored


def test_a_group_that_failed_keeps_its_places_and_is_not_put_last() -> None:
    relevance = shuffled(60)[1]
    broken: list[str] = []

    def script(call: Call) -> str:
        if "d0" in shown(call):
            broken.extend(shown(call))
            return "no"
        return says([relevance[doc_id] for doc_id in shown(call)])

    ranking = ranked(60, script)
    assert len(broken) == 20 and ranking.outcomes == Outcomes(clean=2, failed=1)
    assert all(ranking[int(doc_id[1:])].passage.doc_id == doc_id for doc_id in broken)
    others = [doc_id for doc_id in ranking.doc_ids if doc_id not in broken]
    assert others == [doc_id for doc_id in best_first(relevance) if doc_id not in broken]
    assert [hit.score for hit in ranking] == sorted((hit.score for hit in ranking), reverse=True)
    assert next(hit.score for hit in ranking if hit.passage.doc_id == "d0") == max(relevance[name] for name in others)


def test_what_one_split_could_not_read_another_may() -> None:
    """Every first answer fails; the means are then of the other splits, not of those with zeros among them."""
    relevance, count = shuffled(10)[1], iter(range(9))
    ranking = ranked(10, lambda call: "no" if next(count) == 0 else scoring(relevance)(call), shuffles=3)  # type: ignore[arg-type]
    assert ranking.doc_ids == best_first(relevance)
    assert [hit.score for hit in ranking] == pytest.approx(sorted(relevance.values(), reverse=True))
    assert ranking.outcomes == Outcomes(clean=2, failed=1)


def test_a_passage_that_was_left_out_keeps_its_place_among_its_group() -> None:
    relevance: dict[str, float | None] = {"d0": 1.0, "d1": None, "d2": 9.0, "d3": 4.0, "d4": None}
    ranking = ranked(5, scoring(relevance))
    assert ranking.doc_ids == ["d2", "d1", "d3", "d0", "d4"]
    assert [hit.score for hit in ranking] == [9.0, (9 + 4) / 2, 4.0, 1.0, 1.0]
    assert ranking.outcomes == Outcomes(repaired=1, missing=2)


@given(st.lists(st.none() | st.floats(0, 10), min_size=1, max_size=30))
def test_placing_keeps_the_known_scores_and_the_others_places(scores: list[float | None]) -> None:
    known = [score for score in scores if score is not None]
    assume(known and len(set(known)) == len(known))
    found = placed(scores)
    order = sorted(range(len(scores)), key=lambda i: -found[i])
    assert all(found[i] == score for i, score in enumerate(scores) if score is not None)
    assert min(known) <= min(found) and max(found) <= max(known)
    near = min((b - a for a, b in zip(sorted(known), sorted(known)[1:], strict=False)), default=1.0)
    assume(near > 1e-9)  # else a mean of two is one of them
    assert all(order[i] == i for i, score in enumerate(scores) if score is None)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 60),
    group=st.integers(1, 25),
    shuffles=st.integers(1, 3),
    fusion=st.sampled_from([0.0, 0.5, 30.0]),
    prompt=st.sampled_from([load_prompt(name) for name in PROMPTS]),
    seed=st.integers(0, 10**6),
)
def test_whatever_is_answered_every_passage_is_kept_once(
    n: int, group: int, shuffles: int, fusion: float, prompt: Prompt, seed: int
) -> None:
    noise = random.Random(seed)

    def script(call: Call) -> str:
        good = says([noise.choice([None, noise.randint(-2, 12)]) for _ in shown(call)])
        return noise.choice([good, good, good[: noise.randrange(len(good))], "", "sorry [1]", '{"[1]": NaN}'])

    options = {"group": group, "shuffles": shuffles, "fusion": fusion, "prompt": prompt}
    ranking = ranked(n, script, **options)
    assert sorted(ranking.doc_ids) == sorted(given_order(n))
    assert ranking.usage.calls == calls(n, **options)
    assert ranking.outcomes.clean + ranking.outcomes.repaired + ranking.outcomes.failed == ranking.usage.calls
    scores = [hit.score for hit in ranking]
    assert scores == sorted(scores, reverse=True) and all(map(math.isfinite, scores))


def test_fusion_adds_the_first_stages_scores_in_points() -> None:
    passages = tuple(Passage(text, text, score=score) for text, score in (("a", 12.0), ("b", 11.0), ("c", 8.0)))
    candidates = Candidates(Query("q"), passages)
    signal = {"a": 1.0, "b": (11 - 8) / (12 - 8), "c": 0.0}
    script = scoring({"a": 3, "b": 5, "c": 7})
    for fusion in (0.0, 2.0, 5.0):
        ranking = ranked(candidates, script, fusion=fusion)
        expected = {name: score + fusion * signal[name] for name, score in (("a", 3), ("b", 5), ("c", 7))}
        assert {hit.passage.doc_id: hit.score for hit in ranking} == pytest.approx(expected)
        assert ranking.doc_ids == sorted(expected, key=lambda name: -expected[name])
    assert ranked(candidates, script, fusion=100).doc_ids == ["a", "b", "c"]


@pytest.mark.parametrize("score", [None, math.nan, math.inf])
def test_without_all_scores_the_first_stage_is_its_ranks(score: float | None) -> None:
    passages = [Passage(text, text, score=value) for text, value in zip("abcde", [1, 2, score, 4, 5], strict=True)]
    assert first_stage(passages) == [1, 3 / 4, 2 / 4, 1 / 4, 0]
    assert first_stage([Passage("a", "a", score=3.0), Passage("b", "b", score=3.0)]) == [0.0, 0.0]
    assert first_stage(passages[:1]) == first_stage(passages[2:3]) == [0.0]


def test_the_reasoning_is_kept_and_names_the_passages() -> None:
    def script(call: Call) -> str:
        return "<reason> [1] says it, [2] does not; see [9]. </reason>" + says([8, 2]).partition("</reason>")[2]

    ranking = ranked(4, script, group=2)
    groups = split(4, 2, random.Random(0))
    assert ranking.reasoning == tuple(f"[d{a}] says it, [d{b}] does not; see [9]." for a, b in groups)
    assert ranking.outcomes == Outcomes(clean=2)
    assert ranked(4, lambda _: "<reason>broken off").reasoning == ("broken off",)
    assert ranked(4, lambda _: '<answer>{"[1]": 3}').reasoning == ()


EXPECTED = load_prompt("groupwise-expected")


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 60), group=st.integers(1, 25), shuffles=st.integers(1, 3))
def test_expected_scores_give_the_exact_order_by_a_call_for_each(n: int, group: int, shuffles: int) -> None:
    relevance = shuffled(n)[1]
    options = {"group": group, "shuffles": shuffles, "prompt": EXPECTED}
    ranking = ranked(n, oracle(relevance), **options)  # type: ignore[arg-type]
    assert ranking.doc_ids == best_first(relevance)
    assert ranking.usage.calls == calls(n, **options) == shuffles * n
    assert ranking.outcomes == Outcomes(clean=shuffles * n)


def test_expected_scores_are_of_the_passage_that_is_asked_about() -> None:
    asked: list[tuple[str, str]] = []

    def script(call: Call) -> list[float]:
        assert call.dialogue.asked is not None
        doc_id = shown(call)[call.dialogue.asked]
        asked.append((doc_id, call.dialogue.prefix))
        if doc_id == "d1":
            return [math.nan] * 10
        return [math.log(0.75 if grade == int(doc_id[1:]) else 0.25 / 9) for grade in range(10)]

    ranking = ranked(6, script, group=3, prompt=EXPECTED)  # type: ignore[arg-type]
    (first, *_), (second, *_) = groups = split(6, 3, random.Random(0))
    assert asked == [(f"d{i}", f'{{"[{place}]":') for group in groups for place, i in enumerate(group, 1)]
    assert {f"d{first}", f"d{second}"} == {doc_id for doc_id, prefix in asked if "[1]" in prefix}
    assert ranking.outcomes == Outcomes(clean=5, failed=1)
    scores = {hit.passage.doc_id: hit.score for hit in ranking}
    for doc_id in ("d0", "d2", "d5"):
        right = int(doc_id[1:])
        assert scores[doc_id] == pytest.approx(0.75 * right + 0.25 / 9 * sum(g for g in range(10) if g != right))
    group = next(sorted(group) for group in groups if 1 in group)  # where it could not be read it keeps its place
    assert [doc_id for doc_id in ranking.doc_ids if int(doc_id[1:]) in group].index("d1") == group.index(1)


def test_a_backbone_that_cannot_write_is_refused() -> None:
    scorer = ScriptedBackbone(lambda _: "", kinds=frozenset())
    with pytest.raises(CapabilityError, match="prompt 'groupwise' needs a backbone that answers generate calls"):
        rerank.load("groupwise", backbone=scorer)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"group": 0}, InputError, "group is 0; give at least 1"),
        ({"shuffles": 0}, InputError, "shuffles is 0; give at least 1"),
        ({"fusion": -1.0}, InputError, "fusion is -1.0; give 0 or more"),
        ({"fusion": math.nan}, InputError, "fusion is nan"),
        ({"fusion": "much"}, InputError, "fusion='much'"),
        ({"passage_tokens": 0}, PromptError, "at least 1"),
        ({"prompt": "pointwise-graded"}, PromptError, "needs many; prompts that fit: groupwise, groupwise-expected"),
        ({"prompt": "listwise-permutation"}, PromptError, "needs a score each; prompts that fit: groupwise, "),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        load_strategy("groupwise", **options)  # type: ignore[arg-type]
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["listwise", "setwise", "pairwise", "full-ranking"])
def test_strategies_that_order_refuse_a_prompt_that_scores(name: str) -> None:
    with pytest.raises(PromptError, match=r"needs their order; prompts that fit: .*listwise-permutation"):
        load_strategy(name, prompt=PROMPT)
