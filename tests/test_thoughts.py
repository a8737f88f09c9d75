"""Answers after a thought: what is read of them, what never is, and what a call for one allows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.calls import Answer, GenerateCall
from rerank.errors import PromptError
from rerank.prompts import load_prompt
from rerank.prompts.answers import Identifiers, read_identifier
from rerank.prompts.read import Order
from rerank.prompts.thoughts import read_said
from rerank.training.objectives import check_prompt
from rerank.types import Outcomes, Passage, Query

BEST, ORDER, PLAIN = (load_prompt(f"{name}") for name in ("setwise-reasoning", "listwise-reasoning", "full-ranking"))
PASSAGES = [Passage(f"text {i}", f"d{i}") for i in range(1, 5)]
GIVEN = [0, 1, 2, 3]
LONG = "[1] or [2]? " * 400


def best(text: str, truncated: bool = False) -> Order:
    return BEST.order(Answer(text=text, truncated=truncated), 4, passages=PASSAGES)


def order(text: str, truncated: bool = False) -> Order:
    return ORDER.order(Answer(text=text, truncated=truncated), 4, passages=PASSAGES)


@pytest.mark.parametrize(
    ("text", "position", "outcome"),
    [
        ("<think>[1] is off.</think> <answer>[3]</answer>", 2, "1 clean"),
        ("<think>[1] is off.</think>\n<answer>[3]", 2, "1 clean"),  # generation stops at </answer>
        ("[1] is off.</think><answer> [ 3 ] </answer>", 2, "1 clean"),  # the template opened the thought
        ("<answer>[3]</answer>", 2, "1 clean"),  # the engine kept the thought to itself
        (f"<think>{LONG}</think> <answer>[3]</answer>", 2, "1 clean"),
        ("<think>as <answer>[1]</answer>?</think> <answer>[3]</answer>", 2, "1 clean"),
        ("<think>a</think> So: <answer>[3]</answer> It says it.", 2, "1 repaired"),
        ("I compare [1] and [2]. <answer>[3]</answer>", 2, "1 repaired"),
        ("<think>a</think> [3]", 2, "1 repaired"),
        ("<think>a</think> <answer>[3]</answer> <answer>[3]</answer>", 2, "1 repaired"),
        ("<think>a</think> <answer>[1]</answer> <think>no</think> <answer>[3]</answer>", 2, "1 repaired"),
        ("<think>a</think> <answer>[3]</answer> <think>or [1]", 2, "1 repaired"),
        ("<think>a</think> <answer>[3], [3]</answer>", 2, "1 repaired, 1 duplicate"),
        ("<think>a</think> <answer>[3]</answer> <answer>[1]</answer>", None, "1 failed"),
        ("<think>a</think> <answer>[3] > [1]</answer>", None, "1 failed"),
        ("<think>a</think> <answer>[5]</answer>", None, "1 failed"),
        ("<think>a</think> <answer>[0]</answer>", None, "1 failed"),
        ("<think>a</think> <answer>3</answer>", None, "1 failed"),
        ("<think>a</think> <answer>none, not even [3]</answer>", None, "1 failed"),
        ("<think>a</think> <answer></answer>", None, "1 failed"),
        ("<think>a</think> <answer>[3", None, "1 failed"),
        ("<think>a</think> Of [3] I am not sure.", None, "1 failed"),
        ("<think>[3]</think>", None, "1 failed"),
        ("<think>The best is [3]", None, "1 failed"),
        ("<think>The form is <answer>[3]</answer>, and", None, "1 failed"),
        ("[3]", None, "1 failed"),  # perhaps a thought that the template opened
        ("I cannot tell. Error [3].", None, "1 failed"),
        ("", None, "1 failed"),
        (LONG, None, "1 failed"),
        (f"<answer>{' ' * 50_000}<think>", None, "1 failed"),
        ("\n" * 50_000, None, "1 failed"),
    ],
)
def test_the_best_is_read_from_the_answer_and_never_from_the_thought(
    text: str, position: int | None, outcome: str
) -> None:
    ranked = best(text)
    assert ranked.positions == (GIVEN if position is None else [position, *(i for i in GIVEN if i != position)])
    assert str(ranked.outcomes) == outcome
    assert ranked.scores is None


@pytest.mark.parametrize(
    ("text", "positions", "outcome"),
    [
        ("<think>[4] > [1]?</think> <answer>[2] > [3] > [1] > [4]</answer>", [1, 2, 0, 3], "1 clean"),
        ("<think>[4] > [1]?</think> <answer>[2], [3], [1], [4]", [1, 2, 0, 3], "1 clean"),
        ("<answer>[2] > [3] > [1] > [4]</answer>", [1, 2, 0, 3], "1 clean"),
        ("<think>a</think> [2] > [3] > [1] > [4]", [1, 2, 0, 3], "1 repaired"),
        ("<think>a</think> So <answer>[2] > [3] > [1] > [4]</answer>", [1, 2, 0, 3], "1 repaired"),
        ("<think>a</think> <answer>[2] > [3] > [", [1, 2, 0, 3], "1 repaired, 2 missing"),
        (
            "<think>a</think> <answer>[2] > [9] > [2] > [1]",
            [1, 0, 2, 3],
            "1 repaired, 1 duplicate, 1 foreign, 2 missing",
        ),
        ("<think>a</think> <answer>[2] > [1]</answer> <answer>[1] > [2]</answer>", GIVEN, "1 failed"),
        ("<think>a</think> I cannot rank these.", GIVEN, "1 failed"),
        ("<think>[2] > [3] > [1] > [4]</think>", GIVEN, "1 failed"),
        ("<think>[2] > [3] > [1] > [4]", GIVEN, "1 failed"),
        ("[2] > [3] > [1] > [4]", GIVEN, "1 failed"),
        ("", GIVEN, "1 failed"),
    ],
)
def test_an_order_is_read_from_the_answer_and_never_from_the_thought(
    text: str, positions: list[int], outcome: str
) -> None:
    ranked = order(text)
    assert (ranked.positions, str(ranked.outcomes)) == (positions, outcome)


@pytest.mark.parametrize("text", ["[3] is fine <answer>[3]</answer>", "<answer>[3]</answer>", "[3] > [1], or", "[3]"])
def test_without_the_end_of_a_thought_nothing_is_read_of_what_ran_into_the_limit(text: str) -> None:
    assert best(text, truncated=True).outcomes == order(text, truncated=True).outcomes == Outcomes(failed=1)
    closed = f"<think>{text}</think> <answer>[2]</answer> and so on"
    assert best(closed, truncated=True).positions == order(closed, truncated=True).positions == [1, 0, 2, 3]


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("<think> [2] is better than [1]; see [9]. </think><answer>[2]</answer>", "[d2] is better than [d1]; see [9]."),
        ("[2] is better.</think><answer>[2]</answer>", "[d2] is better."),
        ("<think>[2] is better than", "[d2] is better than"),
        ("<think></think><answer>[2]</answer>", None),
        ("<answer>[2]</answer>", None),
    ],
)
def test_the_thought_is_kept_and_names_the_passages(text: str, thought: str | None) -> None:
    assert best(text).reasoning == order(text).reasoning == ((thought,) if thought else ())
    assert BEST.order(Answer(text="<think>[2]</think>"), 4).reasoning == ("[2]",)  # without passages it has no ids


def test_a_prompt_without_thoughts_reads_none_as_its_answer() -> None:
    """Some models think unasked."""
    chain = "[2] > [1] > [3] > [4]"
    read = PLAIN.order(Answer(text=f"<think>[4] > [3]</think>\n{chain}"), 4)
    assert (read.positions, read.outcomes, read.reasoning) == ([1, 0, 2, 3], Outcomes(clean=1), ("[4] > [3]",))
    assert PLAIN.order(Answer(text=f"<think>{chain}, or"), 4).outcomes == Outcomes(failed=1)
    assert PLAIN.order(Answer(text=chain), 4) == Order([1, 0, 2, 3], None, Outcomes(clean=1))


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "[1]", "[2]", "[9]", "[B]", " > ", " so ", "\n", "[", "]"]


@given(st.lists(st.sampled_from(PIECES), max_size=20), st.booleans())
def test_whatever_is_written_has_an_outcome(pieces: list[str], truncated: bool) -> None:
    text = "".join(pieces)
    for ranked in (best(text, truncated), order(text, truncated)):
        assert sorted(ranked.positions) == GIVEN
        assert ranked.outcomes.clean + ranked.outcomes.repaired + ranked.outcomes.failed == 1
        if ranked.outcomes.failed:
            assert ranked.positions == GIVEN
        if text.rpartition("</think>")[2].startswith("<think>") or not {"<answer>", "</think>"} & set(pieces):
            assert ranked.outcomes.failed
    said = read_said(text, tagged=True, truncated=truncated)
    assert said.text in text and said.thought in text


@given(st.text(alphabet="[]0123456789>, \nabCDZ", max_size=30), st.integers(1, 12))
def test_a_name_is_read_alone_or_not_at_all(text: str, n: int) -> None:
    positions, outcomes = read_identifier(text, n)
    assert sorted(positions) == list(range(n))
    if not outcomes.failed:
        assert set(text) <= set(f"[]>, \n{positions[0] + 1}")
        assert positions[1:] == sorted(positions[1:])


@pytest.mark.parametrize("identifiers", ["numbers", "letters"])
def test_names_may_be_letters(identifiers: Identifiers) -> None:
    said = {"numbers": "[2]", "letters": "[b]"}
    assert read_identifier(said[identifiers], 3, identifiers) == ([1, 0, 2], Outcomes(clean=1))
    other = said["letters" if identifiers == "numbers" else "numbers"]
    assert read_identifier(other, 3, identifiers) == ([0, 1, 2], Outcomes(failed=1))


@pytest.mark.parametrize(
    ("name", "thought", "answer"), [("setwise-reasoning", 2048, 0), ("listwise-reasoning", 3072, 6)]
)
@pytest.mark.parametrize("n", [2, 20])
def test_a_call_leaves_room_for_the_thought_and_the_answer(name: str, thought: int, answer: int, n: int) -> None:
    call = load_prompt(name).ask(Query("q"), [Passage(f"text {i}", f"d{i}") for i in range(n)], 50)
    assert isinstance(call, GenerateCall)
    form = "<think></think> <answer>" + ("[10]" if not answer else "")
    assert call.max_tokens >= thought + answer * n + len(form)  # though a character were a token
    assert (call.stop, call.constraint, call.dialogue.prefix) == (("</answer>",), None, "")
    text = "".join(span.text for message in call.dialogue.messages for span in message.spans)
    assert f"[{n}] text {n - 1}\n" in text
    assert "<think>your thoughts</think> <answer>[2]" in text


MINE = """
name: mine
version: 1
source: test
answer: {kind: reasoned-identifier, identifiers: letters, reason_tokens: 9}
messages: [{role: user, content: "{query} {passages}"}]
each_passage: "[{label}] {passage}\\n"
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("reason_tokens: 9", "reason_tokens: 0"), "greater than 0"),
        ((", reason_tokens: 9", ""), "Field required"),
        (("reasoned-identifier", "permutation, tokens_per_item: 4, constrained: true"), "take out constrained, or"),
        (("{query}", "{query} {top}"), "unknown placeholders ['top']"),
    ],
)
def test_a_broken_prompt_is_refused(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    assert load_prompt(path).order(Answer(text="<answer>[B]</answer>"), 2).positions == [1, 0]
    path.write_text(MINE.replace(*change))
    with pytest.raises(PromptError) as caught:
        load_prompt(path)
    assert words in str(caught.value)


def test_a_bound_is_part_of_the_prompt_that_a_run_records() -> None:
    answer = ORDER.answer.model_copy(update={"reason_tokens": 9})
    assert len({ORDER.identity, ORDER.model_copy(update={"answer": answer}).identity}) == 2
    answer = PLAIN.answer.model_copy(update={"reason_tokens": 9})
    assert PLAIN.model_copy(update={"answer": answer}).identity != PLAIN.identity


def test_training_refuses_a_prompt_with_a_thought() -> None:
    with pytest.raises(PromptError, match="trains answers by identifier"):
        check_prompt("setwise", BEST)
    with pytest.raises(PromptError, match="a thought written before the answer"):
        check_prompt("full-ranking", ORDER)
