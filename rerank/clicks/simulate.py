"""Sessions of simulated users over logged rankings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rerank.clicks.log import Session
from rerank.clicks.models import ClickModel, attraction
from rerank.errors import InputError

_BLOCK = 4096  # sessions drawn together


@dataclass(frozen=True, slots=True)
class Shown:
    """A query's ranking as users see it, with the judgments that decide what they want."""

    query_id: str
    doc_ids: tuple[str, ...]
    labels: tuple[float, ...]


def simulate(
    rankings: Sequence[Shown],
    model: ClickModel,
    *,
    sessions: int,
    noise: float = 0.1,
    highest: float | None = None,
    seed: int = 0,
) -> Iterator[Session]:
    """So many sessions, each of a query drawn evenly. `highest` is the best label there is (default: in the rankings).

    Sessions depend on the seed and their number alone: a longer log begins as a shorter one, unless the model drifts.
    """
    if not rankings or sessions < 1:
        raise InputError(f"{len(rankings)} rankings and {sessions} sessions: there must be one at least of each")
    best = highest if highest is not None else max(label for shown in rankings for label in shown.labels)
    longest = max(len(shown.labels) for shown in rankings)
    wanted = np.zeros((len(rankings), longest))  # what stands past the end of a shorter list is cut off again
    for row, shown in enumerate(rankings):
        wanted[row, : len(shown.labels)] = attraction(shown.labels, best, noise)
    still = model.at(1.0) is model
    for block, start in enumerate(range(0, sessions, _BLOCK)):
        generator = np.random.default_rng([seed, block])
        chosen = generator.integers(len(rankings), size=_BLOCK)
        clicks = model.draw(wanted[chosen], generator) if still else None
        for i in range(min(_BLOCK, sessions - start)):
            shown = rankings[chosen[i]]
            if clicks is None:  # a block with one bias would be a stair, and a short log would not drift at all
                own = model.at((start + i) / max(1, sessions - 1)).draw(wanted[chosen[i]], generator)
            else:
                own = clicks[i]
            yield Session(shown.query_id, shown.doc_ids, tuple(own[: len(shown.doc_ids)].tolist()))
