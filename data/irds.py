"""The catalogue of ir_datasets (MacAvaney et al., SIGIR 2021), which downloads what is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, ValuesView
from typing import TYPE_CHECKING

from rerank.data.dataset import Dataset
from rerank.data.trec import Qrels, Run
from rerank.errors import InputError, UnknownNameError
from rerank.types import Passage, Query

if TYPE_CHECKING:
    from ir_datasets.datasets.base import Dataset as IrDataset

_TEXT_FIELDS = ("text", "body", "abstract", "contents", "passage")


def read_irds(dataset_id: str) -> Dataset:
    """A dataset by its id there, as `msmarco-passage/trec-dl-2019/judged`. Documents are read when asked."""
    import ir_datasets

    require_irds(dataset_id)
    source = ir_datasets.load(dataset_id)
    if not source.has_queries() or not source.has_docs():
        raise InputError(f"the ir_datasets id {dataset_id!r} has no queries of its own; name one of its subsets")
    try:
        return Dataset(
            f"irds:{dataset_id}",
            {query.query_id: Query(_query_text(query), query.query_id) for query in source.queries_iter()},
            IrdsCorpus(source),
            _qrels(source) if source.has_qrels() else None,
            _first_stage(source) if source.has_scoreddocs() else None,
        )
    except OSError as error:  # what requests raises is one as well
        raise InputError(f"ir_datasets could not get {dataset_id!r}: {error}") from error


def is_irds(dataset_id: str) -> bool:
    """Whether ir_datasets knows it. Nothing is downloaded."""
    import ir_datasets

    return dataset_id in ir_datasets.registry


def require_irds(dataset_id: str) -> None:
    """Raises UnknownNameError."""
    import ir_datasets

    if not is_irds(dataset_id):
        raise UnknownNameError("ir_datasets id", dataset_id, ir_datasets.registry)


class IrdsCorpus(Mapping[str, Passage]):
    """Documents looked up one at a time in ir_datasets' store; only iterating reads them all."""

    def __init__(self, source: IrDataset) -> None:
        self._source = source
        self._store = source.docs_store()

    def __getitem__(self, doc_id: str) -> Passage:
        return _passage(self._store.get(doc_id))

    def __iter__(self) -> Iterator[str]:
        return (doc.doc_id for doc in self._source.docs_iter())

    def __len__(self) -> int:
        return int(self._source.docs_count())

    def values(self) -> ValuesView[Passage]:
        return _Passages(self)


class _Passages(ValuesView[Passage]):
    """In one pass over the documents, where a Mapping's own `values` would look each up by its id."""

    _mapping: IrdsCorpus

    def __iter__(self) -> Iterator[Passage]:
        return map(_passage, self._mapping._source.docs_iter())


def _passage(doc: object) -> Passage:
    text = _field(doc, *_TEXT_FIELDS)
    if text is None:  # the formats with several bodies say themselves what their text is
        return Passage(doc.default_text(), doc.doc_id)  # type: ignore[attr-defined]
    return Passage(text, doc.doc_id, _field(doc, "title") or "")  # type: ignore[attr-defined]


def _query_text(query: object) -> str:
    return _field(query, "text", "title", "query") or str(query.default_text())  # type: ignore[attr-defined]


def _field(record: object, *names: str) -> str | None:
    values = (getattr(record, name, None) for name in names)
    return next((value for value in values if isinstance(value, str)), None)


def _qrels(source: IrDataset) -> Qrels:
    qrels: Qrels = {}
    for judgment in source.qrels_iter():
        qrels.setdefault(judgment.query_id, {})[judgment.doc_id] = int(judgment.relevance)
    return qrels


def _first_stage(source: IrDataset) -> Run:
    run: Run = {}
    for scored in source.scoreddocs_iter():
        run.setdefault(scored.query_id, {})[scored.doc_id] = float(scored.score)
    return run
