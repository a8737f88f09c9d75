"""The continuous driver: no query waits for another, and neither a caller nor a source holds up what is in flight."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_async import AsyncScripted, Latch

import rerank
from rerank import scheduler
from rerank.backbones import Prepared, ScriptedBackbone, oracle
from rerank.backbones.base import AsyncBackbone
from rerank.calls import Call
from rerank.errors import BackboneError, ContextError, InputError
from rerank.jobs import Progress
from rerank.strategies import Steps, Verdict
from rerank.strategies.pointwise import Pointwise
from rerank.types import Candidates, Passage, Query, Ranking

Make = Callable[..., Candidates]
WAIT_S = 20  # for what must happen at once; only a test that fails waits


def threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("rerank")}


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert threads() == set()


def query_of(call: Call) -> str:
    return call.dialogue.query.query_id


@settings(deadline=None, max_examples=15)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    concurrency=st.integers(1, 70),
    turns=st.lists(st.integers(0, 5), min_size=1, max_size=9),
)
def test_rankings_are_those_of_the_waves_whatever_comes_first(
    sizes: list[int], concurrency: int, turns: list[int]
) -> None:
    relevance = {f"d{i}": (i * 37 % 61) / 20 for i in range(60)}
    requests = [
        Candidates(Query("q", f"q{k}"), tuple(Passage(f"text {i}", f"d{i}") for i in range(n)))
        for k, n in enumerate(sizes)
    ]
    order = itertools.cycle(turns)

    async def in_some_order(call: Call) -> None:
        for _ in range(next(order)):
            await asyncio.sleep(0)

    for name in ("pointwise", "listwise", "first"):
        backbone = AsyncScripted(oracle(relevance), concurrency, in_some_order)
        waves = list(rerank.load(name, backbone=ScriptedBackbone(oracle(relevance))).rank_many(requests))
        found = list(rerank.load(name, backbone=backbone).rank_many(requests))
        assert [(r.query, r.hits, r.outcomes) for r in found] == [(r.query, r.hits, r.outcomes) for r in waves]
        for one, other in zip(found, waves, strict=True):
            assert (one.usage.calls, one.usage.prompt_tokens) == (other.usage.calls, other.usage.prompt_tokens)
        assert backbone.most <= concurrency


def test_no_query_waits_for_another(make_candidates: Make) -> None:
    """While one query's first window hangs, all windows of the others are answered."""
    others, go_on = 0, asyncio.Event()

    async def gate(call: Call) -> None:
        nonlocal others
        if query_of(call) == "q0":
            await go_on.wait()
            return
        others += 1
        if others == 9 * 3:
            go_on.set()

    backbone = AsyncScripted(oracle({}), gate=gate)
    rankings = list(
        rerank.load("listwise", backbone=backbone).rank_many(make_candidates(100, f"q{i}") for i in range(4))
    )
    assert [r.query.query_id for r in rankings] == ["q0", "q1", "q2", "q3"]
    assert [query_of(call) for call in backbone.asked[-8:]] == ["q0"] * 8


def test_concurrency_is_used_and_held_and_earlier_queries_go_first(make_candidates: Make) -> None:
    """Eight calls fly at a time, and only full flights are let through."""
    full = asyncio.Barrier(8)

    async def gate(call: Call) -> None:
        await full.wait()

    backbone = AsyncScripted(oracle({}), 8, gate)
    requests = [make_candidates(32, f"q{i}") for i in range(6)]
    list(rerank.load("pointwise", backbone=backbone).rank_many(requests))
    assert backbone.most == 8
    assert [query_of(call) for call in backbone.asked] == [f"q{i}" for i in range(6) for _ in range(32)]


def test_a_later_round_of_an_earlier_query_goes_before_a_later_query(make_candidates: Make) -> None:
    backbone = AsyncScripted(oracle({}), 1)
    list(rerank.load("listwise", backbone=backbone).rank_many(make_candidates(100, f"q{i}") for i in range(5)))
    assert [query_of(call) for call in backbone.asked] == [f"q{i}" for i in range(5) for _ in range(9)]


