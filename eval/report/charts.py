"""Where things are drawn: the geometry of the page's SVG charts. What they look like is in report.css.

Positions are in the units of a chart's view box, `y` downwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rerank.eval.comparison import SAME, Compared
from rerank.eval.efficiency import Axis, frontier

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 40


@dataclass(frozen=True, slots=True)
class Scale:
    """Values onto positions; of a logarithmic one all values are above 0."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(each) if self.log else each for each in (self.low, self.high, value))
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Position and text, at 1, 2 and 5 times powers of ten."""
        values = _decades(self.low, self.high) if self.log else _steps(self.low, self.high)
        return [(self(value), short(value)) for value in values]


def _steps(low: float, high: float) -> list[float]:
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = min((power * each for each in (1, 2, 5, 10)), key=lambda each: abs(each - rough))
    return [round(step * i, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1, 2, 5), (1,)):
        values = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
        if len(found := [value for value in values if low <= value <= high]) <= 8:
            return found
    return found[:: math.ceil(len(found) / 8)]


def short(value: float) -> str:
    """1500000 as 1.5M; small ones to three digits."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Point:
    """A query: `query` is its place in the section's list; `side` is up, down or tie."""

    query: int
    x: float
    y: float
    side: str
    baseline: float
    own: float


@dataclass(frozen=True, slots=True)
class Scatter:
    """A run's values of all queries over the baseline's. `points` go by the difference, the largest loss first."""

    run: int
    name: str
    x: Scale
    y: Scale
    points: tuple[Point, ...]


SCATTER_SIZE = 340


def scatter(run: int, name: str, pairs: Sequence[tuple[float, float]]) -> Scatter:
    """Of (baseline, own) by query. All measures lie in [0, 1], so the axes do."""
    x = Scale(0, 1, _LEFT, SCATTER_SIZE - _RIGHT)
    y = Scale(0, 1, SCATTER_SIZE - _BOTTOM, _TOP)
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i][1] - pairs[i][0], i))
    return Scatter(
        run, name, x, y, tuple(Point(i, x(pairs[i][0]), y(pairs[i][1]), _side(pairs[i]), *pairs[i]) for i in order)
    )


def _side(pair: tuple[float, float]) -> str:
    baseline, own = pair
    return "tie" if abs(own - baseline) <= SAME else "up" if own > baseline else "down"


@dataclass(frozen=True, slots=True)
class Spot:
    """A run with a known cost. `number` is its row in the table."""

    number: int
    name: str
    x: float
    y: float
    cost: float
    value: float
    best: bool


@dataclass(frozen=True, slots=True)
class CostPlot:
    """`steps` is the frontier's line; `lines` are runs whose cost is unknown, so that only their height is."""

    axis: Axis
    x: Scale
    y: Scale
    spots: tuple[Spot, ...]
    steps: str
    lines: tuple[tuple[int, str, float], ...]


COST_WIDTH, COST_HEIGHT = 480, 320


def cost_plot(axis: Axis, rows: Iterable[tuple[str, float, float | None]]) -> CostPlot | None:
    """Of (name, value, cost). A logarithmic axis where costs differ tenfold; None where no cost is known."""
    rows = list(rows)
    known = {name: (cost, value) for name, value, cost in rows if cost is not None}
    if not known:
        return None
    costs = [cost for cost, _ in known.values()]
    values = [value for _, value, _ in rows]
    x, y = _cost_scale(min(costs), max(costs)), _value_scale(min(values), max(values))
    best = frontier(known)
    spots = [
        Spot(number, name, x(cost), y(value), cost, value, name in best)
        for number, (name, value, cost) in enumerate(rows, start=1)
        if cost is not None
    ]
    at = {spot.name: spot for spot in spots}
    path = [f"M{at[best[0]].x} {at[best[0]].y}", *(f"H{at[name].x}V{at[name].y}" for name in best[1:]), f"H{x.end}"]
    lines = [(i, name, y(value)) for i, (name, value, cost) in enumerate(rows, start=1) if cost is None]
    return CostPlot(axis, x, y, tuple(spots), "".join(path), tuple(lines))


def _cost_scale(low: float, high: float) -> Scale:
    start, end = _LEFT + 10, COST_WIDTH - _RIGHT
    if low > 0 and high >= 10 * low:
        return Scale(low / 1.5, high * 1.5, start, end, log=True)
    return Scale(0, high * 1.1 or 1.0, start, end)


def _value_scale(low: float, high: float) -> Scale:
    room = max((high - low) * 0.15, 0.01)
    return Scale(max(0.0, low - room), min(1.0, high + room) if high < 1 else 1.0 + room, COST_HEIGHT - _BOTTOM, _TOP)


@dataclass(frozen=True, slots=True)
class Whisker:
    low: float
    middle: float
    high: float


WHISKER_WIDTH = 110


def whiskers(rows: Iterable[Compared]) -> tuple[float, dict[str, Whisker]]:
    """Where 0 is, and every run's interval, on one scale. An infinite interval (of one query) is its middle alone."""
    found = {}
    for row in rows:
        if row.difference is not None and row.interval is not None:
            finite = all(map(math.isfinite, row.interval))
            found[row.name] = (row.interval[0], row.difference, row.interval[1]) if finite else (row.difference,) * 3
    ends = [end for each in found.values() for end in each] or [0.0]
    low, high = min(0.0, *ends), max(0.0, *ends)
    scale = Scale(low, high, 6, WHISKER_WIDTH - 6) if low < high else Scale(-1, 1, 6, WHISKER_WIDTH - 6)
    return scale(0), {name: Whisker(*map(scale, each)) for name, each in found.items()}
