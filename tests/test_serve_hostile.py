"""Whatever is sent, the answer is a ranking or an error in the one shape that is documented, and never a breakdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from service import HTTP, body, running, service, word_ranker
from starlette.testclient import TestClient

from rerank.calls import Call
from rerank.server import Served, Service, create_app
from rerank.server.failures import ErrorBody

DEEP = 100_000


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(service()), raise_server_exceptions=False) as found:
        yield found


APP = create_app(service())
schema = schemathesis.openapi.from_asgi("/openapi.json", APP)


def asked_by_schema(operation: str) -> Callable[..., None]:
    """Every answer is as documented; what the schema forbids is refused, what it allows is answered."""

    @schema.include(name=operation).parametrize()
    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def test(case: schemathesis.Case) -> None:
        answer = case.call_and_validate()
        assert answer.status_code < 500
        if answer.status_code >= 400:
            ErrorBody.model_validate(answer.json())

    return test


OPERATIONS = [found.ok().label for found in schema.get_all_operations()]
# a test for each: those of one schema.parametrize() have one id, and xdist runs the first of them only
globals().update({f"test_what_the_schema_allows_and_forbids_{i}": asked_by_schema(o) for i, o in enumerate(OPERATIONS)})


def test_no_operation_is_left_out() -> None:
    assert sorted(OPERATIONS) == sorted(
        f"{method.upper()} {path}" for path, methods in APP.openapi()["paths"].items() for method in methods
    )


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"query": "\xff"}', 400),
        (b"[" * DEEP, 400),
        (b'{"a":' * DEEP, 400),
        (b'{"query": "q", "documents": [' + b'{"text":' * 40 + b"1" + b"}" * 40 + b"]}", 400),
        (b"9" * 10_000, 400),
        (b'{"query": NaN}', 400),
        (b'{"query": "q", "documents": [{"text": "a", "x": 1e999}], "texts": []}', 400),
        (b"null", 422),
        (b"[]", 422),
        (b'"query"', 422),
        (b"{}", 422),
        (b'{"query": 1, "documents": ["a"], "texts": ["a"]}', 422),
        (b'{"query": "q", "documents": "a", "texts": "a"}', 422),
        (b'{"query": "q", "documents": [1], "texts": [null]}', 422),
        (b'{"query": "", "documents": ["a"], "texts": ["a"]}', 422),
        (b'{"query": "q", "documents": ["a"], "texts": ["a"], "priority": 1}', 422),
    ],
)
def test_what_is_no_request(client: TestClient, path: str, content: bytes, status: int) -> None:
    answer = client.post(path, content=content)
    assert answer.status_code == status, answer.text
    told = ErrorBody.model_validate(answer.json())
    assert told.error_type == ("bad_body" if status == 400 else "invalid")
    assert len(told.message) < 500


@pytest.mark.parametrize(
    "more",
    [
        {"top_n": 0},
        {"top_n": "3"},
        {"top_n": 1.5},
        {"top_n": True},
        {"max_tokens_per_doc": 0},
        {"max_tokens_per_doc": 10**30},
        {"rank_fields": []},
        {"return_documents": "yes"},
        {"relevant_spans": {}},
        {"query": "  \x1c "},
        {"query": "\x00"},
    ],
)
def test_what_is_not_done_is_refused_and_not_ignored(client: TestClient, more: dict[str, object]) -> None:
    answer = client.post("/v1/rerank", json=body() | more)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "invalid"), answer.text


def test_an_unknown_field_is_named_beside_those_that_are_known(client: TestClient) -> None:
    answer = client.post("/v2/rerank", json=body(priority=3))
    assert answer.json()["message"].startswith("'priority' is unknown; known are model, query, documents, top_n")


@pytest.mark.parametrize("query", ["\ud800", "a" * 4000, "<|im_end|>", "\u202e", "𝄞", "\r\n"])
def test_odd_queries_and_documents_are_ranked_or_refused(client: TestClient, query: str) -> None:
    sent = json.dumps({"query": query, "documents": [query, {"text": query}, "a"], "return_documents": True})
    answer = client.post("/v1/rerank", content=sent)
    assert answer.status_code == (422 if not query.strip() else 200), answer.text


def test_a_deep_object_comes_back(client: TestClient) -> None:
    inner: object = "leaf"
    for _ in range(20):
        inner = {"more": [inner]} if isinstance(inner, str) else {"more": inner}
    document = {"text": "a", "more": inner}
    answer = client.post("/v1/rerank", json=body(documents=[document], return_documents=True))
    assert answer.json()["results"][0]["document"] == document


def test_many_documents_are_refused_before_anything_is_done_with_them(client: TestClient) -> None:
    answer = client.post("/v1/rerank", json=body(documents=["a"] * 100_000))
    assert (answer.status_code, answer.json()["error_type"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("path", "sent", "status", "text"),
    [
        ("/v1/rerank", body(documents=[1] * 5000), 413, "5,000 documents are more than 1,000"),
        ("/rerank", {"query": "q", "texts": [None] * 5000}, 413, "5,000 documents are more than 1,000"),
        ("/v1/rerank", {f"x{i}": 1 for i in range(5000)}, 422, "(and 4999 more)"),
        ("/v1/rerank", body(rank_fields=[1] * 5000), 422, "rank_fields: List should have at most 64 items"),
    ],
)
def test_what_is_wrong_a_thousand_times_is_found_once(
    client: TestClient, path: str, sent: dict[str, object], status: int, text: str
) -> None:
    """An error for each of a body's items would take a thousand times its size."""
    answer = client.post(path, json=sent)
    assert answer.status_code == status
    assert text in answer.json()["message"]


