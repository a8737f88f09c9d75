"""The scheduler: advances the strategies of many queries together and merges what they ask.

With an engine that is asked call by call every query goes on by itself; see `continuous`. With one that answers
batches they go on in waves: the scheduler collects the calls of every query in flight, lets the backbone say
which go together, and sends each strategy its answers. A strategy whose calls follow one another, such as a
sliding window, thus shares each batch with the other queries' windows. Rankings come out in input order, as soon
as they can; input is drawn only as fast as there is room.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from rerank.backbones.base import Backbone, BatchBackbone, is_async
from rerank.errors import InputError
from rerank.jobs import Job, Progress, Workshop
from rerank.strategies.base import Strategy
from rerank.types import Candidates, Ranking

MAX_QUERIES = 512  # in flight or waiting for an earlier query
MAX_CALLS = 4096  # in one wave, unless said otherwise


class Scheduler:
    """Runs one strategy on one backbone. `strict` refuses passages that would be cut or neutralised.

    No query is begun while `max_calls` calls are in flight: it bounds memory, and how far calls can share what they
    begin with.
    """

    def __init__(
        self,
        strategy: Strategy,
        backbone: Backbone,
        *,
        strict: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        max_calls: int = MAX_CALLS,
    ) -> None:
        if max_calls < 1:
            raise InputError(f"max_calls is {max_calls}; give at least 1")
        self._workshop, self._max_calls = Workshop(strategy, backbone, strict=strict), max_calls
        self._backbone, self._on_progress = backbone, on_progress

    def run(self, requests: Iterable[Candidates]) -> Iterator[Ranking]:
        """The rankings, in input order.

        A query that cannot be asked comes out in its given order with `error` set; the others go on.
        An error of `requests` itself is raised after the rankings of what came before it.
        """
        if is_async(self._backbone):
            from rerank.continuous import drive  # asyncio and threads, for those who need them

            return drive(
                self._workshop,
                self._backbone,
                requests,
                self._on_progress,
                max_queries=MAX_QUERIES,
                max_calls=self._max_calls,
            )
        return self._waves(self._backbone, requests)

    def _waves(self, backbone: BatchBackbone, requests: Iterable[Candidates]) -> Iterator[Ranking]:
        source = enumerate(requests)
        jobs: list[Job] = []
        done: dict[int, Ranking] = {}
        broken: Exception | None = None
        exhausted, following = False, 0
        progress = Progress()
        while True:
            while not exhausted and len(jobs) + len(done) < MAX_QUERIES and _asked(jobs) < self._max_calls:
                try:
                    index, request = next(source)
                except StopIteration:
                    exhausted = True
                except Exception as error:
                    exhausted, broken = True, error
                else:
                    jobs.append(self._workshop.start(index, request))
            places = [(job, position) for job in jobs for position in range(len(job.calls))]
            for batch in backbone.group([job.calls[position] for job, position in places]):
                if wanted := _wanted([places[i] for i in batch]):
                    progress = self._answer(backbone, wanted, progress)
            for job in jobs:
                if job.ranking is None:
                    self._workshop.advance(job)
            done |= {job.index: job.ranking for job in jobs if job.ranking is not None}
            jobs = [job for job in jobs if job.ranking is None]
            while following in done:
                following += 1
                progress = replace(progress, queries=following)
                yield done.pop(following - 1)
            if exhausted and not jobs:
                break
        if broken is not None:
            raise broken

    def _answer(self, backbone: BatchBackbone, batch: list[tuple[Job, int]], progress: Progress) -> Progress:
        started = time.perf_counter()
        items = [job.calls[position] for job, position in batch]
        answers = backbone.answer(items)
        seconds = time.perf_counter() - started
        total = sum(item.tokens for item in items) or 1
        usage = progress.usage
        for (job, position), item, answer in zip(batch, items, answers, strict=True):
            usage += job.take(position, answer, seconds * item.tokens / total)
        progress = replace(progress, batches=progress.batches + 1, usage=usage)
        if self._on_progress is not None:
            self._on_progress(progress)
        return progress


def _wanted(batch: list[tuple[Job, int]]) -> list[tuple[Job, int]]:
    """Without the calls of queries that were cancelled, which end here."""
    for job, _ in batch:
        if job.ranking is None and job.request.query.cancelled:
            job.fail(job.cancelled())
    return [(job, position) for job, position in batch if job.ranking is None]


def _asked(jobs: list[Job]) -> int:
    return sum(len(job.calls) for job in jobs)
