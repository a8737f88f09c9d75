"""Recall of a dense index before and after the reranker's feedback: docs/feedback.md has the figures.

python docs/benchmarks/feedback.py shared/beir/scifact:test --queries 50
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

import rerank
from rerank.backbones.bi_encoder import BiEncoderBackbone
from rerank.data import Dense, load_dataset
from rerank.eval import evaluate
from rerank.feedback import moved_query
from rerank.fusion import fuse_runs
from rerank.types import Candidates

Floats = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--depth", type=int, default=20, help="passages that are reranked")
    parser.add_argument("--passage-tokens", type=int, default=128)
    parser.add_argument("--index", help="folder where embeddings are kept, as `rerank retrieve --index` does")
    parser.add_argument("--grid", action="store_true", help="try temperatures; on a development set")
    asked = parser.parse_args()

    dataset = load_dataset(asked.dataset)
    assert isinstance(dataset.corpus, dict) and dataset.qrels is not None
    judged = [
        query
        for query in dataset.queries.values()
        if any(v > 0 for v in dataset.qrels.get(query.query_id, {}).values())
    ]
    queries = [judged[i] for i in sorted(np.random.default_rng(0).permutation(len(judged))[: asked.queries])]
    index = Dense(dataset.corpus, BiEncoderBackbone.load(cache_mb=0), folder=asked.index)
    vectors = index.query_rows([query.text for query in queries])

    def run(rows: Floats) -> dict[str, dict[str, float]]:
        return dict(zip((query.query_id for query in queries), index.nearest(rows, 100), strict=True))

    first = run(vectors)
    ranker = rerank.load("pointwise").limited(asked.passage_tokens)
    lists = [
        Candidates(query, tuple(dataset.corpus[d] for d in list(first[query.query_id])[: asked.depth]))
        for query in queries
    ]
    rankings = list(ranker.rank_many(lists))

    def report(name: str, found: Mapping[str, Mapping[str, float]]) -> None:
        qrels = {query.query_id: dataset.qrels[query.query_id] for query in queries}  # type: ignore[index]
        values = evaluate(found, qrels, ["R@100", "R@20", "nDCG@10"])
        print(f"{name:40}", *(f"{measure} {value:.4f}" for measure, value in values.mean.items()), flush=True)

    report("first retrieval", first)
    report("reranked", {r.query.query_id: {h.passage.doc_id: h.score for h in r.hits} for r in rankings})
    grid = itertools.product((0.1, 0.3, 1.0), (0.02, 0.05, 0.1)) if asked.grid else [(0.1, 0.05)]
    for temperature, similarity in grid:
        moved = [
            moved_query(
                row,
                index.rows(hit.passage.doc_id for hit in ranking.hits),
                [hit.score for hit in ranking.hits],
                temperature=temperature,
                similarity_temperature=similarity,
            )
            for row, ranking in zip(vectors, rankings, strict=True)
        ]
        second = run(np.array(moved))
        report(f"second, temperatures {temperature} and {similarity}", second)
        report("first and second, by reciprocal ranks", fuse_runs(first, second))


main()
