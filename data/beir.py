"""BEIR's folders (Thakur et al., NeurIPS 2021): corpus.jsonl, queries.jsonl, qrels/{split}.tsv.

Each file may be compressed (.gz, .xz). A folder may also carry its first stage as bm25.{split}.trec.
"""

from __future__ import annotations

from pathlib import Path

from rerank.data.dataset import Dataset
from rerank.data.files import filled_lines, json_object, located, optional_text, read_lines, text_of
from rerank.data.jsonl import read_queries
from rerank.data.trec import read_qrels, read_run
from rerank.errors import InputError, UnknownNameError
from rerank.types import Passage

_SUFFIXES = ("", ".xz", ".gz")


def read_beir(folder: str | Path, split: str = "test", *, name: str | None = None) -> Dataset:
    """The queries that the split judges, in file order, with the whole corpus."""
    folder = Path(folder)
    qrels_file = require_split(folder, split)
    qrels, run_file = read_qrels(qrels_file), _find(folder, f"bm25.{split}.trec")
    queries_file = _require(folder, "queries.jsonl")
    queries = {query.query_id: query for query in read_queries(read_lines(queries_file), str(queries_file))}
    judged = {query_id: query for query_id, query in queries.items() if query_id in qrels}
    return Dataset(
        name or f"{folder}:{split}",
        judged or queries,  # where none is judged, Dataset says so with an id of each side
        read_corpus(_require(folder, "corpus.jsonl")),
        qrels,
        read_run(run_file) if run_file else None,
    )


def read_corpus(path: str | Path) -> dict[str, Passage]:
    corpus: dict[str, Passage] = {}
    for where, line in filled_lines(read_lines(path), str(path)):
        with located(where):
            record = json_object(line, '{"_id": …, "title"?: …, "text": …}')
            passage = Passage(text_of(record, "text"), text_of(record, "_id"), optional_text(record, "title") or "")
            if corpus.setdefault(passage.doc_id, passage) is not passage:
                raise InputError(f"a second document with the id {passage.doc_id!r}")
    return corpus


def require_split(folder: Path, split: str) -> Path:
    """The file that judges the split. Raises UnknownNameError."""
    qrels_file = _find(folder, f"qrels/{split}.tsv")
    if qrels_file is None:
        splits = {file.name.partition(".")[0] for file in folder.glob("qrels/*.tsv*")}
        raise UnknownNameError(f"split of {folder}", split, splits)
    return qrels_file


def is_beir(folder: Path) -> bool:
    return _find(folder, "corpus.jsonl") is not None


def _find(folder: Path, name: str) -> Path | None:
    return next((file for suffix in _SUFFIXES if (file := folder / f"{name}{suffix}").is_file()), None)


def _require(folder: Path, name: str) -> Path:
    found = _find(folder, name)
    if found is None:
        raise InputError(f"{folder} has no {name} (or .gz, .xz); a BEIR folder needs it")
    return found
