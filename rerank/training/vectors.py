"""Feature vectors of real text, of the kinds that LETOR's have: what a small network ranks by.

For each of title, text and both together, over Snowball stems: how many of the query's terms are there, their share,
Σ tf, Σ idf, Σ tf·idf, BM25 (k1 0.9, b 0.4), query likelihood with Dirichlet smoothing (μ 2000, the mean log-probability
of a term), and the field's length; then the query's length, its Σ idf, the share of its pairs of neighbours that are
neighbours in the document, and the cosine of the embedded bi-encoder. Statistics are of the dataset's corpus where it
is in memory, else of the candidates.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from typing import TYPE_CHECKING

import numpy as np

from rerank.data import Dataset, Features
from rerank.data.dense import embed_rows, unit
from rerank.types import Candidates, Passage

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIELDS = ("title", "text", "both")
_OF_FIELD = ("terms", "share", "tf", "idf", "tfidf", "bm25", "likelihood", "length")
NAMES = (
    *(f"{field}-{name}" for field in FIELDS for name in _OF_FIELD), "query-length", "query-idf", "neighbours", "cosine",
)  # fmt: skip
_K1, _B, _MU = 0.9, 0.4, 2000.0


@dataclass(frozen=True, slots=True)
class _Field:
    """What is known of one field of all documents: counts of terms, in how many documents, and lengths."""

    frequency: Counter[str]
    documents: Counter[str]
    total: int
    count: int

    @classmethod
    def of(cls, texts: Iterable[Counter[str]]) -> _Field:
        frequency: Counter[str] = Counter()
        documents: Counter[str] = Counter()
        count = 0
        for terms in texts:
            count += 1
            frequency.update(terms)
            documents.update(terms.keys())
        return cls(frequency, documents, frequency.total(), count)

    def idf(self, term: str) -> float:
        n = self.documents[term]
        return log(1 + (self.count - n + 0.5) / (n + 0.5))

    def vector(self, query: Sequence[str], terms: Counter[str]) -> list[float]:
        length = terms.total()
        average = max(1.0, self.total / max(1, self.count))
        there = [term for term in dict.fromkeys(query) if terms[term]]
        idf = {term: self.idf(term) for term in there}
        bm25 = sum(idf[t] * terms[t] * (_K1 + 1) / (terms[t] + _K1 * (1 - _B + _B * length / average)) for t in there)
        spoken = [
            log((terms[t] + _MU * max(self.frequency[t], 0.5) / max(1, self.total)) / (length + _MU)) for t in query
        ]
        return [
            len(there),
            len(there) / max(1, len(set(query))),
            sum(terms[t] for t in there),
            sum(idf.values()),
            sum(terms[t] * idf[t] for t in there),
            bm25,
            sum(spoken) / max(1, len(spoken)),
            length,
        ]


def vectors(
    candidates: Sequence[Candidates], dataset: Dataset, *, embeddings: bool = True, device: str | None = None
) -> Features:
    """The features of each query's candidates, in their order, with the dataset's judgments as labels (0 where there
    is none, or one below 0)."""
    stems = _Stems()
    shown = {passage.doc_id: passage for each in candidates for passage in each.passages}
    corpus = dataset.corpus if isinstance(dataset.corpus, dict) else shown
    counts = {doc_id: _counts(stems, passage) for doc_id, passage in {**corpus, **shown}.items()}
    fields = [_Field.of(own[i] for own in counts.values()) for i in range(len(FIELDS))]
    rows: list[list[float]] = []
    labels: list[int] = []
    for each in candidates:
        query = stems.of(each.query.text)
        judged = (dataset.qrels or {}).get(each.query.query_id, {})
        for passage in each.passages:
            own = counts[passage.doc_id]
            row = [number for field, terms in zip(fields, own, strict=True) for number in field.vector(query, terms)]
            rows.append([*row, len(query), sum(map(fields[2].idf, query)), _neighbours(query, stems, passage)])
            labels.append(max(0, judged.get(passage.doc_id, 0)))
    values = np.array(rows, np.float32)
    if embeddings:
        values = np.hstack([values, _cosines(candidates, device)])
    return Features(
        tuple(each.query.query_id for each in candidates),
        np.cumsum([0, *map(len, candidates)]).astype(np.int64),
        values,
        np.array(labels, np.float32),
        tuple(passage.doc_id for each in candidates for passage in each.passages),
    )


class _Stems:
    """Words as their stems; a passage that many queries share is read once."""

    def __init__(self) -> None:
        import Stemmer

        self._stem = Stemmer.Stemmer("english").stemWords
        self._known: dict[str, tuple[str, ...]] = {}

    def of(self, text: str) -> tuple[str, ...]:
        if text not in self._known:
            self._known[text] = tuple(self._stem(re.findall(r"\w+", text.casefold())))
        return self._known[text]


def _counts(stems: _Stems, passage: Passage) -> tuple[Counter[str], Counter[str], Counter[str]]:
    title, text = Counter(stems.of(passage.title)), Counter(stems.of(passage.text))
    return title, text, title + text


def _neighbours(query: Sequence[str], stems: _Stems, passage: Passage) -> float:
    wanted = set(pairwise(query))
    return len(wanted & set(pairwise(stems.of(passage.full_text)))) / max(1, len(wanted))


def _cosines(candidates: Sequence[Candidates], device: str | None) -> NDArray[np.float32]:
    """The cosine `[N, 1]` of query and passage by the embedded bi-encoder."""
    from rerank.backbones.bi_encoder import BiEncoderBackbone

    encoder = BiEncoderBackbone.load(device=device, cache_mb=0)
    texts = list({passage.full_text: None for each in candidates for passage in each.passages})
    known = {text: i for i, text in enumerate(texts)}
    table = unit(embed_rows(encoder, "document", texts))
    queries = unit(embed_rows(encoder, "query", [each.query.text for each in candidates]))
    found: list[np.float32] = []
    for each, own in zip(candidates, queries, strict=True):
        found += list(table[[known[passage.full_text] for passage in each.passages]] @ own)
    return np.array(found, np.float32)[:, None]
