"""`rerank eval`: measures of runs against judgments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rerank.cli.options import screen
from rerank.data import Qrels, load_dataset, read_qrels, read_run
from rerank.errors import InputError
from rerank.eval import evaluate

DEFAULT_MEASURES = ["nDCG@10", "RR@10", "AP@100", "R@100", "P@10"]


def evaluate_runs(
    runs: Annotated[list[str], typer.Argument(help="TREC runs; or .json/.jsonl candidates, for their given order.")],
    qrels: Annotated[str | None, typer.Option("--qrels", "-q", help="Judgments: TREC qrels or BEIR TSV.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", "-d", help="A dataset whose judgments to use.")] = None,
    measure: Annotated[
        list[str] | None, typer.Option("--measure", "-m", help="As nDCG@10, RR@10, AP(rel=2)@100; may be repeated.")
    ] = None,
    judged_only: Annotated[bool, typer.Option("--judged-only", help="Drop unjudged documents first.")] = False,
    per_query: Annotated[bool, typer.Option("--per-query", help="A line for every query too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure runs, with trec_eval's conventions: a judged query that a run lacks counts as 0."""
    judged = _judgments(qrels, dataset)
    measures = measure or DEFAULT_MEASURES
    found = {name: evaluate(_read(name), judged, measures, judged_only=judged_only) for name in runs}
    if as_json:
        for name, result in found.items():
            record = {"run": name, "queries": len(judged), "mean": result.mean}
            typer.echo(json.dumps(record | ({"per_query": result.per_query} if per_query else {})))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in measures:
        table.add_column(name, justify="right", no_wrap=True)
    for name, result in found.items():
        if per_query:
            for query_id in judged:
                table.add_row(f"  {query_id}", *(f"{result.per_query[m][query_id]:.4f}" for m in measures))
        table.add_row(name, *(f"{result.mean[m]:.4f}" for m in measures))
    screen.print(table)
    screen.print(f"mean over the {len(judged)} judged queries", style="dim")


def _judgments(qrels: str | None, dataset: str | None) -> Qrels:
    if (qrels is None) == (dataset is None):
        raise InputError("give the judgments: either --qrels FILE or --dataset NAME")
    if qrels is not None:
        return read_qrels(qrels)
    assert dataset is not None
    judged = load_dataset(dataset).qrels
    if judged is None:
        raise InputError(f"dataset {dataset!r} has no judgments; give --qrels FILE")
    return judged


def _read(name: str) -> dict[str, dict[str, float]]:
    if {".json", ".jsonl"} & set(Path(name).suffixes):
        return {
            each.query.query_id: {p.doc_id: -float(i) for i, p in enumerate(each.passages)}
            for each in load_dataset(name).candidates(depth=10**9)
        }
    return read_run(name)
