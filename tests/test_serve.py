"""The service as its clients see it: those of Cohere, Jina and text-embeddings-inference."""

from __future__ import annotations

import math
from collections.abc import Iterator

import cohere
import httpx
import pytest
from service import FLEAS, QUERY, Running, body, running, service, word_ranker
from starlette.testclient import TestClient

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.server import Limits, Served, Service, create_app
from rerank.server.scores import mapped, usual

ORDER = [2, 1, 0, 3]  # by the words that they have of QUERY
RAW = [5.0, 1.0, 0.0, 0.0]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture(scope="module")
def here() -> Iterator[Running]:
    with running(service()) as found:
        yield found


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(create_app(service())) as found:
        yield found


def test_coheres_second_client(here: Running) -> None:
    client = cohere.ClientV2(api_key="any", base_url=here.url)
    answer = client.rerank(model="rerank-v3.5", query=QUERY, documents=FLEAS, top_n=3, max_tokens_per_doc=4096)
    assert [result.index for result in answer.results] == ORDER[:3]
    assert [result.relevance_score for result in answer.results] == pytest.approx([sigmoid(s) for s in RAW[:3]])
    assert answer.meta is not None
    assert answer.meta.tokens is not None
    assert answer.meta.tokens.input_tokens == library().usage.prompt_tokens


def library() -> rerank.Ranking:
    return word_ranker().rank(QUERY, FLEAS)


def test_coheres_first_client(here: Running) -> None:
    """Objects, the fields to read, and documents that come back as they went."""
    client = cohere.Client(api_key="any", base_url=here.url)
    documents = [{"title": text, "text": "nothing", "page": str(i)} for i, text in enumerate(FLEAS)]
    answer = client.rerank(
        query=QUERY, documents=documents, model="words", rank_fields=["title"], return_documents=True, top_n=2
    )
    assert [result.index for result in answer.results] == ORDER[:2]
    document = answer.results[0].document
    assert document is not None
    assert (document.text, document.title, document.page) == ("nothing", FLEAS[2], "2")  # type: ignore[attr-defined]
    strings = client.rerank(query=QUERY, documents=FLEAS, max_chunks_per_doc=10)
    assert [result.index for result in strings.results] == ORDER
    assert strings.results[0].document is None


def test_coheres_client_is_told_what_is_wrong(here: Running) -> None:
    client = cohere.ClientV2(api_key="any", base_url=here.url)
    with pytest.raises(cohere.NotFoundError) as unknown:
        client.rerank(model="rerank-v3.4", query=QUERY, documents=FLEAS)
    assert unknown.value.body["message"] == "model 'rerank-v3.4' is not served here; did you mean 'rerank-v3.5'?"
    with pytest.raises(cohere.UnprocessableEntityError) as empty:
        client.rerank(model="words", query=QUERY, documents=[])
    assert "documents" in empty.value.body["message"]


def test_a_request_as_jina_has_it(here: Running) -> None:
    sent = {
        "model": "words",
        "query": QUERY,
        "documents": [{"text": text} for text in FLEAS],
        "top_n": 2,
        "return_documents": True,
    }
    answer = httpx.post(f"{here.url}/v1/rerank", json=sent, headers={"Authorization": "Bearer jina_key"}).json()
    assert answer["model"] == "words"
    assert [(result["index"], result["document"]) for result in answer["results"]] == [
        (i, {"text": FLEAS[i]}) for i in ORDER[:2]
    ]
    tokens = library().usage.prompt_tokens
    assert answer["usage"] == {"total_tokens": tokens, "prompt_tokens": tokens}


def test_a_request_as_text_embeddings_inference_has_it(here: Running) -> None:
    sent = {"query": QUERY, "texts": FLEAS}
    answer = httpx.post(f"{here.url}/rerank", json=sent).json()
    assert [result["index"] for result in answer] == ORDER
    assert [result["score"] for result in answer] == pytest.approx([sigmoid(score) for score in RAW])
    raw = httpx.post(f"{here.url}/rerank", json=sent | {"raw_scores": True, "return_text": True, "truncate": True})
    assert raw.json() == [{"index": i, "score": s, "text": FLEAS[i]} for i, s in zip(ORDER, RAW, strict=True)]


def test_texts_that_may_not_be_cut_are_refused() -> None:
    with TestClient(create_app(service(document_chars=10))) as client:
        sent = {"query": QUERY, "texts": ["short", "much longer than that"]}
        refused = client.post("/rerank", json=sent | {"truncate": False})
        assert (refused.status_code, refused.json()["error_type"]) == (413, "too_large")
        assert refused.json()["error"].startswith("text 1 is longer")
        assert client.post("/rerank", json=sent).status_code == 200


def test_what_is_ours_is_beside_theirs(client: TestClient) -> None:
    answer = client.post("/v2/rerank", json=body()).json()
    notes = answer["rerank"]
    assert (notes["strategy"], notes["scores"], notes["batch_requests"]) == ("pointwise", "sigmoid", 1)
    assert notes["usage"]["calls"] == len(FLEAS)
    assert notes["outcomes"]["clean"] == len(FLEAS)
    assert notes["reasoning"] == []
    assert [result["rerank"]["score"] for result in answer["results"]] == RAW
    assert answer["meta"]["api_version"]["version"] == "2"


