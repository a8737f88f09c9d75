"""Tournaments against an oracle: the paper's stages, points, groups that spread the first stage's ranks, nonsense."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import best_first, given_order, shown, shuffled

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.calls import Call, GenerateCall
from rerank.errors import InputError, PromptError
from rerank.prompts import load_prompt
from rerank.strategies import load_strategy
from rerank.strategies.tournament import groups, stages
from rerank.types import Outcomes, Ranking

PROMPT = load_prompt("first-identifier")  # read once: the files take longer than the test
Script = Callable[[Call], str | list[float]]


def ranked(n: int, script: Script, **options: object) -> Ranking:
    ranker = rerank.load("tournament", backbone=ScriptedBackbone(script), **{"prompt": PROMPT, **options})
    (ranking,) = ranker.rank_many([shuffled(n)[0]])
    return ranking


def calls(n: int, **options: object) -> int:
    return load_strategy("tournament", **{"prompt": PROMPT, **options}).calls(n)


def test_the_stages_of_a_hundred_are_the_papers() -> None:
    dealt = [groups(range(now), left, 20) for now, left in pairwise([100, *stages(100)])]
    paper = [(5, 20, 10), (5, 10, 4), (1, 20, 10), (1, 10, 5), (1, 5, 2)]  # groups, passages of each, that go on
    assert [[(len(group), best) for group, best in stage] for stage in dealt] == [
        [(size, best)] * count for count, size, best in paper
    ]
    assert calls(100, rounds=10) == 10 * sum(count for count, _, _ in paper)
    assert dealt[0][1][0] == list(range(1, 100, 5))  # every group has its share of the first stage's best


@given(n=st.integers(2, 300), most=st.integers(3, 30))
def test_groups_share_out_all_passages_and_places(n: int, most: int) -> None:
    going = [n, *stages(n)]
    assert going[-1] == (2 if n > 2 else 1)
    for now, left in pairwise(going):
        dealt = groups(range(now), left, most)
        assert sorted(i for group, _ in dealt for i in group) == list(range(now))
        assert sum(best for _, best in dealt) == left < now
        assert all(1 <= best <= len(group) <= most for group, best in dealt)
        sizes = [len(group) for group, _ in dealt]
        assert max(sizes) - min(sizes) <= 1
        assert len(dealt) <= 2 * math.ceil(now / most)


@pytest.mark.parametrize("prompt", ["first-identifier", "setwise", "elimination", "full-ranking"])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 19, 20])
def test_points_of_an_oracle_are_the_stages_that_a_rank_survives(prompt: str, n: int) -> None:
    """With one group a stage they are known: of those that survive alike the first stage's order is kept."""
    relevance = shuffled(n)[1]
    rank = {doc_id: place for place, doc_id in enumerate(best_first(relevance), 1)}
    ranking = ranked(n, oracle(relevance), prompt=load_prompt(prompt), rounds=3)
    points = {doc_id: 3 * sum(rank[doc_id] <= left for left in stages(n)) for doc_id in relevance}
    assert ranking.doc_ids == sorted(relevance, key=lambda doc_id: -points[doc_id])
    assert [hit.score for hit in ranking] == [points[doc_id] for doc_id in ranking.doc_ids]
    assert ranking.outcomes == Outcomes(clean=3 * len(stages(n)))
    assert ranking.usage.calls == calls(n, rounds=3) == 3 * len(stages(n))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), group=st.integers(3, 26), rounds=st.integers(1, 4), seed=st.integers(0, 99))
