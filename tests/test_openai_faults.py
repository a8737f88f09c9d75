"""The openai backbone and a server that misbehaves: the right answer after a while, or that query's error; and clean
ends, whoever leaves."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import in_seconds
from openai_case import KEY, Start, passages, ranker, requests, starting

from rerank.backbones.http_ import JsonServer, _retry_after
from rerank.backbones.openai_ import OpenAIBackbone
from rerank.errors import BackboneError, ContextError
from rerank.prompts import load_prompt
from rerank.types import Candidates, Passage, Query


@pytest.fixture
def start(tiny_model: Path) -> Iterator[Start]:
    yield from starting(tiny_model)


# what the error says, for each fault that stays
CHAT_LABELS = {
    "html": r"answered no JSON .*upstream is down",
    "malformed": "answered no JSON",
    "list": "no JSON object",
    "deep": "answered no JSON",
    "error-200": "answered with an error: the engine is dead",
    "no-choices": "not of the form asked for: choices",
    "two-choices": "not of the form asked for: choices: .*at most 1 item",
    "wrong-index": "choice 1 where only choice 0",
    "nothing": "choices: Field required",
    "giant": "more than 32 MiB",
    "no-logprobs": "no log-probabilities",
    "null-logprobs": "no log-probabilities",
    "empty-logprobs": "no log-probabilities",
    "positive": "logprob: Input should be less than or equal to 0.01",
    "nan": "logprob: Input should be a finite number",
    "words": "logprob: Input should be a valid number",
    "busy-for-ever": "HTTP 429",
    "unwell": r"HTTP 500: the engine is dead \(3 attempts\)",
    "gateway": r"HTTP 502: <html>upstream is down</html> \(3 attempts\)",
    "drop": r"disconnected.*\(3 attempts\)",
    "half": r"RemoteProtocolError.*\(3 attempts\)",
    "drip": r"no whole answer within 1.5 s \(3 attempts\)",
    "hang": r"no whole answer within 1.5 s \(3 attempts\)",
    "quota": "HTTP 429: pay",
    "wrong": "HTTP 400: temperature must be a fruit",
    "long": "longer than the server's model takes: This model's maximum context length is 9 tokens",
    "forbidden": r"HTTP 401: Incorrect API key provided: \*\*\*; give api_key, or set OPENAI_API_KEY",
    "moved": "redirects to http://127.0.0.1:1/v1; give that as base_url",
    "teapot": "HTTP 418: short and stout",
}
TEXT = {
    "no-text": r"content is null|text: Input should be a valid string",
    "number": "Input should be a valid string",
    "filtered": "ended for the reason 'content_filter'",
}
IDS_LABELS = {
    "other-count": r"\d+ prompt tokens were sent and the server counts 7",
    "null-logprobs": "no log-probabilities",
    "empty-logprobs": r"no log-probabilities \(logprobs.top",
    "positive": "less than or equal to 0.01",
}
EXACT = {
    **IDS_LABELS,
    "other-labels": r"no log-probability for \['No'\], which logprob_token_ids asks of vLLM.*server=openai",
}
ECHO = {"other-tokens": "scored other tokens than the", "nan": "finite", "null-logprobs": "no log-probabilities"}


@pytest.mark.parametrize(
    ("ids", "vllm", "name", "errors"),
    [
        (False, False, "pointwise", CHAT_LABELS),
        (False, False, "listwise", TEXT),
        (True, False, "listwise", TEXT),
        (True, False, "pointwise", IDS_LABELS),
        (True, True, "pointwise", EXACT),
        (True, True, "likelihood", ECHO),
    ],
)
def test_a_fault_that_stays_fails_its_query_alone(
    start: Start, ids: bool, vllm: bool, name: str, errors: dict[str, str]
) -> None:
    """All at once, good queries between them: these are right, and each other error says what came."""
    _, backbone = start(ids=ids, vllm=vllm, api_key=KEY)
    asked = []
    for i, fault in enumerate(errors):
        bad = Passage(f"text of relevance 3 fault:{fault}", "bad")
        asked += [*requests(1, 4, 9), Candidates(Query(f"a query {i}", fault), (*passages(2), bad))]
    found = list(ranker(name, backbone).rank_many(asked, on_error="keep"))
    for ranking in found[::2]:
        assert ranking.error is None
        assert ranking.outcomes.failed == 0
        assert name == "likelihood" or ranking.doc_ids == ["d9", "d4"]
    for ranking, (fault, words) in zip(found[1::2], errors.items(), strict=True):
        assert isinstance(ranking.error, ContextError if fault == "long" else BackboneError), fault
        text = str(ranking.error)
        assert text.startswith(f"query {fault!r}")
        assert re.search(words, text), text
        assert KEY not in text
        assert len(text) < 700
        assert ranking.doc_ids == ["d2", "bad"]
        assert ranking.outcomes.failed == 1


PASSING = {
    "busy": 1.0, "busy-until": 1.0, "busy-nonsense": 0.25, "unwell": 0.25, "gateway": 0.25, "unavailable": 0.25,
    "late": 0.25, "drop": 0.25, "half": 0.25, "drip": 2.5, "hang": 2.5,
}  # fmt: skip
TIMEOUT_S = 3  # of an attempt; the client's clock starts before the server's


@pytest.mark.parametrize(("ids", "vllm"), [(False, False), (True, True)])
def test_a_fault_that_passes_is_waited_for(start: Start, ids: bool, vllm: bool) -> None:
    """Every answer is right, and no second attempt came sooner than it should."""
    server, backbone = start(ids=ids, vllm=vllm, timeout_s=TIMEOUT_S)
    asked = [
        Candidates(Query(f"query once:{fault}", fault), (*passages(9), Passage("relevance 4", "once")))
        for fault in PASSING
    ]
    found = list(ranker("pointwise", backbone).rank_many(asked))
    assert [r.doc_ids for r in found] == [["d9", "once"]] * len(PASSING)
    for ranking in found:
        assert [hit.score for hit in ranking] == pytest.approx([4, -1])
    for prompt, times in server.times.items():
        (fault,) = (name for name in PASSING if f"once:{name}\n" in prompt)
        assert len(times) == 2
        assert times[1] - times[0] >= PASSING[fault]


def test_64_queries_share_connections_and_the_bound_holds(start: Start) -> None:
    """Only full flights are let through, so eight do fly; and never nine."""
    full = asyncio.Barrier(8)

    async def gate(prompt: str) -> None:
        await full.wait()

    server, backbone = start(gate=gate, concurrency=8, timeout_s=20)
    found = list(ranker("pointwise", backbone).rank_many(requests(64, 4, 9, 1)))
    assert [r.doc_ids for r in found] == [["d9", "d4", "d1"]] * 64
    assert len(server.requests) == 1 + 64 * 3
    assert server.most == 8
    assert server.connections == 8
    assert found[0].usage.calls == 3


def test_two_rankers_on_one_backbone_hold_its_bound_together(start: Start) -> None:
    full = asyncio.Barrier(4)

    async def gate(prompt: str) -> None:
        await full.wait()

    server, backbone = start(gate=gate, concurrency=4, timeout_s=20)
    streams = [ranker("pointwise", backbone).rank_many(requests(16, 4, 9)) for _ in range(3)]
    readers = [threading.Thread(target=list, args=(stream,)) for stream in streams]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(server.requests) == 1 + 3 * 16 * 2
    assert server.most == 4


def test_who_leaves_hangs_up(start: Start) -> None:
    """The server sees its clients go, and the next ranking is as if nothing had been."""
    server, backbone = start(concurrency=6, timeout_s=60)
    stream = ranker("pointwise", backbone).rank_many([*requests(1, 4), *requests(9, 2, note="fault:hang")])
    next(stream)
    while server.flying < 6:
        threading.Event().wait(0.01)
    stream.close()  # type: ignore[attr-defined]
    for _ in range(3):
        assert ranker("pointwise", backbone).rank("q", passages(4, 9)).doc_ids == ["d9", "d4"]
    assert server.gone >= 5


def test_a_backbone_closed_in_flight_fails_its_calls(start: Start) -> None:
    async def gate(prompt: str) -> None:
        threading.Thread(target=backbone.close).start()
        await asyncio.Event().wait()

    _, backbone = start(gate=gate, timeout_s=60)
    made = ranker("pointwise", backbone)
    with pytest.raises(BackboneError, match="was closed while it was asked"):
        made.rank("q", passages(1))
    with pytest.raises(BackboneError, match="was closed; load the backbone again"):
        made.rank("q", passages(1))
    backbone.close()


def test_it_can_be_asked_from_any_loop(start: Start) -> None:
    _, backbone = start()
    item = backbone.prepare(load_prompt("pointwise-yes-no").ask(Query("q"), passages(7)))

    async def main() -> list[float]:
        answers = await asyncio.gather(*(backbone.ask(item) for _ in range(5)))
        return [a.logprobs[0] - a.logprobs[1] for a in answers]

    assert asyncio.run(main()) == asyncio.run(main()) == pytest.approx([2.0] * 5)


def test_a_server_that_is_not_there_is_said_soon(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(BackboneError, match=rf"http://127.0.0.1:{port}/v1/models: ConnectError"):
        OpenAIBackbone.load(base_url=f"http://127.0.0.1:{port}/v1")
    server, _ = start()
    with pytest.raises(BackboneError, match="HTTP 404: Not Found; base_url is what the official client takes"):
        OpenAIBackbone.load(base_url=server.url.removesuffix("/v1"))


def test_the_deadline_holds_whatever_the_retries(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerank.backbones.http_.random.uniform", lambda _, most: most)  # waits of .5, 1, and no 2
    _, backbone = start(timeout_s=60, deadline_s=2, retries=1000)
    with pytest.raises(BackboneError, match="no answer within the deadline of 2 s"):
        ranker("pointwise", backbone).rank("fault:hang", passages(1))
    _, backbone = start(deadline_s=2, retries=1000)
    with pytest.raises(BackboneError, match=r"HTTP 500: the engine is dead \(3 attempts\)"):
        ranker("pointwise", backbone).rank("fault:unwell", passages(1))


def test_an_answer_without_end_is_given_up(start: Start) -> None:
    _, backbone = start(timeout_s=60, deadline_s=60)
    with pytest.raises(BackboneError, match="more than 32 MiB"):
        ranker("pointwise", backbone).rank("fault:endless", passages(1))


def test_retry_after_is_read_in_both_its_forms() -> None:
    from httpx2 import Response

    def waits(value: str) -> float:
        return _retry_after(Response(429, headers={"Retry-After": value}))

    assert [waits(v) for v in ("7", "", "soon", "-3", "1.5e3")] == [7, 0, 0, 0, 0]
    assert 58 <= waits(in_seconds(60)) <= 60
    assert waits("Wed, 21 Oct 2015 07:28:00 GMT") < 0


AT_EXIT = """
import sys
sys.path.insert(0, {support!r})
import rerank
from rerank.backbones.openai_ import OpenAIBackbone
backbone = OpenAIBackbone.load(base_url={url!r})
ranker = rerank.load("pointwise", backbone=backbone)
stream = ranker.rank_many([("q", ["relevance 3"]), ("fault:hang", ["a"])])
print(next(stream).hits[0].score)
"""


def test_the_interpreter_ends_without_a_word_while_it_asks(start: Start, request: pytest.FixtureRequest) -> None:
    server, _ = start()
    script = AT_EXIT.format(support=str(request.config.rootpath / "tests" / "support"), url=server.url)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.returncode) == ("", 0)
    assert float(done.stdout) == pytest.approx(-2)


def test_a_forgotten_backbone_gives_back_its_thread(start: Start) -> None:
    server, _ = start()
    before = threading.active_count()
    for _ in range(3):
        OpenAIBackbone.load(base_url=server.url)
    assert threading.active_count() == before


def test_json_server_says_its_address_only() -> None:
    server = JsonServer("http://127.0.0.1:1/v1", KEY, concurrency=1, timeout_s=1, deadline_s=1, retries=0)
    assert repr(server) == "JsonServer('http://127.0.0.1:1/v1')"
    server.close()
