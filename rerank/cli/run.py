"""`rerank run`: rank a dataset, or what comes through a pipe, into a TREC run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Annotated

import typer

from rerank.cli import options as opt
from rerank.cli.cascade import plan
from rerank.cli.one import counted, summary
from rerank.cli.progress import Bar
from rerank.cli.sharded import (
    EngineName,
    RayAddress,
    WorkerCpus,
    WorkerGpus,
    Workers,
    executor_of,
    rank_in_shards,
    refuse_parts,
)
from rerank.data import Dataset, load_dataset, read_lists, read_queries, read_run, write_run
from rerank.data.files import read_lines
from rerank.data.shards import is_sharded, list_shards, read_shard
from rerank.errors import InputError
from rerank.reranker import OnError, Ranker
from rerank.runs import Journal, Totals, is_complete, journal_path, only_process, resumable_run, writable
from rerank.scheduler import MAX_CALLS
from rerank.sharded import Work, parts_path
from rerank.types import Candidates, Ranking


def run(
    dataset: Annotated[
        str | None,
        typer.Argument(
            metavar="DATASET", help="See 'rerank ls datasets'. Not needed when --queries brings the passages."
        ),
    ] = None,
    strategy: opt.CascadeText = "pointwise",
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The TREC run; one that died resumes. '-' is standard output."
        ),
    ] = "-",
    first_stage: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="FILE", help="A TREC run with the candidates; default: the dataset's, else BM25."
        ),
    ] = None,
    queries: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Queries from a file or '-': 'id<TAB>text', JSONL, or lists {qid, query, docs} as JSONL.",
        ),
    ] = None,
    depth: Annotated[int, typer.Option("--depth", "-k", metavar="N", min=1, help="Candidates for each query.")] = 100,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N queries.")] = None,
    model: opt.Model = None,
    adapter: opt.Adapter = None,
    prompt: opt.PromptName = None,
    option: opt.StrategyOptions = None,
    backbone: opt.BackboneName = "transformers",
    backbone_option: opt.BackboneOptions = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    strict: opt.Strict = False,
    tag: Annotated[str | None, typer.Option(metavar="WORD", help="The run's tag; default: rerank-STRATEGY.")] = None,
    block: Annotated[int, typer.Option(metavar="N", min=1, help="Queries ranked, and made durable, together.")] = 32,
    wave: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Calls in flight together. In more of them more begin alike, and that is computed once.",
        ),
    ] = MAX_CALLS,
    engine: EngineName = "here",
    workers: Workers = None,
    ray_address: RayAddress = None,
    worker_cpus: WorkerCpus = None,
    worker_gpus: WorkerGpus = None,
) -> None:
    """Rank every query's candidates and write a TREC run."""
    opt.show_log()
    executor = executor_of(engine, workers, ray_address, worker_cpus, worker_gpus, device)
    sharded = queries is None and dataset is not None and is_sharded(Path(dataset))
    asked = opt.Engine(model, adapter, backbone, backbone_option, device, dtype)
    planned = plan(strategy, asked, prompt, option)
    tag = tag or planned.tag
    if any(map(str.isspace, tag)):
        raise InputError(f"the tag {tag!r} cannot stand in a TREC run: it has white space")
    settings = {
        "dataset": dataset,
        "run": first_stage,
        "queries": queries,
        "depth": depth,
        "limit": limit,
        **planned.settings,
        "strict": strict,
        "tag": tag,
        "block": block,
        "wave": wave,
    }
    on_error: OnError = "raise" if strict else "keep"
    # the model takes longest, so it is loaded when all else is known to be in order
    load = partial(planned.load, strict=strict, max_calls=wave)
    if output == "-" and (executor is not None or sharded):
        raise InputError("give --output: what is ranked of the shards is kept beside it until all is there")
    if output == "-":
        known, requests = requests_of(dataset, first_stage, queries, depth, limit)
        bar = Bar(
            planned.title, known, planned.calls, hidden=sys.stdout.isatty()
        )  # the lines themselves show how far it is
        ranker = load(on_progress=bar.show)
        with bar:
            totals = _to_stdout(ranker, bar.watch(requests), tag, on_error)
        report(totals)
        return
    target = Path(output)
    with only_process(target):
        if is_complete(target, settings):
            if queries == "-":
                raise InputError(
                    f"{output} exists; whether it ranks what now comes through standard input cannot be told, "
                    "so delete it or give another output"
                )
            opt.notes.print(f"{output} is already there, made with these settings")
            return
        origin = {"command": opt.command_line()}
        if executor is not None or sharded:
            work = Work(load, parts_path(target).absolute(), settings, tag, depth, block, on_error, origin)
            whole = sharded and limit is None and first_stage is None
            source = Path(str(dataset)) if whole else requests_of(dataset, first_stage, queries, depth, limit)[1]
            report(rank_in_shards(work, source, target, executor, planned.title))
            return
        refuse_parts(target)
        journal = Journal(journal_path(target), settings)
        known, requests = requests_of(dataset, first_stage, queries, depth, limit)
        bar = Bar(planned.title, known, planned.calls, done=journal.totals.queries)
        ranker = load(on_progress=bar.show)
        try:
            with bar:
                totals = resumable_run(
                    ranker,
                    bar.watch(requests),
                    target,
                    tag=tag,
                    block=block,
                    journal=journal,
                    on_error=on_error,
                    origin=origin,
                )
        except KeyboardInterrupt:
            durable = Journal(journal_path(target), settings).totals  # a block may be written and not counted yet
            opt.notes.print(f"{output}: queries done: {durable.queries}; the same command goes on from there")
            raise
    report(totals)