def test_an_oracle_brings_the_best_to_the_head(n: int, group: int, rounds: int, seed: int) -> None:
    """Whoever of a group is the best goes on, so that the best of all gets every point; and each stage gives as many
    points in all as it leaves passages."""
    candidates, relevance = shuffled(n, seed)
    options = {"prompt": PROMPT, "group": group, "rounds": rounds}
    ranker = rerank.load("tournament", backbone=ScriptedBackbone(oracle(relevance)), **options)
    (ranking,) = ranker.rank_many([candidates])
    scores = {hit.passage.doc_id: hit.score for hit in ranking}
    assert scores[best_first(relevance)[0]] == max(scores.values()) == rounds * len(stages(n))
    assert sum(scores.values()) == rounds * sum(stages(n))
    assert sorted(ranking.doc_ids) == sorted(relevance)
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert ranking.usage.calls == ranking.outcomes.clean == calls(n, group=group, rounds=rounds)


def test_an_oracle_finds_the_best_two_of_a_hundred() -> None:
    """A group of the paper's stages lets at least four go on, so that the best four meet among the last twenty."""
    for seed in range(5):
        candidates, relevance = shuffled(100, seed)
        ranker = rerank.load("tournament", prompt=PROMPT, backbone=ScriptedBackbone(oracle(relevance)))
        (ranking,) = ranker.rank_many([candidates])
        assert set(ranking.doc_ids[:2]) == set(best_first(relevance)[:2])
        assert set(best_first(relevance)[:4]) <= set(ranking.doc_ids[:5])


def test_more_tournaments_outweigh_a_judge_that_is_often_wrong() -> None:
    """Three answers in ten are any order. The relevance of the best ten found is then greater with more rounds."""
    noise = random.Random(0)

    def gain(rounds: int) -> float:
        total = 0.0
        for seed in range(6):
            candidates, relevance = shuffled(60, seed)

            def script(call: Call, relevance: dict[str, float] = relevance) -> list[float]:
                values = [relevance[doc_id] for doc_id in shown(call)]
                return noise.sample(values, len(values)) if noise.random() < 0.3 else values

            ranker = rerank.load("tournament", prompt=PROMPT, rounds=rounds, backbone=ScriptedBackbone(script))
            (ranking,) = ranker.rank_many([candidates])
            total += sum(relevance[doc_id] for doc_id in ranking.doc_ids[:10])
        return total

    assert gain(8) > gain(1)


def test_a_judge_that_errs_now_and_then_still_finds_the_best() -> None:
    """One answer in ten is turned round: of the relevance of the best ten nine tenths are found."""
    relevance, noise = shuffled(60)[1], random.Random(0)

    def script(call: Call) -> list[float]:
        sign = -1 if noise.random() < 0.1 else 1
        return [sign * relevance[doc_id] for doc_id in shown(call)]

    found, best = ranked(60, script, rounds=10).doc_ids, best_first(relevance)
    assert sum(relevance[doc_id] for doc_id in found[:10]) > 0.9 * sum(relevance[doc_id] for doc_id in best[:10])
    assert found != ranked(60, oracle(relevance), rounds=10).doc_ids


def test_groups_and_tournaments_of_a_stage_are_one_batch() -> None:
    backbone = ScriptedBackbone(oracle(shuffled(100)[1]))
    options = {"prompt": PROMPT, "rounds": 4}
    list(rerank.load("tournament", backbone=backbone, **options).rank_many([shuffled(100)[0]] * 3))
    assert backbone.batches == [3 * 4 * count for count in (5, 5, 1, 1, 1)]


def test_a_group_is_shown_in_an_order_that_the_seed_gives() -> None:
    asked: list[list[str]] = []

    def run(seed: int, rounds: int = 2) -> list[list[str]]:
        asked.clear()

        def script(call: Call) -> list[float]:
            asked.append(shown(call))
            return [0.0] * len(shown(call))

        ranked(40, script, seed=seed, rounds=rounds)
        return list(asked)

    first = run(1)
    assert run(1) == first != run(2)
    assert [sorted(ids) for ids in first[:2]] == [sorted(given_order(40)[i::2]) for i in (0, 1)]
    assert [sorted(ids) for ids in first[2:4]] == [sorted(ids) for ids in first[:2]]  # the same deal, another order
    assert first[2] != first[0] and first[0] != sorted(first[0])
    assert run(1, rounds=1)[:2] == first[:2]  # a tournament does not depend on how many there are


