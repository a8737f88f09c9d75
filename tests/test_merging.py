"""Callers that know nothing of one another share batches, and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import pytest
from scripted_async import AsyncScripted, Latch

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.calls import Call
from rerank.errors import BackboneError, BusyError, CapabilityError, ContextError, InputError
from rerank.merging import Batch, Merged, Merger
from rerank.reranker import Ranker
from rerank.types import Candidates, Ranking

Make = Callable[..., Candidates]
WAIT_S = 20  # for what must happen at once; only a test that fails waits


def by_length(call: Call) -> list[float]:
    """The longest passage whose query begins with 'long', the shortest of another."""
    sign = 1 if call.dialogue.query.text.startswith("long") else -1
    return [sign * float(len(call.dialogue.passages[0].text)), 0.0]


class Held(Ranker):
    """Reverses the passages, and waits for `release` before it gives the ranking of a query named 'held'. `asked` has
    what each call of rank_many was given."""

    def __init__(self) -> None:
        self.release, self.begun = threading.Event(), threading.Event()
        self.asked: list[list[str]] = []
        self.cancelled: list[str] = []

    def _run(self, requests: Iterable[Candidates]) -> Iterator[Ranking]:
        drawn = list(requests)
        self.asked.append([request.query.text for request in drawn])
        for request in drawn:
            if request.query.text == "held":
                self.begun.set()
                assert self.release.wait(WAIT_S)
            if request.query.text == "broken":
                raise BackboneError("the engine is gone")
            if request.query.cancelled:
                self.cancelled.append(request.query.text)
            order = range(len(request) - 1, -1, -1)
            yield Ranking.of(request, order, [float(i) for i in order])


def request(text: str, n: int = 2) -> Candidates:
    return rerank.types.as_candidates(text, [f"{text} {i}" for i in range(n)])


@pytest.mark.parametrize("kind", ["reranker", "cascade", "fusion", "async"])
def test_arank_equals_rank_and_callers_share_a_batch(kind: str) -> None:
    backbone = ScriptedBackbone(by_length)
    one = rerank.load("pointwise", prompt="pointwise-yes-no", backbone=backbone)
    elsewhere = rerank.load("pointwise", prompt="pointwise-yes-no", backbone=AsyncScripted(by_length))
    ranker: Ranker = {"reranker": one, "cascade": one % 3 >> one, "async": elsewhere, "fusion": rerank.fuse(one, one)}[
        kind
    ]
    asked = [(f"{'long' if i % 2 else 'short'} {i}", ["a", "bbb" * (i + 1), "cc"]) for i in range(6)]
    alone = [ranker.rank(*each) for each in asked]
    backbone.batches.clear()

    async def together() -> list[Ranking]:
        return await asyncio.gather(*(ranker.arank(*each) for each in asked))

    merged = asyncio.run(together())
    assert [ranking.hits for ranking in merged] == [ranking.hits for ranking in alone]
    assert [ranking.query for ranking in merged] == [ranking.query for ranking in alone]
    if kind != "async":
        stages = {"reranker": 1, "cascade": 2, "fusion": 2}[kind]
        assert backbone.batches == [3 * len(asked)] * stages
    assert merged[0].query.cancellation is None


def test_one_that_cannot_be_asked_fails_alone() -> None:
    def script(call: Call) -> list[float]:
        return by_length(call)

    class Narrow:
        """A context of 200 words."""

        def __init__(self, inner: ScriptedBackbone) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

        def prepare(self, call: Call) -> rerank.backbones.Prepared:
            prepared = self._inner.prepare(call)
            if prepared.tokens > 200:
                raise ContextError("too long")
            return prepared

    ranker = rerank.load("pointwise", prompt="pointwise-yes-no", backbone=Narrow(ScriptedBackbone(script)))  # type: ignore[arg-type]

    async def together() -> list[Ranking | BaseException]:
        texts = ["long", "word " * 300, "short"]
        return await asyncio.gather(*(ranker.arank(text, ["a", "bb"]) for text in texts), return_exceptions=True)

    first, second, third = asyncio.run(together())
    assert isinstance(first, Ranking) and first.doc_ids == ["1", "0"]
    assert isinstance(second, ContextError)
    assert isinstance(third, Ranking) and third.doc_ids == ["0", "1"]


def test_where_the_engine_breaks_down_the_others_are_asked_again() -> None:
    ranker, merger = Held(), Merger()
    futures = [merger.submit(ranker, request(text), begin=False) for text in ("a", "broken", "c")]
    merger.begin()
    assert futures[0].result(WAIT_S).ranking.doc_ids == ["1", "0"]
    assert futures[2].result(WAIT_S).ranking.doc_ids == ["1", "0"]
    with pytest.raises(BackboneError, match="the engine is gone"):
        futures[1].result(WAIT_S)
    assert ranker.asked == [["a", "broken", "c"], ["broken"], ["c"]]
    assert merger.submit(ranker, request("d")).result(WAIT_S).batch == 1  # and it goes on


def test_what_arrives_in_the_meantime_is_the_next_batch_in_turns() -> None:
    """A client with many requests does not hold up the others; a batch has at most so many documents."""
    batches: list[Batch] = []
    ranker, merger = Held(), Merger(batch_documents=8, on_batch=batches.append)
    first = merger.submit(ranker, request("held"))
    assert ranker.begun.wait(WAIT_S)
    many = [merger.submit(ranker, request(f"many {i}"), "many") for i in range(6)]
    few = [merger.submit(ranker, request(f"few {i}"), "few") for i in range(2)]
    assert merger.waiting == (8, 16)
    ranker.release.set()
    results = [future.result(WAIT_S) for future in [first, *many, *few]]
    assert ranker.asked == [
        ["held"],
        ["many 0", "few 0", "many 1", "few 1"],
        ["many 2", "many 3", "many 4", "many 5"],
    ]
    assert merger.waiting == (0, 0)
    assert [result.batch for result in results] == [1, 4, 4, 4, 4, 4, 4, 4, 4]
    assert all(result.ranking.query.text == hit.passage.text[:-2] for result in results for hit in result.ranking)
    merger_threads(0)
    assert [(batch.requests, batch.documents) for batch in batches] == [(1, 2), (4, 8), (4, 8)]


def merger_threads(expected: int) -> None:
    for thread in threading.enumerate():
        if thread.name == "rerank-merger":
            thread.join(WAIT_S)
    assert sum(thread.name == "rerank-merger" for thread in threading.enumerate()) == expected


def test_rankers_take_turns_and_share_no_batch() -> None:
    one, other = Held(), Held()
    merger = Merger()
    first = merger.submit(one, request("held"))
    assert one.begun.wait(WAIT_S)
    futures = [merger.submit(ranker, request(str(i))) for i, ranker in enumerate([one, other, one, other])]
    one.release.set()
    for future in [first, *futures]:
        future.result(WAIT_S)
    assert one.asked == [["held"], ["0", "2"]]
    assert other.asked == [["1", "3"]]


def test_a_full_queue_says_so() -> None:
    ranker = Held()
    merger = Merger(max_requests=2, max_documents=10)
    first = merger.submit(ranker, request("held"))
    assert ranker.begun.wait(WAIT_S)
    waiting = [merger.submit(ranker, request("a", 4))]
    with pytest.raises(BusyError, match="4 documents wait already, and 7 more are too many"):
        merger.submit(ranker, request("b", 7))
    waiting.append(merger.submit(ranker, request("c", 6)))
    with pytest.raises(BusyError, match="2 requests wait already"):
        merger.submit(ranker, request("d", 1))
    waiting.pop().cancel()  # and its place is free
    waiting.append(merger.submit(ranker, request("e", 6)))
    ranker.release.set()
    assert [future.result(WAIT_S).ranking.query.text for future in [first, *waiting]] == ["held", "a", "e"]


def test_one_that_is_larger_than_the_queue_waits_alone() -> None:
    ranker = Held()
    merger = Merger(max_documents=3)
    first = merger.submit(ranker, request("held"))
    assert ranker.begun.wait(WAIT_S)
    large = merger.submit(ranker, request("large", 4))
    with pytest.raises(BusyError, match="4 documents wait already, and 1 more are too many"):
        merger.submit(ranker, request("small", 1))
    ranker.release.set()
    assert [len(future.result(WAIT_S).ranking) for future in (first, large)] == [len(request("held")), 4]


def test_who_is_cancelled_frees_what_has_not_begun() -> None:
    ranker, merger = Held(), Merger()

    async def scenario() -> None:
        held = asyncio.create_task(merger.ask(ranker, request("held")))
        await asyncio.to_thread(ranker.begun.wait, WAIT_S)
        waiting = asyncio.create_task(merger.ask(ranker, request("never")))
        await asyncio.sleep(0)
        assert merger.waiting == (1, 2)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert merger.waiting == (0, 0)
        held.cancel()
        await asyncio.wait([held])
        ranker.release.set()
        result: Merged = await merger.ask(ranker, request("after"))
        assert result.ranking.query.text == "after"

    asyncio.run(scenario())
    assert ranker.asked == [["held"], ["after"]]
    assert ranker.cancelled == ["held"]


def test_what_has_begun_is_given_up_between_batches() -> None:
    begun, release = threading.Event(), threading.Event()

    def script(call: Call) -> list[float]:
        begun.set()
        assert release.wait(WAIT_S)
        return by_length(call)

    backbone = ScriptedBackbone(script, batch_tokens=1)  # a call is a batch
    ranker = rerank.load("pointwise", prompt="pointwise-yes-no", backbone=backbone)

    async def scenario() -> Ranking:
        leaving = asyncio.create_task(ranker.arank("long", ["a" * i for i in range(1, 10)]))
        staying = asyncio.create_task(ranker.arank("short", ["aa", "a"]))
        await asyncio.to_thread(begun.wait, WAIT_S)
        leaving.cancel()
        await asyncio.wait([leaving])
        release.set()
        return await staying

    assert asyncio.run(scenario()).doc_ids == ["1", "0"]
    assert len(backbone.batches) in (2, 3)  # the one under way may be either's


def test_an_engine_asked_call_by_call_gives_up_at_once() -> None:
    hanging = threading.Event()

    async def gate(call: Call) -> None:
        if call.dialogue.query.text == "leaving":
            hanging.set()
            await Latch().wait()

    backbone = AsyncScripted(by_length, gate=gate)
    ranker = rerank.load("pointwise", prompt="pointwise-yes-no", backbone=backbone)

    async def scenario() -> Ranking:
        leaving = asyncio.create_task(ranker.arank("leaving", ["a", "b", "c"]))
        staying = asyncio.create_task(ranker.arank("short", ["aa", "a"]))
        await asyncio.to_thread(hanging.wait, WAIT_S)
        leaving.cancel()
        return await staying

    assert asyncio.run(scenario()).doc_ids == ["1", "0"]
    merger_threads(0)  # the caller that stayed may have its ranking before the other's calls have gone
    assert {call.dialogue.query.text for call in backbone.cancelled} == {"leaving"}


def test_a_caller_with_a_timeout_is_free() -> None:
    ranker = Held()

    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await ranker.arank("held", ["a"])
        ranker.release.set()

    asyncio.run(scenario())
    merger_threads(0)


def test_arank_raises_what_rank_raises() -> None:
    ranker = rerank.load("pointwise", backbone=ScriptedBackbone(oracle({})))
    with pytest.raises(InputError, match="no passages"):
        asyncio.run(ranker.arank("q", []))


def test_a_ranker_can_be_limited_to_so_many_tokens_of_a_passage() -> None:
    backbone = ScriptedBackbone(by_length)
    one = rerank.load("pointwise", prompt="pointwise-yes-no", backbone=backbone, passage_tokens=50)
    for ranker in (one, one % 3 >> one, rerank.fuse(one, rerank.FirstStage())):
        assert {inner.strategy.passage_tokens for inner in ranker.limited(7).rerankers()} == {7}  # type: ignore[attr-defined]
        assert {inner.strategy.passage_tokens for inner in ranker.limited(70).rerankers()} == {50}  # type: ignore[attr-defined]
    with pytest.raises(CapabilityError, match="Held cannot be told how many tokens"):
        Held().limited(3)


def test_a_query_keeps_its_cancellation_out_of_comparisons(make_candidates: Make) -> None:
    query = make_candidates(1).query
    assert replace(query, cancellation=rerank.cancellation.Cancellation()) == query
