"""The lists of a training run: which pool comes when, which of its passages are shown, and what the list weighs.

List i depends on the seed, i, and the pools alone: not on the lists before it, nor (but for its weight in a
curriculum) on how many there are in all. So a run that resumes, or that is prolonged, sees what an uninterrupted
one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rerank.errors import InputError
from rerank.training.sources import Pool, Source
from rerank.types import Passage, Query

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PHASE, _PASS, _DRAW = range(3)  # what a stream of random numbers is for, so that no two are the same


@dataclass(frozen=True, slots=True)
class TrainingList:
    """`labels` stand beside `passages`. The loss of the list is multiplied by `weight`. Where labels are clicks,
    `positions` (1-based) say where users saw the passages."""

    query: Query
    passages: tuple[Passage, ...]
    labels: tuple[float, ...]
    source: str
    weight: float = 1.0
    positions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Curriculum:
    """Easy lists first (MacAvaney et al., SIGIR 2020): weight = e + min(1, t/m) (1 - e).

    e is the ease of the list, t how much of training is done, m = `until` the share of training after which all
    lists weigh 1.
    """

    until: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise InputError(f"the curriculum lasts until {self.until}; give a share of training in (0, 1]")

    def weight(self, ease: float, progress: float) -> float:
        """`progress` goes from 0 to 1."""
        return ease + min(1.0, progress / self.until) * (1 - ease)


class Mixture:
    """`total` lists from pools of several sources; None is as many lists as there are pools.

    Of any first i lists a source with the share w of all weights gives w i, give or take 1 + w S with S sources.
    Each source shows all its pools, in random order, before it shows one again.
    """

    def __init__(
        self,
        pools: Sequence[tuple[Source, Sequence[Pool]]],
        *,
        seed: int,
        total: int | None = None,
        curriculum: Curriculum | None = None,
    ) -> None:
        if seed < 0 or (total is not None and total < 1):
            raise InputError(f"seed {seed} and total {total}: give a seed of at least 0 and a total of at least 1")
        if not pools:
            raise InputError("there is no source to draw lists from; give one at least")
        for source, own in pools:
            if not own:
                raise InputError(f"{source.title} has no pools; take it out")
            if (source.order != "shuffled" or curriculum is not None) and not all(pool.ranked for pool in own):
                raise InputError(f"{source.title} has no first stage, which order and curriculum go by; give its run")
        self._pools, self._seed, self._curriculum = pools, seed, curriculum
        count = total if total is not None else sum(len(own) for _, own in pools)
        self._sources, self._visits = _interleave([source.weight for source, _ in pools], count, seed)
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}  # a source's present pass, and its order

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> TrainingList:
        if not -len(self) <= index < len(self):
            raise IndexError(f"list {index} of {len(self)}")
        index %= len(self)
        number, visit = int(self._sources[index]), int(self._visits[index])
        source, pools = self._pools[number]
        turn, place = divmod(visit, len(pools))
        pool = pools[self._order(number, turn)[place]]
        generator = np.random.default_rng([self._seed, _DRAW, index])
        shown = draw(pool, source, generator)
        weight = 1.0
        if self._curriculum is not None:
            weight = self._curriculum.weight(ease(pool, shown), index / len(self))
        return TrainingList(
            pool.query,
            tuple(pool.passages[i] for i in shown),
            tuple(pool.labels[i] for i in shown),
            pool.source,
            weight,
        )

    def __iter__(self) -> Iterator[TrainingList]:
        return (self[i] for i in range(len(self)))

    def _order(self, number: int, turn: int) -> NDArray[np.int64]:
        """The order in which a source shows its pools the `turn`-th time."""
        known, order = self._orders.get(number, (None, np.empty(0, np.int64)))
        if known != turn:
            generator = np.random.default_rng([self._seed, _PASS, number, turn])
            order = generator.permutation(len(self._pools[number][1]))
            self._orders[number] = (turn, order)
        return order


def _interleave(weights: Sequence[float], total: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whose turn it is, and which of its turns.

    A source with the share w takes the times (k + phase) / w, k = 0, 1, …, with a random phase in [0, 1). All
    times in order make the sequence: unlike a draw by chance it is even within every batch.
    """
    shares = np.array(weights, dtype=np.float64) / np.sum(weights)
    phases = np.random.default_rng([seed, _PHASE]).random(len(shares))
    turns = [np.arange(int(share * total) + len(shares) + 2) for share in shares]
    times = np.concatenate([(turn + phase) / share for turn, phase, share in zip(turns, phases, shares, strict=True)])
    first = np.argsort(times, kind="stable")[:total]
    owners = np.concatenate([np.full(len(turn), number) for number, turn in enumerate(turns)])
    return owners[first], np.concatenate(turns)[first]


def draw(pool: Pool, source: Source, generator: np.random.Generator) -> list[int]:
    """Positions in the pool: `source.size` of them, or all, in the order in which they are to be shown.

    random   any
    top      one passage with the best label; the others at random from the head of the pool (its first
             2 (size - 1) other passages), which a first stage or a teacher took for good: hard ones
    spread   one passage with the best label and, where the pool has no more grades than the list has places, one of
             every grade; the others one each from equal slices of what is left, sorted by label
    A list that orders nothing has its last passage replaced by one of another label.
    """
    n, size = len(pool.passages), min(source.size, len(pool.passages))
    labels = np.array(pool.labels)
    if size == n:
        chosen = np.arange(n)
    elif source.sample == "random":
        chosen = generator.permutation(n)[:size]
    elif source.sample == "top":
        best = generator.choice(np.flatnonzero(labels == labels.max()))
        head = np.setdiff1d(np.arange(min(n, 2 * size - 1)), [best])[: 2 * (size - 1)]
        chosen = np.append(best, generator.permutation(head)[: size - 1])
    else:
        chosen = _spread(labels, size, generator)
    if len(np.unique(labels[chosen])) == 1:
        chosen[-1] = generator.choice(np.flatnonzero(labels != labels[chosen[0]]))
    if source.order == "shuffled" or (source.order == "mixed" and generator.random() < 0.5):
        chosen = generator.permutation(chosen)
    else:
        chosen = np.sort(chosen)
    found: list[int] = chosen.tolist()
    return found


def _spread(labels: NDArray[np.float64], size: int, generator: np.random.Generator) -> NDArray[np.int64]:
    mixed = generator.permutation(len(labels))  # so that equal labels come in random order
    ordered = mixed[np.argsort(-labels[mixed], kind="stable")]
    _, firsts = np.unique(-labels[ordered], return_index=True)  # where each grade begins, best first
    taken = firsts if len(firsts) <= size else firsts[:1]
    others = np.delete(ordered, taken)
    slices = np.array_split(others, size - len(taken)) if size > len(taken) else []
    return np.concatenate([ordered[taken], [generator.choice(part) for part in slices]]).astype(np.int64)


def ease(pool: Pool, shown: Sequence[int]) -> float:
    """How well the first stage already orders the list, from 0 to 1.

    The paper's reciprocal-rank heuristic for a pair, (1/rank(d+) - 1/rank(d-) + 1) / 2 with ranks in the pool, as
    the mean over all pairs that the labels order; the paper has single pairs.
    """
    labels = np.array([pool.labels[i] for i in shown])
    gain = 1 / (np.array(shown) + 1.0)
    margins = gain[:, None] - gain[None, :]  # [n, n]
    return float(np.mean((margins[labels[:, None] > labels[None, :]] + 1) / 2))
