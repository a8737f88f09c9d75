"""LangChain: a document compressor, for ContextualCompressionRetriever and whatever else takes one.

retriever = ContextualCompressionRetriever(base_compressor=RerankCompressor(top_n=3), base_retriever=bm25)
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from rerank.integrations.common import Document, Order, RankerArguments, explain_missing

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor
    from langchain_core.documents import Document as LangChainDocument
except ImportError as missing:
    explain_missing(missing, "the LangChain component", "langchain", "langchain_core")


class RerankCompressor(RankerArguments, BaseDocumentCompressor):  # type: ignore[misc]  # its types are not read
    """The documents in the ranker's order, the best `top_n` of them, None for all.

    Each is a copy with its id, and in its metadata `relevance_score`, the ranker's score as it is, `rerank_outcomes`,
    how the model's answers could be read, and where the given order was kept `rerank_error`. A document without text
    comes last, and has no score.
    """

    top_n: int | None = Field(default=None, ge=1)

    def compress_documents(
        self, documents: Sequence[LangChainDocument], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[LangChainDocument]:
        return self._compressed(documents, self.ordered(query, _read(documents)))

    async def acompress_documents(
        self, documents: Sequence[LangChainDocument], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[LangChainDocument]:
        return self._compressed(documents, await self.aordered(query, _read(documents)))

    def _compressed(self, documents: Sequence[LangChainDocument], order: Order) -> list[LangChainDocument]:
        found = []
        for line in order.lines[: self.top_n]:
            document = documents[line.index]
            metadata = order.noted(document.metadata, line)
            if line.score is not None:
                metadata["relevance_score"] = line.score
            elif line.empty:
                metadata.pop("relevance_score", None)  # of a ranker before this one
            found.append(document.model_copy(update={"metadata": metadata}))
        return found


def _read(documents: Sequence[LangChainDocument]) -> list[Document]:
    return [Document(document.page_content) for document in documents]
