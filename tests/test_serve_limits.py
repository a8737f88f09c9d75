"""What the service refuses, whose requests are ranked together, and how it ends."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from types import ModuleType

import httpx
import pytest
from service import (
    FLEAS,
    HTTP,
    QUERY,
    WAIT_S,
    Gate,
    Running,
    assert_refused,
    body,
    metric,
    overlap,
    running,
    service,
    until,
    word_ranker,
)
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

import rerank
from rerank.backbones import ScriptedBackbone
from rerank.backbones.base import Prepared
from rerank.calls import Call
from rerank.errors import BackboneError, CapabilityError, InputError
from rerank.server import Limits, Served, Service, create_app


@pytest.mark.parametrize(
    ("limits", "sent", "text"),
    [
        ({"documents": 3}, body(), "4 documents are more than 3"),
        ({"query_chars": 5}, body(), "the query has 22 characters, and may have 5"),
        ({"request_chars": 50}, body(), "comes to"),
        ({"body_bytes": 60}, body(), "the body is larger than 60 bytes"),
    ],
)
def test_what_is_too_large_is_refused(limits: dict[str, int], sent: dict[str, object], text: str) -> None:
    with TestClient(create_app(service(**limits))) as client:
        assert_refused(client.post("/v1/rerank", json=sent), 413, "too_large", text)
        assert client.post("/v1/rerank", json=body("flea", ["a"])).status_code == 200


def test_a_body_is_not_read_into_memory_beyond_its_limit() -> None:
    """Also where its length is not said; who sends it hears why."""

    def parts() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 1000

    with running(service(body_bytes=10_000)) as here:
        assert_refused(HTTP.post(f"{here.url}/v2/rerank", content=parts()), 413, "too_large", "10,000 bytes")
        assert_refused(HTTP.post(f"{here.url}/v2/rerank", content=b"x" * 40_000), 413, "too_large", "10,000 bytes")


@pytest.mark.parametrize("line", [b"a" * 1000, b"a: b\r\n" * 200])
def test_a_head_without_an_end_is_given_up(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever parsers are installed."""
    monkeypatch.setitem(sys.modules, "httptools", ModuleType("httptools"))
    monkeypatch.delitem(sys.modules, "uvicorn.protocols.http.auto", raising=False)
    monkeypatch.delitem(sys.modules, "uvicorn.protocols.http.httptools_impl", raising=False)
    with running(service()) as here, raw(here.port, "GET /health HTTP/1.1\nHost: x\n", b"a: ") as endless:
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            endless.sendall(line * 50_000)
        assert HTTP.get(f"{here.url}/health").status_code == 200


def raw(port: int, head: str, content: bytes = b"") -> socket.socket:
    found = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
    found.sendall(head.replace("\n", "\r\n").encode() + content)
    return found


def test_a_slow_client_is_given_up() -> None:
    with running(service(body_timeout_s=0.2)) as here:
        slow = raw(here.port, "POST /v1/rerank HTTP/1.1\nHost: x\nContent-Length: 100\n\n", b'{"query"')
        answer = b"".join(iter(lambda: slow.recv(10_000), b""))
        slow.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"error_type":"too_slow"' in answer


def held(here: Running, gate: Gate, query: str = "held", documents: int = 2) -> threading.Thread:
    """A request that is in the ranker's hands until the gate opens."""
    thread = threading.Thread(target=post, args=(here, query, documents))
    thread.start()
    assert gate.reached.wait(WAIT_S)
    return thread


def post(here: Running, query: str, documents: int = 2, **headers: str) -> httpx.Response:
    texts = [f"{query} {i}" for i in range(documents)]
    return HTTP.post(f"{here.url}/v1/rerank", json=body(query, texts), headers=headers)


@pytest.mark.parametrize(
    ("limits", "status", "kind", "text"),
    [
        ({"requests": 1}, 503, "busy", "1 requests are open"),
        ({"client_requests": 1}, 429, "too_many_requests", "you have 1 requests open"),
        ({"queue_documents": 3}, 503, "busy", "documents wait already"),
        ({"queue_requests": 1}, 503, "busy", "1 requests wait already"),
    ],
)
def test_what_is_too_much_is_refused(limits: dict[str, int], status: int, kind: str, text: str) -> None:
    gate = Gate()
    with running(service(word_ranker(gate), **limits)) as here, concurrent.futures.ThreadPoolExecutor() as pool:
        first = held(here, gate)
        waiting = []
        if "queue_documents" in limits or "queue_requests" in limits:
            waiting.append(pool.submit(post, here, "waits"))
            until("rerank_queue_requests", here, 1)
        assert_refused(post(here, "refused"), status, kind, text, retry=True)
        gate.opened.set()
        first.join()
        assert all(future.result().status_code == 200 for future in waiting)
        assert post(here, "and then").status_code == 200


