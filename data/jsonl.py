"""Lines of JSON: candidate lists with or without labels, and queries. Both are read as the lines arrive."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping

from rerank.data.files import (
    filled_lines,
    json_object,
    located,
    objects_of,
    optional_number,
    optional_text,
    text_of,
)
from rerank.errors import InputError
from rerank.types import Candidates, Passage, Query

log = logging.getLogger(__name__)

_LIST = '{"qid": …, "query": …, "docs": [{"docid": …, "text": …, "label"?: …, "title"?: …, "score"?: …}]}'
_QUERY = '{"_id": …, "text": …}'


def read_lists(
    lines: Iterable[str], name: str = "input", *, corpus: Mapping[str, Passage] | None = None
) -> Iterator[tuple[Candidates, dict[str, int]]]:
    """Each line's candidates, in the order given, and the labels (doc_id -> label) that it has.

    A doc without text is looked up in the corpus. Queries without docs are skipped, with one warning.
    """
    skipped = 0
    for where, line in filled_lines(lines, name):
        with located(where):
            record = json_object(line, _LIST)
            docs = objects_of(record, "docs", _LIST)
            query = Query(text_of(record, "query"), text_of(record, "qid"))
            passages = tuple(_passage(doc, corpus) for doc in docs)
            candidates = Candidates(query, passages) if passages else None
            labels = {text_of(doc, "docid"): _label(doc) for doc in docs if doc.get("label") is not None}
        if candidates is None:
            skipped += 1
        else:
            yield candidates, labels
    if skipped:
        log.warning("%s: skipped queries without docs: %d", name, skipped)


def read_queries(lines: Iterable[str], name: str = "input") -> Iterator[Query]:
    """Queries as JSON objects, as `id<TAB>text`, or as bare text, numbered from 1.

    The first line that is not blank says which of the three.
    """
    read = None
    seen: set[str] = set()
    for number, (where, line) in enumerate(filled_lines(lines, name), start=1):
        read = read or (_from_json if line.lstrip()[0] == "{" else _from_tsv if "\t" in line else _from_text)
        with located(where):
            query = read(line, number)
            if query.query_id in seen:
                raise InputError(f"a second query with the id {query.query_id!r}; ids must be distinct")
        seen.add(query.query_id)
        yield query


def _from_json(line: str, number: int) -> Query:
    record = json_object(line, _QUERY)
    return Query(text_of(record, "text", "query"), text_of(record, "_id", "qid", "query_id"))


def _from_tsv(line: str, number: int) -> Query:
    query_id, tab, text = line.partition("\t")
    if not tab or not query_id.strip():
        raise InputError(f"{line!r}; expected 'query_id<TAB>text' as on the first line")
    return Query(text.strip(), query_id.strip())


def _from_text(line: str, number: int) -> Query:
    return Query(line.strip(), str(number))


def _passage(doc: dict[str, object], corpus: Mapping[str, Passage] | None) -> Passage:
    doc_id, score = text_of(doc, "docid"), optional_number(doc, "score")
    text, title = optional_text(doc, "text"), optional_text(doc, "title")
    if text is not None:
        return Passage(text, doc_id, title or "", score)
    if corpus is None or doc_id not in corpus:
        lacking = "no corpus was given" if corpus is None else "the corpus does not have it"
        raise InputError(f"doc {doc_id!r} has no 'text' and {lacking}")
    found = corpus[doc_id]
    return Passage(found.text, doc_id, found.title, score)


def _label(doc: dict[str, object]) -> int:
    label = doc["label"]
    if not isinstance(label, int):
        raise InputError(f"the label {label!r} is not a whole number")
    return label
