"""`rerank run` over shards: where they come from, who ranks them, and the bar."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from rerank.cli.options import notes
from rerank.cli.progress import NOTE_S, STATE, clock, drawn
from rerank.data.shards import PER_SHARD, list_shards, write_shards
from rerank.errors import CacheError, InputError, UnknownNameError
from rerank.runs import Totals, journal_path
from rerank.sharded import Executor, Step, Work, here, parts_path, run_shards
from rerank.types import Candidates

ENGINES = ("here", "ray")

EngineName = Annotated[
    str,
    typer.Option("--engine", metavar="NAME", help="Where it runs: 'here', or 'ray': workers, on a cluster or here."),
]
Workers = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Of ray: how many, each with a model of its own; default: 1.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="A Ray cluster, or 'auto'; default: RAY_ADDRESS, else one started here."),
]
WorkerCpus = Annotated[
    float | None, typer.Option(metavar="X", min=0, help="Of ray: CPUs, and so threads, of a worker; default: 1.")
]
WorkerGpus = Annotated[
    float | None, typer.Option(metavar="X", min=0, help="Of ray: GPUs of a worker; default: 1 where there are any.")
]


def executor_of(
    engine: str, workers: int | None, address: str | None, cpus: float | None, gpus: float | None, device: str | None
) -> Executor | None:
    """Who ranks the shards; None is this process. A flag of the other is refused."""
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    if engine == "here":
        flags = {"workers": workers, "ray-address": address, "worker-cpus": cpus, "worker-gpus": gpus}
        if given := [name for name, value in flags.items() if value is not None]:
            raise InputError(f"--{given[0]} is for --engine ray; add that, or leave it out")
        return None
    from rerank.ray_pool import Pool, require_ray

    require_ray()
    if gpus is None and device == "cpu":
        gpus = 0.0
    return Pool(workers or 1, address or os.environ.get("RAY_ADDRESS"), 1.0 if cpus is None else cpus, gpus)


def rank_in_shards(
    work: Work, source: Path | Iterable[Candidates], output: Path, executor: Executor | None, title: str
) -> Totals:
    """`source` is a folder of shards, or a stream, which is cut into shards beside the output first."""
    if (journal := journal_path(output)).exists():
        raise CacheError(
            f"{journal} is of a run that was begun here and without shards; finish it as it was begun, or delete it"
        )
    with _tidy(work.parts):
        shards = list_shards(source.absolute()) if isinstance(source, Path) else _cut(work, source)
        bar = ShardBar(title, len(shards))
        try:
            with bar:
                return run_shards(work, shards, output, executor or here, bar.show)
        except KeyboardInterrupt:
            notes.print(f"{output}: shards done: {bar.done} of {len(shards)}; the same command goes on from there")
            raise


def refuse_parts(output: Path) -> None:
    """A run that was begun in shards is not begun again without."""
    if (parts := parts_path(output)).exists():
        raise CacheError(
            f"{parts} is of a run that was begun with --engine ray; finish it as it was begun, or delete it"
        )


@contextmanager
def _tidy(parts: Path) -> Iterator[None]:
    """Where not even the shards are known, nothing is left behind."""
    try:
        yield
    except BaseException:
        if parts.exists() and not (parts / "manifest.json").exists():
            shutil.rmtree(parts)
        raise


def _cut(work: Work, requests: Iterable[Candidates]) -> list[Path]:
    """Anew in every sitting: a shard that is not what it was is then found by its hash.

    Of whole blocks, so that a run in one process and without shards has the same.
    """
    work.parts.mkdir(exist_ok=True)
    folder = work.parts / "candidates"
    shutil.rmtree(folder, ignore_errors=True)
    write_shards(requests, folder, per_shard=work.block * max(1, PER_SHARD // work.block))
    return list_shards(folder)


class ShardBar:
    """Shards and queries that are done, tokens a second, time left."""

    def __init__(self, title: str, shards: int) -> None:
        self.done, self._shards = 0, shards
        self._queries: dict[str, int] = {}  # of every shard that was begun
        self._whole = 0  # queries of the shards that are done
        self._fresh, self._tokens, self._last = 0, 0, dict[str, Totals]()  # of this sitting
        self._started = self._noted = time.monotonic()
        self._progress = drawn(STATE)
        self._task = self._progress.add_task(title, total=shards, state="starting")

    def show(self, step: Step) -> None:
        now, totals = time.monotonic(), step.totals
        last = self._last.get(step.shard, totals)
        self._fresh += totals.queries - last.queries
        self._tokens += _tokens(totals) - _tokens(last)
        self._queries[step.shard], self._last[step.shard] = totals.queries, totals
        if step.query_ids is not None:
            self.done += 1
            self._whole += totals.queries
            del self._last[step.shard]
        state = self._state(now - self._started)
        self._progress.update(self._task, completed=self.done, state=state)
        if not notes.is_terminal and now - self._noted >= NOTE_S:
            self._noted = now
            notes.print(state)

    def _state(self, seconds: float) -> str:
        ranked = sum(self._queries.values())
        parts = [f"{self.done:,}/{self._shards:,} shards, {ranked:,} queries"]
        parts += [f"{self._tokens / max(1e-9, seconds):,.0f} tokens/s"]
        if self.done and self._fresh:
            left = self._whole / self.done * self._shards - ranked
            parts.append(f"{clock(max(0.0, seconds * left / self._fresh))} left")
        return ", ".join(parts)

    def __enter__(self) -> ShardBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _tokens(totals: Totals) -> int:
    return totals.usage.prompt_tokens + totals.usage.generated_tokens
