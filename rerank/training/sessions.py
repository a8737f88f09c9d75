"""Training lists that are sessions: what a user saw, and clicks for labels.

List i depends on the seed, i, and the data alone, as in `mixture`. What the model is shown is shuffled, and `positions`
say where the user saw it: a prompt with all passages in the user's order would let the model learn the bias itself.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from rerank.clicks import attraction, read_log
from rerank.clicks.log import Session
from rerank.data import Dataset
from rerank.errors import InputError
from rerank.training.click_parts import Clicks
from rerank.training.mixture import TrainingList
from rerank.training.sources import Pool, Source, excluded_words, normalised, read_dataset, read_pools
from rerank.types import Passage, Query

log = logging.getLogger(__name__)

_PASS, _SHUFFLE, _CLICK = range(10, 13)  # what a stream of random numbers is for; `mixture` has the ones below


class Sessions:
    """`total` sessions of what was shown; every pool once before one comes again."""

    def __init__(self, pools: Sequence[Pool], clicks: Clicks, seed: int, total: int) -> None:
        self._pools, self._seed, self._total = pools, seed, total
        self._simulate = clicks.simulate
        self._users = clicks.simulate.users() if clicks.simulate is not None else None
        self._best = max(max(pool.labels) for pool in pools)
        self._order: tuple[int, Sequence[int]] | None = None  # the present pass, and its order

    def __len__(self) -> int:
        return self._total

    @property
    def longest(self) -> int:
        """The last position of all."""
        return max(max(_positions(pool)) for pool in self._pools)

    def curve(self, progress: float) -> list[float] | None:
        """The simulated users' P(examined), relative to the first position, where it depends on the position alone."""
        found = self._users.at(progress).curve(self.longest) if self._users is not None else None
        return None if found is None else (found / found[0]).tolist()

    def __getitem__(self, index: int) -> TrainingList:
        if not -self._total <= index < self._total:
            raise IndexError(f"session {index} of {self._total}")
        index %= self._total
        turn, place = divmod(index, len(self._pools))
        pool = self._pools[self._pass(turn)[place]]
        shown = np.random.default_rng([self._seed, _SHUFFLE, index]).permutation(len(pool.passages)).tolist()
        clicks, positions = self._clicks(pool, index), _positions(pool)
        return TrainingList(
            pool.query,
            tuple(pool.passages[i] for i in shown),
            tuple(clicks[i] for i in shown),
            pool.source,
            positions=tuple(positions[i] for i in shown),
        )

    def _clicks(self, pool: Pool, index: int) -> Sequence[float]:
        if self._users is None or self._simulate is None:
            return pool.labels
        wanted = attraction(pool.labels, self._best, self._simulate.noise)
        generator = np.random.default_rng([self._seed, _CLICK, index])
        drawn = self._users.at(index / self._total).draw(wanted, generator)
        clicks: list[float] = drawn.astype(float).tolist()
        return clicks

    def _pass(self, turn: int) -> Sequence[int]:
        if self._order is None or self._order[0] != turn:
            generator = np.random.default_rng([self._seed, _PASS, turn])
            self._order = turn, generator.permutation(len(self._pools)).tolist()
        return self._order[1]


def _positions(pool: Pool) -> Sequence[int]:
    return pool.positions or range(1, len(pool.passages) + 1)


def read_shown(clicks: Clicks, source: Source, base: Path) -> list[Pool]:
    """What users see of a source: the head of each query's ranking with its judgments, or a log's sessions."""
    if clicks.log is not None:
        return _logged(base / clicks.log, source, base)
    return read_pools(source.model_copy(update={"depth": source.size}), base)


def _logged(path: Path, source: Source, base: Path) -> list[Pool]:
    """The sessions of a log as pools whose labels are clicks. Sessions of which the dataset does not have the query or
    a document are left out, with one warning."""
    source.check(base)
    dataset = read_dataset(source, base)
    excluded = frozenset(words for spec in source.exclude for words in excluded_words(spec, base))
    dropped: Counter[str] = Counter()

    def pools() -> Iterator[Pool]:
        for session in read_log(path):
            query = dataset.queries.get(session.query_id)
            if query is None:
                dropped["of a query that the dataset has not"] += 1
            elif normalised(query.text) in excluded:
                dropped["excluded"] += 1
            elif (pool := _pool(session, query, _passages(dataset, query), source)) is None:
                dropped["with a document that the dataset has not"] += 1
            else:
                yield pool

    kept = list(pools())
    reasons = ", ".join(f"{count:,} {why}" for why, count in dropped.items()) or "none"
    log.info("%s: %s sessions; dropped: %s", path.name, f"{len(kept):,}", reasons)
    if not any(any(pool.labels) for pool in kept):
        raise InputError(f"{path}: no session with a click is left to train on (dropped: {reasons})")
    return kept


def _passages(dataset: Dataset, query: Query) -> Mapping[str, Passage]:
    if dataset.corpus is not None:
        return dataset.corpus
    own = (dataset.lists or {}).get(query.query_id)
    return {} if own is None else {passage.doc_id: passage for passage in own.passages}


def _pool(session: Session, query: Query, known: Mapping[str, Passage], source: Source) -> Pool | None:
    kept = slice(source.size)
    try:
        passages = tuple(known[doc_id] for doc_id in session.doc_ids[kept])
    except KeyError:
        return None
    clicks = tuple(map(float, session.clicks[kept]))
    return Pool(query, passages, clicks, source.title, positions=session.positions[kept])
