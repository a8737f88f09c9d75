"""What a written answer is worth, by hand; and what a cold start teaches is worth the most."""

from __future__ import annotations

import math

import pytest

from rerank.calls import Answer
from rerank.errors import InputError, PromptError
from rerank.eval import evaluate
from rerank.prompts import load_prompt
from rerank.training.reinforce.reading import read
from rerank.training.reinforce.rewards import (
    REWARDS,
    check_labels,
    dcg,
    divergence,
    group_rank,
    iranker,
    rank_biased_overlap,
    rank_r1,
    reason_rank,
    shaped,
)
from rerank.training.written import THOUGHTS, target

SETWISE, LISTWISE = load_prompt("setwise-reasoning"), load_prompt("listwise-reasoning")
GROUPWISE, PLAIN = load_prompt("groupwise"), load_prompt("groupwise-plain")
ELIMINATION = load_prompt("elimination-permutation")
LABELS = [0.0, 2.0, 1.0]


def thought(answer: str, before: str = "<think>because</think> ") -> Answer:
    return Answer(text=f"{before}<answer>{answer}")


@pytest.mark.parametrize(
    ("answer", "value", "form"),
    [
        (thought("[2]"), 1, 1),
        (thought("[2]</answer>"), 1, 1),  # an engine that does not stop there
        (thought("[1]"), 0, 1),
        (thought("[2] [1]"), 0, 1),
        (thought("[4]"), 0, 1),
        (thought("the second"), 0, 1),
        (thought("[2]", "<think> </think>"), 0, 0),
        (thought("[2]", ""), 0, 0),  # a ranker takes it, the form is not kept
        (thought("[2]", "well <think>because</think>"), 0, 0),
        (thought("[2]", "<think>because "), 0, 0),
        (Answer(text="<think>because</think> [2]"), 0, 0),
        (Answer(text="<think>because</think> <answer>[2]", truncated=True), 0, 0),
        (Answer(text="<think>a</think> <answer>[2]</answer> and more"), 0, 0),
        (Answer(text="[2]"), 0, 0),
        (Answer(text=""), 0, 0),
    ],
)
def test_rank_r1(answer: Answer, value: float, form: float) -> None:
    found = rank_r1(SETWISE, answer, LABELS)
    assert (found.value, found.parts["format"]) == (value, form)


def test_any_of_the_best_is_gold() -> None:
    assert [rank_r1(SETWISE, thought(f"[{n}]"), [1.0, 0.0, 1.0]).value for n in (1, 2, 3)] == [1, 0, 1]
    assert rank_r1(SETWISE, thought("[1]"), [-0.5, -3.0]).value == 1  # a teacher's scores order as well


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("<think>a</think> <answer>[2]", 1),
        ("<think>a <answer>[2]", 2 / 3),
        ("</think><think><answer>", 2 / 3),
        ("<think><think></think>", 1 / 3),
        ("no tags at all", 0),
    ],
)
def test_shaping_pays_for_tags_that_are_right(text: str, share: float) -> None:
    found = rank_r1(SETWISE, Answer(text=text), [0.0, 1.0])
    assert found.parts["tags"] == pytest.approx(share)
    assert shaped(found, 0.3).value == pytest.approx(found.value + 0.3 * share)
    assert shaped(found, 0.0) == found


def reason(scores: str, reasoning: str = "<reason>so</reason>") -> Answer:
    return Answer(text=f"{reasoning}<answer>{scores}")