def test_a_request_has_its_time_and_is_freed_after_it() -> None:
    gate = Gate()
    ranker = word_ranker(gate, batch_tokens=1)  # a call is a batch
    with running(service(ranker, timeout_s=2)) as here:
        first = threading.Thread(target=post, args=(here, "held", 9))
        first.start()
        assert gate.reached.wait(WAIT_S)
        waits = post(here, "waits")
        assert_refused(waits, 503, "timeout", "no ranking within 2 s", retry=True)
        first.join()
        until("rerank_queue_requests", here, 0)
        gate.opened.set()
        assert post(here, "after").status_code == 200
    assert gate.asked.count("waits") == 0
    assert gate.asked.count("held") == 1  # the rest of it was given up


def test_a_client_that_leaves_frees_its_work() -> None:
    gate = Gate()
    with running(service(word_ranker(gate, batch_tokens=1))) as here:
        content = json.dumps(body("held", ["a"] * 9)).encode()
        head = f"POST /v1/rerank HTTP/1.1\nHost: x\nContent-Length: {len(content)}\n\n"
        leaving = raw(here.port, head, content)
        assert gate.reached.wait(WAIT_S)
        other = raw(here.port, head.replace("v1", "v2"), content)
        until("rerank_queue_requests", here, 1)
        other.close()
        until("rerank_queue_requests", here, 0)
        leaving.close()
        until("rerank_open_requests", here, 0)
        gate.opened.set()
        assert post(here, "after").status_code == 200
        assert metric(here, 'rerank_requests_total{route="/v1/rerank",status="499"}') == 1
    assert gate.asked == ["held", "after", "after"]


def test_requests_of_many_clients_share_batches_and_are_never_mixed() -> None:
    gate = Gate()
    backbone = ScriptedBackbone(gate)
    ranker = rerank.load("pointwise", prompt="pointwise-yes-no", backbone=backbone)
    queries = [f"q{i} " + " ".join(f"word{(i * j) % 11}" for j in range(1, 6)) for i in range(40)]
    documents = {query: [f"{i} word{i % 11} word{(i * 3) % 11} {query[:i]}" for i in range(20)] for query in queries}
    expected = {query: word_ranker().rank(query, documents[query]) for query in queries}

    with running(service(ranker)) as here, concurrent.futures.ThreadPoolExecutor(len(queries)) as pool:
        first = held(here, gate)
        before = len(backbone.batches)
        asked = {
            query: pool.submit(HTTP.post, f"{here.url}/v1/rerank", json=body(query, texts))
            for query, texts in documents.items()
        }
        until("rerank_queue_requests", here, len(queries))
        gate.opened.set()
        first.join()
        for query, future in asked.items():
            results = future.result().json()["results"]
            assert [str(result["index"]) for result in results] == expected[query].doc_ids
            assert [result["rerank"]["score"] for result in results] == [hit.score for hit in expected[query]]
        # at most 256 documents, so 12 requests, in each
        assert len(backbone.batches) - before == 1 + 4 - 1
        until("rerank_batch_requests_count", here, 5)
    assert metric(here, "rerank_batch_requests_sum") == 41
    assert metric(here, 'rerank_documents_total{model="words"}') == 40 * 20 + 2


def test_an_engine_that_fails_for_one_does_not_fail_the_others() -> None:
    gate = Gate()

    def script(call: Call) -> list[float]:
        if call.dialogue.query.text == "broken":
            raise BackboneError("out of memory")
        if call.dialogue.query.text == "bug":
            raise ZeroDivisionError
        return gate(call)

    with running(service(word_ranker(script))) as here, concurrent.futures.ThreadPoolExecutor() as pool:
        first = held(here, gate)
        asked = [pool.submit(post, here, query) for query in ("good", "broken", "bug", "better")]
        until("rerank_queue_requests", here, 4)
        gate.opened.set()
        first.join()
        good, broken, bug, better = (future.result() for future in asked)
    assert (good.status_code, better.status_code) == (200, 200)
    assert_refused(broken, 503, "engine", "ask again later", retry=True)
    assert_refused(bug, 500, "internal", "this is a bug")
    assert "out of memory" not in broken.text


def test_an_engine_that_ends_its_thread_does_not_end_the_service() -> None:
    def script(call: Call) -> list[float]:
        if call.dialogue.query.text == "end":
            raise SystemExit(1)
        return overlap(call)

    with running(service(word_ranker(script))) as here:
        assert_refused(post(here, "end"), 500, "internal", "this is a bug")
        assert post(here, "good").status_code == 200


def test_an_engine_that_counts_no_tokens_says_which_field_to_leave_out() -> None:
    """As a chat behind another server, whose tokenizer is not here."""

    class Uncounted(ScriptedBackbone):
        def prepare(self, call: Call) -> Prepared:
            if call.dialogue.passage_tokens is not None:
                raise CapabilityError("passage_tokens needs the model's tokenizer")
            return ScriptedBackbone.prepare(self, call)

    ranker = rerank.load("pointwise", prompt="pointwise-yes-no", backbone=Uncounted(overlap))
    with TestClient(create_app(service(ranker))) as client:
        refused = client.post("/v2/rerank", json=body(max_tokens_per_doc=9))
        assert_refused(refused, 422, "invalid", "the model's tokenizer; leave max_tokens_per_doc out")
        assert client.post("/v2/rerank", json=body()).status_code == 200


