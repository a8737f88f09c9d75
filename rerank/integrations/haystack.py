"""Haystack: a ranker component.

    pipeline.add_component("ranker", RerankRanker(top_k=3))
    pipeline.connect("retriever.documents", "ranker.documents")

A pipeline with it in a file is loaded by `Pipeline.loads(text, allowed_modules=["rerank.integrations.haystack"])`: what
is not Haystack's own has to be named.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

from rerank.errors import InputError
from rerank.integrations.common import Document, Order, arguments_of, explain_missing
from rerank.reranker import Ranker

try:
    from haystack import Document as HaystackDocument
    from haystack import component, default_from_dict, default_to_dict
except ImportError as missing:
    explain_missing(missing, "the Haystack component", "haystack", "haystack")


@component
class RerankRanker:
    """The documents in the ranker's order, the best `top_k` of them, None for all. Of documents with one id the one
    with the highest score is ranked, as by Haystack's own rankers.

    `arguments` are those of `rerank.integrations.common.RankerArguments`. `meta_fields_to_embed` names what is read
    before the content, with `meta_data_separator` between. A document comes back as a copy with its id, its `score` the
    ranker's as it is, and in its meta `rerank_outcomes`, how the model's answers could be read, and where the given
    order was kept `rerank_error`. A document without text, as a blob, comes last and has no score.
    """

    def __init__(
        self,
        ranker: str | Ranker = "pointwise",
        *,
        top_k: int | None = None,
        meta_fields_to_embed: list[str] | None = None,
        meta_data_separator: str = "\n",
        **arguments: object,
    ) -> None:
        self.top_k = _checked(top_k)
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.meta_data_separator = meta_data_separator
        self._given = arguments_of(ranker, arguments)

    def warm_up(self) -> None:
        """Loads the ranker, unless it is there."""
        self._given.loaded()

    async def warm_up_async(self) -> None:
        await asyncio.to_thread(self._given.loaded)

    def close(self) -> None:
        """Gives back what `warm_up` loaded."""
        self._given.close()

    def to_dict(self) -> dict[str, object]:
        """Raises InputError for a ready ranker."""
        own: dict[str, object] = {"top_k": self.top_k, "meta_fields_to_embed": self.meta_fields_to_embed}
        own["meta_data_separator"] = self.meta_data_separator
        told: dict[str, object] = default_to_dict(self, **self._given.told(), **own)
        return told

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> RerankRanker:
        made: RerankRanker = default_from_dict(cls, data)
        return made

    @component.output_types(documents=list[HaystackDocument])  # type: ignore[untyped-decorator]
    def run(
        self, query: str, documents: list[HaystackDocument], top_k: int | None = None
    ) -> dict[str, list[HaystackDocument]]:
        """`top_k` stands for the component's."""
        documents, cut = _without_duplicates(documents), _checked(top_k) or self.top_k
        return _reordered(documents, self._given.ordered(query, self._read(documents)), cut)

    @component.output_types(documents=list[HaystackDocument])  # type: ignore[untyped-decorator]
    async def run_async(
        self, query: str, documents: list[HaystackDocument], top_k: int | None = None
    ) -> dict[str, list[HaystackDocument]]:
        """As `run`, without holding up the event loop."""
        documents, cut = _without_duplicates(documents), _checked(top_k) or self.top_k
        return _reordered(documents, await self._given.aordered(query, self._read(documents)), cut)

    def _read(self, documents: Sequence[HaystackDocument]) -> list[Document]:
        return [Document(self._text(document), document.score) for document in documents]

    def _text(self, document: HaystackDocument) -> str:
        content = document.content or ""
        if not content.strip():
            return ""
        fields = [str(document.meta[name]) for name in self.meta_fields_to_embed if document.meta.get(name)]
        return self.meta_data_separator.join([*fields, content])


def _reordered(
    documents: Sequence[HaystackDocument], order: Order, top_k: int | None
) -> dict[str, list[HaystackDocument]]:
    found = []
    for line in order.lines[:top_k]:
        document = documents[line.index]
        found.append(replace(document, score=line.score, meta=order.noted(document.meta, line)))
    return {"documents": found}


def _without_duplicates(documents: Sequence[HaystackDocument]) -> list[HaystackDocument]:
    best: dict[str, HaystackDocument] = {}
    for document in documents:
        there = best.get(document.id)
        if there is None or _found(document) > _found(there):
            best[document.id] = document
    return list(best.values())


def _found(document: HaystackDocument) -> float:
    return -math.inf if document.score is None else float(document.score)


def _checked(top_k: int | None) -> int | None:
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k is {top_k}; give at least 1, or None for all documents")
    return top_k
