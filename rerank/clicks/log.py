"""A click log: one session a line of JSON, what was shown in its order and which of it was clicked.

    {"query_id": "q7", "doc_ids": ["d3", "d1", "d9"], "clicks": [0, 1, 0]}

`positions`, 1-based, is there where the documents did not stand at 1, 2, 3, …: a page further on, or a part of one. A
file `.gz` or `.xz` is compressed. A line that is not so is refused with its number, as in every file of rerank.data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rerank.data.files import appearing_whole, filled_lines, json_object, located, open_text, read_lines, text_of
from rerank.errors import InputError

_LINE = '{"query_id": …, "doc_ids": […], "clicks": [0 or 1, …], "positions"?: [1, …]}'


@dataclass(frozen=True, slots=True)
class Session:
    """What one user saw of one query. `clicks` and `positions` (1-based) stand beside `doc_ids`."""

    query_id: str
    doc_ids: tuple[str, ...]
    clicks: tuple[bool, ...]
    positions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.positions:
            object.__setattr__(self, "positions", tuple(range(1, len(self.doc_ids) + 1)))
        if not self.doc_ids:
            raise InputError(f"query {self.query_id!r}: no document was shown")
        for name, values in (("clicks", self.clicks), ("positions", self.positions)):
            if len(values) != len(self.doc_ids):
                raise InputError(f"query {self.query_id!r}: {len(self.doc_ids)} doc_ids and {len(values)} {name}")
        if len(set(self.doc_ids)) < len(self.doc_ids):
            raise InputError(f"query {self.query_id!r}: a document is shown twice")
        if min(self.positions) < 1 or len(set(self.positions)) < len(self.positions):
            raise InputError(f"query {self.query_id!r}: positions {self.positions}; they are 1-based, and distinct")


def read_log(path: str | Path) -> Iterator[Session]:
    """The sessions of a click log as they are read. Raises InputError with the place of a bad line."""
    shown: dict[tuple[str, ...], tuple[str, ...]] = {}  # a ranking is shown again and again: it is held once
    for where, line in filled_lines(read_lines(path), str(path)):
        with located(where):
            record = json_object(line, _LINE)
            doc_ids = tuple(_ids(record))
            clicks = tuple(value == 1 for value in _whole(record, "clicks", least=0, most=1))
            positions = tuple(_whole(record, "positions", least=1)) if "positions" in record else ()
            if unknown := record.keys() - {"query_id", "doc_ids", "clicks", "positions"}:
                raise InputError(f"unknown keys {sorted(unknown)}; expected {_LINE}")
            session = Session(text_of(record, "query_id"), shown.setdefault(doc_ids, doc_ids), clicks, positions)
        yield session


def write_log(path: str | Path, sessions: Iterable[Session]) -> int:
    """Writes the sessions, and says how many clicks they have. The file appears when it is whole."""
    count = 0
    with appearing_whole(path) as partial, open_text(partial, "w") as stream:
        for session in sessions:
            record: dict[str, object] = {
                "query_id": session.query_id, "doc_ids": session.doc_ids, "clicks": [*map(int, session.clicks)],
            }  # fmt: skip
            if session.positions != tuple(range(1, len(session.doc_ids) + 1)):
                record["positions"] = session.positions
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += sum(session.clicks)
    return count


def _ids(record: dict[str, object]) -> list[str]:
    values = record.get("doc_ids")
    if not isinstance(values, list) or not all(isinstance(value, str | int) for value in values):
        raise InputError(f"no list of ids as 'doc_ids'; expected {_LINE}")
    return [str(value) for value in values]


def _whole(record: dict[str, object], key: str, *, least: int, most: int | None = None) -> list[int]:
    values = record.get(key)
    if not isinstance(values, list):
        raise InputError(f"no list as {key!r}; expected {_LINE}")
    found = [value for value in values if isinstance(value, int) and value >= least and (most is None or value <= most)]
    if len(found) < len(values):
        raise InputError(f"{key!r} is {values!s:.60}; expected {_LINE}")
    return found