def requests_of(
    dataset: str | None, first_stage: str | None, queries: str | None, depth: int, limit: int | None
) -> tuple[int | None, Iterator[Candidates]]:
    """How many queries there are, where that is known, and the stream of them."""
    known, requests = _source(dataset, first_stage, queries, depth)
    if limit is not None and known is not None:
        known = min(known, limit)
    return known, writable(islice(requests, limit))


def _source(
    dataset: str | None, first_stage: str | None, queries: str | None, depth: int
) -> tuple[int | None, Iterator[Candidates]]:
    if queries is None:
        if dataset is None:
            raise InputError("give a dataset, or --queries with passages; see 'rerank ls datasets'")
        if is_sharded(Path(dataset)):
            if first_stage is not None:
                raise InputError("shards bring their own candidates; leave out --run")
            requests = chain.from_iterable(map(read_shard, list_shards(Path(dataset))))
            return None, (Candidates(each.query, each.passages[:depth]) for each in requests)
        opt.say(f"reading {dataset}")
        loaded = load_dataset(dataset)
        stage = None if first_stage is None else read_run(first_stage)
        return len(loaded.queries), loaded.candidates(depth, run=stage)
    name, lines = _lines(queries)
    first, lines = _peek(lines)
    if first.lstrip().startswith("{") and '"docs"' in first:
        if dataset is not None or first_stage is not None:
            raise InputError("--queries brings its own passages; leave out the dataset and --run")
        lists = (candidates for candidates, _ in read_lists(lines, name))
        return None, (Candidates(c.query, c.passages[:depth]) for c in lists)
    if dataset is None:
        raise InputError("--queries has no passages ('docs'), so a dataset must give the corpus to search")
    return _searched(load_dataset(dataset), lines, name, first_stage, depth)


def _searched(
    corpus: Dataset, lines: Iterable[str], name: str, first_stage: str | None, depth: int
) -> tuple[int, Iterator[Candidates]]:
    asked = list(read_queries(lines, name))
    if not asked:
        raise InputError(f"{name} holds no query")
    stage = None if first_stage is None else read_run(first_stage)
    return len(asked), corpus.candidates(depth, run=stage, queries=asked)


def _lines(queries: str) -> tuple[str, Iterator[str]]:
    return ("standard input", opt.standard_input("queries")) if queries == "-" else (queries, read_lines(queries))


def _peek(lines: Iterator[str]) -> tuple[str, Iterator[str]]:
    """The first filled line, and all lines from it on."""
    for line in lines:
        if line.strip():
            return line, chain([line], lines)
    raise InputError("--queries is empty; give a query a line")


def _to_stdout(ranker: Ranker, requests: Iterable[Candidates], tag: str, on_error: OnError) -> Totals:
    totals = Totals()

    def tallied() -> Iterator[Ranking]:
        nonlocal totals
        for ranking in ranker.rank_many(requests, on_error=on_error):
            totals = totals.plus(ranking)
            yield ranking
            sys.stdout.flush()  # who reads a pipe need not wait for the next query

    write_run(sys.stdout, tallied(), tag)
    if not totals.queries:
        raise InputError("there is no query to rank")
    return totals


def report(totals: Totals) -> None:
    opt.notes.print(f"{counted(totals.queries, 'query', 'queries')}, {summary(totals.usage, totals.outcomes)}")
    if totals.errors:
        for error in totals.errors[:10]:
            opt.notes.print(f"not asked, given order kept: {error}")
        opt.notes.print(f"{len(totals.errors)} of {totals.queries} queries kept their given order")
        raise typer.Exit(1)
