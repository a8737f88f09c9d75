"""What is read from an answer, whatever its kind."""

from __future__ import annotations

from typing import NamedTuple

from rerank.calls import Answer
from rerank.types import Outcome, Outcomes


class Order(NamedTuple):
    """Positions, best first; scores beside them where the prompt gives scores; how the answer was read; the thoughts.

    The scores are log-probabilities, negated where the prompt asks for the least relevant.
    """

    positions: list[int]
    scores: tuple[float, ...] | None
    outcomes: Outcomes
    reasoning: tuple[str, ...] = ()


class Scored(NamedTuple):
    """Scores, None where a passage got none; the reasoning before them; how the answer was read."""

    values: list[float | None]
    reasoning: str
    outcomes: Outcomes


def read_labels(answer: Answer) -> Outcomes:
    """Clean, or repaired where bounds stand in for what the engine did not say."""
    outcome = Outcome.REPAIRED if answer.missing else Outcome.CLEAN
    return Outcomes.of(outcome, missing=answer.missing)
