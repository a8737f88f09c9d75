"""What users saw of documents with feature vectors, as arrays: a row a list, padded, and batches of them with clicks.

Batch i depends on the seed, i, and the data alone, so that a run that resumes sees what an uninterrupted one would
have. Shapes: Q lists, n the longest, B lists of a batch.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rerank.clicks import attraction, read_log
from rerank.data import Features, read_run
from rerank.errors import InputError
from rerank.training.click_parts import Clicks
from rerank.training.feature_recipe import FeatureData

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

_PASS, _CLICK = range(20, 22)  # what a stream of random numbers is for


@dataclass(frozen=True, slots=True)
class Batch:
    """`rows` of the feature file, `labels` or clicks, where there is a document, and where it was shown (1-based, 0 at
    the padding): all `[B, n]`."""

    rows: NDArray[np.int64]
    labels: NDArray[np.float32]
    mask: NDArray[np.bool_]
    positions: NDArray[np.int64]


class Impressions:
    """`shown` has a row of the feature file for each place, -1 where there is none; labels beside it are judgments, or
    a log's clicks."""

    def __init__(
        self,
        shown: NDArray[np.int64],
        labels: NDArray[np.float64],
        positions: NDArray[np.int64],
        clicks: Clicks | None,
        *,
        batch: int,
        steps: int,
        seed: int,
    ) -> None:
        self._shown, self._labels, self._positions = shown, labels, positions
        self._batch, self._steps, self._seed = batch, steps, seed
        self._users = clicks.simulate.users() if clicks is not None and clicks.simulate is not None else None
        if clicks is not None and clicks.simulate is not None:
            self._labels = attraction(labels, float(labels.max()), clicks.simulate.noise)
        self._order: tuple[int, NDArray[np.int64]] | None = None

    @property
    def longest(self) -> int:
        """The last position of all."""
        return int(self._positions.max())

    def curve(self, progress: float) -> list[float] | None:
        """The simulated users' P(examined), relative to the first position, where it depends on the position alone."""
        found = self._users.at(progress).curve(self.longest) if self._users is not None else None
        return None if found is None else (found / found[0]).tolist()

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, from 0 on."""
        chosen = self._chosen(step * self._batch, (step + 1) * self._batch)
        rows, labels = self._shown[chosen], self._labels[chosen]
        mask = rows >= 0
        if self._users is not None:
            generator = np.random.default_rng([self._seed, _CLICK, step])
            labels = self._users.at(step / self._steps).draw(labels, generator).astype(np.float64)
        return Batch(
            np.where(mask, rows, 0), np.where(mask, labels, 0).astype(np.float32), mask, self._positions[chosen]
        )

    def _chosen(self, first: int, end: int) -> NDArray[np.int64]:
        """The lists whose turn it is; every list comes once before one comes again."""
        found = []
        while first < end:
            turn, place = divmod(first, len(self._shown))
            if self._order is None or self._order[0] != turn:
                self._order = turn, np.random.default_rng([self._seed, _PASS, turn]).permutation(len(self._shown))
            found.append(self._order[1][place : place + end - first])
            first += len(found[-1])
        return np.concatenate(found)


def read_impressions(
    features: Features, data: FeatureData, clicks: Clicks | None, base: Path, *, batch: int, steps: int, seed: int
) -> Impressions:
    """What was shown of the features' queries. Raises InputError where nothing is left to learn from."""
    if clicks is not None and clicks.log is not None:
        rows, labels, positions = _logged(base / clicks.log, features, data.size)
    else:
        rows, labels, positions = _ranked(features, data, base)
    return Impressions(*_padded(rows, labels, positions), clicks, batch=batch, steps=steps, seed=seed)


Lists = tuple[list[list[int]], list[list[float]], list[list[int]]]


def _ranked(features: Features, data: FeatureData, base: Path) -> Lists:
    """The head of each query's ranking; queries whose head has one label only are left out."""
    run = read_run(base / data.run) if data.run is not None else None
    kept: Lists = ([], [], [])
    equal = absent = 0
    chosen = np.arange(len(features.query_ids))
    if data.share is not None:
        mixed = np.random.default_rng(0).permutation(len(chosen))
        chosen = np.sort(mixed[: max(1, round(data.share * len(chosen)))])
    for number in chosen.tolist():
        span = features.rows(number)
        order = list(range(span.start, span.stop))
        if run is not None:
            scores = run.get(features.query_ids[number], {})
            order = [row for row in order if features.doc_ids[row] in scores]  # the others were not shown
            order.sort(key=lambda row: -scores[features.doc_ids[row]])
            if not order:
                absent += 1
                continue
        order = order[: data.size]
        labels = [max(0.0, float(features.labels[row])) for row in order]
        if len(set(labels)) < 2:
            equal += 1
            continue
        kept[0].append(order)
        kept[1].append(labels)
        kept[2].append(list(range(1, len(order) + 1)))
    log.info(
        "%s: %s of %s queries; dropped: %d that order nothing, %d not in the run",
        data.train, f"{len(kept[0]):,}", f"{len(chosen):,}", equal, absent,
    )  # fmt: skip
    if not kept[0]:
        raise InputError(
            f"{data.train}: no query is left to train on (that order nothing {equal}, not in run {absent})"
        )
    return kept


def _logged(path: Path, features: Features, size: int | None) -> Lists:
    """A log's sessions; those with a query or a document that the file does not have are left out."""
    queries = {query_id: number for number, query_id in enumerate(features.query_ids)}
    known: dict[int, dict[str, int]] = {}
    kept: Lists = ([], [], [])
    dropped = 0
    for session in read_log(path):
        number = queries.get(session.query_id)
        if number is not None and number not in known:
            span = features.rows(number)
            known[number] = {features.doc_ids[row]: row for row in range(span.start, span.stop)}
        own = known[number] if number is not None else {}
        if not all(doc_id in own for doc_id in session.doc_ids[:size]):
            dropped += 1
            continue
        kept[0].append([own[doc_id] for doc_id in session.doc_ids[:size]])
        kept[1].append([float(click) for click in session.clicks[:size]])
        kept[2].append(list(session.positions[:size]))
    log.info("%s: %s sessions; dropped: %d that are not of the file", path.name, f"{len(kept[0]):,}", dropped)
    if not any(any(clicks) for clicks in kept[1]):
        raise InputError(f"{path}: no session with a click is left to train on ({dropped} are not of the file)")
    return kept


def _padded(
    rows: list[list[int]], labels: list[list[float]], positions: list[list[int]]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    shape = len(rows), max(map(len, rows))
    shown, judged, places = np.full(shape, -1), np.zeros(shape), np.zeros(shape, np.int64)
    for i, (own, values, at) in enumerate(zip(rows, labels, positions, strict=True)):
        shown[i, : len(own)], judged[i, : len(own)], places[i, : len(own)] = own, values, at
    return shown, judged, places