def test_a_field_of_a_document_is_read_once() -> None:
    """A short list of names must not make a long text of a document that is within the limits."""
    seen = []

    def script(call: Call) -> list[float]:
        seen.append(call.dialogue.passages[0].text)
        return [0.0, 0.0]

    with TestClient(create_app(service(word_ranker(script)))) as client:
        sent = body(documents=[{"b": "one", "a": "two"}], rank_fields=["a", "b", "a", "b"])
        assert client.post("/v1/rerank", json=sent).status_code == 200
    assert seen == ["two\none"]


def test_a_field_that_is_no_text_is_read_as_json_in_its_own_letters() -> None:
    seen = []

    def script(call: Call) -> list[float]:
        seen.append(call.dialogue.passages[0].text)
        return [0.0, 0.0]

    with TestClient(create_app(service(word_ranker(script)))) as client:
        sent = body(documents=[{"tags": ["跳蚤", "é"], "n": 3}], rank_fields=["tags", "n"])
        assert client.post("/v1/rerank", json=sent).status_code == 200
    assert seen == ['["跳蚤", "é"]\n3']


def test_fifty_megabytes_are_refused() -> None:
    with running(service()) as here:
        answer = HTTP.post(f"{here.url}/v1/rerank", content=b"x" * 50_000_000)
        assert answer.status_code == 413
        assert ErrorBody.model_validate(answer.json()).error_type == "too_large"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/rerank", 405), ("POST", "/health", 405), ("GET", "/../etc/passwd", 404)]
)
def test_wrong_routes_have_the_same_shape(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    ErrorBody.model_validate(answer.json())


def test_scores_that_are_no_numbers_are_none_in_json() -> None:
    def script(call: Call) -> list[float]:
        return [float("-inf") if "bad" in call.dialogue.passages[0].text else 0.0, 0.0]

    with TestClient(create_app(Service([Served("odd", word_ranker(script))]))) as client:
        answer = client.post("/v1/rerank", json=body(documents=["bad", "good"]))
        assert [result["index"] for result in answer.json()["results"]] == [1, 0]
        assert answer.json()["rerank"]["outcomes"]["failed"] == 1
