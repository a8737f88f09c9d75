"""The LangChain component in real retrievers, and LangChain's own Cohere client against the service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic_core import PydanticSerializationError
from service import FLEAS, QUERY, Running, running, service, word_ranker
from words import embedded

import rerank
from rerank.integrations.langchain import RerankCompressor

ORDER = ["d2", "d1", "d0", "d3"]  # by the words that they have of QUERY


class Words(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [embedded(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return embedded(text)


def documents(*texts: str) -> list[Document]:
    return [Document(text, id=f"d{i}", metadata={"page": i}) for i, text in enumerate(texts or FLEAS)]


def store() -> InMemoryVectorStore:
    found = InMemoryVectorStore(Words())
    found.add_documents(documents())
    return found


def behind(compressor: RerankCompressor | CohereRerank | DocumentCompressorPipeline) -> ContextualCompressionRetriever:
    retriever = store().as_retriever(search_kwargs={"k": 4})
    return ContextualCompressionRetriever(base_compressor=compressor, base_retriever=retriever)


def test_in_a_retriever() -> None:
    retriever = behind(RerankCompressor(ranker=word_ranker(), top_n=2))
    first = store().similarity_search(QUERY, 4)
    found = retriever.invoke(QUERY)
    assert sorted(document.id or "" for document in first) == sorted(ORDER)
    assert [(document.id, document.page_content) for document in found] == [("d2", FLEAS[2]), ("d1", FLEAS[1])]
    assert found[0].metadata == {"page": 2, "relevance_score": 5.0, "rerank_outcomes": "4 clean"}
    assert asyncio.run(retriever.ainvoke(QUERY)) == found


def test_batches_of_queries() -> None:
    retriever = behind(RerankCompressor(ranker=word_ranker(), top_n=1))
    queries = [QUERY, "a cat", "stocks on monday"] * 3
    expected = ["d2", "d3", "d0"] * 3
    assert [found[0].id for found in retriever.batch(queries)] == expected
    assert [found[0].id for found in asyncio.run(retriever.abatch(queries))] == expected


def test_in_a_row_of_compressors() -> None:
    row = [RerankCompressor(ranker=word_ranker(), top_n=3), RerankCompressor(ranker=rerank.FirstStage(), top_n=2)]
    assert [document.id for document in behind(DocumentCompressorPipeline(transformers=row)).invoke(QUERY)] == ORDER[:2]


def test_notes_of_a_ranker_before_are_not_the_next_ones() -> None:
    """Of one that failed, its error; of a document without text, its score."""
    rankers = [RerankCompressor(ranker=word_ranker(), on_error="keep") for _ in range(2)]
    scored = [*documents(), Document("", metadata={"relevance_score": 9.0})]
    kept = rankers[0].compress_documents(scored, " ")
    assert all("rerank_error" in document.metadata for document in kept)
    found = rankers[1].compress_documents(kept, QUERY)
    assert [document.id for document in found] == [*ORDER, None]
    assert found[0].metadata == {"page": 2, "relevance_score": 5.0, "rerank_outcomes": "4 clean"}
    assert found[-1].metadata == {"rerank_outcomes": "empty"}


def test_what_was_given_stays_as_it_was() -> None:
    given = documents()
    RerankCompressor(ranker=word_ranker()).compress_documents(given, QUERY)
    assert given == documents()


def test_documents_that_are_none_empty_or_equal() -> None:
    compressor = RerankCompressor(ranker=word_ranker())
    assert list(compressor.compress_documents([], QUERY)) == []
    given = [Document(""), Document("a cat"), Document("long fleas"), Document("a cat")]
    found = compressor.compress_documents(given, "long cat")
    assert [document.page_content for document in found] == ["a cat", "long fleas", "a cat", ""]
    assert found[-1].metadata == {"rerank_outcomes": "empty"}


def test_a_query_that_cannot_be_asked() -> None:
    with pytest.raises(rerank.RerankError, match="is empty"):
        RerankCompressor(ranker=word_ranker()).compress_documents(documents(), " ")
    (kept,) = RerankCompressor(ranker=word_ranker(), on_error="keep", top_n=1).compress_documents(documents(), " ")
    assert kept.id == "d0"
    assert "is empty" in kept.metadata["rerank_error"]
    assert "relevance_score" not in kept.metadata


def test_it_is_written_and_read(tiny_model: Path) -> None:
    compressor = RerankCompressor(model=str(tiny_model), device="cpu", dtype="float32", adapter="none", top_n=2)
    again = RerankCompressor.model_validate_json(compressor.model_dump_json())
    assert again == compressor
    found = again.compress_documents(documents(), QUERY)
    expected = rerank.load("pointwise", model=str(tiny_model), device="cpu", dtype="float32").rank(QUERY, FLEAS)
    assert [document.metadata["relevance_score"] for document in found] == [hit.score for hit in expected.top(2)]
    with pytest.raises(PydanticSerializationError, match="a ready Reranker cannot be written into a file; name it by"):
        RerankCompressor(ranker=word_ranker()).model_dump_json()


@pytest.mark.parametrize(("field", "value", "text"), [("top_n", 0, "top_n"), ("ranker", "frst", "mean 'first'")])
def test_wrong_arguments_are_refused(field: str, value: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RerankCompressor.model_validate({field: value})


@pytest.mark.model
def test_by_the_embedded_model() -> None:
    compressor = RerankCompressor(top_n=2)
    found = behind(compressor).invoke(QUERY)
    expected = compressor.loaded().rank(QUERY, FLEAS).top(2)
    assert [document.page_content for document in found] == [hit.passage.text for hit in expected]
    assert found[0].metadata["relevance_score"] == pytest.approx(expected[0].score, abs=1e-2)


@pytest.fixture(scope="module")
def here() -> Iterator[Running]:
    with running(service()) as found:
        yield found


def test_langchains_own_client_asks_the_service(here: Running) -> None:
    client = CohereRerank(base_url=here.url, cohere_api_key="any", model="rerank-v3.5", top_n=2)  # type: ignore[arg-type]
    found = behind(client).invoke(QUERY)
    assert [document.id for document in client.compress_documents(documents(), QUERY)] == [None] * 2  # it keeps no ids
    assert [document.metadata["page"] for document in found] == [2, 1]
    scores = [document.metadata["relevance_score"] for document in found]
    assert scores == sorted(scores, reverse=True)
    assert client.rerank(["a cat", {"text": "long"}], "long", top_n=1)[0]["index"] == 1
