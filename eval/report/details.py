"""What the page's script needs to show a query: its values, the first places of every run, and the passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rerank.eval.measures import order_of_scores
from rerank.eval.report.section import Section

MAX_QUERIES = 500  # of a dataset, with passages; the page has to open
TEXT_CHARS = 600


def details(section: Section, depth: int) -> dict[str, object]:
    """As JSON. `queries[i].docs` is [place in `docs`, label or None, rank in each run or None] for every document among
    the first `depth` of some run; None where the query is not among the MAX_QUERIES that moved most."""
    orders = [order_of_scores(section.runs[name]) for name in section.names]
    ranks = [
        {query_id: {doc: i for i, doc in enumerate(docs, 1)} for query_id, docs in order.items()} for order in orders
    ]
    shown = _most_moved(section)
    texts = {p.doc_id: p.full_text for each in section.texts.values() for p in each.passages}
    docs: dict[str, int] = {}
    queries = []
    for query_id, values in values_of(section).items():
        asked = section.texts.get(query_id)
        queries.append(
            {
                "id": query_id,
                "text": asked.query.text if asked else None,
                "values": [round(value, 6) for value in values],
                "docs": _places(section, query_id, orders, ranks, depth, docs) if query_id in shown else None,
            }
        )
    return {
        "runs": section.names,
        "measure": section.comparison.measure,
        "depth": depth,
        "best": max((label for labels in section.qrels.values() for label in labels.values()), default=1),
        "queries": queries,
        "docs": [_passage(doc_id, texts) for doc_id in docs],
    }


def values_of(section: Section) -> dict[str, list[float]]:
    """By query, in the order of the runs."""
    per_query = section.comparison.per_query
    return {query_id: [per_query[name][query_id] for name in section.names] for query_id in per_query[section.names[0]]}


def _most_moved(section: Section) -> set[str]:
    moved = {query_id: max(values) - min(values) for query_id, values in values_of(section).items()}
    return set(sorted(moved, key=lambda query_id: -moved[query_id])[:MAX_QUERIES])


def _places(
    section: Section,
    query_id: str,
    orders: Sequence[Mapping[str, list[str]]],
    ranks: Sequence[Mapping[str, Mapping[str, int]]],
    depth: int,
    docs: dict[str, int],
) -> list[tuple[int, int | None, list[int | None]]]:
    """Adds to `docs` what was not there yet."""
    labels = section.qrels.get(query_id, {})
    first = dict.fromkeys(doc for order in orders for doc in order.get(query_id, [])[:depth])
    return [
        (docs.setdefault(doc, len(docs)), labels.get(doc), [each.get(query_id, {}).get(doc) for each in ranks])
        for doc in first
    ]


def _passage(doc_id: str, texts: Mapping[str, str]) -> tuple[str, str | None, int]:
    """Its id, the beginning of its text where that is known, and the length of the whole."""
    text = " ".join(texts.get(doc_id, "").split())
    return doc_id, text[:TEXT_CHARS] or None, len(text)
