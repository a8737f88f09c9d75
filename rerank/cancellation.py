"""How a caller says that it no longer waits for a query's ranking, while the query is in flight.

A query carries it to whoever works on it: the scheduler gives a cancelled query up between two batches, an engine that
is asked call by call at once. The ranking then has a `CancelledError` of `rerank.errors` as its error.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Cancellation:
    """Cancelled once, from any thread, and for good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._followers: list[Callable[[], None]] = []

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        with self._lock:
            self._cancelled, followers, self._followers = True, self._followers, []
        for follower in followers:
            follower()

    def then(self, follower: Callable[[], None]) -> None:
        """Has it called when this is cancelled, in the thread that cancels; at once where it is already."""
        with self._lock:
            if not self._cancelled:
                self._followers.append(follower)
                return
        follower()
