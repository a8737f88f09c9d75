"""What the recipes here train on, made from the collections: a corpus, candidates for queries, lists to begin with.

python prepare.py corpus OUT LISTS...              the distinct passages of several lists as a BEIR corpus.jsonl
python prepare.py candidates OUT CORPUS DEPTH HELD QUERIES...
                                                   BM25's passages for the queries of lists (`query`) or of a BEIR
                                                   folder (`text`), as lists of ids in BM25's order with its scores,
                                                   then what is judged relevant and was not found; HELD is a file of
                                                   datasets, one a line, whose queries are left out
python prepare.py teach OUT LISTS CORPUS MODEL SHARE
                                                   the lists with a bi-encoder's scores in place of BM25's: the mean
                                                   of both z-scores within a query, BM25's with the weight SHARE;
                                                   a written query stays if its own passage is among the best ten;
                                                   MODEL is a name, a folder, or 'embedded' for all-MiniLM-L6-v2
python prepare.py easy OUT LISTS CORPUS            for each query of lists the passage with the best score, label 1,
                                                   among 19 of other queries, label 0
python prepare.py hold OUT N DEPTH DATASETS...    BM25's passages, with labels, for the first N queries of each
                                                   dataset that has a relevant one among them: to choose on
python prepare.py split REQUESTS QRELS N DEV HELD  the first N of rank_llm's requests with every other of
                                                   their first 60 passages and the labels, to choose on; and the N
                                                   queries, which must then not be trained on
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rerank.adapters import NOTE
from rerank.backbones.bi_encoder import BiEncoderBackbone
from rerank.data import BM25, load_dataset, read_qrels, read_rank_llm
from rerank.data.dense import embed_rows
from rerank.training.methods import averaged
from rerank.training.sources import excluded_words, load_corpus, normalised
from rerank.types import Passage, Query

WORDS = range(2, 26)  # how long a query may be
AMONG = 19
ROUND_TRIP = 10


def _write(path: str, records: Iterable[dict[str, object]]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as stream:
        count = sum(stream.write(json.dumps(each) + "\n") > 0 for each in records)
    print(f"{path}: {count:,}")


def _list(query: Query, docs: Iterable[tuple[Passage, int | None]]) -> dict[str, object]:
    shown = [{"docid": p.doc_id, "text": p.full_text} | ({} if g is None else {"label": g}) for p, g in docs]
    return {"qid": query.query_id, "query": query.text, "docs": shown}


def corpus(out: str, *lists: str) -> None:
    found = [each for name in lists for each in (load_dataset(name).lists or {}).values()]
    texts = dict.fromkeys(passage.text for each in found for passage in each.passages)
    _write(out, ({"_id": f"w{i}", "title": "", "text": text} for i, text in enumerate(texts)))


def candidates(out: str, corpus: str, depth: str, held: str, *queries: str) -> None:
    base = Path(held).parent
    seen = {words for spec in Path(held).read_text("utf-8").split() for words in excluded_words(spec, base)}
    passages = load_corpus(Path(corpus))
    kept: list[Query] = []
    labels: dict[str, dict[str, int]] = {}
    for number, name in enumerate(queries):
        for line in Path(name).read_text("utf-8").splitlines():
            record = json.loads(line)
            text = re.sub(r" (?=[?!.,'])", "", " ".join(str(record.get("query") or record["text"]).split()))
            words = normalised(text)
            if words not in seen and len(text.split()) in WORDS:
                kept.append(Query(text, f"{number}/{record.get('qid') or record['_id']}"))
                docs = record.get("docs", ())
                labels[kept[-1].query_id] = {d["docid"]: d["label"] for d in docs if d["docid"] in passages}
            seen.add(words)
    run = BM25(passages).search(kept, int(depth))

    def one(query: Query) -> dict[str, object]:
        judged, found = labels[query.query_id], run[query.query_id]
        least = min(found.values())
        missed = {doc_id: least for doc_id, label in judged.items() if label > 0 and doc_id not in found}
        docs = [
            {"docid": d, "score": round(score, 4)} | ({"label": judged[d]} if d in judged else {})
            for d, score in {**dict(sorted(found.items(), key=lambda item: -item[1])), **missed}.items()
        ]
        return {"qid": query.query_id, "query": query.text, "docs": docs}

    _write(out, (one(query) for query in kept if len(run[query.query_id]) > 9))


def teach(out: str, lists: str, corpus: str, model: str, share: str) -> None:
    known = None if model == "embedded" else model
    encoder, passages = BiEncoderBackbone.load(known, dtype="float32", cache_mb=0), load_corpus(Path(corpus))
    found = [json.loads(line) for line in Path(lists).read_text("utf-8").splitlines()]
    shown = sorted({doc["docid"] for each in found for doc in each["docs"]})

    rows = embed_rows(encoder, "document", [passages[doc_id].full_text for doc_id in shown])
    asked = embed_rows(encoder, "query", [each["query"] for each in found])
    place = {doc_id: i for i, doc_id in enumerate(shown)}
    kept = []
    for each, query in zip(found, asked, strict=True):
        docs = each["docs"]
        cosine = rows[[place[doc["docid"]] for doc in docs]] @ query
        fused = (1 - float(share)) * _z(cosine) + float(share) * _z(np.array([doc["score"] for doc in docs]))
        for doc, score in zip(docs, fused.tolist(), strict=True):
            doc["score"] = round(score, 4)
        asked_about = each["qid"].partition("/")[2].rpartition("-")[0]  # the passage that a query was written for
        best = sorted(docs, key=lambda doc: -doc["score"])[:ROUND_TRIP]
        if asked_about not in passages or asked_about in {doc["docid"] for doc in best}:
            kept.append(each)
    _write(out, kept)


def _z(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (scores - scores.mean()) / (scores.std() or 1.0)
    return found


def easy(out: str, lists: str, corpus: str) -> None:
    passages, draw = load_corpus(Path(corpus)), random.Random(0)
    found = [json.loads(line) for line in Path(lists).read_text("utf-8").splitlines()]
    pool = [doc["docid"] for each in found for doc in each["docs"]]

    def one(each: dict[str, Any]) -> dict[str, object]:
        own = {doc["docid"]: doc["score"] for doc in each["docs"]}
        others = [doc_id for doc_id in draw.sample(pool, AMONG) if doc_id not in own]
        shown = {max(own, key=lambda doc_id: own[doc_id]): 1} | dict.fromkeys(others, 0)
        return _list(Query(each["query"], each["qid"]), ((passages[d], label) for d, label in shown.items()))

    _write(out, map(one, found))


def average(out: str, *adapters: str) -> None:
    averaged([Path(each) for each in adapters], Path(out))
    shutil.copy(Path(adapters[-1]) / NOTE, out)


def hold(out: str, count: str, depth: str, *datasets: str) -> None:
    def of(name: str) -> Iterator[dict[str, object]]:
        known = load_dataset(name)
        for each in known.candidates(int(depth)):
            labels = (known.qrels or {}).get(each.query.query_id, {})
            if any(labels.get(p.doc_id, 0) > 0 for p in each.passages):
                yield _list(each.query, ((p, labels.get(p.doc_id, 0)) for p in each.passages))

    _write(out, chain.from_iterable(islice(of(name), int(count)) for name in datasets))


def split(requests: str, qrels: str, count: str, dev: str, held_out: str) -> None:
    judged = read_qrels(qrels)
    kept = list(read_rank_llm(requests))[: int(count)]
    _write(
        dev, (_list(c.query, ((p, judged[c.query.query_id].get(p.doc_id)) for p in c.passages[:60:2])) for c in kept)
    )
    Path(held_out).write_text("".join(each.query.text + "\n" for each in kept), encoding="utf-8")


if __name__ == "__main__":
    commands = (corpus, candidates, teach, easy, average, hold, split)
    name, *arguments = sys.argv[1:]
    {command.__name__: command for command in commands}[name](*arguments)
