"""What the recipes here train on, made from the collections: a corpus, candidates for queries, lists to begin with.

python prepare.py corpus OUT LISTS...              the distinct passages of several lists as a BEIR corpus.jsonl
python prepare.py candidates OUT CORPUS DEPTH HELD QUERIES...
                                                   BM25's passages for the queries of lists (`query`) or of a BEIR
                                                   folder (`text`), as lists in BM25's order; HELD is a file of
                                                   datasets, one a line, whose queries are left out
python prepare.py easy OUT LISTS RUN               for each query of lists the passage that the run has first, label
                                                   1, among 19 of other queries, label 0
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
from collections.abc import Iterable
from pathlib import Path

from rerank.adapters import NOTE
from rerank.data import BM25, load_dataset, read_qrels, read_rank_llm, read_run
from rerank.training.methods import averaged
from rerank.training.sources import excluded_words, load_corpus, normalised
from rerank.types import Passage, Query

WORDS = range(2, 26)  # how long a query may be
AMONG = 19


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
    kept: list[Query] = []
    for number, name in enumerate(queries):
        for line in Path(name).read_text("utf-8").splitlines():
            record = json.loads(line)
            text = re.sub(r" (?=[?!.,'])", "", " ".join(str(record.get("query") or record["text"]).split()))
            words = normalised(text)
            if words not in seen and len(text.split()) in WORDS:
                kept.append(Query(text, f"{number}/{record.get('qid') or record['_id']}"))
            seen.add(words)
    passages = load_corpus(Path(corpus))
    run = BM25(passages).search(kept, int(depth))
    _write(out, (_list(q, ((passages[d], None) for d in run[q.query_id])) for q in kept if len(run[q.query_id]) > 9))


def easy(out: str, lists: str, run: str) -> None:
    found, scores, draw = load_dataset(lists).lists or {}, read_run(run), random.Random(0)
    pool = [passage for each in found.values() for passage in each.passages]

    def one(query_id: str) -> dict[str, object]:
        asked, own = found[query_id], scores[query_id]
        best = max(asked.passages, key=lambda p: own.get(p.doc_id, float("-inf")))
        others = {p.doc_id: p for p in draw.sample(pool, AMONG) if p.doc_id not in own}
        return _list(asked.query, [(best, 1), *((p, 0) for p in others.values())])

    _write(out, (one(query_id) for query_id in found if query_id in scores))


def average(out: str, *adapters: str) -> None:
    averaged([Path(each) for each in adapters], Path(out))
    shutil.copy(Path(adapters[-1]) / NOTE, out)


def split(requests: str, qrels: str, count: str, dev: str, held_out: str) -> None:
    judged = read_qrels(qrels)
    kept = list(read_rank_llm(requests))[: int(count)]
    _write(
        dev, (_list(c.query, ((p, judged[c.query.query_id].get(p.doc_id)) for p in c.passages[:60:2])) for c in kept)
    )
    Path(held_out).write_text("".join(each.query.text + "\n" for each in kept), encoding="utf-8")


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"corpus": corpus, "candidates": candidates, "easy": easy, "average": average, "split": split}[command](*arguments)
