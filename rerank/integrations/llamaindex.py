"""LlamaIndex: a node postprocessor, for query engines and whatever else takes one.

engine = index.as_query_engine(similarity_top_k=20, node_postprocessors=[RerankPostprocessor(top_n=3)])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pydantic import Field

from rerank.errors import InputError
from rerank.integrations.common import Document, Order, RankerArguments, explain_missing

try:
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.instrumentation import get_dispatcher
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
except ImportError as missing:
    explain_missing(missing, "the LlamaIndex component", "llamaindex", "llama_index")


class RerankPostprocessor(RankerArguments, BaseNodePostprocessor):  # type: ignore[misc]  # its types are not read
    """The nodes in the ranker's order, the best `top_n` of them, None for all.

    `metadata_mode` says which metadata is read beside the text; by default what is embedded, as LlamaIndex's own
    rerankers do. A node comes back as a copy with its id, its `score` the ranker's as it is, and in its metadata
    `rerank_outcomes`, how the model's answers could be read, and where the given order was kept `rerank_error`; neither
    is shown to a language model or embedded. A node without text, as an image, comes last and has no score.
    """

    top_n: int | None = Field(default=None, ge=1)
    metadata_mode: MetadataMode = MetadataMode.EMBED

    @classmethod
    def class_name(cls) -> str:
        return "RerankPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _text_of(query_bundle)
        with self._told_of(nodes, query) as found:
            found += self._reordered(nodes, self.ordered(query, self._read(nodes)))
        return found

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _text_of(query_bundle)
        with self._told_of(nodes, query) as found:
            found += self._reordered(nodes, await self.aordered(query, self._read(nodes)))
        return found

    def _read(self, nodes: Sequence[NodeWithScore]) -> list[Document]:
        """Metadata alone is no text."""
        return [
            Document(
                node.get_content(self.metadata_mode) if node.get_content(MetadataMode.NONE).strip() else "", node.score
            )
            for node in nodes
        ]

    def _reordered(self, nodes: Sequence[NodeWithScore], order: Order) -> list[NodeWithScore]:
        found = []
        for line in order.lines[: self.top_n]:
            node, notes = nodes[line.index].node, order.notes(line)
            changed = {
                "metadata": order.noted(node.metadata, line),
                "excluded_llm_metadata_keys": _with(node.excluded_llm_metadata_keys, notes),
                "excluded_embed_metadata_keys": _with(node.excluded_embed_metadata_keys, notes),
            }
            found.append(NodeWithScore(node=node.model_copy(update=changed), score=line.score))
        return found

    @contextmanager
    def _told_of(self, nodes: list[NodeWithScore], query: str) -> Iterator[list[NodeWithScore]]:
        """Tells LlamaIndex's instrumentation and callbacks of it. What is found goes into the list."""
        found: list[NodeWithScore] = []
        top_n, dispatcher = self.top_n or len(nodes), get_dispatcher(__name__)
        dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=self.title))
        payload = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.title,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            yield found
            event.on_end(payload={EventPayload.NODES: found})
        dispatcher.event(ReRankEndEvent(nodes=found))


def _text_of(query: QueryBundle | None) -> str:
    if query is None:
        raise InputError("there is no query to rank for; give query_bundle=... or query_str=...")
    return str(query.query_str)


def _with(keys: Sequence[str], notes: Sequence[str] | dict[str, str]) -> list[str]:
    return [*keys, *(name for name in notes if name not in keys)]
