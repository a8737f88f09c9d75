"""Feature vectors as SVMLight text with `qid`, as MSLR-WEB and Istella are: `2 qid:10 1:0.5 3:12 # doc`.

A line is a document: its label, its query, its features by number from 1 on (those that are missing are 0), and a
comment, whose first word is taken as the document's id, `docid = X` too (LETOR 4); without one documents are numbered
within their query from 0. Lines are read one by one into float32, 4 bytes a feature: 2 GB for MSLR-WEB30K.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rerank.data.files import appearing_whole, filled_lines, located, open_text, read_lines
from rerank.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_LINE = "'label qid:ID 1:value 2:value … # doc_id'"


@dataclass(frozen=True, slots=True)
class Features:
    """Documents with their features, query by query: query i has the rows starts[i] to starts[i + 1]."""

    query_ids: tuple[str, ...]
    starts: NDArray[np.int64]
    values: Floats  # [documents, features]
    labels: Floats  # [documents]
    doc_ids: tuple[str, ...]

    def rows(self, query: int) -> slice:
        return slice(int(self.starts[query]), int(self.starts[query + 1]))

    def select(self, queries: Iterable[int]) -> Features:
        """Some of the queries, in the order given."""
        chosen = list(queries)
        rows = np.concatenate([np.arange(self.starts[q], self.starts[q + 1]) for q in chosen] or [np.empty(0, int)])
        lengths = [int(self.starts[q + 1] - self.starts[q]) for q in chosen]
        return Features(
            tuple(self.query_ids[q] for q in chosen),
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
            self.values[rows],
            self.labels[rows],
            tuple(self.doc_ids[row] for row in rows),
        )


def read_features(path: str | Path, count: int | None = None) -> Features:
    """The feature vectors of a file. A query's lines stand together. Raises InputError with the place of a bad line.

    `count` is how many features there are; by default the highest number of the first thousand lines, since some files
    leave out zeros. A higher one later is an error.
    """
    path = Path(path)
    if count is None:
        first = [_read(line, where)[3] for where, line in _head(path)]
        count = max((int(numbers.max()) for numbers in first if len(numbers)), default=0)
        if not count:
            raise InputError(f"{path}: no features in its first lines; expected {_LINE}")
    values, labels = array("f"), array("f")
    query_ids: list[str] = []
    starts: list[int] = []
    doc_ids: list[str] = []
    seen: set[str] = set()
    own: set[str] = set()
    row = np.zeros(count, np.float32)
    for where, line in filled_lines(read_lines(path), str(path)):
        if line.startswith("#"):
            continue
        label, query_id, doc_id, numbers, found = _read(line, where)
        if not query_ids or query_id != query_ids[-1]:
            if query_id in seen:
                raise InputError(f"{where}: query {query_id!r} comes again after another one; sort the file by query")
            seen.add(query_id)
            query_ids.append(query_id)
            starts.append(len(labels))
            own = set()
        if len(numbers) and (numbers.max() > count or numbers.min() < 1):
            raise InputError(f"{where}: the feature {int(numbers.max())}; they are numbered from 1 to {count} here")
        row[:] = 0
        row[numbers.astype(np.intp) - 1] = found
        values.frombytes(row.tobytes())
        labels.append(label)
        doc_id = doc_id or str(len(labels) - 1 - starts[-1])
        if doc_id in own:
            raise InputError(f"{where}: document {doc_id!r} of query {query_id!r} comes twice")
        own.add(doc_id)
        doc_ids.append(doc_id)
    if not labels:
        raise InputError(f"{path} is empty; expected {_LINE}")
    return Features(
        tuple(query_ids),
        np.array([*starts, len(labels)], np.int64),
        np.frombuffer(values, np.float32).reshape(len(labels), count),
        np.frombuffer(labels, np.float32),
        tuple(doc_ids),
    )


def write_features(path: str | Path, features: Features) -> None:
    """Writes feature vectors, zeros left out but for the last feature, which says how many there are. The query's id
    stands as it is after `qid:`; some programs want a whole number there. The file appears when it is whole."""
    last = features.values.shape[1]
    for name in (*features.query_ids, *features.doc_ids):
        if not name or any(map(str.isspace, name)):
            raise InputError(f"the id {name!r} cannot stand in SVMLight: it is empty or has white space")
    with appearing_whole(path) as partial, open_text(partial, "w") as stream:
        for number, query_id in enumerate(features.query_ids):
            for i in range(*features.rows(number).indices(len(features.labels))):
                row = features.values[i]
                pairs = " ".join(f"{j}:{row[j - 1]:.6g}" for j in range(1, last + 1) if row[j - 1] or j == last)
                stream.write(f"{features.labels[i]:g} qid:{query_id} {pairs} # {features.doc_ids[i]}\n")


def _head(path: Path) -> Iterator[tuple[str, str]]:
    lines = ((where, line) for where, line in filled_lines(read_lines(path), str(path)) if not line.startswith("#"))
    for _, pair in zip(range(1000), lines, strict=False):
        yield pair


def _read(line: str, where: str) -> tuple[float, str, str, NDArray[np.float64], Floats]:
    """Label, query id, document id or '', the features' numbers and their values."""
    text, _, comment = line.partition("#")
    fields = text.split(None, 2)
    with located(where):
        if len(fields) < 2 or not fields[1].startswith("qid:") or len(fields[1]) == 4:
            raise InputError(f"{line!r:.60}; expected {_LINE}")
        try:
            label = float(fields[0])
            numbered = fields[2].replace(":", " ") if len(fields) == 3 else ""
            pairs = np.array([float(number) for number in numbered.split()]).reshape(-1, 2)
        except ValueError:
            raise InputError(f"{line!r:.60} has something that is no number; expected {_LINE}") from None
        if not np.isfinite(label) or not np.isfinite(pairs).all():
            raise InputError(f"{line!r:.60} has a number that is not finite")
    words = comment.replace("=", " ").split()
    doc_id = words[1] if len(words) > 1 and words[0].lower() == "docid" else words[0] if words else ""
    numbers, found = pairs[:, 0], pairs[:, 1]
    return label, fields[1][4:], doc_id, numbers, found.astype(np.float32)
