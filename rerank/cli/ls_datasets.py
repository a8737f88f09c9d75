"""`rerank ls datasets`: what a dataset may be, what suites know by name, and all that is known of one."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from rerank.cli.options import bare_table
from rerank.data import catalogue, list_samples
from rerank.data.catalogue import Entry

_LEFT_OUT = {
    "query": "the document that is the query itself",
    "negative": "documents with a negative label",
}


def tables() -> Iterator[Table]:
    forms = bare_table("dataset", "what it is")
    for name in list_samples():
        forms.add_row(f"sample:{name}", "comes with the package, first stage included")
    forms.add_row("irds:ID", "any ir_datasets id, as irds:beir/scifact/test; downloaded at first use")
    forms.add_row("PATH or PATH:SPLIT", "a BEIR folder; split 'test' unless named")
    forms.add_row("FILE.json, FILE.jsonl", "rank_llm's requests, or lists {qid, query, docs: [{docid, text, label}]}")
    yield forms
    known = catalogue()
    suites = bare_table("in a suite", "queries", "measure", "what it is")
    for name in known.groups:
        suites.add_row(name, "", "", f"all {len(known.names(name))} of them")
    for name, entry in known.datasets.items():
        suites.add_row(name, f"{entry.queries:,}", entry.measures[0], entry.about)
    yield suites


def details(name: str) -> Iterator[Table]:
    """Of a dataset of the catalogue, or of each in a group. Raises UnknownNameError."""
    known = catalogue()
    for each in known.names(name):
        table = bare_table(each, "")
        for row in _rows(known.datasets[each]):
            table.add_row(*row)
        yield table


def _rows(entry: Entry) -> Iterator[tuple[str, str]]:
    sources = catalogue().sources
    yield "what it is", entry.about
    yield "as a dataset", f"irds:{entry.irds}" if entry.irds else f"its path; {entry.get}"
    yield "queries", f"{entry.queries:,}"
    yield "measures", ", ".join(entry.measures)
    yield "candidates", f"the best {entry.depth}" + (" of BM25" if entry.run else "")
    if entry.leave_out is not None:
        yield "left out", _LEFT_OUT[entry.leave_out]
    yield "licence", entry.licence
    for stage, figure in entry.first_stages.items():
        yield "first stage", f"{stage} {figure.value:.4f} ({sources[figure.source].title})"
    for part in entry.published:
        values = "; ".join(f"{ranker} {value:.4f}" for ranker, value in part.values.items())
        yield f"best {part.depth} of it", f"{values} ({sources[part.source].title}, {part.first_stage})"
    named = [figure.source for figure in entry.first_stages.values()] + [part.source for part in entry.published]
    for source in dict.fromkeys(named):
        yield "source", f"{sources[source].title}, {sources[source].url}"
