"""The LlamaIndex component behind a real index, and LlamaIndex's own Cohere client against the service."""

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import MockLLM
from llama_index.core.schema import ImageNode, MetadataMode, NodeWithScore, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank
from pydantic_core import PydanticSerializationError
from service import FLEAS, QUERY, running, service, word_ranker
from words import embedded

from rerank.errors import InputError
from rerank.integrations.llamaindex import RerankPostprocessor

ORDER = ["d2", "d1", "d0", "d3"]  # by the words that they have of QUERY


class Words(BaseEmbedding):
    def _get_text_embedding(self, text: str) -> list[float]:
        return embedded(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return embedded(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return embedded(query)


def nodes(*texts: str) -> list[TextNode]:
    return [TextNode(text=text, id_=f"d{i}", metadata={"page": i}) for i, text in enumerate(texts or FLEAS)]


def scored(*texts: str) -> list[NodeWithScore]:
    return [NodeWithScore(node=node, score=1 / (i + 1)) for i, node in enumerate(nodes(*texts))]


def engine(postprocessor: Any) -> Any:
    index = VectorStoreIndex(nodes(), embed_model=Words())
    return index.as_query_engine(llm=MockLLM(), similarity_top_k=4, node_postprocessors=[postprocessor])


def test_in_a_query_engine() -> None:
    """MockLLM answers with its prompt: what the component notes is not in it."""
    asked = engine(RerankPostprocessor(ranker=word_ranker(), top_n=2))
    answer = asked.query(QUERY)
    assert [node.node_id for node in answer.source_nodes] == ORDER[:2]
    best = answer.source_nodes[0]
    assert (best.score, best.text, best.metadata) == (5.0, FLEAS[2], {"page": 2, "rerank_outcomes": "4 clean"})
    assert str(answer).index(FLEAS[2]) < str(answer).index(FLEAS[1])
    assert FLEAS[0] not in str(answer)
    assert "rerank_outcomes" not in str(answer)
    again = asyncio.run(asked.aquery(QUERY))
    assert again.source_nodes == answer.source_nodes


def test_what_is_read_of_a_node() -> None:
    """What LlamaIndex embeds, unless told: its metadata too, less what is excluded."""
    given = [
        NodeWithScore(node=TextNode(text="a", metadata={"title": "fleas"})),
        NodeWithScore(node=TextNode(text="b", metadata={"title": "long"}, excluded_embed_metadata_keys=["title"])),
        NodeWithScore(node=TextNode(text="c", metadata={"title": "live"})),
    ]
    reader = RerankPostprocessor(ranker=word_ranker())
    assert [node.text for node in reader.postprocess_nodes(given, query_str="long fleas live")] == ["a", "c", "b"]
    bare = RerankPostprocessor(ranker=word_ranker(), metadata_mode=MetadataMode.NONE)
    assert [node.text for node in bare.postprocess_nodes(given, query_str="long fleas live")] == ["a", "b", "c"]


def test_what_was_given_stays_as_it_was() -> None:
    given = scored()
    found = RerankPostprocessor(ranker=word_ranker()).postprocess_nodes(given, query_str=QUERY)
    assert given == scored()
    assert [node.node_id for node in found] == ORDER
    again = RerankPostprocessor(ranker=word_ranker()).postprocess_nodes(found, query_str=QUERY)
    assert again == found  # and its notes are not read


def test_nodes_that_are_none_no_text_or_equal() -> None:
    reader = RerankPostprocessor(ranker=word_ranker())
    assert reader.postprocess_nodes([], query_str=QUERY) == []
    image = NodeWithScore(node=ImageNode(image_url="http://127.0.0.1/cat.png", metadata={"file": "cat"}), score=9.0)
    twice = NodeWithScore(node=TextNode(text="a cat", id_="same"))
    found = reader.postprocess_nodes([image, twice, *scored("long"), twice], query_str="cat")
    assert [node.node_id for node in found] == ["same", "same", "d0", image.node_id]
    assert (found[-1].score, found[-1].metadata) == (None, {"file": "cat", "rerank_outcomes": "empty"})


def test_a_query_that_cannot_be_asked() -> None:
    reader = RerankPostprocessor(ranker=word_ranker())
    with pytest.raises(InputError, match=r"give query_bundle=\.\.\. or query_str="):
        reader.postprocess_nodes(scored())
    with pytest.raises(InputError, match="is empty"):
        reader.postprocess_nodes(scored(), query_str=" ")
    kept = RerankPostprocessor(ranker=word_ranker(), on_error="keep").postprocess_nodes(scored(), query_str=" ")
    assert [(node.node_id, node.score) for node in kept] == [(node.node_id, node.score) for node in scored()]
    assert "is empty" in kept[0].metadata["rerank_error"]
    assert "rerank_error" not in kept[0].node.get_content(MetadataMode.LLM)


def test_an_error_of_a_ranker_before_is_not_the_next_ones() -> None:
    reader = RerankPostprocessor(ranker=word_ranker(), on_error="keep")
    kept = reader.postprocess_nodes(scored(), query_str=" ")
    found = reader.postprocess_nodes(kept, query_str=QUERY)
    assert found[0].metadata == {"page": 2, "rerank_outcomes": "4 clean"}
    assert "rerank_error" in kept[0].metadata


def test_the_instrumentation_is_told() -> None:
    told: list[tuple[str, int]] = []

    class Handler(BaseEventHandler):
        def handle(self, event: Any, **_: Any) -> None:
            if event.class_name().startswith("ReRank"):
                told.append((event.class_name(), len(event.nodes)))

    root = get_dispatcher()
    handler = Handler()
    root.add_event_handler(handler)
    try:
        RerankPostprocessor(ranker=word_ranker(), top_n=1).postprocess_nodes(scored(), query_str=QUERY)
    finally:
        root.event_handlers.remove(handler)
    assert told == [("ReRankStartEvent", 4), ("ReRankEndEvent", 1)]


def test_it_is_written_and_read(tiny_model: Path) -> None:
    reader = RerankPostprocessor(model=str(tiny_model), device="cpu", dtype="float32", adapter="none", top_n=2)
    found = reader.postprocess_nodes(scored(), query_str=QUERY)
    written = reader.to_json()
    assert json.loads(written)["class_name"] == "RerankPostprocessor"
    for again in (RerankPostprocessor.from_json(written), pickle.loads(pickle.dumps(reader))):
        assert again.to_json() == written
        assert again.postprocess_nodes(scored(), query_str=QUERY) == found
    ready = RerankPostprocessor(ranker=word_ranker())
    with pytest.raises(PydanticSerializationError, match="a ready Reranker cannot be written into a file; name it by"):
        ready.to_dict()
    with pytest.raises(InputError, match="a ready Reranker"):
        pickle.dumps(ready)


@pytest.mark.parametrize(("field", "value", "text"), [("top_n", 0, "top_n"), ("ranker", "frst", "mean 'first'")])
def test_wrong_arguments_are_refused(field: str, value: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RerankPostprocessor.model_validate({field: value})


@pytest.mark.model
def test_by_the_embedded_model() -> None:
    reader = RerankPostprocessor(top_n=2, metadata_mode=MetadataMode.NONE)
    found = engine(reader).query(QUERY).source_nodes
    expected = reader.loaded().rank(QUERY, FLEAS).top(2)
    assert [node.text for node in found] == [hit.passage.text for hit in expected]
    assert found[0].score == pytest.approx(expected[0].score, abs=1e-2)


def test_llamaindexs_own_client_asks_the_service() -> None:
    with running(service()) as here:
        client = CohereRerank(base_url=here.url, api_key="any", model="rerank-v3.5", top_n=2)
        found = engine(client).query(QUERY).source_nodes
    assert [node.node_id for node in found] == ORDER[:2]
    scores = [node.score for node in found]
    assert scores == sorted(scores, reverse=True)
