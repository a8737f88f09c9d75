"""`rerank eval`: measures of runs against judgments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rerank.cli.options import show
from rerank.data import Qrels, Run, load_dataset, read_qrels, read_run
from rerank.errors import InputError
from rerank.eval import Evaluation, evaluate

QrelsFile = Annotated[
    str | None, typer.Option("--qrels", "-q", metavar="FILE", help="Judgments: TREC qrels or BEIR TSV.")
]
JudgedDataset = Annotated[
    str | None, typer.Option("--dataset", "-d", metavar="NAME", help="A dataset whose judgments to use.")
]
DEFAULT_MEASURES = ["nDCG@10", "RR@10", "AP@100", "R@100", "P@10"]


def evaluate_runs(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="TREC runs; or .json/.jsonl candidates, for their given order."),
    ],
    qrels: QrelsFile = None,
    dataset: JudgedDataset = None,
    measure: Annotated[
        list[str] | None,
        typer.Option("--measure", "-m", metavar="NAME", help="As RR@10 or AP(rel=2)@100; may be repeated."),
    ] = None,
    judged_only: Annotated[bool, typer.Option("--judged-only", help="Drop unjudged documents first.")] = False,
    run_queries: Annotated[
        bool, typer.Option("--run-queries", help="Average over the judged queries that the run has, and no others.")
    ] = False,
    per_query: Annotated[bool, typer.Option("--per-query", help="A line for every query too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure runs against judgments.

    With trec_eval's conventions: a judged query that a run lacks counts as 0.
    """
    judged = judgments(qrels, dataset)
    measures = measure or DEFAULT_MEASURES
    found = {name: _measure(read(name), judged, measures, judged_only, run_queries) for name in runs}
    counts = {name: len(result.per_query[measures[0]]) for name, result in found.items()}
    if as_json:
        for name, result in found.items():
            record = {"run": name, "queries": counts[name], "mean": result.mean}
            typer.echo(json.dumps(record | ({"per_query": result.per_query} if per_query else {})))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ["queries", *measures]:
        table.add_column(name, justify="right", no_wrap=True)
    for name, result in found.items():
        if per_query:
            for query_id in result.per_query[measures[0]]:
                table.add_row(f"  {query_id}", "", *(f"{result.per_query[m][query_id]:.4f}" for m in measures))
        table.add_row(name, str(counts[name]), *(f"{result.mean[m]:.4f}" for m in measures))
    show(table)


def _measure(run: Run, judged: Qrels, measures: list[str], judged_only: bool, run_queries: bool) -> Evaluation:
    return evaluate(run, of_queries(judged, run) if run_queries else judged, measures, judged_only=judged_only)


def of_queries(judged: Qrels, run: Run) -> Qrels:
    """The judgments of the queries that the run has. Where there are none it is all of them, which makes the error."""
    return {query_id: docs for query_id, docs in judged.items() if query_id in run} or judged


def judgments(qrels: str | None, dataset: str | None) -> Qrels:
    if (qrels is None) == (dataset is None):
        raise InputError("give the judgments: either --qrels FILE or --dataset NAME")
    if qrels is not None:
        return read_qrels(qrels)
    assert dataset is not None
    judged = load_dataset(dataset).qrels
    if judged is None:
        raise InputError(f"dataset {dataset!r} has no judgments; give --qrels FILE")
    return judged


def read(name: str) -> Run:
    if {".json", ".jsonl"} & set(Path(name).suffixes):
        return {
            each.query.query_id: {p.doc_id: -float(i) for i, p in enumerate(each.passages)}
            for each in load_dataset(name).candidates(depth=10**9)
        }
    return read_run(name)
