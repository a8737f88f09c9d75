"""The progress bar of a run, on stderr: queries, tokens a second, time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from threading import Lock
from types import TracebackType

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeRemainingColumn

from rerank.cli.options import notes, say
from rerank.jobs import Progress as Done
from rerank.types import Candidates, Usage

NOTE_S = 60.0  # where no bar can be drawn there is a line at most this often


STATE = TextColumn("{task.fields[state]}")


def drawn(*columns: ProgressColumn, hidden: bool = False) -> Progress:
    """The bar that all commands have, on stderr; `columns` stand behind it."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        *columns,
        console=notes,
        transient=True,
        redirect_stdout=False,  # else what is printed to stdout would come out here, on stderr
        disable=hidden or not notes.is_terminal,
    )


def watching(title: str, queries: int, calls: Callable[[int], int], done: int) -> Bar:
    """What the parts of a study or a suite are watched by."""
    say(title)
    return Bar(title, queries, calls, done=done)


class Bar:
    """Shows `Done` values. `calls` says what n passages cost; `done` queries were ranked in an earlier sitting.

    The bar moves with the calls, which come steadily; queries come many at once. `watch` has to see the
    requests, since how many calls there will be depends on how many passages each has.
    """

    def __init__(
        self, title: str, queries: int | None, calls: Callable[[int], int], *, done: int = 0, hidden: bool = False
    ) -> None:
        self._queries, self._cost, self._before, self._hidden = queries, calls, done, hidden
        self._drawn, self._expected = 0, 0  # requests, and the calls of those that are not done
        self._ranked = done  # before this block
        self._calls, self._tokens, self._last, self._seen = 0, 0, Done(), done
        self._started = self._noted = time.monotonic()
        self._progress = drawn(STATE, hidden=hidden)
        self._task = self._progress.add_task(title, total=None, state="first batch")

    def watch(self, requests: Iterable[Candidates]) -> Iterator[Candidates]:
        for request in requests:
            self._drawn += 1
            if self._drawn > self._before:
                self._expected += self._cost(len(request))
            yield request

    def show(self, done: Done) -> None:
        now = time.monotonic()
        if done.batches <= self._last.batches:  # the scheduler counts from 0 for each block
            self._ranked, self._last = self._seen, Done()
        if not self._calls:
            self._started = now - done.usage.seconds  # loading does not count
        self._calls += done.usage.calls - self._last.usage.calls
        self._tokens += _tokens(done) - _tokens(self._last)
        self._last, self._seen = done, self._drawn
        total, state = self._total(), self._state(done, now - self._started)
        self._progress.update(self._task, total=total, completed=self._calls, state=state)
        if not notes.is_terminal and not self._hidden and now - self._noted >= NOTE_S:
            self._noted = now
            notes.print(state)

    def _total(self) -> float | None:
        """The calls of this sitting: those of the requests seen, and the same mean for those to come."""
        seen = self._drawn - self._before
        if self._queries is None or seen <= 0:
            return None
        return self._expected * (1 + max(0, self._queries - self._drawn) / seen)

    def _state(self, done: Done, seconds: float) -> str:
        count = f"{self._ranked + done.queries:,}"
        parts = [f"{count}/{self._queries:,} queries" if self._queries is not None else f"{count} queries"]
        parts += [f"{self._tokens / max(1e-9, seconds):,.0f} tokens/s"]
        total = self._total()
        if total is not None and self._calls:
            parts.append(f"{clock(seconds * max(0.0, total / self._calls - 1))} left")
        return ", ".join(parts)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class Counted:
    """A bar for what is simply counted, as documents are."""

    def __init__(self, title: str, unit: str) -> None:
        self._unit, self._noted = unit, time.monotonic()
        self._progress = drawn(TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit}"), TimeRemainingColumn())
        self._task = self._progress.add_task(title, total=0)

    def show(self, done: int, total: int) -> None:
        self._progress.update(self._task, total=total, completed=done)
        now = time.monotonic()
        if not notes.is_terminal and now - self._noted >= NOTE_S:
            self._noted = now
            notes.print(f"{done:,}/{total:,} {self._unit}")

    def __enter__(self) -> Counted:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class Summed:
    """The progress of a cascade's stages as one; `shows` has what each of them is to call, in their order.

    Every stage counts from 0 for each block, and they do so one after another; the sum goes on. A query counts as
    ranked when the last stage has done with it. Stages may be in threads of their own.
    """

    def __init__(self, show: Callable[[Done], None], stages: int) -> None:
        self._show, self._lock = show, Lock()
        self._before, self._last = [Done()] * stages, [Done()] * stages
        self.shows = [partial(self._take, stage) for stage in range(stages)]

    def _take(self, stage: int, done: Done) -> None:
        with self._lock:
            last = self._last[stage]
            if done.batches <= last.batches:
                self._before[stage] = _plus(self._before[stage], last)
            self._last[stage] = done
            each = [_plus(before, last) for before, last in zip(self._before, self._last, strict=True)]
            usage = sum((stage.usage for stage in each), Usage())
            self._show(Done(each[-1].queries, sum(stage.batches for stage in each), usage))


def _plus(one: Done, other: Done) -> Done:
    return Done(one.queries + other.queries, one.batches + other.batches, one.usage + other.usage)


def _tokens(done: Done) -> int:
    return done.usage.prompt_tokens + done.usage.generated_tokens


def clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
