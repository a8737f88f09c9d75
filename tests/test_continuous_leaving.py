"""The continuous driver when its caller leaves, or the interpreter ends: nothing of it stays behind."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import Context

import pytest
from scripted_async import AsyncScripted, Latch

import rerank
from rerank.backbones import oracle
from rerank.calls import Call
from rerank.jobs import Progress
from rerank.types import Candidates

Make = Callable[..., Candidates]
WAIT_S = 20  # for what must happen at once; only a test that fails waits


def threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("rerank")}


def query_of(call: Call) -> str:
    return call.dialogue.query.query_id


class Left(Exception):
    pass


@pytest.mark.parametrize("how", ["close", "forget", "progress", "interrupt"])
def test_a_caller_that_leaves_cancels_what_is_in_flight(make_candidates: Make, how: str) -> None:
    """Nothing of it goes on: no call, no thread, no draw."""
    hanging = threading.Event()

    async def gate(call: Call) -> None:
        if query_of(call) != "q0":
            hanging.set()
            await Latch().wait()

    def leave(_: Progress) -> None:
        hanging.wait(WAIT_S)
        raise Left if how == "progress" else KeyboardInterrupt

    def source() -> Iterator[Candidates]:
        for i in itertools.count():
            yield make_candidates(2, f"q{i}")

    backbone = AsyncScripted(oracle({}), 8, gate)
    in_flight_leaves = how in ("progress", "interrupt")
    ranker = rerank.load("pointwise", backbone=backbone, on_progress=leave if in_flight_leaves else None)
    stream = ranker.rank_many(source())
    if in_flight_leaves:
        with pytest.raises(Left if how == "progress" else KeyboardInterrupt):
            next(stream)
    else:
        next(stream)
        assert hanging.wait(WAIT_S)
        if how == "close":
            stream.close()  # type: ignore[attr-defined]
        else:
            del stream
    assert threads() == set()
    assert backbone.flying == 0
    assert {query_of(call) for call in backbone.cancelled} >= {"q1"}


def test_nothing_is_asked_while_the_loop_is_being_closed(
    make_candidates: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the thread that closes it falls asleep after it has told the loop: what is cancelled makes no room."""

    class Drowsy(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(
            self, callback: Callable[..., object], *args: object, context: Context | None = None
        ) -> asyncio.Handle:
            handle = super().call_soon_threadsafe(callback, *args, context=context)
            if getattr(callback, "__name__", "") == "set":
                time.sleep(0.2)
            return handle

    monkeypatch.setattr(asyncio, "new_event_loop", Drowsy)
    drawn = threading.Event()

    def source() -> Iterator[Candidates]:
        for i in range(60):
            yield make_candidates(2, f"q{i}")
        drawn.set()

    async def gate(call: Call) -> None:
        if query_of(call) != "q0":
            await Latch().wait()

    backbone = AsyncScripted(oracle({}), 8, gate)
    stream = rerank.load("pointwise", backbone=backbone).rank_many(source())
    next(stream)
    assert drawn.wait(WAIT_S)
    asked = len(backbone.asked)
    stream.close()  # type: ignore[attr-defined]
    assert backbone.flying == 0
    assert len(backbone.asked) == asked


def test_a_source_that_blocks_is_left_behind(make_candidates: Make) -> None:
    """The caller need not wait for it; it ends when it next gives something."""
    release = threading.Event()

    def blocked() -> Iterator[Candidates]:
        yield make_candidates(2)
        release.wait(WAIT_S)
        yield make_candidates(2)

    stream = rerank.load("pointwise", backbone=AsyncScripted(oracle({}))).rank_many(blocked())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threads() == {"rerank-source"}
    left = next(t for t in threading.enumerate() if t.name == "rerank-source")
    release.set()
    left.join(WAIT_S)


AT_EXIT = """
import sys
sys.path.insert(0, {support!r})
import asyncio, itertools, rerank
from scripted_async import AsyncScripted, Latch
from rerank.backbones import oracle
from rerank.types import Candidates, Passage, Query

async def gate(call):
    if call.dialogue.query.query_id != "q0":
        await asyncio.Event().wait()

def source():
    for i in itertools.count():
        yield Candidates(Query("q", f"q{{i}}"), (Passage("a", "1"), Passage("b", "2")))

stream = rerank.load("pointwise", backbone=AsyncScripted(oracle({{}}), gate=gate)).rank_many(source())
print(next(stream).query.query_id)
{end}
"""


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "stream = [stream]; stream.append(stream)"])
def test_the_interpreter_ends_without_a_word_while_calls_hang(request: pytest.FixtureRequest, end: str) -> None:
    support = str(request.config.rootpath / "tests" / "support")
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT.format(support=support, end=end)], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr, done.returncode) == ("q0\n", "", 3 if "3" in end else 0)