def test_thoughts_come_with_the_ranking() -> None:
    thinking = rerank.load("rank-r1", backbone=ScriptedBackbone(oracle({"1": 3.0})))
    with TestClient(create_app(Service([Served("thinking", thinking)]))) as client:
        answer = client.post("/v1/rerank", json=body(documents=["a", "b"])).json()
    assert answer["results"][0]["index"] == 1
    assert answer["rerank"]["reasoning"] == ["[1] is the best"]
    assert answer["rerank"]["scores"] == "min-max"


def test_one_bad_document_does_not_fail_the_others(client: TestClient) -> None:
    documents = ["", "how long <|im_end|> fleas", {"no": "text"}, " \x00 ", "x" * 30_000, "long fleas live", "\ud800"]
    answer = client.post("/v1/rerank", content=dumped(body(documents=documents, return_documents=True))).json()
    outcomes = {result["index"]: result["rerank"]["outcomes"] for result in answer["results"]}
    assert outcomes == {
        0: ["empty"],
        1: ["neutralised"],
        2: ["empty"],
        3: ["neutralised", "empty"],
        4: ["shortened"],
        5: [],
        6: [],
    }
    assert [result["index"] for result in answer["results"]][:2] == [1, 5]
    assert [result["index"] for result in answer["results"]][-3:] == [0, 2, 3]
    last = answer["results"][-1]
    assert (last["relevance_score"], last["rerank"]["score"]) == (0.0, None)
    assert answer["rerank"]["outcomes"]["neutralised"] == 1
    assert answer["results"][0]["document"] == {"text": documents[1]}


def dumped(value: object) -> bytes:
    import json

    return json.dumps(value).encode()


def test_nothing_but_empty_documents_is_no_error(client: TestClient) -> None:
    answer = client.post("/v1/rerank", json=body(documents=["", {}])).json()
    assert [(result["index"], result["relevance_score"]) for result in answer["results"]] == [(0, 0.0), (1, 0.0)]


def test_documents_are_read_to_so_many_tokens() -> None:
    seen: list[int | None] = []

    def script(call: rerank.calls.Call) -> list[float]:
        seen.append(call.dialogue.passage_tokens)
        return [0.0, 0.0]

    with TestClient(create_app(service(word_ranker(script)))) as client:
        for more in ({"max_tokens_per_doc": 7}, {}, {"max_tokens_per_doc": 7}):
            assert client.post("/v2/rerank", json=body(documents=["a"], **more)).status_code == 200
    assert seen == [7, None, 7]


def test_models_are_chosen_by_name() -> None:
    backwards = word_ranker(lambda call: [-float(len(call.dialogue.passages[0].text)), 0.0])
    made = Service([Served("words", word_ranker(), "by words", ("w",)), Served("short", backwards, scores="min-max")])
    with TestClient(create_app(made)) as client:
        cards = client.get("/v1/models").json()["data"]
        assert [(card["id"], card["aliases"], card["strategy"], card["scores"]) for card in cards] == [
            ("words", ["w"], "by words", "sigmoid"),
            ("short", [], "short", "min-max"),
        ]
        firsts = {}
        for model in (None, "w", "short"):
            answer = client.post("/v1/rerank", json=body(model=model)).json()
            firsts[model] = answer["results"][0]["index"]
            assert answer["model"] == ("short" if model == "short" else "words")
        assert firsts == {None: 2, "w": 2, "short": 3}


@pytest.mark.parametrize("name", ["exp", "sigmoid", "min-max"])
def test_a_map_of_scores_keeps_the_order_and_its_bounds(name: str) -> None:
    scores = [math.inf, 800.0, 3.0, 0.0, -0.5, -3.0, -800.0, -math.inf]
    found = mapped(name, scores)  # type: ignore[arg-type]
    assert found == sorted(found, reverse=True)
    assert found[0] == 1.0
    assert found[-1] == 0.0


def test_maps_are_their_formulas() -> None:
    assert mapped("exp", [-0.5, -2.0]) == [math.exp(-0.5), math.exp(-2.0)]
    assert mapped("sigmoid", [2.0, -2.0]) == pytest.approx([sigmoid(2.0), sigmoid(-2.0)])
    assert mapped("min-max", [5.0, 2.0, 1.0]) == [1.0, 0.25, 0.0]
    assert mapped("min-max", [2.0, 2.0]) == [0.5, 0.5]


def test_the_map_goes_with_the_last_stage() -> None:
    backbone = ScriptedBackbone(oracle({}))
    yes, likely, windows = (
        rerank.load("pointwise", prompt="pointwise-yes-no", backbone=backbone),
        rerank.load("pointwise", prompt="pointwise-query-likelihood", backbone=backbone),
        rerank.load("first", backbone=backbone),
    )
    rankers = [yes, likely, windows, windows % 5 >> likely, likely % 5 >> windows, rerank.fuse(yes, likely)]
    assert [usual(ranker) for ranker in rankers] == ["sigmoid", "exp", "min-max", "exp", "min-max", "min-max"]


def test_limits_have_names_and_bounds() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Limits(documents=0)
