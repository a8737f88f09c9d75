"""The Haystack component in real pipelines, and Haystack's own Cohere ranker against the service."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # is read when it is first imported

import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.core.errors import DeserializationError
from haystack.dataclasses import ByteStream
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker
from service import FLEAS, QUERY, running, service, word_ranker

from rerank.errors import InputError
from rerank.integrations.haystack import RerankRanker

ORDER = ["d2", "d1", "d0", "d3"]  # by the words that they have of QUERY
ALLOWED = ["rerank.integrations.haystack"]


def documents(*texts: str) -> list[Document]:
    return [Document(id=f"d{i}", content=text, meta={"page": i}) for i, text in enumerate(texts or FLEAS)]


def pipeline(ranker: Any) -> Pipeline:
    store = InMemoryDocumentStore()
    store.write_documents(documents())
    found = Pipeline()
    found.add_component("retriever", InMemoryBM25Retriever(store, top_k=4))
    found.add_component("ranker", ranker)
    found.connect("retriever.documents", "ranker.documents")
    return found


def asked(query: str = QUERY, **more: Any) -> dict[str, Any]:
    return {"retriever": {"query": query}, "ranker": {"query": query, **more}}


def ids(answer: dict[str, Any]) -> list[str]:
    return [document.id for document in answer.get("ranker", answer)["documents"]]


def test_in_a_pipeline() -> None:
    made = pipeline(RerankRanker(word_ranker(), top_k=2))
    answer = made.run(asked())
    assert ids(answer) == ORDER[:2]
    best = answer["ranker"]["documents"][0]
    assert (best.score, best.content) == (5.0, FLEAS[2])
    assert best.meta["page"] == 2
    assert best.meta["rerank_outcomes"].endswith(" clean")
    assert ids(made.run(asked(top_k=1))) == ORDER[:1]
    assert asyncio.run(made.run_async(asked())) == answer


def test_what_is_read_of_a_document() -> None:
    given = [Document(content="a", meta={"title": "dogs"}), Document(content="b", meta={"title": "long cats", "n": 0})]
    ranker = RerankRanker(word_ranker(), meta_fields_to_embed=["title", "n", "no such"], meta_data_separator=" ")
    assert [document.content for document in ranker.run("long", given)["documents"]] == ["b", "a"]


def test_what_was_given_stays_as_it_was() -> None:
    given = documents()
    RerankRanker(word_ranker()).run(QUERY, given)
    assert given == documents()


def test_documents_that_are_none_no_text_or_equal() -> None:
    ranker = RerankRanker(word_ranker())
    assert ranker.run(QUERY, []) == {"documents": []}
    blob = Document(id="blob", blob=ByteStream(b"\x00"), meta={"title": "cat"}, score=9.0)
    same = [Document(id="same", content="a cat", score=score, meta={"n": score}) for score in (1.0, 3.0, 2.0)]
    found = ranker.run("cat", [blob, *same, Document(id="dog", content="a dog")])["documents"]
    assert [(document.id, document.score) for document in found] == [("same", 1.0), ("dog", 0.0), ("blob", None)]
    assert found[0].meta["n"] == 3.0
    assert found[-1].meta == {"title": "cat", "rerank_outcomes": "empty"}


def test_a_query_that_cannot_be_asked() -> None:
    with pytest.raises(InputError, match="is empty"):
        RerankRanker(word_ranker()).run(" ", documents())
    kept = RerankRanker(word_ranker(), on_error="keep").run(" ", documents())["documents"]
    assert [document.id for document in kept] == ["d0", "d1", "d2", "d3"]
    assert "is empty" in kept[0].meta["rerank_error"]


def test_an_error_of_a_ranker_before_is_not_the_next_ones() -> None:
    ranker = RerankRanker(word_ranker(), on_error="keep")
    found = ranker.run(QUERY, ranker.run(" ", documents())["documents"])["documents"]
    assert found[0].meta == {"page": 2, "rerank_outcomes": "4 clean"}


def test_a_pipeline_is_written_and_read(tiny_model: Path) -> None:
    small = {"model": str(tiny_model), "device": "cpu", "dtype": "float32", "prompt": "pointwise-yes-no"}
    made = pipeline(RerankRanker("pointwise", options={"passage_tokens": 6}, top_k=2, on_error="keep", **small))
    text = made.dumps()
    assert "passage_tokens: 6" in text
    assert "device: cpu" in text
    assert "strict: " not in text  # the defaults are not written
    again = Pipeline.loads(text, allowed_modules=ALLOWED)
    assert again.dumps() == text
    store = again.get_component("retriever").document_store
    if store.count_documents() == 0:  # what is in memory is not in the file
        store.write_documents(documents())
    assert again.run(asked()) == made.run(asked())
    with pytest.raises(DeserializationError, match="rerank"):
        Pipeline.loads(text)


def test_a_ready_ranker_cannot_be_written() -> None:
    with pytest.raises(InputError, match="a ready Reranker cannot be written into a file; name it by"):
        pipeline(RerankRanker(word_ranker())).dumps()


def test_it_is_loaded_by_warm_up_and_given_back(tiny_model: Path) -> None:
    ranker = RerankRanker(model=str(tiny_model), device="cpu", dtype="float32", adapter="none")
    assert ranker._given._held is None
    made = pipeline(ranker)
    made.warm_up()
    held = ranker._given._held
    asyncio.run(made.warm_up_async())
    assert ranker._given._held is held is not None
    made.close()
    assert ranker._given._held is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"top_k": 0}, "top_k is 0; give at least 1"),
        ({"ranker": "frst"}, "did you mean 'first'"),
        ({"topk": 3}, "unknown argument 'topk'"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        RerankRanker(**arguments)


def test_a_wrong_top_k_of_a_run_is_refused() -> None:
    with pytest.raises(InputError, match="top_k is -1; give at least 1"):
        RerankRanker(word_ranker()).run(QUERY, documents(), top_k=-1)


@pytest.mark.model
def test_by_the_embedded_model() -> None:
    ranker = RerankRanker(top_k=2)
    found = pipeline(ranker).run(asked())["ranker"]["documents"]
    expected = ranker._given.loaded().rank(QUERY, FLEAS).top(2)
    assert [document.content for document in found] == [hit.passage.text for hit in expected]
    assert found[0].score == pytest.approx(expected[0].score, abs=1e-2)


def test_haystacks_own_client_asks_the_service() -> None:
    with running(service()) as here:
        client = CohereRanker(api_base_url=here.url, api_key=Secret.from_token("any"), model="rerank-v3.5", top_k=2)
        made = pipeline(client)
        answer = made.run(asked())
        assert ids(asyncio.run(made.run_async(asked()))) == ids(answer) == ORDER[:2]
    scores = [document.score for document in answer["ranker"]["documents"]]
    assert scores == sorted(scores, reverse=True)
