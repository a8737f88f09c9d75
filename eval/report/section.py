"""What a page is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rerank.errors import InputError
from rerank.eval.comparison import Comparison
from rerank.eval.efficiency import Cost, Prices
from rerank.eval.measures import Qrels, Run
from rerank.types import Candidates, Usage


@dataclass(frozen=True, slots=True)
class RunCard:
    """Where a run comes from: its file, and what the card that `rerank run` left beside it tells. None is unknown."""

    file: str | None = None
    sha256: str | None = None
    told: Mapping[str, object] | None = None

    @property
    def cost(self) -> Cost | None:
        """Raises InputError where the card does not tell it as `rerank run` does."""
        if self.told is None:
            return None
        queries, usage = self.told.get("queries"), self.told.get("usage")
        try:
            if not isinstance(queries, int) or not isinstance(usage, Mapping):
                raise TypeError("it lacks 'queries' or 'usage'")
            return Cost(queries, Usage(**usage))
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.file or 'what was given'} has no card of a run: {error}") from error


@dataclass(frozen=True, slots=True)
class Section:
    """One dataset. `runs` and `cards` go by the comparison's names; a run without a card has an unknown origin.

    `texts[query_id]` has the query and the passages that are known, in any order; without it ids are shown. `prices`
    are of runs that have others than the page's.
    """

    dataset: str
    comparison: Comparison
    runs: Mapping[str, Run]
    qrels: Qrels
    texts: Mapping[str, Candidates] = field(default_factory=dict)
    cards: Mapping[str, RunCard] = field(default_factory=dict)
    prices: Mapping[str, Prices] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in self.runs:
                raise InputError(f"{self.dataset}: the comparison has {name!r}, but its run was not given")

    @property
    def names(self) -> tuple[str, ...]:
        """The baseline first."""
        return tuple(row.name for row in self.comparison.rows)

    @property
    def lacking(self) -> dict[str, int]:
        """How many of the compared queries a run has no ranking of: they count as 0. Only runs that lack any."""
        queries = self.comparison.per_query[self.names[0]].keys()
        found = {name: len(queries - self.runs[name].keys()) for name in self.names}
        return {name: count for name, count in found.items() if count}

    def card(self, name: str) -> RunCard:
        return self.cards.get(name, RunCard())
