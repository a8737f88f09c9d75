"""The queries and passages behind a comparison, and the queries that moved most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.table import Table

from rerank.cli.options import screen, show
from rerank.data import Dataset, load_dataset
from rerank.eval import Comparison
from rerank.eval.measures import Qrels, Run, order_of_scores
from rerank.types import Candidates


def texts_of(sources: Iterable[str], runs: Mapping[str, Run], depth: int) -> dict[str, Candidates]:
    """The passages among the first `depth` of some run, from the first of the datasets that has any of a query's."""
    orders = [order_of_scores(run) for run in runs.values()]
    datasets = [load_dataset(name) for name in dict.fromkeys(sources)]
    found: dict[str, Candidates] = {}
    for query_id in dict.fromkeys(query_id for order in orders for query_id in order):
        wanted = [doc_id for order in orders for doc_id in order.get(query_id, [])[:depth]]
        if (known := _first(datasets, query_id, wanted)) is not None:
            found[query_id] = known
    return found


def _first(datasets: Iterable[Dataset], query_id: str, wanted: Sequence[str]) -> Candidates | None:
    return next((known for each in datasets if (known := each.known(query_id, wanted)) is not None), None)


def has_texts(file: str) -> bool:
    """Whether a run is given as candidates, text and all."""
    return bool({".json", ".jsonl"} & set(Path(file).suffixes))


def show_movers(
    found: Comparison, loaded: Mapping[str, Run], judged: Qrels, texts: Mapping[str, Candidates], count: int
) -> None:
    """The queries, and the first passages of both runs side by side, their texts where they are known."""
    baseline = found.rows[0].name
    orders = {name: order_of_scores(run) for name, run in loaded.items()}
    for row in found.rows[1:]:
        for query_id, change in found.moved(row.name, count):
            asked = texts.get(query_id)
            screen.print(f"\n{row.name}, {query_id}: {change:+.4f}" + (f"  {asked.query.text}" if asked else ""))
            passages = {p.doc_id: p.full_text for p in asked.passages} if asked else {}
            table = Table(box=None, header_style="bold", pad_edge=False)
            table.add_column("", justify="right")
            for name in (baseline, row.name):
                table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=60)
            sides = [orders[name].get(query_id, []) for name in (baseline, row.name)]
            for place in range(min(3, max(map(len, sides)))):
                cells = [_cell(side, place, judged.get(query_id, {}), passages) for side in sides]
                table.add_row(str(place + 1), *cells)
            show(table)


def _cell(docs: Sequence[str], place: int, labels: Mapping[str, int], passages: Mapping[str, str]) -> str:
    if place >= len(docs):
        return ""
    doc_id = docs[place]
    text = " ".join(passages.get(doc_id, "").split())
    return f"({labels.get(doc_id, '?')}) {doc_id} {text}".strip()
