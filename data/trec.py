"""TREC runs and relevance judgments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

import numpy as np

from rerank.data.files import filled_lines, open_text, read_lines
from rerank.errors import InputError
from rerank.types import Ranking

Run = dict[str, dict[str, float]]  # query_id -> doc_id -> score
Qrels = dict[str, dict[str, int]]  # query_id -> doc_id -> label

_RUN_LINE = "'query_id Q0 doc_id rank score tag'"
_QRELS_LINE = "'query_id 0 doc_id label' (TREC) or 'query_id<TAB>doc_id<TAB>label' (BEIR)"


def read_run(path: str | Path) -> Run:
    """A run in the order of its lines. As for trec_eval the score decides, the rank column is not read."""
    run: Run = {}
    for where, line in filled_lines(read_lines(path), str(path)):
        fields = line.split()
        if len(fields) != 6:
            raise InputError(f"{where}: {len(fields)} columns; expected {_RUN_LINE}")
        query_id, _, doc_id, _, score, _ = fields
        docs = run.setdefault(query_id, {})
        if doc_id in docs:
            raise InputError(f"{where}: document {doc_id!r} is in the run of query {query_id!r} twice")
        docs[doc_id] = _finite(score, where)
    return run


def best_docs(query_id: str, docs: Mapping[str, float], depth: int) -> dict[str, float]:
    """A run's best of one query, in order of score, ties as they stand."""
    if len(docs) > depth and len(set(docs.values())) == 1:
        # MS MARCO's official top-1000 lists are such: in no order at all, so a cut would be a lottery.
        raise InputError(
            f"the run gives all {len(docs)} documents of query {query_id!r} one score, so it has "
            f"no best {depth}; give another run, or a depth of {len(docs)} or more"
        )
    return dict(sorted(docs.items(), key=lambda pair: -pair[1])[:depth])


def write_run(target: str | Path | TextIO, rankings: Iterable[Ranking], tag: str = "rerank") -> None:
    """Write rankings so that trec_eval keeps their order.

    trec_eval sorts by the score, read as float32, and puts the greater doc id first in a tie. So a score
    that is not below the one before it (a tie, or a rank that the score does not explain) is lowered, by
    1e-6 or by the smallest step that float32 can show.
    """
    _require_word("tag", tag)
    seen: set[str] = set()
    with nullcontext(target) if not isinstance(target, str | Path) else open_text(target, "w") as stream:
        for ranking in rankings:
            query_id = _require_word("query id", ranking.query.query_id)
            if query_id in seen:
                raise InputError(f"query {query_id!r} is ranked twice; a run holds each query once")
            seen.add(query_id)
            last = math.inf
            for rank, hit in enumerate(ranking.hits, start=1):
                doc_id = _require_word("doc id", hit.passage.doc_id)
                score, last = _below(last, hit.score, f"query {query_id!r}, doc {doc_id!r}")
                stream.write(f"{query_id} Q0 {doc_id} {rank} {score} {tag}\n")


def read_qrels(path: str | Path) -> Qrels:
    """TREC judgments (4 columns), or BEIR's (3, after a header)."""
    qrels: Qrels = {}
    for index, (where, line) in enumerate(filled_lines(read_lines(path), str(path))):
        fields = line.split()
        if index == 0 and len(fields) == 3 and not _is_int(fields[2]):
            continue  # BEIR's header
        if len(fields) not in (3, 4) or not _is_int(fields[-1]):
            raise InputError(f"{where}: {line!r}; expected {_QRELS_LINE} with a whole number as label")
        query_id, doc_id, label = fields[0], fields[-2], int(fields[-1])
        if qrels.setdefault(query_id, {}).setdefault(doc_id, label) != label:
            raise InputError(f"{where}: document {doc_id!r} has another label for query {query_id!r} above")
    return qrels


def _below(last: float, score: float, where: str) -> tuple[str, float]:
    """The score as text, and as float32 reads that text: `last` or more is lowered."""
    with np.errstate(over="ignore"):
        text = f"{score:.6f}"
        value = np.float32(text)
        if not np.isfinite(value):
            raise InputError(f"{where}: the score {score!r} is not a finite float32; a run cannot hold it")
        if value >= last:
            text = f"{last - max(1e-6, float(np.spacing(np.float32(abs(last))))):.6f}"
            value = np.float32(text)
    if not np.isfinite(value):
        raise InputError(f"{where}: no float32 is left below the score {last!r}")
    return text, float(value)


def _require_word(kind: str, text: str) -> str:
    if not text or any(character.isspace() for character in text):
        raise InputError(f"the {kind} {text!r} cannot stand in a TREC run: it is empty or has white space")
    return text


def _finite(text: str, where: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise InputError(f"{where}: the score {text!r} is not a finite number; expected {_RUN_LINE}")
    return score


def _is_int(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
