"""The query's vector that a reranker moved, against an optimiser's and by what it finds."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rerank.errors import InputError
from rerank.feedback import moved_query

RANDOM = np.random.default_rng(0)
ROWS, QUERY, SCORES = RANDOM.normal(size=(6, 4)), RANDOM.normal(size=4), RANDOM.normal(size=6)


def softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.exp(values) / np.exp(values).sum())


@pytest.mark.parametrize(("temperature", "similarity"), [(1.0, 1.0), (0.3, 2.0), (2.0, 0.5)])
def test_a_step_is_down_the_gradient_of_the_divergence(temperature: float, similarity: float) -> None:
    torch = pytest.importorskip("torch")
    q = torch.tensor(QUERY, requires_grad=True)
    p = torch.softmax(torch.tensor(SCORES) / temperature, 0)
    torch.nn.functional.kl_div(torch.log_softmax(torch.tensor(ROWS) @ q / similarity, 0), p, reduction="sum").backward()
    options = {"temperature": temperature, "similarity_temperature": similarity}
    stepped = moved_query(QUERY, ROWS, SCORES, steps=1, rate=0.1, **options)
    assert stepped == pytest.approx(QUERY - 0.1 * q.grad.numpy(), abs=1e-6)


def test_with_enough_steps_the_retriever_s_distribution_is_the_reranker_s() -> None:
    rows = RANDOM.normal(size=(3, 8))  # enough dimensions for any distribution
    moved = moved_query(np.zeros(8), rows, [3.0, 1.0, 2.0], steps=20_000, rate=0.05)
    assert softmax(rows @ moved) == pytest.approx(softmax(np.array([3.0, 1.0, 2.0])), abs=1e-3)


def test_passages_that_were_missed_are_found() -> None:
    """Two topics; the query is a little nearer to the wrong one, and so are most of its candidates."""
    random = np.random.default_rng(1)
    topics = np.eye(8)[:2]
    corpus = np.repeat(topics, 20, axis=0) + 0.1 * random.normal(size=(40, 8))
    query = topics[0] * 0.55 + topics[1] * 0.5
    first = np.argsort(-corpus @ query)[:20]
    assert (first >= 20).sum() == 5
    moved = moved_query(query, corpus[first], np.where(first >= 20, 2.0, -2.0))  # the reranker knows
    assert (np.argsort(-corpus @ moved)[:20] >= 20).all()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"scores": [1.0]}, r"query \[4\], passages \[6, 4\] and scores \[1\] do not fit"),
        ({"passages": ROWS[:, :3]}, "do not fit"),
        ({"passages": np.zeros((0, 4)), "scores": []}, "n at least 1"),
        ({"scores": [*SCORES[:5], np.nan]}, "not finite; leave out"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"similarity_temperature": -1.0}, "similarity_temperature is -1.0"),
        ({"rate": np.inf}, "rate is inf"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_wrong_input(changes: dict[str, object], why: str) -> None:
    with pytest.raises(InputError, match=why):
        moved_query(**({"query": QUERY, "passages": ROWS, "scores": SCORES} | changes))  # type: ignore[arg-type]