def test_a_group_of_which_all_go_on_is_not_asked_about() -> None:
    sizes: list[int] = []

    def script(call: Call) -> list[float]:
        sizes.append(len(shown(call)))
        return [0.0] * len(shown(call))

    ranking = ranked(21, script, rounds=1)
    assert sizes == [11, 20, 10, 5]  # 21 are dealt as 11 and 10, and ten of each are to go on
    assert ranking.usage.calls == calls(21, rounds=1) == 4


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        ([], PROMPT),
        ([math.nan], PROMPT),
        ("", load_prompt("full-ranking")),
        ("I cannot choose between [1] and [2].", load_prompt("full-ranking")),
        ("HTTP error [503]", load_prompt("listwise-permutation")),
    ],
)
def test_what_cannot_be_read_lets_the_first_stages_best_go_on(answer: object, prompt: object) -> None:
    for n in (2, 20, 60, 99):
        ranking = ranked(n, lambda _: answer, prompt=prompt)  # type: ignore[arg-type, return-value]
        assert ranking.doc_ids == given_order(n)
        assert ranking.outcomes == Outcomes(failed=calls(n)) and ranking.outcomes.failed > 0


def test_a_prompt_that_can_is_asked_for_as_many_as_go_on() -> None:
    asked: list[GenerateCall] = []

    def script(call: Call) -> str:
        assert isinstance(call, GenerateCall)
        asked.append(call)
        return "[3] > [1]"

    ranking = ranked(5, script, prompt=load_prompt("full-ranking"), rounds=1)
    (call,) = asked
    assert "the best 2, each once" in "".join(span.text for m in call.dialogue.messages for span in m.spans)
    assert call.max_tokens == 2 * 6
    assert {hit.passage.doc_id for hit in ranking if hit.score == 1} == {shown(call)[2], shown(call)[0]}
    assert ranking.outcomes == Outcomes(clean=1)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 60),
    group=st.integers(3, 26),
    rounds=st.integers(1, 3),
    prompt=st.sampled_from([PROMPT, load_prompt("full-ranking"), load_prompt("elimination-permutation")]),
    seed=st.integers(0, 10**6),
)
def test_whatever_is_answered_every_passage_is_kept_once(
    n: int, group: int, rounds: int, prompt: object, seed: int
) -> None:
    noise = random.Random(seed)

    def script(call: Call) -> str | list[float]:
        size = len(shown(call))
        if isinstance(call, GenerateCall):
            return noise.choice(["", "no", f"[{noise.randint(0, 30)}]", "[2] > [1] > [2] > [40]", "see [3]"])
        return noise.choice([[noise.gauss(0, 1) for _ in range(size)], [0.0] * size, [math.nan] * size, []])

    ranking = ranked(n, script, prompt=prompt, group=group, rounds=rounds, seed=seed)
    assert sorted(ranking.doc_ids) == sorted(given_order(n))
    assert sum(hit.score for hit in ranking) == rounds * sum(stages(n))
    assert ranking.usage.calls == calls(n, group=group, rounds=rounds)
    outcomes = ranking.outcomes
    assert outcomes.clean + outcomes.repaired + outcomes.failed == ranking.usage.calls


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rounds": 0}, InputError, "rounds is 0; give at least 1"),
        ({"group": 2}, InputError, "group is 2; give at least 3"),
        ({"group": 27}, InputError, "group 27: prompt 'first-identifier' can name 26 passages"),
        ({"prompt": "pointwise-graded"}, PromptError, "strategy 'tournament' needs many"),
        ({"passage_tokens": 0}, PromptError, "at least 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        load_strategy("tournament", **options)  # type: ignore[arg-type]
    assert words in str(caught.value)
