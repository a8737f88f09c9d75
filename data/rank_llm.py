"""The request files of rank_llm (github.com/castorini/rank_llm), in both forms it has had.

Now `{"query": {"text", "qid"}, "candidates": [{"docid", "score", "doc": {…}}]}`, in a JSON list or one a
line; before, a JSON list of `{"query", "hits": [{"qid", "docid", "rank", "score", "content"}]}`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from rerank.data.files import (
    as_object,
    filled_lines,
    json_object,
    located,
    objects_of,
    open_text,
    optional_number,
    optional_text,
    read_lines,
    text_of,
)
from rerank.errors import InputError
from rerank.types import Candidates, Passage, Query, Ranking

log = logging.getLogger(__name__)

_EXPECTED = 'rank_llm\'s {"query": …, "candidates": […]} or {"query": …, "hits": […]}'
_TEXT_KEYS = ("text", "segment", "contents", "content", "body", "passage")  # as rank_llm looks for it


def read_rank_llm(path: str | Path) -> Iterator[Candidates]:
    """Requests in file order, passages in the order given. Empty ones are skipped, with one warning."""
    skipped = 0
    for where, record in _records(path):
        with located(where):
            query, passages = _new_form(record) if "candidates" in record else _old_form(record)
            candidates = Candidates(query, passages) if passages else None
        if candidates is None:
            skipped += 1
        else:
            yield candidates
    if skipped:
        log.warning("%s: %d queries have no candidates and are skipped", path, skipped)


def write_rank_llm(path: str | Path, rankings: Iterable[Ranking]) -> None:
    """As `write_requests`, with the rankings' order and scores."""
    write_requests(path, (ranking.candidates() for ranking in rankings))


def write_requests(path: str | Path, requests: Iterable[Candidates]) -> None:
    """The present form: one request a line for `.jsonl` (perhaps compressed), else a JSON list."""
    records = map(_request, requests)
    with open_text(path, "w") as stream:
        if ".jsonl" in Path(path).suffixes:
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        else:
            json.dump(list(records), stream, ensure_ascii=False, indent=2)


def _records(path: str | Path) -> Iterator[tuple[str, dict[str, object]]]:
    if ".jsonl" in Path(path).suffixes:
        for where, line in filled_lines(read_lines(path), str(path)):
            with located(where):
                record = json_object(line, _EXPECTED)
            yield where, record
        return
    try:
        records = json.loads("".join(read_lines(path)))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error}); expected a list of {_EXPECTED}") from error
    if not isinstance(records, list):
        raise InputError(f"{path}: expected a list of {_EXPECTED}")
    for number, record in enumerate(records, start=1):
        where = f"{path}, request {number}"
        with located(where):
            record = as_object(record, _EXPECTED)
        yield where, record


def _new_form(record: dict[str, object]) -> tuple[Query, tuple[Passage, ...]]:
    query = as_object(record.get("query"), _EXPECTED)
    passages = []
    for candidate in objects_of(record, "candidates", _EXPECTED):
        doc = as_object(candidate.get("doc"), "an object as 'doc'")
        passages.append(
            Passage(
                text_of(doc, *_TEXT_KEYS),
                text_of(candidate, "docid"),
                optional_text(doc, "title") or "",
                optional_number(candidate, "score"),
            )
        )
    return Query(text_of(query, "text"), text_of(query, "qid")), tuple(passages)


def _old_form(record: dict[str, object]) -> tuple[Query, tuple[Passage, ...]]:
    hits = objects_of(record, "hits", _EXPECTED)
    # The query's id stands in its hits only; one without hits is not used, so any id will do.
    query = Query(text_of(record, "query"), text_of(hits[0], "qid") if hits else "")
    return query, tuple(
        Passage(text_of(hit, "content"), text_of(hit, "docid"), score=optional_number(hit, "score")) for hit in hits
    )


def _request(candidates: Candidates) -> dict[str, object]:
    def doc(passage: Passage) -> dict[str, str]:
        return {"title": passage.title, "text": passage.text} if passage.title else {"text": passage.text}

    return {
        "query": {"text": candidates.query.text, "qid": candidates.query.query_id},
        "candidates": [
            {"docid": p.doc_id} | ({} if p.score is None else {"score": p.score}) | {"doc": doc(p)}
            for p in candidates.passages
        ],
    }
