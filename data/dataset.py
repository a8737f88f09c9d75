"""What a reranker is tried on: queries, passages to look up, judgments and a first stage."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from rerank.data.trec import Qrels, Run, best_docs
from rerank.errors import InputError
from rerank.types import Candidates, Passage, Query

log = logging.getLogger(__name__)

Corpus = Mapping[str, Passage]  # doc_id -> Passage; a lookup may read a disk


@dataclass(frozen=True, slots=True)
class Dataset:
    """`corpus` is None where `lists` gives each query its passages, text and all (query_id -> Candidates)."""

    name: str
    queries: Mapping[str, Query]
    corpus: Corpus | None = None
    qrels: Qrels | None = None
    first_stage: Run | None = None
    lists: Mapping[str, Candidates] | None = None

    def __post_init__(self) -> None:
        if self.qrels is not None:
            _require_shared(f"the judgments of {self.name}", self.qrels, self.queries)
        if self.first_stage is not None:
            _require_shared(f"the first stage of {self.name}", self.first_stage, self.queries)

    def candidates(
        self, depth: int = 100, *, run: Run | None = None, queries: Iterable[Query] | None = None
    ) -> Iterator[Candidates]:
        """The best `depth` passages of each query, in the order of the queries.

        They come from the run, else the dataset's lists or first stage, else BM25 over the corpus, which
        also serves `queries` from elsewhere. A run's passages are in order of score, ties as they stand.
        Queries for which nothing was found are skipped, with one warning.
        """
        if depth < 1:
            raise InputError(f"depth is {depth}; at least one passage a query is needed")
        if run is None and queries is None and self.lists is not None:
            return (replace(each, passages=each.passages[:depth]) for each in self.lists.values())
        asked = list(self.queries.values() if queries is None else queries)
        ids = [query.query_id for query in asked]
        if len(set(ids)) < len(ids):
            raise InputError("two of the queries have the same id; ids must be distinct")
        if run is not None:
            _require_shared("the run", run, ids)
        elif queries is None and self.first_stage is not None:
            run = self.first_stage
        found = self._search(asked, depth) if run is None else ((query, run.get(query.query_id)) for query in asked)
        return self.filled(found, depth)

    def known(self, query_id: str, doc_ids: Iterable[str]) -> Candidates | None:
        """Those of the documents that are here, in that order, for who wants to read them. None where the query or all
        of them are unknown."""
        query = self.queries.get(query_id)
        corpus = self._corpus_of(query_id)
        passages = []
        for doc_id in dict.fromkeys(doc_ids):
            with suppress(KeyError):
                passages.append(corpus[doc_id])
        return Candidates(query, tuple(passages)) if query is not None and passages else None

    def _corpus_of(self, query_id: str) -> Corpus:
        if self.lists is None:
            return self.corpus or {}
        own = self.lists.get(query_id)
        return {passage.doc_id: passage for passage in own.passages} if own else {}

    def filled(self, found: Iterable[tuple[Query, Mapping[str, float] | None]], depth: int) -> Iterator[Candidates]:
        """What was found for each query, with its passages; what `candidates` says of a run holds."""
        lacking = total = 0
        for query, docs in found:
            total += 1
            if docs:
                yield Candidates(query, self._passages(query, docs, depth))
            else:
                lacking += 1
        if lacking:
            log.warning("%s: skipped %d of %d queries: no candidates", self.name, lacking, total)

    def _search(self, queries: Iterable[Query], depth: int) -> Iterator[tuple[Query, Mapping[str, float]]]:
        """Indexes now and searches as the results are drawn, so that a million queries' are never held."""
        from rerank.data.bm25 import BM25

        if self.corpus is None:
            raise InputError(f"{self.name} has no corpus to search; give a run, or a dataset with a corpus")
        index = BM25(self.corpus)
        return ((query, index.search([query], depth)[query.query_id]) for query in queries)

    def _passages(self, query: Query, docs: Mapping[str, float], depth: int) -> tuple[Passage, ...]:
        known = self._corpus_of(query.query_id)
        passages = []
        for doc_id, score in best_docs(query.query_id, docs, depth).items():
            try:
                found = known[doc_id]
            except KeyError as error:
                raise InputError(
                    f"the run's document {doc_id!r} for query {query.query_id!r} is not in {self.name}"
                ) from error
            # as replace() does, in a third of its time: training reads millions
            passages.append(Passage(found.text, found.doc_id, found.title, score, found.source))
        return tuple(passages)


def _require_shared(what: str, given: Iterable[str], queries: Iterable[str]) -> None:
    given, queries = list(given), list(queries)
    if set(given).isdisjoint(queries):
        there, here = (repr(ids[0]) if ids else "none" for ids in (given, queries))
        raise InputError(f"{what} and the queries share no query id: for example {there} there and {here} here")
