"""The cells of a suite: every ranker on every dataset, query by query; what is known already is not asked again.

A cell that fails holds up no other. Rankers are outermost, so that one of them is loaded at a time, and only where a
query is not known. The candidates of all datasets are in memory together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from rerank.bench.cache import Kept, key_of
from rerank.bench.suite import BM25, BM25S, FIRST_STAGE, Trial, file_name
from rerank.bench.watching import Loaded, Unwatched, Watching
from rerank.data import Dataset, Qrels, load_dataset, read_qrels, read_run
from rerank.data.files import appearing_whole
from rerank.errors import InputError, RerankError
from rerank.eval import Prices
from rerank.jobs import Progress
from rerank.reranker import Ranker
from rerank.runs import Settings, Totals, fingerprint, together, writable, write_whole
from rerank.types import Candidates, Ranking

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Contestant:
    """A ranker that is checked and not loaded. `identity` hashes what its scores depend on, and `made` says where they
    are made; both are asked for when there is something to rank, since they look at the model and the machine."""

    name: str
    settings: Settings
    calls: Callable[[int], int]
    load: Callable[[Callable[[Progress], None]], Ranker]
    identity: Callable[[], str]
    made: Callable[[], str]
    prices: Prices | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What every ranker is given of a dataset. `judged` are the judgments of the queries that take part, and these are
    `whole` where no sample was drawn."""

    trial: Trial
    requests: tuple[Candidates, ...]
    judged: Qrels
    first_stage: str
    whole: bool


@dataclass(frozen=True, slots=True)
class Cell:
    """A ranker on a dataset. Without a run there is an `error`. `known` queries were ranked before this sitting."""

    ranker: str
    dataset: str
    run: Path | None = None
    totals: Totals = field(default_factory=Totals)
    known: int = 0
    made: tuple[str, ...] = ()
    error: str | None = None


def read_task(trial: Trial, seed: int) -> Task:
    """Reads the dataset, draws the sample, and takes or searches its candidates. Raises InputError."""
    dataset = load_dataset(trial.spec)
    judged = dataset.qrels if trial.qrels is None else read_qrels(trial.qrels)
    if judged is None:
        raise InputError(f"{trial.name} has no judgments; name a file with 'qrels'")
    asked = [query_id for query_id in dataset.queries if query_id in judged]
    if not asked:
        raise InputError(f"none of the {len(dataset.queries)} queries of {trial.name} is judged")
    whole = trial.queries is None or trial.queries >= len(asked)
    if not whole:
        drawn = set(Random(seed).sample(sorted(asked), trial.queries or 0))
        asked = [query_id for query_id in asked if query_id in drawn]
    own = {query_id: judged[query_id] for query_id in asked}
    requests = tuple(writable(_candidates(trial, dataset, own)))
    if not requests:
        raise InputError(f"{trial.name}: no judged query has candidates")
    return Task(trial, requests, own, _first_stage(trial, dataset), whole)


def _candidates(trial: Trial, dataset: Dataset, judged: Qrels) -> Iterator[Candidates]:
    queries = [dataset.queries[query_id] for query_id in judged]
    run = dataset.first_stage if trial.run is None else None if trial.run == BM25 else read_run(trial.run)
    left_out = {query_id: _left_out(trial, query_id, judged) for query_id in judged}
    depth = trial.depth + max(map(len, left_out.values()))
    if run is None and trial.run is None and dataset.lists is not None:
        found = iter([each for each in dataset.candidates(depth) if each.query.query_id in judged])
    else:
        found = dataset.candidates(depth, run=run, queries=queries)
    for each in found:
        out = left_out[each.query.query_id]
        passages = tuple(passage for passage in each.passages if passage.doc_id not in out)[: trial.depth]
        if passages:
            yield Candidates(each.query, passages)


def _left_out(trial: Trial, query_id: str, judged: Qrels) -> set[str]:
    """What may not be a candidate of the query, as the dataset's own evaluation has it."""
    if trial.leave_out == "query":
        return {query_id}
    return {doc_id for doc_id, label in judged[query_id].items() if label < 0 and trial.leave_out == "negative"}


def _first_stage(trial: Trial, dataset: Dataset) -> str:
    if trial.first_stage is not None:
        return trial.first_stage
    if trial.run not in (None, BM25):
        return Path(str(trial.run)).name
    own = trial.run is None and (dataset.first_stage is not None or dataset.lists is not None)
    return "its own" if own else BM25S


