"""Makes the SciFact sample: `python -m rerank.data.samples.make_scifact BEIR_DIR OUT_DIR`.

Kept are the test queries, their judgments, BM25's 100 best documents for each (found in the full corpus)
and the documents that are found or judged. The same input gives the same bytes. LICENSE.md is by hand.
"""

from __future__ import annotations

import json
import lzma
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from rerank.data import read_beir, write_run
from rerank.types import Candidates, Hit, Ranking


def make(beir: Path, out: Path, depth: int = 100) -> None:
    dataset = read_beir(beir, "test")
    rankings = [_as_ranking(candidates) for candidates in dataset.candidates(depth)]
    kept = {doc_id for ranking in rankings for doc_id in ranking.doc_ids}
    kept |= {doc_id for docs in (dataset.qrels or {}).values() for doc_id in docs}

    (out / "qrels").mkdir(parents=True, exist_ok=True)
    (out / "qrels" / "test.tsv").write_bytes((beir / "qrels" / "test.tsv").read_bytes())
    docs = (passage for doc_id, passage in (dataset.corpus or {}).items() if doc_id in kept)
    _write(out / "corpus.jsonl.xz", ({"_id": d.doc_id, "title": d.title, "text": d.text} for d in docs))
    _write(out / "queries.jsonl.xz", ({"_id": q.query_id, "text": q.text} for q in dataset.queries.values()))
    with _open(out / "bm25.test.trec.xz") as stream:
        write_run(stream, rankings, tag="bm25")


def _as_ranking(candidates: Candidates) -> Ranking:
    hits = (Hit(rank, p.score or 0.0, p) for rank, p in enumerate(candidates.passages, start=1))
    return Ranking(candidates.query, tuple(hits))


def _write(path: Path, records: Iterable[dict[str, str]]) -> None:
    with _open(path) as stream:
        stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _open(path: Path) -> TextIO:
    return lzma.open(path, "wt", preset=9 | lzma.PRESET_EXTREME, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    make(Path(sys.argv[1]), Path(sys.argv[2]))
