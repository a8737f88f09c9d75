"""Who watches what a suite or a study ranks, and its rankers, which are loaded when there is something to rank."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from rerank.jobs import Progress
from rerank.reranker import Ranker
from rerank.types import Candidates

_log = logging.getLogger(__name__)


class Watch(Protocol):
    """Sees what is ranked, and how far that is."""

    def watch(self, requests: Iterable[Candidates]) -> Iterator[Candidates]: ...

    def show(self, done: Progress) -> None: ...


Watching = Callable[[str, int, Callable[[int], int], int], AbstractContextManager[Watch]]


class Unwatched:
    def watch(self, requests: Iterable[Candidates]) -> Iterator[Candidates]:
        return iter(requests)

    def show(self, done: Progress) -> None:
        pass


class Loaded:
    """A ranker, loaded when it is first needed. Its progress goes to whoever watches now."""

    def __init__(self, load: Callable[[Callable[[Progress], None]], Ranker]) -> None:
        self._load = load
        self._ranker: Ranker | None = None
        self._watch: Watch = Unwatched()

    def get(self, watch: Watch) -> Ranker:
        self._watch = watch
        if self._ranker is None:
            self._ranker = self._load(lambda done: self._watch.show(done))
        return self._ranker

    def drop(self) -> None:
        """Closes the ranker, if there is one. An engine that died may not even close; that holds up nothing."""
        ranker, self._ranker = self._ranker, None
        try:
            if ranker is not None:
                ranker.close()
        except Exception as error:
            _log.warning("a ranker could not be closed: %s: %s", type(error).__name__, error, exc_info=True)
