"""A RAG pipeline of LangChain on SciFact: is a passage that bears on the claim among the three that a reader is given?

    python docs/benchmarks/rag.py

Claims of the sample's test set; BM25 (bm25s) over all its abstracts retrieves 20, `RerankCompressor` hands on 3.
Before: BM25's own three. The claims are asked together, by the retriever's `batch`.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict

import rerank
from rerank.data import BM25, load_dataset
from rerank.integrations.langchain import RerankCompressor
from rerank.types import Passage, Query

SHOWN = 3


class BM25Retriever(BaseRetriever):  # type: ignore[misc]  # its types are not read
    model_config = ConfigDict(arbitrary_types_allowed=True)

    index: BM25
    corpus: dict[str, Passage]
    k: int

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        found = self.index.search([Query(query)], self.k)["q"]
        return [Document(id=doc_id, page_content=self.corpus[doc_id].full_text) for doc_id in found]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--claims", type=int, default=300, help="so many of the 300, drawn by a seed")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--passage-tokens", type=int, default=160)
    asked = parser.parse_args()

    dataset = load_dataset("sample:scifact")
    assert isinstance(dataset.corpus, dict) and dataset.qrels is not None
    everyone = list(dataset.queries.values())
    chosen = sorted(np.random.default_rng(0).permutation(len(everyone))[: asked.claims])
    claims = [everyone[i] for i in chosen]
    relevant = [{d for d, value in dataset.qrels[claim.query_id].items() if value > 0} for claim in claims]
    texts = [claim.text for claim in claims]
    retriever = BM25Retriever(index=BM25(dataset.corpus), corpus=dataset.corpus, k=asked.depth)

    def report(name: str, found: list[list[Document]], before: list[bool] | None, started: float) -> list[bool]:
        bears = [
            not wanted.isdisjoint(document.id for document in documents[:SHOWN])
            for wanted, documents in zip(relevant, found, strict=True)
        ]
        line = f"{name:28} {sum(bears):4} of {len(bears)}"
        if before is not None:
            pairs = list(zip(before, bears, strict=True))
            line += f", {pairs.count((False, True))} more and {pairs.count((True, False))} less"
        print(f"{line}, {time.perf_counter() - started:.1f} s", flush=True)
        return bears

    started = time.perf_counter()
    first = retriever.batch(texts)
    there = sum(
        not wanted.isdisjoint(d.id for d in documents) for wanted, documents in zip(relevant, first, strict=True)
    )
    print(f"BM25's {asked.depth} hold one for {there} of {len(claims)} claims; of the {SHOWN} that a reader is given:")
    before = report("BM25", first, None, started)
    pointwise = rerank.load("pointwise", passage_tokens=asked.passage_tokens)
    both = rerank.fuse(rerank.FirstStage(), pointwise, method="wsum", norm="zmuv", weights=(0.2, 0.8))
    rankers: dict[str, Any] = {"0.2 BM25 + 0.8 pointwise": both, "pointwise": pointwise}
    for name, ranker in rankers.items():
        pipeline = ContextualCompressionRetriever(
            base_retriever=retriever, base_compressor=RerankCompressor(ranker=ranker, top_n=SHOWN)
        )
        started = time.perf_counter()
        report(name, pipeline.batch(texts, {"max_concurrency": 16}), before, started)


if __name__ == "__main__":
    main()
