"""Candidates in shards: a folder of files, each with the candidates of some queries, read one at a time.

A shard is JSONL (rank_llm's requests, or lists with 'docs'; perhaps compressed) or Parquet, with a row for each query:

    query_id    string
    query       string
    candidates  list<struct<doc_id: string, text: string, title: string, score: double>>    title and score may be null

The order of the shards is that of their names.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rerank.data.files import located, objects_of, optional_number, optional_text, text_of
from rerank.data.load import read_candidates
from rerank.data.rank_llm import write_requests
from rerank.errors import InputError, UnknownNameError
from rerank.types import Candidates, Passage, Query

if TYPE_CHECKING:
    import pyarrow as pa

PER_SHARD = 64  # queries: with 1000 passages each some 25 MB of text, and minutes of a GPU
_ROWS = 16  # queries of a Parquet file that are in memory together
_EXPECTED = "a row with query_id, query and candidates, a list of {doc_id, text, title?, score?}"


def is_shard(path: Path) -> bool:
    """Spark and others put files with a leading '_' or '.' beside their data."""
    return bool({".jsonl", ".parquet"} & set(path.suffixes)) and path.name[0] not in "._" and path.is_file()


def is_sharded(path: Path) -> bool:
    """Whether it is a folder of shards, or a single one in Parquet. A BEIR folder has JSONL in it, and is none."""
    if path.is_dir():
        return not (path / "corpus.jsonl").exists() and any(map(is_shard, path.iterdir()))
    return path.suffix == ".parquet"


def list_shards(path: Path) -> list[Path]:
    """The shards of a folder, or the file itself."""
    if not path.exists():
        raise InputError(f"there is no {str(path)!r}; give a folder of shards, or a file")
    found = sorted(filter(is_shard, path.iterdir())) if path.is_dir() else [path]
    if not found:
        raise InputError(f"the folder {str(path)!r} has no shard: no file with .jsonl or .parquet in its name")
    return found


def read_shard(path: Path) -> Iterator[Candidates]:
    """The queries of one shard, as they are drawn."""
    if path.suffix == ".parquet":
        return _read_parquet(path)
    return (candidates for candidates, _ in read_candidates(path))


def write_shards(
    requests: Iterable[Candidates], folder: Path, *, per_shard: int = PER_SHARD, form: str = "jsonl"
) -> tuple[int, int, int]:
    """Cuts a stream into shards of so many queries; returns how many shards, queries and passages there are.

    The folder is there when all is written, and not before.
    """
    write = writer_of(form)
    if folder.exists():
        raise InputError(f"{str(folder)!r} exists; delete it or give another folder")
    stream, written = iter(requests), folder.with_name(f"{folder.name}.writing")
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir(parents=True)
    shards = queries = passages = 0
    while part := list(islice(stream, per_shard)):
        write(written / f"{shards:06d}.{form}", part)
        shards, queries, passages = shards + 1, queries + len(part), passages + sum(map(len, part))
    if not shards:
        written.rmdir()
        raise InputError("there is no query to write")
    os.replace(written, folder)
    return shards, queries, passages


def writer_of(form: str) -> Callable[[Path, list[Candidates]], None]:
    """Refuses a form that is not known, or whose library is missing, before anything is read."""
    known = {"jsonl": write_requests, "jsonl.gz": write_requests, "parquet": write_parquet}
    if form not in known:
        raise UnknownNameError("form of shards", form, known)
    if form == "parquet":
        _require_pyarrow()
    return known[form]


def write_parquet(path: Path, requests: list[Candidates]) -> None:
    """A shard in the schema above."""
    _require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "query_id": each.query.query_id,
            "query": each.query.text,
            "candidates": [
                {"doc_id": p.doc_id, "text": p.text, "title": p.title or None, "score": p.score} for p in each.passages
            ],
        }
        for each in requests
    ]
    table = pa.Table.from_pylist(rows, schema=_schema())
    pq.write_table(table, path, compression="zstd", row_group_size=_ROWS)


def _read_parquet(path: Path) -> Iterator[Candidates]:
    _require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if lacking := {"query_id", "query", "candidates"} - set(file.schema_arrow.names):
                raise InputError(
                    f"{path} has no column {sorted(lacking)[0]!r}; expected {_EXPECTED}; "
                    f"the columns are {file.schema_arrow.names}"
                )
            number = 0
            for batch in file.iter_batches(_ROWS, columns=["query_id", "query", "candidates"]):
                for record in batch.to_pylist():
                    number += 1
                    with located(f"{path}, row {number}"):
                        yield _candidates(record)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot use the file {str(path)!r}: {error}") from error


def _candidates(record: dict[str, object]) -> Candidates:
    passages = tuple(
        Passage(
            text_of(each, "text"),
            text_of(each, "doc_id"),
            optional_text(each, "title") or "",
            optional_number(each, "score"),
        )
        for each in objects_of(record, "candidates", _EXPECTED)
    )
    return Candidates(Query(text_of(record, "query"), text_of(record, "query_id")), passages)


def _schema() -> pa.Schema:
    import pyarrow as pa

    text, fields = pa.string(), [("doc_id", pa.string()), ("text", pa.string()), ("title", pa.string())]
    passage = pa.struct([*fields, ("score", pa.float64())])
    return pa.schema([("query_id", text), ("query", text), ("candidates", pa.list_(passage))])


def _require_pyarrow() -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError("Parquet needs pyarrow: pip install 'rerank-llm[ray]'")
