"""The progress bar of a run, on stderr: queries, tokens a second, time left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rerank.cli.options import notes
from rerank.scheduler import Progress as Done


class Bar:
    """Shows `Done` values. The scheduler counts from 0 for each block, so what came before is kept here.

    The bar moves with the calls, which come steadily; queries come many at once.
    """

    def __init__(self, title: str, queries: int | None, calls_per_query: int, done: int = 0) -> None:
        self._queries, self._per_query, self._before = queries, max(1, calls_per_query), done
        self._calls, self._tokens, self._last = 0, 0, Done()
        self._started = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=notes,
            transient=True,
        )
        left = None if queries is None else max(0, queries - done) * self._per_query
        self._task = self._progress.add_task(title, total=left, count="loading", rate="")

    def show(self, done: Done) -> None:
        if done.batches <= self._last.batches:  # a new block
            self._last = Done()
        self._calls += done.usage.calls - self._last.usage.calls
        tokens = done.usage.prompt_tokens + done.usage.generated_tokens
        self._tokens += tokens - self._last.usage.prompt_tokens - self._last.usage.generated_tokens
        self._last = done
        if self._calls == done.usage.calls and done.batches == 1:
            self._started = time.monotonic() - done.usage.seconds  # loading does not count
        rate = self._tokens / max(1e-9, time.monotonic() - self._started)
        finished = self._before + self._calls // self._per_query
        count = f"{finished}/{self._queries} queries" if self._queries is not None else f"{finished} queries"
        self._progress.update(self._task, completed=self._calls, count=count, rate=f"{rate:,.0f} tokens/s")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