def first_stage_cell(task: Task, folder: Path) -> Cell:
    """The candidates as they come, as a run like the others."""
    output = _output(folder, task.trial.name, FIRST_STAGE)
    rankings = [Ranking.of(each, range(len(each)), map(float, range(len(each), 0, -1))) for each in task.requests]
    totals = Totals(len(rankings))
    _write(task, output, rankings, totals, {"strategy": FIRST_STAGE}, FIRST_STAGE)
    lines = (f"{q} 0 {doc} {label}\n" for q, docs in task.judged.items() for doc, label in docs.items())
    with appearing_whole(output.with_name("qrels.txt")) as partial:
        partial.write_text("".join(lines), encoding="utf-8")
    return Cell(FIRST_STAGE, task.trial.name, output, totals)


def run_cells(
    contestant: Contestant,
    tasks: Sequence[Task],
    kept: Kept,
    folder: Path,
    *,
    block: int,
    watching: Watching = lambda *_: nullcontext(Unwatched()),
) -> Iterator[Cell]:
    """The ranker's cells, in the order of the tasks."""
    loaded = Loaded(contestant.load)
    try:
        for task in tasks:
            output = _output(folder, task.trial.name, contestant.name)
            try:
                cell = _cell(contestant, task, kept, output, loaded, block, watching)
            except Exception as error:  # whatever it is: hours of other cells must not go with it
                reason = reason_of(error)
                unforeseen = not isinstance(error, RerankError)
                _log.warning("%s on %s failed: %s", contestant.name, task.trial.name, reason, exc_info=unforeseen)
                loaded.drop()  # it may be what broke
                cell = Cell(contestant.name, task.trial.name, error=reason)
            yield cell
    finally:
        loaded.drop()


def reason_of(error: Exception) -> str:
    """In one line."""
    told = str(error) if isinstance(error, RerankError) else f"{type(error).__name__}: {error}"
    return " ".join(told.split())


def _cell(
    contestant: Contestant, task: Task, kept: Kept, output: Path, loaded: Loaded, block: int, watching: Watching
) -> Cell:
    identity = contestant.identity()
    keys = [key_of(identity, request) for request in task.requests]
    found = {key: known for key in keys if (known := kept.get(key)) is not None}
    todo = [(key, request) for key, request in zip(keys, task.requests, strict=True) if key not in found]
    before = len(found)
    if todo:
        made = contestant.made()
        with watching(f"{contestant.name} on {task.trial.name}", len(todo), contestant.calls, 0) as watch:
            ranker = loaded.get(watch)
            for part in (todo[at : at + block] for at in range(0, len(todo), block)):
                asked = watch.watch([request for _, request in part])
                for (key, _), ranking in zip(part, ranker.rank_many(asked, on_error="keep"), strict=True):
                    if ranking.error is None:  # one that could not be asked is asked again the next time
                        kept.put(key, ranking, made)
                    found[key] = (ranking, made)
    rankings = [found[key][0] for key in keys]
    totals = Totals()
    for ranking in rankings:
        totals = totals.plus(ranking)
    if len(totals.errors) == len(rankings):
        raise InputError(f"no query could be asked: {totals.errors[0]}")
    _write(task, output, rankings, totals, contestant.settings, f"rerank-{file_name(contestant.name)}")
    return Cell(
        contestant.name, task.trial.name, output, totals, before, tuple(dict.fromkeys(found[key][1] for key in keys))
    )


def _write(task: Task, output: Path, rankings: Sequence[Ranking], totals: Totals, settings: Settings, tag: str) -> None:
    origin = {"candidates": together(map(fingerprint, task.requests))}
    write_whole(output, rankings, totals, settings=_settings(task, settings), tag=tag, origin=origin)


def _settings(task: Task, ranker: Settings) -> dict[str, object]:
    """For the run's card."""
    trial = task.trial
    dataset = {"dataset": trial.spec, "run": trial.run, "first_stage": task.first_stage, "depth": trial.depth}
    return {**dataset, "queries": len(task.judged), **ranker}


def _output(folder: Path, dataset: str, ranker: str) -> Path:
    place = folder / file_name(dataset)
    place.mkdir(parents=True, exist_ok=True)
    return place / f"{file_name(ranker)}.trec"
