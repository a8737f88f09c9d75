"""Click models: what a user who is shown a ranking clicks.

`attraction` is P(relevant to the user | label), `[..., n]` in the order shown, positions 1 to n. A model draws clicks
of that shape, and knows each position's probability of a click in closed form, which its draws are tested against.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from rerank.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

# eye tracking of the first ten results (Joachims et al., SIGIR 2005), as Ai et al., SIGIR 2018, simulate with
EXAMINATION = (0.68, 0.61, 0.48, 0.34, 0.28, 0.20, 0.11, 0.10, 0.08, 0.06)


def attraction(labels: ArrayLike, highest: float, noise: float = 0.1) -> Floats:
    """P(relevant | label) = ε + (1 − ε)·(2^label − 1)/(2^highest − 1), ε the noise (Ai et al., SIGIR 2018, 5.1; 0.1
    theirs): clicks on what is not relevant happen, and what is better is clicked more."""
    if not 0 <= noise < 1:
        raise InputError(f"noise {noise}: give a probability below 1")
    given = np.asarray(labels, dtype=np.float64)
    if not highest > 0 or (given.size and given.max() > highest):
        raise InputError(f"the highest label is {highest}: give the highest of the data, above 0")
    found: Floats = noise + (1 - noise) * (np.exp2(given.clip(min=0)) - 1) / (2**highest - 1)
    return found


class ClickModel(Protocol):
    def draw(self, attraction: Floats, generator: np.random.Generator) -> NDArray[np.bool_]:
        """One session for each list."""

    def marginals(self, attraction: Floats) -> Floats:
        """P(click) at each position."""

    def curve(self, n: int) -> Floats | None:
        """P(examined) at positions 1 to n where that depends on the position alone, else None."""

    def at(self, progress: float) -> Self:
        """The model when `progress`, 0 to 1, of all sessions have been; the same one unless it drifts."""


@dataclass(frozen=True, slots=True)
class PositionBased:
    """P(click) = P(examined | position)·P(clicked | examined), P(examined) = examination^η (Richardson et al., WWW
    2007; the curve and η as in Ai et al., SIGIR 2018).

    `trust` τ: what is not relevant is clicked all the same with probability τ/position once it is examined, because
    the engine put it there: P(clicked | examined) = r + (1 − r)·τ/position, an affine bias as in Agarwal et al., WWW
    2019, who have a free number for each position. `drift` is the η that the last session has; it moves evenly.
    """

    examination: tuple[float, ...] = EXAMINATION
    eta: float = 1.0
    trust: float = 0.0
    drift: float | None = None

    def __post_init__(self) -> None:
        if not self.examination or not all(0 < value <= 1 for value in self.examination):
            raise InputError(f"examination {self.examination}: give each position's probability, above 0")
        if self.eta < 0 or (self.drift is not None and self.drift < 0):
            raise InputError(f"eta {self.eta} and drift {self.drift}: give numbers of at least 0")
        if not 0 <= self.trust <= 1:
            raise InputError(f"trust {self.trust}: give a probability")

    def curve(self, n: int) -> Floats:
        if n > len(self.examination):
            raise InputError(
                f"{n} positions are shown and examination has {len(self.examination)}; show fewer, or give it for all"
            )
        found: Floats = np.array(self.examination[:n]) ** self.eta
        return found

    def marginals(self, attraction: Floats) -> Floats:
        n = attraction.shape[-1]
        lured = self.trust / np.arange(1, n + 1)
        found: Floats = self.curve(n) * (attraction + (1 - attraction) * lured)
        return found

    def draw(self, attraction: Floats, generator: np.random.Generator) -> NDArray[np.bool_]:
        return generator.random(attraction.shape) < self.marginals(attraction)

    def at(self, progress: float) -> PositionBased:
        if self.drift is None:
            return self
        return replace(self, eta=self.eta + (self.drift - self.eta) * progress, drift=None)


@dataclass(frozen=True, slots=True)
class DependentClick:
    """The user reads from the top, clicks what attracts, and after a click goes on with probability λ_position (Guo,
    Liu and Wang, WSDM 2009); where `persistence` ends its last value holds. λ = 0 is the cascade model."""

    persistence: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        if not self.persistence or not all(0 <= value <= 1 for value in self.persistence):
            raise InputError(f"persistence {self.persistence}: give a probability for each position, or one for all")

    def _goes_on(self, n: int) -> Floats:
        given = self.persistence[:n]
        return np.array(given + (given[-1],) * (n - len(given)))

    def curve(self, n: int) -> None:
        return None

    def marginals(self, attraction: Floats) -> Floats:
        left = 1 - attraction * (1 - self._goes_on(attraction.shape[-1]))  # P(reads on | reads this)
        reached = np.concatenate([np.ones_like(left[..., :1]), left[..., :-1]], axis=-1).cumprod(axis=-1)
        found: Floats = attraction * reached
        return found

    def draw(self, attraction: Floats, generator: np.random.Generator) -> NDArray[np.bool_]:
        attracted = generator.random(attraction.shape) < attraction
        ended = attracted & (generator.random(attraction.shape) >= self._goes_on(attraction.shape[-1]))
        before = np.concatenate([np.zeros_like(ended[..., :1]), ended[..., :-1]], axis=-1)
        found: NDArray[np.bool_] = attracted & ~np.logical_or.accumulate(before, axis=-1)
        return found

    def at(self, progress: float) -> DependentClick:
        return self


CASCADE = DependentClick((0.0,))  # reads from the top and leaves after the first click (Craswell et al., WSDM 2008)
