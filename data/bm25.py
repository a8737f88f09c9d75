"""BM25 over passages in memory, by bm25s (Lù, 2024), with Snowball stems."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from rerank.errors import InputError, UnknownNameError
from rerank.types import Passage, Query

if TYPE_CHECKING:
    from numpy.typing import NDArray


class BM25:
    """An index of title and text. k1 and b are Anserini's defaults, which BEIR's published BM25 uses.

    `stemmer` is a Snowball language, `stopwords` a language that bm25s knows or a list of words; None
    leaves either out.
    """

    def __init__(
        self,
        corpus: Mapping[str, Passage] | Iterable[Passage],
        *,
        k1: float = 0.9,
        b: float = 0.4,
        stemmer: str | None = "english",
        stopwords: str | Sequence[str] | None = "english",
    ) -> None:
        bm25s = _bm25s()
        passages = list(corpus.values() if isinstance(corpus, Mapping) else corpus)
        self._doc_ids = [passage.doc_id for passage in passages]
        self._stopwords = stopwords
        self._stemmer = _snowball(stemmer) if stemmer is not None else None
        tokens = self._tokens(passage.full_text for passage in passages)
        if not any(tokens):
            raise InputError(f"BM25 finds no word to index in the {len(passages)} passages of the corpus")
        self._index = bm25s.BM25(k1=k1, b=b)
        self._index.index(tokens, show_progress=False)

    def search(self, queries: Iterable[Query], k: int = 100) -> dict[str, dict[str, float]]:
        """A run: each query's k best documents that share a stem with it, ties in corpus order."""
        queries = list(queries)
        run = {}
        for query, tokens in zip(queries, self._tokens(query.text for query in queries), strict=True):
            known = self._index.get_tokens_ids(tokens)
            scores = self._index.get_scores_from_ids(known) if known else np.zeros(len(self._doc_ids))
            run[query.query_id] = {
                self._doc_ids[i]: float(scores[i]) for i in best(scores, k, np.flatnonzero(scores > 0))
            }
        return run

    def _tokens(self, texts: Iterable[str]) -> list[list[str]]:
        tokens: list[list[str]] = _bm25s().tokenize(
            list(texts),
            stopwords=self._stopwords,
            stemmer=self._stemmer,
            return_ids=False,
            show_progress=False,
        )
        return tokens


def best(scores: NDArray[np.floating], k: int, among: NDArray[np.integer]) -> list[int]:
    """Those of the positions `among` that have the k greatest scores, best first; equal scores in the order of
    `among`."""
    # bm25s's own top-k partitions, so that equal scores come in any order and cut anywhere.
    if len(among) > k:
        kth = np.partition(scores[among], -k)[-k]
        among = among[scores[among] >= kth]
    found: list[int] = among[np.argsort(-scores[among], kind="stable")][:k].tolist()
    return found


def stop_words() -> frozenset[str]:
    """English words that say nothing of what is asked: those that BM25 here leaves out, which are Lucene's."""
    _bm25s()
    from bm25s.stopwords import STOPWORDS_EN

    return frozenset(STOPWORDS_EN)


def _bm25s() -> ModuleType:
    """bm25s without JAX: where that is installed, bm25s starts it when it is imported, for a top-k that is not used
    here, and JAX then takes three quarters of the GPU's memory, which the language model needs."""
    hidden = "jax" not in sys.modules
    if hidden:
        sys.modules["jax"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        import bm25s
    finally:
        if hidden:
            del sys.modules["jax"]
    module: ModuleType = bm25s
    return module


def _snowball(language: str) -> object:
    import Stemmer

    if language not in Stemmer.algorithms():
        raise UnknownNameError("stemmer", language, Stemmer.algorithms())
    return Stemmer.Stemmer(language)
