"""A reranker's judgement as feedback for a second dense retrieval.

The vector of the query is moved until the retriever's distribution over the passages that were reranked is the
reranker's; what is then nearest to it may be passages that the first retrieval missed (ReFIT: Reddy et al., "Relevance
Feedback from a Reranker during Inference", arXiv 2305.11744; with an LLM as the reranker: FIRST, arXiv 2406.15657, §5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rerank.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def moved_query(
    query: ArrayLike,
    passages: ArrayLike,
    scores: ArrayLike,
    *,
    temperature: float = 1.0,
    similarity_temperature: float = 1.0,
    steps: int = 100,
    rate: float = 0.005,
) -> NDArray[np.float32]:
    """The vector `[d]` that `query` `[d]` becomes by `steps` of gradient descent, given `passages` `[n, d]` and their
    `scores` `[n]`.

    Minimised is KL(p || π), p = softmax(scores / temperature) and π = softmax(passages·q / similarity_temperature); the
    gradient is passagesᵀ(π − p) / similarity_temperature. The temperatures are ours. At 1, without them, it fits logits
    and the inner products of long vectors. Cosines are all within a few tenths and want a similarity temperature such
    as 0.05; mean log-probabilities want a temperature such as 0.1. Search by inner product with what comes back: its
    length is free.

    Scores must tell how much better one passage is than another: those of `pointwise`, and of `first` and
    `full-ranking` where one window shows all. Raises InputError where shapes do not fit, or a number is not finite.
    """
    q, rows, given = (np.asarray(each, np.float64) for each in (query, passages, scores))
    if q.ndim != 1 or rows.ndim != 2 or given.ndim != 1 or rows.shape != (len(given), len(q)) or not len(given):
        raise InputError(
            f"query {list(q.shape)}, passages {list(rows.shape)} and scores {list(given.shape)} do not fit; "
            "give [d], [n, d] and [n], n at least 1"
        )
    if not all(np.isfinite(each).all() for each in (q, rows, given)):
        raise InputError("a vector or a score is not finite; leave out passages that have no score")
    for name, value in (
        ("temperature", temperature),
        ("similarity_temperature", similarity_temperature),
        ("rate", rate),
    ):
        if not 0 < value < np.inf:
            raise InputError(f"{name} is {value}; give more than 0")
    if steps < 1:
        raise InputError(f"steps is {steps}; give 1 or more")
    wanted = _softmax(given / temperature)
    for _ in range(steps):
        there = _softmax(rows @ q / similarity_temperature)
        q = q - rate / similarity_temperature * (there - wanted) @ rows
    return q.astype(np.float32)


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    raised = np.exp(values - values.max())
    return np.asarray(raised / raised.sum())
