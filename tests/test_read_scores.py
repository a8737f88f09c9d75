"""Reading the scores of several passages: what is clean, what is repaired, what is no answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.prompts.answers import Identifiers, read_reasoning, read_scores
from rerank.types import Outcomes

PIECES = ["<answer>", "</answer>", "<reason>", "</reason>", "{", "}", '"[1]"', '"[2]"', '"[B]"', '"x"', ": ", ", "]
PIECES += ["3", "-1", "99", "null", "NaN", "[", "]", " so ", '"[1]": 4', '"[2]": 7, ', '<answer>{"[1]": 3, ']


@pytest.mark.parametrize(
    ("text", "values", "outcome"),
    [
        ('<answer>{"[1]": 5, "[2]": 0, "[3]": 10}</answer>', [5, 0, 10], "1 clean"),
        ('<reason>{"[1]": 1}</reason> <answer>\n{"[3]":1.5,"[2]":2,"[1]":3} ', [3, 2, 1.5], "1 clean"),
        ('<answer>{"[1]": 9}</answer> or <answer>{"[1]": 5, "[2]": 0, "[3]": 1}</answer>', [5, 0, 1], "1 clean"),
        ('<answer>{"[1]": 5, "[2]": 0}</answer>', [5, 0, None], "1 repaired, 1 missing"),
        ('<answer>{"[1]": 5, "[2]": 0, "[2]": 9, "[3]": 1}</answer>', [5, 0, 1], "1 repaired, 1 duplicate"),
        ('<answer>{"[1]": 5, "[2]": 0, "[3]": 1, "[4]": 1, "[4]": 2}', [5, 0, 1], "1 repaired, 2 foreign"),
        ('<answer>{"[1]": 5, "[2]": 0, "[3]": 1, "[0]": 1, "best": 2}', [5, 0, 1], "1 repaired, 2 foreign"),
        ('<answer>{"[1]": 11, "[2]": -1, "[3]": 1e999}</answer>', [10, 0, 10], "1 repaired"),
        ('<answer>{"[1]": "5", "[2]": true, "[3]": 1}</answer>', [None, None, 1], "1 repaired, 2 missing"),
        ('<answer>{"[1]": NaN, "[2]": null, "[3]": [4]}</answer>', [None, None, None], "1 failed"),
        ('<answer>{"[1]": null, "[1]": 4, "[2]": 1, "[3]": 2}', [None, 1, 2], "1 repaired, 1 duplicate, 1 missing"),
        ('<answer>```json\n{"[1]": 5, "[2]": 0, "[3]": 1}\n```</answer>', [5, 0, 1], "1 repaired"),
        ('The scores: {"[1]": 5, "[2]": 0, "[3]": 1}.', [5, 0, 1], "1 repaired"),
        ('<reason>or {"[1]": 9}</reason>{"[1]": 5, "[2]": 0, "[3]": 1}', [5, 0, 1], "1 repaired"),
        ('<reason>perhaps {"[1]": 5, "[2]": 0, "[3]": 1}, but', [None, None, None], "1 failed"),
        ('{"[1]": 5, "[2]": 0, "[3]": 1} or {"[1]": 0}', [None, None, None], "1 failed"),
        ('<answer>{"[1]": 5, "[2]": 0, "[3', [None, None, None], "1 failed"),
        ('<answer>{"scores": {"[1]": 5}}</answer>', [None, None, None], "1 failed"),
        ('<answer>{"1": 5, "2": 0, "3": 1}</answer>', [None, None, None], "1 failed"),
        ('<answer>{"[9]": 5}</answer>', [None, None, None], "1 failed"),
        ("<answer>[1] 5, [2] 0</answer>", [None, None, None], "1 failed"),
        ('<answer>{"[1]": __import__("os")}</answer>', [None, None, None], "1 failed"),
        ("<answer>" + '{"a":' * 5000, [None, None, None], "1 failed"),
        ('<answer>{"[1]": ' + "9" * 5000 + "}", [None, None, None], "1 failed"),
        ("", [None, None, None], "1 failed"),
    ],
)
def test_reading_scores(text: str, values: list[float | None], outcome: str) -> None:
    found, outcomes = read_scores(text, 3)
    assert (found, str(outcomes)) == (values, outcome)


def test_reading_scores_of_letters() -> None:
    found, outcomes = read_scores('<answer>{"[B]": 3, "[ a ]": 1, "[1]": 2}', 2, 3, "letters")
    assert (found, str(outcomes)) == ([1, 3], "1 repaired, 1 foreign")
    assert read_reasoning("<reason>[b] and [C]</reason>", ["d1", "d2"], "letters") == "[d2] and [C]"


@given(
    st.lists(
        st.sampled_from(PIECES),
        max_size=25,
    ),
    st.integers(1, 4),
    st.sampled_from(["numbers", "letters"]),
)
def test_whatever_is_read_has_an_outcome(pieces: list[str], n: int, identifiers: Identifiers) -> None:
    values, outcomes = read_scores("".join(pieces), n, 10, identifiers)
    assert len(values) == n and all(value is None or 0 <= value <= 10 for value in values)
    assert outcomes.clean + outcomes.repaired + outcomes.failed == 1
    assert bool(outcomes.failed) is (values.count(None) == n)
    assert outcomes.missing == (0 if outcomes.failed else values.count(None))
    if outcomes.clean:
        assert outcomes == Outcomes(clean=1)