def test_the_log_has_no_texts_unless_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rerank")
    for log_text in (False, True):
        caplog.clear()
        with TestClient(create_app(service(log_text=log_text))) as client:
            client.post("/v1/rerank", json=body())
            client.get("/health")
        (record,) = caplog.records
        fields = vars(record)["fields"]
        assert (fields["route"], fields["status"], fields["documents"], fields["model"]) == (
            "/v1/rerank",
            200,
            4,
            "words",
        )
        assert fields["prompt_tokens"] > 0
        assert (FLEAS[0] in str(fields), QUERY in str(fields)) == (log_text, log_text)


def test_the_service_ends_when_all_that_it_took_is_answered() -> None:
    """Under load: what was taken has its answer, what comes while it ends is refused, and says so."""
    gate = Gate()
    made = service(word_ranker(gate))
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        here = Running(made)
        keeping = httpx.Client()  # a connection from before
        keeping.get(f"{here.url}/ready").raise_for_status()
        first = held(here, gate)
        taken = [pool.submit(post, here, f"query {i}", 5) for i in range(30)]
        until("rerank_queue_requests", here, 30)
        here.end()
        refused = keeping.post(f"{here.url}/v1/rerank", json=body())
        assert_refused(refused, 503, "shutting_down", "takes nothing new", retry=True)
        assert HTTP.get(f"{here.url}/ready").status_code == 503  # a new connection, too
        assert HTTP.get(f"{here.url}/health").status_code == 200
        gate.opened.set()
        first.join()
        for i, future in enumerate(taken):
            answer = future.result()
            assert answer.status_code == 200
            library = word_ranker().rank(f"query {i}", [f"query {i} {j}" for j in range(5)])
            assert [str(result["index"]) for result in answer.json()["results"]] == library.doc_ids
        assert here.ended
        keeping.close()
    with pytest.raises(httpx.ConnectError):
        HTTP.get(here.url)


def test_an_application_is_asked_in_one_event_loop_after_another() -> None:
    """As by a TestClient that is not entered, which has a loop for each request."""
    client = TestClient(create_app(service()))
    assert [client.post("/v1/rerank", json=body()).status_code for _ in range(2)] == [200, 200]


def test_a_service_that_cannot_finish_gives_up_after_its_time() -> None:
    gate = Gate()
    here = Running(service(word_ranker(gate), shutdown_s=0.1, timeout_s=WAIT_S))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answer = pool.submit(post, here, "held")
        assert gate.reached.wait(WAIT_S)
        here.end()
        assert here.ended
        assert_refused(answer.result(), 503, "shutting_down", "had to end", retry=True)
        gate.opened.set()


def test_metrics_count_what_happened() -> None:
    with running(service()) as here:
        post(here, "one", 3)
        HTTP.post(f"{here.url}/v1/rerank", content=b"{")
        HTTP.get(f"{here.url}/nothing/here")
        text = HTTP.get(f"{here.url}/metrics").text
    for line in (
        'rerank_requests_total{route="/v1/rerank",status="200"} 1.0',
        'rerank_requests_total{route="/v1/rerank",status="400"} 1.0',
        'rerank_requests_total{route="other",status="404"} 1.0',
        'rerank_documents_total{model="words"} 3.0',
        'rerank_request_seconds_count{route="/v1/rerank"} 2.0',
        "rerank_batch_requests_sum 1.0",
        "rerank_batch_documents_sum 3.0",
        "rerank_queue_requests 0.0",
        "rerank_open_requests 0.0",
    ):
        assert line in text
    assert 'rerank_tokens_total{kind="prompt",model="words"}' in text


def test_under_a_path_of_another_application_routes_have_their_names(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rerank")
    made = service()
    outer = Starlette(routes=[Mount("/inner", create_app(made))])
    with TestClient(outer) as client:
        assert client.post("/inner/v1/rerank", json=body()).status_code == 200
        assert client.get("/inner/health").status_code == 200
    assert [vars(record)["fields"]["route"] for record in caplog.records] == ["/v1/rerank"]  # probes are not logged
    text = made.metrics.text().decode()
    assert 'rerank_requests_total{route="/v1/rerank",status="200"} 1.0' in text
    assert 'rerank_requests_total{route="/health",status="200"} 1.0' in text


def test_two_rankers_need_two_names() -> None:
    with pytest.raises(InputError, match="two rankers would be served as 'a'"):
        Service([Served("a", word_ranker()), Served("b", word_ranker(overlap), aliases=("a",))], limits=Limits())
