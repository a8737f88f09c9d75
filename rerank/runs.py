"""Runs that survive: rankings are journalled block by block, and a run that died goes on where it stopped.

A block of queries is ranked as a whole and then committed, since the last digits of a score depend on which
other calls shared its batch: a block that is done again has the same batches, so a resumed run writes the
file that an uninterrupted one would have written.

    OUTPUT            the TREC run, written whole at the end
    OUTPUT.json       its card: settings, versions, what it took
    OUTPUT.journal    what is done so far; gone at the end
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from rerank.data import write_run
from rerank.errors import CacheError, InputError, RerankError
from rerank.reranker import Ranker
from rerank.types import Candidates, Hit, Outcomes, Passage, Query, Ranking, Usage

Settings = Mapping[str, object]


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
    """The committed blocks of one run. Opening it drops what was not committed."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.done: list[tuple[str, list[tuple[str, float]]]] = []  # query_id, (doc_id, score) best first
        self.totals = Totals()
        if path.exists():
            self._read(settings)
        else:
            path.write_text(json.dumps({"rerank journal": 1, "settings": settings}) + "\n", encoding="utf-8")

    def commit(self, block: list[Ranking]) -> None:
        """Makes a block durable: its rankings, then the line that says it is whole."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(_record(ranking)) + "\n" for ranking in block)
            file.write(json.dumps({"committed": len(block)}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for ranking in block:
            self._add(ranking)

    def _add(self, ranking: Ranking) -> None:
        self.done.append((ranking.query.query_id, [(hit.passage.doc_id, hit.score) for hit in ranking.hits]))
        self.totals = self.totals.plus(ranking)

    def rankings(self) -> Iterator[Ranking]:
        """What was committed: ids and scores only."""
        return (_ranking(query_id, hits) for query_id, hits in self.done)

    def _read(self, settings: Settings) -> None:
        raw = self.path.read_bytes()
        lines = raw.split(b"\n")[:-1]  # a last line without its end was cut by a kill
        try:
            head = json.loads(lines[0])
            before = head["settings"]
            committed, kept, block = len(lines[0]) + 1, len(lines[0]) + 1, list[Ranking]()
            for line in lines[1:]:
                record = json.loads(line)
                kept += len(line) + 1
                if "committed" not in record:
                    block.append(_from_record(record))
                    continue
                if record["committed"] != len(block):
                    raise ValueError("a block is not whole")
                for each in block:
                    self._add(each)
                committed, block = kept, []
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise CacheError(
                f"{self.path} is damaged ({type(error).__name__}: {error}); delete it to run from the start"
            ) from error
        now = json.loads(json.dumps(settings))
        if differing := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
            key = differing[0]
            raise CacheError(
                f"{self.path} belongs to a run with other settings ({key}: {before.get(key)!r} there, "
                f"{now.get(key)!r} now); delete it, or give another output"
            )
        with self.path.open("r+b") as file:
            file.truncate(committed)


def _record(ranking: Ranking) -> dict[str, object]:
    return {
        "query_id": ranking.query.query_id,
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
    settings: Settings,
    tag: str,
    block: int,
    journal: Journal,
) -> Totals:
    """Ranks what the journal lacks, block by block, then writes the run and its card."""
    stream = iter(requests)
    for query_id, _ in journal.done:
        request = next(stream, None)
        if request is None or request.query.query_id != query_id:
            raise CacheError(f"{journal.path} does not follow the queries given; delete it to run from the start")
    while part := list(islice(stream, block)):
        journal.commit(list(ranker.rank_many(part, on_error="keep")))
    if not journal.done:
        raise InputError("there is no query to rank")
    partial = output.with_name(f"{output.name}.writing")
    write_run(partial, journal.rankings(), tag)
    card = {
        "settings": settings,
        "tag": tag,
        "queries": journal.totals.queries,
        "usage": asdict(journal.totals.usage),
        "outcomes": asdict(journal.totals.outcomes),
        "errors": journal.totals.errors,
        "versions": versions(),
    }
    card_path(output).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, output)
    journal.path.unlink()
    return journal.totals


def journal_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.journal")


def card_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")


def is_complete(output: Path, settings: Settings) -> bool:
    """Whether the output is there, made with these settings. Raises InputError when it is something else's."""
    if not output.exists():
        return False
    try:
        card = json.loads(card_path(output).read_text(encoding="utf-8"))
        same = card["settings"] == json.loads(json.dumps(settings))
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise InputError(f"{output} exists and was not made with these settings; delete it or give another output")
    return True


def versions() -> dict[str, str]:
    """What a result may depend on."""
    found = {"python": platform.python_version()}
    for name in ("rerank-llm", "torch", "transformers", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