def test_group_rank() -> None:
    given = '{"[1]": 0, "[2]": 4, "[3]": 6}'
    found = group_rank(GROUPWISE, reason(given), LABELS)
    ndcg = (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    p, q, m = (0.4, 0.6), (2 / 3, 1 / 3), (8 / 15, 7 / 15)
    js = sum(a * math.log2(a / c) + b * math.log2(b / c) for a, b, c in zip(p, q, m, strict=True)) / 2
    assert found.parts["ndcg"] == pytest.approx(ndcg)
    assert found.parts["recall"] == 1
    assert found.value == pytest.approx(ndcg + 0.2 + 0.1 * (1 - js))
    assert group_rank(GROUPWISE, reason(given), LABELS, recall=0, distribution=0).value == pytest.approx(ndcg)
    best = group_rank(GROUPWISE, reason('{"[1]": 0, "[2]": 8, "[3]": 4}'), LABELS)
    assert best.value == pytest.approx(1.3)
    assert group_rank(GROUPWISE, reason('{"[1]": 0, "[2]": 8, "[3]": 4}', ""), LABELS).value == -0.5
    for broken in ('{"[1]": 0, "[2]": 8}', '{"[1]": 0, "[2]": 8, "[3]": 40}', '{"[1]": 0, "[2]": 8, "[3]"', "none"):
        assert group_rank(GROUPWISE, reason(broken), LABELS).value == -0.1, broken


def test_the_prompts_own_beginning_counts() -> None:
    """groupwise-plain begins the answer, which is no part of what is generated."""
    found = group_rank(PLAIN, Answer(text=' 0, "[2]": 8, "[3]": 4}'), LABELS)
    assert found.value == pytest.approx(1.3)


def test_the_cutoff_of_group_rank() -> None:
    labels = [0.0] * 10 + [1.0]
    scores = "{" + ", ".join(f'"[{i + 1}]": {10 - i if i < 10 else 0}' for i in range(11)) + "}"
    found = group_rank(GROUPWISE, reason(scores), labels)
    assert (found.parts["ndcg"], found.parts["recall"]) == (0, 0)
    assert group_rank(GROUPWISE, reason(scores), labels, cutoff=11).parts["ndcg"] == pytest.approx(1 / math.log2(12))


def test_reason_rank() -> None:
    found = reason_rank(LISTWISE, thought("[3] > [2] > [1]"), LABELS)
    ndcg = (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    rbo = (0 / 1 + 0.9 * 2 / 2 + 0.81 * 3 / 3) / (1 + 0.9 + 0.81)
    assert found.parts["rbo"] == pytest.approx(rbo)
    assert found.value == pytest.approx(ndcg + 0.2 + 0.1 * rbo)
    assert reason_rank(LISTWISE, thought("[2] > [3] > [1]"), LABELS).value == pytest.approx(1.3)
    assert reason_rank(LISTWISE, thought("[2] > [3] > [1]"), [0, 2, 0]).value == pytest.approx(1.3)  # a tie either way
    assert reason_rank(LISTWISE, thought("[2] > [1] > [3]"), [0, 2, 0]).value == pytest.approx(1.3)
    assert reason_rank(LISTWISE, Answer(text="[2] > [3] > [1]"), LABELS).value == -1
    for wrong in ("[2] > [3]", "[2] > [3] > [3]", "[2] > [3] > [1] > [4]", "as they are"):
        assert reason_rank(LISTWISE, thought(wrong), LABELS).value == 0, wrong


def test_iranker() -> None:
    values = [iranker(ELIMINATION, Answer(text=f"[{n}]"), LABELS).value for n in (1, 2, 3, 4)]
    assert values == [1, 0, 1, -0.5]
    assert iranker(ELIMINATION, Answer(text="all are good"), LABELS).value == -0.5


def test_dcg_is_what_the_evaluation_has() -> None:
    labels = {"a": 2, "b": 0, "c": 1, "d": 3}
    order = "bdac"
    ideal = dcg(sorted(map(float, labels.values()), reverse=True), 3)
    run = {"q": {name: float(-rank) for rank, name in enumerate(order)}}
    expected = evaluate(run, {"q": labels}, ("nDCG@3",)).mean["nDCG@3"]
    assert dcg([float(labels[name]) for name in order], 3) / ideal == pytest.approx(expected)


def test_divergence_and_overlap() -> None:
    assert divergence([0, 0], [1, 1]) == 0  # nothing given is uniform
    assert 0 < divergence([3, 1], [1, 1]) < 0.1
    assert divergence([1, 3], [3, 1]) == pytest.approx(divergence([3, 1], [1, 3]))
    assert rank_biased_overlap([0, 1], [1, 0]) == pytest.approx(0.9 / 1.9)


@pytest.mark.parametrize("labels", [[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0]])
@pytest.mark.parametrize("name", ["setwise-reasoning", "listwise-reasoning", "groupwise", "groupwise-plain"])
@pytest.mark.parametrize("thought", THOUGHTS)
def test_what_a_cold_start_teaches_is_read_as_the_labels_say(thought: str, name: str, labels: list[float]) -> None:
    prompt = load_prompt(name)
    text = target(prompt, labels, thought)
    said = read(prompt, Answer(text=text.removesuffix("</answer>")), len(labels))
    assert said.formed and said.outcomes.clean and said.order is not None
    ranked = [labels[i] for i in said.order]
    assert ranked == sorted(labels, reverse=True) or (name == "setwise-reasoning" and ranked[0] == max(labels))
    reward = {"setwise-reasoning": "rank-r1", "listwise-reasoning": "reason-rank"}.get(name, "group-rank")
    assert REWARDS[reward](prompt, Answer(text=text), labels).value >= (1 if reward == "rank-r1" else 1.29)


def test_a_cold_start_of_elimination_names_the_worst() -> None:
    assert target(ELIMINATION, LABELS, "verdicts") == "[1]"
    assert iranker(ELIMINATION, Answer(text="[1]"), LABELS).value == 1


def test_an_order_as_the_thought_begins_with_the_answer() -> None:
    text = target(load_prompt("setwise-reasoning"), LABELS, "order")
    order = sorted(range(len(LABELS)), key=lambda i: -LABELS[i])
    chain = " > ".join(f"[{i + 1}]" for i in order)
    assert text == f"<think>{chain}</think> <answer>[{order[0] + 1}]</answer>"


def test_a_prompt_that_has_nothing_written() -> None:
    with pytest.raises(PromptError, match="has no text written"):
        target(load_prompt("setwise"), LABELS, "verdicts")


def test_rewards_that_take_labels_for_gains_refuse_negative_ones() -> None:
    with pytest.raises(InputError, match=r"lists: reward reason-rank takes labels for gains and was given -1\.5"):
        check_labels("reason-rank", "lists", [0.5, -1.5])
    check_labels("rank-r1", "lists", [0.5, -1.5])
