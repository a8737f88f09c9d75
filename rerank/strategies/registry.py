"""Strategies of other packages, by name beside ours: entry points of the group `rerank.strategies`.

    [project.entry-points."rerank.strategies"]
    bubble = "my_package.bubble:Bubble"

in the `pyproject.toml` of a package that is installed makes `rerank.load("bubble")`, `rerank run -s bubble` and the
other commands know it. Nothing of it is imported before it is asked for by its name, or all are listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points

from rerank.errors import InputError
from rerank.strategies.base import Strategy

GROUP = "rerank.strategies"


class Registry(Mapping[str, type[Strategy]]):
    """Ours, then those that installed packages offer, in order of their names.

    Raises InputError for a strategy of theirs that cannot be used: its name is taken, or its code does not load.
    """

    def __init__(self, ours: Mapping[str, type[Strategy]]) -> None:
        self._ours = dict(ours)

    def __getitem__(self, name: str) -> type[Strategy]:
        return self._ours[name] if name in self._ours else _loaded(self._theirs()[name])

    def __contains__(self, name: object) -> bool:
        return name in self._ours or name in self._theirs()

    def __iter__(self) -> Iterator[str]:
        return iter((*self._ours, *sorted(self._theirs())))

    def __len__(self) -> int:
        return len(self._ours) + len(self._theirs())

    def _theirs(self) -> dict[str, EntryPoint]:
        """Looked up anew each time: what is installed may change, and ours are found without it."""
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=GROUP):
            if point.name in self._ours or point.name in found:
                others = "rerank itself" if point.name in self._ours else _package(found[point.name])
                raise InputError(
                    f"strategy {point.name!r} of {_package(point)} has a name that {others} has too; uninstall one, or "
                    "have it renamed"
                )
            found[point.name] = point
        return found


def _loaded(point: EntryPoint) -> type[Strategy]:
    where = f"strategy {point.name!r} of {_package(point)} ({point.value})"
    try:
        made: type[Strategy] = point.load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"{where} cannot be loaded: {error}") from error
    if lacking := [part for part in ("rank", "calls") if not callable(getattr(made, part, None))]:
        raise InputError(f"{where} is no strategy: it has no {' and no '.join(lacking)}")
    return made


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an installed package"
