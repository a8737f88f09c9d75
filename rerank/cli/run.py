"""`rerank run`: rank a dataset, or what comes through a pipe, into a TREC run."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

import rerank
from rerank.cli import options as opt
from rerank.cli.progress import Bar
from rerank.data import Dataset, load_dataset, read_lists, read_queries, read_run, write_run
from rerank.data.files import read_lines
from rerank.errors import InputError
from rerank.runs import Journal, Totals, is_complete, journal_path, resumable_run
from rerank.strategies import Strategy, load_strategy, options_of
from rerank.types import Candidates


def run(
    dataset: Annotated[
        str | None, typer.Argument(help="See 'rerank ls datasets'. Not needed when --queries brings the passages.")
    ] = None,
    strategy: opt.StrategyName = "first",
    output: Annotated[
        str, typer.Option("--output", "-o", help="The TREC run; a run that died resumes. '-' is standard output.")
    ] = "-",
    first_stage: Annotated[
        str | None, typer.Option("--run", help="A TREC run with the candidates; default: the dataset's, else BM25.")
    ] = None,
    queries: Annotated[
        str | None,
        typer.Option(help="Queries from a file or '-': 'id<TAB>text', JSONL, or lists {qid, query, docs} as JSONL."),
    ] = None,
    depth: Annotated[int, typer.Option("--depth", "-k", min=1, help="Candidates for each query.")] = 100,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many queries.")] = None,
    model: opt.Model = None,
    adapter: opt.Adapter = None,
    prompt: opt.PromptName = None,
    option: opt.StrategyOptions = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    strict: opt.Strict = False,
    tag: Annotated[str | None, typer.Option(help="The run's tag; default: rerank-STRATEGY.")] = None,
    block: Annotated[int, typer.Option(min=1, help="Queries ranked, and made durable, together.")] = 32,
) -> None:
    """Rank every query's candidates and write a TREC run."""
    opt.show_log()
    made = load_strategy(strategy, prompt=prompt, **opt.pairs(option))
    tag = tag or f"rerank-{strategy}"
    settings = {
        "dataset": dataset,
        "run": first_stage,
        "queries": queries,
        "depth": depth,
        "limit": limit,
        "strategy": {"name": strategy, **_options(made)},
        "prompt": made.prompt.identity,
        "model": model,
        "adapter": adapter,
        "device": device,
        "dtype": dtype,
        "strict": strict,
        "tag": tag,
        "block": block,
    }
    target = None if output == "-" else Path(output)
    if target is not None:
        if not target.parent.is_dir():
            raise InputError(f"the folder of the output {output!r} does not exist")
        if is_complete(target, settings):
            opt.notes.print(f"{output} is already there, made with these settings")
            return
    journal = Journal(journal_path(target), settings) if target is not None else None
    known, requests = _requests(dataset, first_stage, queries, depth)
    requests = itertools.islice(requests, limit)
    if known is not None and limit is not None:
        known = min(known, limit)
    done = journal.totals if journal is not None else Totals()
    if done.queries:
        opt.notes.print(f"{output}: {done.queries} queries are done; going on from there")
    with Bar(strategy, known, made.calls(depth), done.queries) as bar:
        ranker = opt.load_ranker(
            strategy,
            model=model,
            adapter=adapter,
            prompt=prompt,
            options=option,
            device=device,
            dtype=dtype,
            strict=strict,
            on_progress=bar.show,
        )
        if target is not None and journal is not None:
            totals = resumable_run(ranker, requests, target, settings=settings, tag=tag, block=block, journal=journal)
        else:
            totals = _to_stdout(ranker, requests, tag)
    _report(totals)


def _requests(
    dataset: str | None, first_stage: str | None, queries: str | None, depth: int
) -> tuple[int | None, Iterator[Candidates]]:
    """How many queries there are, where that is known, and the stream of them."""
    if queries is None:
        if dataset is None:
            raise InputError("give a dataset, or --queries with passages; see 'rerank ls datasets'")
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
    return ("standard input", iter(sys.stdin)) if queries == "-" else (queries, read_lines(queries))


def _peek(lines: Iterator[str]) -> tuple[str, Iterator[str]]:
    """The first filled line, and all lines from it on."""
    for line in lines:
        if line.strip():
            return line, itertools.chain([line], lines)
    raise InputError("--queries is empty; give a query a line")


def _to_stdout(ranker: rerank.Ranker, requests: Iterable[Candidates], tag: str) -> Totals:
    totals = Totals()

    def counted() -> Iterator[rerank.Ranking]:
        nonlocal totals
        for ranking in ranker.rank_many(requests, on_error="keep"):
            totals = totals.plus(ranking)
            yield ranking

    write_run(sys.stdout, counted(), tag)
    if not totals.queries:
        raise InputError("there is no query to rank")
    return totals


def _options(strategy: Strategy) -> dict[str, object]:
    return {name: getattr(strategy, name) for name in options_of(type(strategy))}


def _report(totals: Totals) -> None:
    usage = totals.usage
    opt.notes.print(
        f"{totals.queries} queries, {usage.calls:,} calls, {usage.prompt_tokens:,} prompt and "
        f"{usage.generated_tokens:,} generated tokens, {usage.seconds:.1f} s; answers: {totals.outcomes}"
    )
    if totals.errors:
        for error in totals.errors[:10]:
            opt.notes.print(f"not asked, given order kept: {error}", soft_wrap=True)
        opt.notes.print(f"{len(totals.errors)} of {totals.queries} queries kept their given order")
        raise typer.Exit(1)
