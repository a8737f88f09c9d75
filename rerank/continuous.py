"""The continuous driver: with an `AsyncBackbone` every query goes on as soon as its own answers are there.

Three threads, so that none waits for the work of another:

- The caller's takes rankings and progress out of a queue and hands them on, rankings in input order.
- The driver's runs an event loop. There strategies advance, calls are prepared, and as many as the backbone
  takes are asked at a time, those of earlier queries first. The loop is its own, so one that already runs in
  the caller's thread, as in a notebook, is no hindrance.
- The source's draws the requests, one at a time and only while there is room. No other thread touches them,
  so a generator need not be thread-safe; and one that blocks, as standard input does, keeps no answer back.
  What works only in the thread that made it, such as an SQLite cursor, cannot be drawn there: give a list.

A caller that leaves (closes the iterator, is interrupted, or meets an error of `on_progress`) cancels what is
in flight and ends both threads; a source that blocks is left behind and ends when it next gives something.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue

from rerank.backbones.base import AsyncBackbone
from rerank.backbones.loop import LoopThread
from rerank.calls import Answer
from rerank.errors import BackboneError, RerankError
from rerank.jobs import Job, Progress, Workshop
from rerank.types import Candidates, Ranking, Usage

_PATIENCE_S = 1.0  # how long a caller that leaves waits for a source that blocks


@dataclass(frozen=True, slots=True)
class _End:
    """Nothing comes any more; `error` is what is wrong with the source, or a bug."""

    error: BaseException | None


def drive(
    workshop: Workshop,
    backbone: AsyncBackbone,
    requests: Iterable[Candidates],
    on_progress: Callable[[Progress], None] | None = None,
    *,
    max_queries: int,
    max_calls: int,
) -> Iterator[Ranking]:
    """The rankings, in input order. See `Scheduler.run` for errors.

    `max_queries` bounds the queries in flight or waiting for an earlier one. No further query is drawn while
    `max_calls` calls wait for an answer. `on_progress` is called in the caller's thread, after every answer:
    `batches` counts answers, and `seconds` is each call's own time, so that it adds up to more than the clock.
    """
    flight = _Flight(workshop, backbone, requests, max_queries, max_calls)
    done: dict[int, Ranking | None] = {}
    following, progress = 0, Progress()
    try:
        flight.fill()
        while not isinstance(event := flight.events.get(), _End):
            if isinstance(event, Usage):
                progress = replace(progress, batches=progress.batches + 1, usage=progress.usage + event)
                if on_progress is not None:
                    on_progress(progress)
                continue
            done[event.index] = event.ranking
            while (ranking := done.pop(following, None)) is not None:
                following += 1
                progress = replace(progress, queries=following)
                flight.fill(taken=1)
                yield ranking
    finally:
        flight.stop()
    if event.error is not None:
        raise event.error


class _Flight:
    """What is under way. All but `fill`, `stop` and the queue belongs to the driver's thread."""

    def __init__(
        self,
        workshop: Workshop,
        backbone: AsyncBackbone,
        requests: Iterable[Candidates],
        max_queries: int,
        max_calls: int,
    ) -> None:
        self.events: SimpleQueue[Usage | Job | _End] = SimpleQueue()
        self._workshop, self._backbone = workshop, backbone
        self._max_queries, self._max_calls = max_queries, max_calls
        self._drawn = self._held = 0  # queries; held ones were not yet taken by the caller
        self._open: dict[int, int] = {}  # by query, the answers that it waits for
        self._queue: list[tuple[int, int, Job]] = []  # a heap of calls to ask; earlier queries come first
        self._asking: dict[asyncio.Task[Answer], Job] = {}
        self._drawing = self._exhausted = self._over = False
        self._broken: BaseException | None = None
        self._home = LoopThread("rerank-driver")
        self._source = _Source(requests, lambda item: self._soon(self._take, item))

    def fill(self, taken: int = 0) -> None:
        """Draws what there is room for, `taken` rankings having left."""
        self._soon(self._fill, taken)

    def stop(self) -> None:
        self._source.stop()
        self._home.close()

    def _soon(self, step: Callable[..., None], *arguments: object) -> None:
        """Has the driver's thread take a step, unless it has ended, and so nobody waits for it any more."""
        with suppress(RuntimeError):
            self._home.loop.call_soon_threadsafe(self._step, step, *arguments)

    def _step(self, step: Callable[..., None], *arguments: object) -> None:
        """Every step goes through here: an error in one is a bug, and the caller's to see."""
        try:
            step(*arguments)
        except Exception as error:
            self._end(error)

    def _fill(self, taken: int = 0) -> None:
        self._held -= taken
        room = self._held < self._max_queries and sum(self._open.values()) < self._max_calls
        if room and not (self._drawing or self._exhausted or self._over):
            self._drawing = True
            self._source.want()

    def _take(self, item: Candidates | _End) -> None:
        """One request, or the source's end."""
        self._drawing = False
        if isinstance(item, _End):
            self._exhausted, self._broken = True, item.error
            if not isinstance(item.error, Exception | None):  # an interrupt does not wait for what came before it
                self._end(item.error)
        else:
            job = self._workshop.start(self._drawn, item)
            self._drawn += 1
            self._held += 1
            self._sort(job)
            if (cancellation := item.query.cancellation) is not None:
                cancellation.then(lambda: self._soon(self._leave, job))
        self._go_on()

    def _leave(self, job: Job) -> None:
        """Its caller left, perhaps after it was done."""
        if job.ranking is None:
            self._drop(job, job.cancelled())
            self._go_on()

    def _sort(self, job: Job) -> None:
        """A job that advanced: out, or in line with its next calls."""
        if job.ranking is not None:
            self._open.pop(job.index, None)
            self.events.put(job)
            return
        self._open[job.index] = len(job.calls)
        for position in range(len(job.calls)):
            heapq.heappush(self._queue, (job.index, position, job))

    def _go_on(self) -> None:
        """Asks as much as the backbone takes, then sees whether there is room, or an end."""
        if self._over or self._home.closed:
            return
        while self._queue and len(self._asking) < self._backbone.concurrency:
            _, position, job = heapq.heappop(self._queue)
            if job.ranking is not None:  # failed in the meantime
                continue
            task = self._home.loop.create_task(self._backbone.ask(job.calls[position]))
            self._asking[task] = job
            task.add_done_callback(partial(self._step, self._answered, position, time.perf_counter()))
        self._fill()
        if self._exhausted and not self._open:
            self._end(self._broken)

    def _answered(self, position: int, started: float, task: asyncio.Task[Answer]) -> None:
        job = self._asking.pop(task)
        error = None if task.cancelled() else task.exception()
        if job.ranking is not None or self._over or self._home.closed:
            return self._go_on()  # the query is lost, or all is; and this call with it
        if task.cancelled():
            self._drop(job, BackboneError(f"{self._backbone.name!r} cancelled a call"))
        elif isinstance(error, RerankError):
            self._drop(job, error)
        elif error is not None:
            self._end(error)
        else:
            self.events.put(job.take(position, task.result(), time.perf_counter() - started))
            self._open[job.index] -= 1
            if not self._open[job.index]:
                self._workshop.advance(job)
                self._sort(job)
        self._go_on()

    def _drop(self, job: Job, error: RerankError) -> None:
        """A call failed, so its query did; what else it asked is of no use."""
        job.fail(error)
        for task, other in self._asking.items():
            if other is job:
                task.cancel()
        self._sort(job)

    def _end(self, error: BaseException | None) -> None:
        self._over = True
        self.events.put(_End(error))


class _Source:
    """Draws from an iterable in a thread of its own, one item for every `want`, and hands it to `post`; after the
    last one, or an error, an end. The caller's context variables hold there too."""

    def __init__(self, requests: Iterable[Candidates], post: Callable[[Candidates | _End], None]) -> None:
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._draw, requests, post), name="rerank-source", daemon=True
        )
        self._thread.start()

    def want(self) -> None:
        self._wanted.put(True)

    def stop(self) -> None:
        self._wanted.put(False)
        if threading.current_thread() is not self._thread:
            self._thread.join(_PATIENCE_S)

    def _draw(self, requests: Iterable[Candidates], post: Callable[[Candidates | _End], None]) -> None:
        source: Iterator[Candidates] | None = None
        try:
            source = iter(requests)
            while self._wanted.get():
                post(next(source))
        except StopIteration:
            post(_End(None))
        except BaseException as error:
            post(_End(error))
        finally:
            if isinstance(source, Generator):
                source.close()
