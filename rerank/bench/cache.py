"""What was ranked before, by what it depends on: no query is ranked twice, in whatever suite it stands.

A ranking is kept under the hash of who ranked and what was asked. Who: this library's version and code, the strategy
and its options (and the code of the package that it comes from, where that is another), the prompt's content, the model
and the adapter (the content of their files where they are directories), the engine and its options, the kind of device
and the precision. What: the query's text and id, and each candidate's id,
text and score, in their order. Keys of servers take no part, and are not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import rerank
from rerank.backbones import engine_of
from rerank.backbones.adapters import folder_of
from rerank.backbones.embedded import EMBEDDED
from rerank.defaults import DEFAULT_BACKBONE
from rerank.errors import CacheError
from rerank.runs import Settings, as_record, fingerprint, from_record
from rerank.strategies import STRATEGIES
from rerank.types import Candidates, Ranking

_FORM = 1  # of the keys; a greater one for keys that mean something else
_WAIT_S = 60.0  # for another process that writes


class Kept:
    """The rankings of one folder, each with where it was made. A ranking is durable when `put` returns."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "rankings.sqlite"
        with self._usable():
            self._database = sqlite3.connect(self.path, timeout=_WAIT_S)
        with self._usable(), self._database:
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS rankings (key TEXT PRIMARY KEY, ranking TEXT, made TEXT) WITHOUT ROWID"
            )

    def get(self, key: str) -> tuple[Ranking, str] | None:
        with self._usable():
            row = self._database.execute("SELECT ranking, made FROM rankings WHERE key = ?", (key,)).fetchone()
            return None if row is None else (from_record(json.loads(row[0])), str(row[1]))

    def put(self, key: str, ranking: Ranking, made: str) -> None:
        record = json.dumps(as_record(ranking))
        with self._usable(), self._database:
            self._database.execute("INSERT OR REPLACE INTO rankings VALUES (?, ?, ?)", (key, record, made))

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            raise CacheError(
                f"the rankings in {self.path} cannot be used ({type(error).__name__}: {error}); delete it, or give "
                "another --cache"
            ) from error


def key_of(identity: str, request: Candidates) -> str:
    return f"{identity}-{fingerprint(request)}"


def identity_of(settings: Settings) -> str:
    """A hash of all that a ranker's scores depend on but the query, from what its card says. Raises AdapterError."""
    told = json.dumps([_FORM, rerank.__version__, code_of(rerank.__name__), _resolved(settings)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _resolved(value: object) -> object:
    if isinstance(value, Mapping):
        found = {str(name): _resolved(each) for name, each in value.items()}
        return found | _foreign(value) | (_content(value) if "backbone" in value else {})
    if isinstance(value, list | tuple):
        return [_resolved(each) for each in value]
    return value


def _foreign(told: Mapping[str, object]) -> dict[str, object]:
    """The code of a strategy that an installed package offers."""
    name = told.get("strategy")
    if not isinstance(name, str) or name not in STRATEGIES:  # a cascade's title, the first stage
        return {}
    package = STRATEGIES[name].__module__.partition(".")[0]
    return {} if package == rerank.__name__ else {"code": code_of(package)}


def _content(told: Mapping[str, object]) -> dict[str, object]:
    """What names and defaults stand for on this machine."""
    found: dict[str, object] = {}
    model, adapter, backbone = told.get("model"), told.get("adapter"), str(told["backbone"])
    if model is None and backbone == DEFAULT_BACKBONE:
        found["model"] = EMBEDDED
    elif isinstance(model, str) and Path(model).expanduser().is_dir():
        found["model"] = _hash(Path(model).expanduser().resolve())
    if isinstance(adapter, str):
        found["adapter"] = _hash(folder_of(adapter).resolve())
    if "torch" in engine_of(backbone).requires:
        from rerank.backbones.hardware import choose_device, choose_dtype

        device = choose_device(None if told.get("device") is None else str(told["device"]))
        dtype = told.get("dtype") or str(choose_dtype(None, device)).removeprefix("torch.")
        found |= {"device": str(device).partition(":")[0], "dtype": dtype}
    return found


@cache
def code_of(package: str) -> str:
    """A hash of the Python sources of a package, or module, that is imported: a version says little of code that is
    being written."""
    module, total = sys.modules[package], hashlib.sha256()
    for folder in getattr(module, "__path__", ()):
        total.update(_hashed(Path(folder), _sources(folder)).encode())
    if not hasattr(module, "__path__") and module.__file__ is not None:
        total.update(_hashed(Path(module.__file__).parent, [Path(module.__file__)]).encode())
    return total.hexdigest()


def _sources(folder: str) -> list[Path]:
    """Links to folders are followed: some of ours are such."""
    found = (Path(at) / name for at, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(file for file in found if file.suffix == ".py")


@cache
def _hash(folder: Path) -> str:
    """Of the files of a directory, by their names."""
    return _hashed(folder, _files(folder))


def _hashed(folder: Path, files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(folder).as_posix()} {digest}\n".encode())
    return total.hexdigest()


def _files(folder: Path) -> Iterable[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".md")
