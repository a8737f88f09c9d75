"""Shards ranked by workers on a Ray cluster, or by several processes of this machine.

A worker is an actor that holds a ranker and takes a shard at a time. It tells of every block that is durable, through
a streaming generator. A worker that dies is replaced, and its shard goes on from its last block.

Ray Data does not drive this: it hands a batch on when all of it is done, so there would be no block to tell of; it
tries a batch again without end, or gives up the whole of the data; and after half an hour without a batch it takes
the run for dead.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, cast

from rerank.errors import BackboneError, InputError, RerankError
from rerank.sharded import Step, Work, close_loaded, rank_shard

if TYPE_CHECKING:
    from ray import ObjectRefGenerator
    from ray.actor import ActorHandle

_log = logging.getLogger(__name__)

MAX_DEATHS = 3  # of workers on one shard: then it is the shard that kills them, or the model that is too large
_LOOK_S = 1.0  # between two looks, so that Ctrl-C is heard
_REACH_S = 5.0
_STARTS = 3
_CLOSE_S = 30.0
_STORE_BYTES = 80 * 2**20  # Ray's least; nothing large goes through it


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that a user can cause, as text: not every exception survives being sent."""

    text: str


class Worker:
    """What runs as an actor. The ranker is loaded when there is something to rank."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._ranker = cache(work.load)

    def rank(self, shard: Path) -> Iterator[Step | Failure]:
        try:
            yield from rank_shard(self._work, shard, self._ranker)
        except (RerankError, OSError) as error:
            yield Failure(str(error))

    def close(self) -> None:
        close_loaded(self._ranker)


@dataclass(frozen=True, slots=True)
class Pool:
    """`workers` of so many CPUs and GPUs each; without `gpus` one where the cluster has any. Without an address Ray is
    started on this machine, for as long as the run lasts."""

    workers: int = 1
    address: str | None = None
    cpus: float = 1.0
    gpus: float | None = None

    def __call__(self, work: Work, shards: Sequence[Path]) -> Iterator[Step]:
        _settle()
        import ray

        self._connect()
        try:
            nodes: list[dict[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
            gpus = self.gpus if self.gpus is not None else float(any(node.get("GPU", 0) > 0 for node in nodes))
            self._check(nodes, gpus)
            actor = ray.remote(num_cpus=self.cpus, num_gpus=gpus, max_restarts=0)(Worker)
            with heard_interrupts() as interrupted:
                shift = Shift(lambda: cast("ActorHandle[Worker]", actor.remote(work)), shards, self.workers)
                yield from shift.steps(interrupted)
        finally:
            ray.shutdown()

    def _connect(self) -> None:
        import ray

        if self.address is not None:
            _reach(self.address)
        try:
            if self.address is None:
                self._begin()
            else:
                ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray has no class of its own for most of what may happen here
            where = self.address or "this machine"
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise BackboneError(f"no Ray cluster on {where}: {reason}") from error

    def _begin(self) -> None:
        """Starts Ray on this machine. It waits for its own parts for 30 s, which a busy machine can exceed."""
        import ray

        cpus = max(1, math.ceil(self.workers * self.cpus))
        for left in reversed(range(_STARTS)):
            try:
                ray.init(
                    "local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=_STORE_BYTES,
                )
                return
            except Exception as error:
                ray.shutdown()
                if not left or "timed out" not in str(error):
                    raise
                _log.warning("Ray did not start in time; trying again")

    def _check(self, nodes: Sequence[Mapping[str, float]], gpus: float) -> None:
        if (fits := room(nodes, {"CPU": self.cpus, "GPU": gpus})) < self.workers:
            _log.warning(
                "Ray has %g CPUs and %g GPUs on %d machines, enough for %d of %d workers; the others wait until it has "
                "more",
                sum(node.get("CPU", 0) for node in nodes),
                sum(node.get("GPU", 0) for node in nodes),
                len(nodes),
                fits,
                self.workers,
            )


def room(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> float:
    """How many workers the machines hold; each is on one of them."""
    wanted = {name: amount for name, amount in needs.items() if amount}
    if not wanted:
        return math.inf
    return sum(min(int(node.get(name, 0) / each + 1e-6) for name, each in wanted.items()) for node in nodes)


class Shift:
    """The shards that wait, and the workers that are busy. Each worker has one shard at a time."""

    def __init__(self, hire: Callable[[], ActorHandle[Worker]], shards: Sequence[Path], workers: int) -> None:
        self._hire, self._waiting = hire, deque(shards)
        self._workers = min(workers, len(shards))
        self._busy: dict[ObjectRefGenerator, tuple[ActorHandle[Worker], Path]] = {}
        self._reached: dict[Path, int] = {}
        self._deaths: Counter[tuple[Path, int]] = Counter()  # at one place: machines that come and go may do so

    def steps(self, interrupted: threading.Event) -> Iterator[Step]:
        import ray

        for _ in range(self._workers):
            self._start(self._hire())
        while self._busy:
            if interrupted.is_set():
                raise KeyboardInterrupt
            ready, _ = ray.wait(list(self._busy), timeout=_LOOK_S)
            for generator in ready:
                if (step := self._next(generator)) is not None:
                    yield step

    def _next(self, generator: ObjectRefGenerator) -> Step | None:
        import ray
        from ray.exceptions import RayError, RayTaskError

        worker, shard = self._busy[generator]
        try:
            said: Step | Failure = ray.get(next(generator))
        except StopIteration:
            del self._busy[generator]
            self._start(worker)
            return None
        except RayTaskError as error:  # a bug: its own traceback
            raise error.cause from error
        except RayError as error:
            del self._busy[generator]
            self._replace(worker, shard, error)
            return None
        if isinstance(said, Failure):
            raise RerankError(said.text)
        self._reached[shard] = said.totals.queries
        return said

    def _start(self, worker: ActorHandle[Worker]) -> None:
        import ray
        from ray.exceptions import RayError

        if not self._waiting:
            with suppress(RayError):  # killed it is in any case
                ray.get(worker.close.remote(), timeout=_CLOSE_S)
            ray.kill(worker)
            return
        shard = self._waiting.popleft()
        self._busy[worker.rank.options(num_returns="streaming").remote(shard)] = worker, shard

    def _replace(self, worker: ActorHandle[Worker], shard: Path, error: Exception) -> None:
        import ray

        ray.kill(worker)  # it may be cut off only, and must not write what another one does
        place = shard, self._reached.get(shard, 0)
        self._deaths[place] += 1
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "no reason known").strip()
        if self._deaths[place] == MAX_DEATHS:
            raise BackboneError(
                f"{MAX_DEATHS} workers died on the shard {shard.name}, the last one so: {reason} What is done is kept; "
                "is there memory enough for a model in each worker?"
            )
        _log.warning("a worker died on the shard %s; another one goes on from its last block", shard.name)
        self._waiting.appendleft(shard)
        self._start(self._hire())


def require_ray() -> None:
    """Before anything is read or loaded."""
    if importlib.util.find_spec("ray") is None:
        raise BackboneError("--engine ray needs ray: pip install 'rerank-llm[ray]'")


@contextmanager
def heard_interrupts() -> Iterator[threading.Event]:
    """Remembers a Ctrl-C: Python drops the exception where it comes in a destructor, and Ray's handles have such."""
    interrupted = threading.Event()

    def hear(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.default_int_handler(number, frame)

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours or threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    signal.signal(signal.SIGINT, hear)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _settle() -> None:
    """Read when Ray is imported: no report to its makers, and no page of its own on a death, which is told here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed|retries remaining")


def _reach(address: str) -> None:
    """Looks whether anyone answers there: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise InputError(
            f"the Ray address {address!r} is not of the form HOST:PORT; give that of the cluster's head (its port is "
            "6379 unless told otherwise) on a machine of the cluster, or 'auto'"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise BackboneError(
            f"no Ray cluster answers at {address}: {error}; is it the address that 'ray start --head' printed?"
        ) from error
