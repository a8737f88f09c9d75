"""Runs over shards of candidates. Each shard's run is durable by itself; when all are there they are joined.

    OUTPUT                        the TREC run, written whole at the end
    OUTPUT.json                   its card
    OUTPUT.parts/manifest.json    the settings, and the shards in their order
    OUTPUT.parts/NAME.trec        a shard's run, with its card (which has the run's hash and the shard's) and, until it
                                  is whole, its journal; all parts are gone at the end

Whoever ranks a shard does it block by block, as `resumable_run` does a whole run, and no block reaches over a shard's
end. So it does not matter to the result how many rank, which shards, and how often they die.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rerank.data.files import appearing_whole, located, open_text
from rerank.data.shards import read_shard
from rerank.errors import CacheError, InputError
from rerank.reranker import OnError, Ranker
from rerank.runs import (
    Journal,
    Settings,
    Totals,
    card_path,
    difference,
    finish,
    is_complete,
    journal_path,
    only_process,
    rank_blocks,
    sha256_of,
    together,
    totals_of,
    writable,
    write_card,
    write_json,
)
from rerank.types import Candidates

if TYPE_CHECKING:
    from functools import _lru_cache_wrapper

_log = logging.getLogger(__name__)

_LEAVING_S = 60.0  # how long the worker of a driver that was killed may take to go


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do with every shard, wherever that is; `load` makes the ranker there."""

    load: Callable[[], Ranker]
    parts: Path
    settings: Settings
    tag: str
    depth: int
    block: int
    on_error: OnError = "keep"
    origin: Mapping[str, object] = field(default_factory=dict)  # what the card says besides


@dataclass(frozen=True, slots=True)
class Step:
    """How far a shard is, over all sittings; the first step tells of the earlier ones. `query_ids` are there when it is
    done."""

    shard: str
    totals: Totals
    query_ids: tuple[str, ...] | None = None


Executor = Callable[[Work, Sequence[Path]], Iterator[Step]]


def rank_shard(work: Work, shard: Path, ranker: Callable[[], Ranker]) -> Iterator[Step]:
    """Ranks what is not durable of one shard; the last step is the whole. The ranker is asked for when it is needed."""
    part = part_of(work, shard)
    for needed in (shard, work.parts):
        if not needed.exists():
            raise InputError(
                f"there is no {needed} on {socket.gethostname()}; shards and output must be in folders that every "
                "machine sees under the same name"
            )
    settings = {**work.settings, "candidates": sha256_of(shard)}
    with only_process(part, wait_s=_LEAVING_S):
        if not is_complete(part, settings):
            journal = Journal(journal_path(part), settings)
            yield Step(shard.name, journal.totals)
            requests = _requests(shard, work.depth)
            for totals in rank_blocks(
                ranker, requests, part, block=work.block, journal=journal, on_error=work.on_error
            ):
                yield Step(shard.name, totals)
            finish(part, journal, work.tag)
        query_ids = _checked(part)
    yield Step(shard.name, totals_of(part), query_ids)


def here(work: Work, shards: Sequence[Path]) -> Iterator[Step]:
    """One shard after another, in this process."""
    ranker = cache(work.load)
    try:
        for shard in shards:
            yield from rank_shard(work, shard, ranker)
    finally:
        close_loaded(ranker)


def close_loaded(ranker: _lru_cache_wrapper[Ranker]) -> None:
    """Closes what `cache(load)` loaded, if it was asked for."""
    if ranker.cache_info().currsize:
        ranker().close()


def run_shards(
    work: Work, shards: Sequence[Path], output: Path, executor: Executor, show: Callable[[Step], None]
) -> Totals:
    """Ranks what is not durable of all shards, then joins them into the run with its card."""
    _claim(work, shards)
    owner: dict[str, str] = {}
    for step in executor(work, shards):
        for query_id in step.query_ids or ():
            if (other := owner.setdefault(query_id, step.shard)) != step.shard:
                raise InputError(
                    f"query {query_id!r} is in the shards {other} and {step.shard}; a run holds each query once"
                )
        show(step)
    if not owner:
        shutil.rmtree(work.parts)
        raise InputError("there is no query to rank")
    totals = _join(work, shards, output)
    shutil.rmtree(work.parts)
    return totals


def parts_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


def part_of(work: Work, shard: Path) -> Path:
    return work.parts / f"{shard.name}.trec"


def _requests(shard: Path, depth: int) -> Iterator[Candidates]:
    with located(shard.name):
        for request in writable(read_shard(shard)):
            yield Candidates(request.query, request.passages[:depth])


def _checked(part: Path) -> tuple[str, ...]:
    """The ids of a part's queries, if it is what was written."""
    digest = hashlib.sha256()
    found: dict[str, None] = {}
    with part.open("rb") as lines:
        for line in lines:
            digest.update(line)
            found[line.partition(b" ")[0].decode()] = None
    if digest.hexdigest() != json.loads(card_path(part).read_text(encoding="utf-8")).get("sha256"):
        raise CacheError(f"{part} is damaged: it is not what its card says; delete it to rank this shard again")
    return tuple(found)


def _claim(work: Work, shards: Sequence[Path]) -> None:
    """Writes the manifest, or checks the one that is there."""
    manifest = work.parts / "manifest.json"
    now: dict[str, object] = json.loads(
        json.dumps({"settings": work.settings, "shards": [shard.name for shard in shards]})
    )
    try:
        before = json.loads(manifest.read_text(encoding="utf-8"))
        changed = difference({"settings": before["settings"]}, {"settings": now["settings"]})
        if changed is None and before["shards"] != now["shards"]:
            changed = f"shards: {len(before['shards'])} there, {len(shards)} now, or of other names"
    except FileNotFoundError:
        work.parts.mkdir(exist_ok=True)
        write_json(manifest, now)
        return
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{manifest} is damaged ({error}); delete {work.parts} to run from the start") from error
    if changed is not None:
        raise CacheError(
            f"{work.parts} belongs to a run with other settings ({changed.removeprefix('settings.')}); "
            "delete it, or give another output"
        )
    _log.info("%s: going on with what is there", work.parts)


def _join(work: Work, shards: Sequence[Path], output: Path) -> Totals:
    """The parts in the order of the shards. Nothing is held but a buffer."""
    parts = [part_of(work, shard) for shard in shards]
    totals = Totals()
    for part in parts:
        totals = totals.joined(totals_of(part))
    candidates = together(json.loads(card_path(part).read_text(encoding="utf-8"))["candidates"] for part in parts)
    with appearing_whole(output) as partial:
        with open_text(partial, "w") as whole:
            for part in parts:
                with open_text(part) as lines:
                    shutil.copyfileobj(lines, whole)
        write_card(output, partial, work.settings, work.tag, totals, {"candidates": candidates, **work.origin})
    return totals
