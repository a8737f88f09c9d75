"""Text files, plain or compressed, and JSON records, with errors that name the place."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TextIO

from rerank.errors import InputError


def open_text(path: str | Path, mode: Literal["r", "w"] = "r") -> TextIO:
    """UTF-8 text; `.gz` and `.xz` are (de)compressed. Lines end in `\\n` on every system."""
    text_mode: Literal["rt", "wt"] = "rt" if mode == "r" else "wt"
    newline = None if mode == "r" else "\n"
    try:
        match Path(path).suffix:
            case ".gz":
                return gzip.open(path, text_mode, encoding="utf-8", newline=newline)
            case ".xz":
                return lzma.open(path, text_mode, encoding="utf-8", newline=newline)
            case _:
                return open(path, mode, encoding="utf-8", newline=newline)
    except OSError as error:
        raise _unusable(path, error) from error


@contextmanager
def appearing_whole(path: str | Path) -> Iterator[Path]:
    """What to write beside a file; it takes the file's place when all is written, and is gone where that failed.

    It is on the disk before it takes that place: what it is made from may be deleted afterwards."""
    path = Path(path)
    partial = path.with_name(f".writing.{path.name}")  # the ending says how to compress
    try:
        yield partial
        with partial.open("r+b") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes names in it durable, where a system has a way to."""
    if os.name == "nt":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def require_file(what: str, path: Path) -> None:
    """Raises InputError where there is no such file, with the nearest one beside it."""
    if path.is_file():
        return
    raise InputError(f"the {what} {str(path)!r} is not there{nearby(path)}")


def nearby(path: Path, given: str | None = None) -> str:
    """How an error goes on about a path that leads nowhere: with the nearest one beside it, as `given` says paths."""
    if not path.parent.is_dir():
        return ", and neither is its folder"
    beside = [each.name for each in path.parent.iterdir()]
    near = get_close_matches(path.name, beside, n=1)
    return f"; did you mean {str(Path(given or path).with_name(near[0]))!r}?" if near else ""


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a file. Damage that shows up in its midst is an InputError as well."""
    try:
        with open_text(path) as stream:
            yield from stream
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as error:
        raise _unusable(path, error) from error


def filled_lines(lines: Iterable[str], name: str) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each after its place: `("runs/a.trec, line 3", …)`."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{name}, line {number}", line.rstrip("\r\n")


@contextmanager
def located(where: str) -> Iterator[None]:
    """Puts the place before the text of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def json_object(line: str, expected: str) -> dict[str, object]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON ({error}); expected {expected}") from error
    return as_object(record, expected)


def as_object(record: object, expected: str) -> dict[str, object]:
    if not isinstance(record, dict):
        raise InputError(f"found {record!r:.60}; expected {expected}")
    return record


def text_of(record: dict[str, object], *keys: str) -> str:
    """The value of the first of the keys that is there, as text: ids may be written as numbers."""
    found = optional_text(record, *keys)
    if found is None:
        raise InputError(f"no text as {' or '.join(map(repr, keys))}; the keys are {sorted(record)}")
    return found


def optional_text(record: dict[str, object], *keys: str) -> str | None:
    values = (record.get(key) for key in keys)
    return next((str(value) for value in values if isinstance(value, str | int)), None)


def optional_number(record: dict[str, object], key: str) -> float | None:
    value = record.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InputError(f"{key!r} is {value!r}; expected a number")
    return value


def objects_of(record: dict[str, object], key: str, expected: str) -> list[dict[str, object]]:
    items = record.get(key)
    if not isinstance(items, list):
        raise InputError(f"no list as {key!r}; expected {expected}; the keys are {sorted(record)}")
    return [as_object(item, expected) for item in items]


def _unusable(path: str | Path, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(f"cannot use the file {str(path)!r}: {reason}")
