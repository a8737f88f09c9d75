"""Requests of callers that know nothing of one another, merged into one batch, and never into one list.

A thread takes what waits, ranks it by one `rank_many`, and hands each ranking to its caller as it comes; what arrives
in the meantime is the next batch. The thread is there only while there is work. A batch is of one ranker, and rankers
take turns; of a ranker's callers each has a turn as well, so that one who asks much does not hold up the others.

A request that fails fails alone: its ranking has an `error`. Where the engine itself breaks down in a batch, those of
it that have no ranking yet are asked again one by one, and who breaks it down alone is told. A request whose future is
cancelled leaves the queue at once, or is given up between two batches of the engine.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rerank.cancellation import Cancellation
from rerank.errors import BusyError
from rerank.types import Candidates, Ranking

if TYPE_CHECKING:
    from rerank.reranker import Ranker

BATCH_DOCUMENTS = 256  # fills the engine; more only has the first of a batch wait for the last
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Merged:
    """A ranking, how long its request waited before it began, and how many requests were in its batch."""

    ranking: Ranking
    waited_s: float
    batch: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that has ended, for those who count: its requests, their documents, its time on the clock."""

    requests: int
    documents: int
    seconds: float


@dataclass(slots=True, eq=False)
class _Waiting:
    ranker: Ranker
    client: str
    request: Candidates
    cancellation: Cancellation
    arrived: float
    future: Future[Merged] = field(default_factory=Future)
    begun: bool = False

    @property
    def cancellable(self) -> Candidates:
        return replace(self.request, query=replace(self.request.query, cancellation=self.cancellation))


_Clients = OrderedDict[str, deque[_Waiting]]


class Merger:
    """`max_requests` and `max_documents`, or one request, bound what waits, None for no bound. A batch has at most
    `batch_documents`, or one request. `on_batch` is called after every batch, in the thread that ranks."""

    def __init__(
        self,
        *,
        batch_documents: int = BATCH_DOCUMENTS,
        max_requests: int | None = None,
        max_documents: int | None = None,
        on_batch: Callable[[Batch], None] | None = None,
    ) -> None:
        self._batch_documents, self._on_batch = batch_documents, on_batch
        self._max_requests, self._max_documents = max_requests, max_documents
        self._lock = threading.RLock()  # a future that is cancelled while it is held calls back in the same thread
        self._rankers: OrderedDict[Ranker, _Clients] = OrderedDict()
        self._requests = self._documents = 0
        self._working = False

    @property
    def waiting(self) -> tuple[int, int]:
        """Requests that have not begun, and their documents."""
        return self._requests, self._documents

    async def ask(self, ranker: Ranker, request: Candidates, client: str = "") -> Merged:
        """The ranking, whose `error` says what failed. Raises BusyError where the queue is full."""
        future = self.submit(ranker, request, client, begin=False)
        # after the other tasks that are about to run: what they ask goes into the same batch
        asyncio.get_running_loop().call_soon(self.begin)
        return await asyncio.wrap_future(future)

    def submit(self, ranker: Ranker, request: Candidates, client: str = "", *, begin: bool = True) -> Future[Merged]:
        """From any thread. `client` says who asks, for turns. Without `begin` it waits for `begin`, or the next one."""
        item = _Waiting(ranker, client, request, Cancellation(), time.monotonic())
        with self._lock:
            self._check_room(len(request))
            self._rankers.setdefault(ranker, OrderedDict()).setdefault(client, deque()).append(item)
            self._count(item, 1)
        item.future.add_done_callback(lambda future: self._left(item) if future.cancelled() else None)
        if begin:
            self.begin()
        return item.future

    def begin(self) -> None:
        """Has what waits ranked, unless that is under way."""
        with self._lock:
            if self._working or not self._rankers:
                return
            self._working = True
        threading.Thread(target=self._work, name="rerank-merger").start()

    def _check_room(self, documents: int) -> None:
        if self._max_requests is not None and self._requests >= self._max_requests:
            raise BusyError(f"{self._requests} requests wait already, and no more may")
        # one that is larger than the whole queue waits alone: it could never come in otherwise
        most = self._max_documents if self._requests else None
        if most is not None and self._documents + documents > most:
            raise BusyError(f"{self._documents} documents wait already, and {documents} more are too many")

    def _count(self, item: _Waiting, sign: int) -> None:
        self._requests += sign
        self._documents += sign * len(item.request)

    def _left(self, item: _Waiting) -> None:
        item.cancellation.cancel()
        with self._lock:
            if item.begun:
                return
            clients = self._rankers[item.ranker]
            clients[item.client].remove(item)
            self._count(item, -1)
            self._tidy(item.ranker, item.client)

    def _tidy(self, ranker: Ranker, client: str) -> None:
        """Who waits for nothing has no turn."""
        clients = self._rankers[ranker]
        if not clients[client]:
            del clients[client]
        if not clients:
            del self._rankers[ranker]

    def _draw(self) -> list[_Waiting]:
        """The next batch, in turns; empty where nothing waits, and then the thread ends."""
        with self._lock:
            if not self._rankers:
                self._working = False
                return []
            ranker, clients = next(iter(self._rankers.items()))
            self._rankers.move_to_end(ranker)
            batch: list[_Waiting] = []
            room = self._batch_documents
            while clients:
                client, queue = next(iter(clients.items()))
                if batch and len(queue[0].request) > room:
                    break
                item = queue.popleft()
                item.begun = True
                room -= len(item.request)
                batch.append(item)
                self._count(item, -1)
                clients.move_to_end(client)
                self._tidy(ranker, client)
            return batch

    def _work(self) -> None:
        while batch := self._draw():
            # rankings come in the order of what was asked: the short ones need not wait for the long
            batch.sort(key=lambda item: len(item.request))
            started = time.monotonic()
            self._answer(batch, started)
            if self._on_batch is not None:
                documents = sum(len(item.request) for item in batch)
                self._on_batch(Batch(len(batch), documents, time.monotonic() - started))

    def _answer(self, batch: Sequence[_Waiting], started: float) -> None:
        broken = self._rank(batch, started)
        left = [item for item in batch if not item.future.done()]
        if broken is None or not left:
            return
        if len(batch) == 1:
            with suppress(InvalidStateError):
                left[0].future.set_exception(broken)
            return
        _log.warning("a batch of %d requests broke down (%r); %d are asked one by one", len(batch), broken, len(left))
        for item in left:
            self._answer([item], started)

    def _rank(self, batch: Sequence[_Waiting], started: float) -> Exception | None:
        """Hands out the rankings as they come. Returns what the engine broke down with."""
        under_way: deque[_Waiting] = deque()

        def requests() -> Iterator[Candidates]:
            for item in batch:
                if not item.cancellation.cancelled:
                    under_way.append(item)
                    yield item.cancellable

        try:
            for ranking in batch[0].ranker.rank_many(requests(), on_error="keep"):
                item = under_way.popleft()
                own = replace(ranking, query=item.request.query)
                with suppress(InvalidStateError):  # cancelled
                    item.future.set_result(Merged(own, started - item.arrived, len(batch)))
        except Exception as error:
            return error
        except BaseException as error:  # callers wait for this too, but in their event loop it would end the loop
            broken = RuntimeError(f"the ranker ended with {error!r}")
            broken.__cause__ = error
            return broken
        return RuntimeError(f"the ranker left {len(under_way)} requests without a ranking") if under_way else None