@pytest.mark.parametrize(("n", "bound"), [(1, scheduler.MAX_QUERIES), (400, scheduler.MAX_CALLS // 400 + 1)])
def test_input_is_drawn_only_as_fast_as_there_is_room(make_candidates: Make, n: int, bound: int) -> None:
    """While the first of a stream without end hangs, what is drawn is bounded by queries and by calls."""
    drawn, full, go_on = 0, threading.Event(), Latch()

    def endless() -> Iterator[Candidates]:
        nonlocal drawn
        for drawn in itertools.count(1):
            if drawn == bound:
                full.set()
            yield make_candidates(n, f"q{drawn - 1}")

    async def gate(call: Call) -> None:
        if query_of(call) == "q0":
            await go_on.wait()

    stream = rerank.load("pointwise", backbone=AsyncScripted(oracle({}), 300, gate)).rank_many(endless())
    rankings: list[Ranking] = []
    reader = threading.Thread(target=lambda: rankings.append(next(stream)))
    reader.start()
    assert full.wait(WAIT_S)
    assert bound <= drawn <= bound + 1  # one may have come for the one that left
    go_on.set()  # from here on answers make room
    reader.join(WAIT_S)
    stream.close()  # type: ignore[attr-defined]
    assert rankings[0].query.query_id == "q0"


def test_a_source_that_blocks_keeps_no_answer_back(make_candidates: Make) -> None:
    """Its second query comes only when the ranking of the first has been read."""
    read = threading.Event()

    def slow() -> Iterator[Candidates]:
        yield make_candidates(3, "q0")
        assert read.wait(WAIT_S)
        yield make_candidates(3, "q1")

    stream = rerank.load("pointwise", backbone=AsyncScripted(oracle({}))).rank_many(slow())
    assert next(stream).query.query_id == "q0"
    read.set()
    assert [r.query.query_id for r in stream] == ["q1"]


WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


def test_one_thread_alone_draws_with_the_callers_context(make_candidates: Make) -> None:
    seen: set[tuple[int, str]] = set()

    def source() -> Iterator[Candidates]:
        try:
            for i in range(9):
                seen.add((threading.get_ident(), WHO.get()))
                yield make_candidates(3, f"q{i}")
        finally:
            seen.add((threading.get_ident(), WHO.get()))

    token = WHO.set("the caller")
    stream = rerank.Reranker(Pointwise(), AsyncScripted(oracle({})))._run(source())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    WHO.reset(token)
    assert len(seen) == 1
    assert next(iter(seen))[1] == "the caller"
    assert next(iter(seen))[0] != threading.get_ident()


def test_an_error_of_the_source_comes_after_what_came_before_it(make_candidates: Make) -> None:
    def broken() -> Iterator[Candidates]:
        yield make_candidates(3, "q0")
        raise InputError("line 2 is broken")

    stream = rerank.load("pointwise", backbone=AsyncScripted(oracle({}))).rank_many(broken())
    assert next(stream).query.query_id == "q0"
    with pytest.raises(InputError, match="line 2"):
        next(stream)


def test_a_call_that_fails_fails_its_query_alone(make_candidates: Make) -> None:
    """Its other calls are given up; those of the other queries are answered."""

    async def gate(call: Call) -> None:
        if query_of(call) != "q1":
            return
        if call.dialogue.passages[0].doc_id == "d2":
            raise BackboneError("the server is on fire")
        await Latch().wait()

    backbone = AsyncScripted(oracle({}), 6, gate)
    ranker = rerank.load("pointwise", backbone=backbone)
    requests = [make_candidates(9, f"q{i}") for i in range(3)]
    kept = list(ranker.rank_many(requests, on_error="keep"))
    assert [str(r.error) for r in kept] == ["None", "the server is on fire", "None"]
    assert kept[1].doc_ids == [f"d{i}" for i in range(9)]
    assert (kept[1].outcomes.failed, kept[0].outcomes.failed, kept[0].usage.calls) == (1, 0, 9)
    assert {query_of(call) for call in backbone.cancelled} == {"q1"}
    assert sum(query_of(call) == "q1" for call in backbone.asked) <= 6  # what had not been asked never was
    stream = ranker.rank_many(requests)
    assert next(stream).query.query_id == "q0"
    with pytest.raises(BackboneError, match="on fire"):
        next(stream)


def test_a_query_that_cannot_be_asked_fails_alone(make_candidates: Make) -> None:
    class Short(AsyncScripted):
        def prepare(self, call: Call) -> Prepared:
            if "long" in call.dialogue.query.text:
                raise ContextError(f"query {query_of(call)!r} is too long")
            return super().prepare(call)

    requests = [make_candidates(3, f"q{i}", query="a long one" if i == 1 else "fine") for i in range(3)]
    kept = list(rerank.load("pointwise", backbone=Short(oracle({}))).rank_many(requests, on_error="keep"))
    assert [r.error is None for r in kept] == [True, False, True]


def test_a_backbone_that_cancels_a_call_does_not_hang(make_candidates: Make) -> None:
    async def gate(call: Call) -> None:
        raise asyncio.CancelledError

    (kept,) = rerank.load("pointwise", backbone=AsyncScripted(oracle({}), gate=gate)).rank_many(
        [make_candidates(3)], on_error="keep"
    )
    assert "cancelled a call" in str(kept.error)


def test_a_bug_is_raised_and_ends_everything(make_candidates: Make) -> None:
    @dataclass(frozen=True, slots=True)
    class Lossy(Pointwise):
        def rank(self, candidates: Candidates) -> Steps:
            yield [self.prompt.ask(candidates.query, candidates.passages[:1])]
            return Verdict((0, 0))

    async def bug(call: Call) -> None:
        raise ZeroDivisionError("in the backbone")

    with pytest.raises(RuntimeError, match="not an order of 2 passages"):
        list(rerank.Reranker(Lossy(), AsyncScripted(oracle({}))).rank_many([make_candidates(2)]))
    with pytest.raises(ZeroDivisionError, match="in the backbone"):
        list(rerank.load("pointwise", backbone=AsyncScripted(oracle({}), gate=bug)).rank_many([make_candidates(2)]))
    with pytest.raises(AttributeError):
        list(rerank.Reranker(Pointwise(), AsyncScripted(oracle({})))._run([None]))  # type: ignore[list-item]


def test_progress_comes_after_every_answer_in_the_callers_thread(make_candidates: Make) -> None:
    seen: list[Progress] = []
    where: set[int] = set()

    def note(progress: Progress) -> None:
        seen.append(progress)
        where.add(threading.get_ident())

    ranker = rerank.load("listwise", backbone=AsyncScripted(oracle({})), on_progress=note)
    rankings = list(ranker.rank_many([make_candidates(40, f"q{i}") for i in range(3)]))
    assert where == {threading.get_ident()}
    assert [p.batches for p in seen] == list(range(1, 10))
    for name in ("calls", "prompt_tokens", "generated_tokens"):
        assert getattr(seen[-1].usage, name) == sum(getattr(r.usage, name) for r in rankings)
    assert seen[-1].usage.seconds == pytest.approx(sum(r.usage.seconds for r in rankings))


def test_it_works_inside_a_running_loop(make_candidates: Make) -> None:
    """As in a notebook. Two rankings on one backbone at a time, too."""
    backbone = AsyncScripted(oracle({"d2": 1.0}))

    async def main() -> list[str]:
        ranker = rerank.load("pointwise", backbone=backbone)
        one = ranker.rank_many([make_candidates(3, f"q{i}") for i in range(2)])
        next(one)
        found = ranker.rank("q", make_candidates(3).passages)
        assert len(list(one)) == 1
        return found.doc_ids

    assert asyncio.run(main()) == ["d2", "d0", "d1"]


def test_stages_follow_one_another(make_candidates: Make) -> None:
    relevance = {f"d{i}": i / 10 for i in range(30)}
    waves, calls = ScriptedBackbone(oracle(relevance)), AsyncScripted(oracle(relevance))
    for first, second in ((calls, calls), (waves, calls), (calls, waves)):
        cascade = rerank.load("pointwise", backbone=first) % 5 >> rerank.load("listwise", backbone=second)
        rankings = list(cascade.rank_many([make_candidates(30, f"q{i}") for i in range(4)]))
        assert [r.doc_ids for r in rankings] == [[f"d{i}" for i in reversed(range(30))]] * 4
        assert [r.usage.calls for r in rankings] == [31] * 4
        fused = rerank.fuse(rerank.load("pointwise", backbone=first), rerank.load("listwise", backbone=second))
        rankings = list(fused.rank_many([make_candidates(20, f"q{i}") for i in range(100)]))
        assert [r.query.query_id for r in rankings] == [f"q{i}" for i in range(100)]
        assert [r.doc_ids for r in rankings] == [[f"d{i}" for i in reversed(range(20))]] * 100


def test_it_is_an_async_backbone() -> None:
    backbone: AsyncBackbone = AsyncScripted(oracle({}))
    assert backbone.concurrency == 64
