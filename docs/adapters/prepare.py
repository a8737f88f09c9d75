"""What the recipes here train on, made from the collections: one corpus of web passages, first stages, teachers' runs.

    python prepare.py corpus OUT LISTS...        the distinct passages of several lists as a BEIR corpus.jsonl
    python prepare.py first-stage DATASET OUT    BM25 over the corpus, as a TREC run
    python prepare.py teach DATASET RUN MODEL OUT    the run's documents with a bi-encoder's cosines, as a TREC run
    python prepare.py split REQUESTS QRELS N DEV HELD    of the first N of rank_llm's requests every other one, with
                                                 every other of its first 60 passages and their labels, to choose on;
                                                 and the N queries that must then not be trained on

`teach` gives what `rerank run -s pointwise -b bi-encoder --run RUN` gives, and embeds each text once for the whole
collection.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from rerank.data import BM25, load_dataset, read_qrels, read_rank_llm, read_run, write_run
from rerank.types import Candidates, Hit, Passage, Ranking

DEPTH = 50


def corpus(out: str, *lists: str) -> None:
    texts: dict[str, None] = {}
    for name in lists:
        found = load_dataset(name).lists or {}
        texts |= dict.fromkeys(passage.text for each in found.values() for passage in each.passages)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", encoding="utf-8") as stream:
        for number, text in enumerate(texts):
            stream.write(json.dumps({"_id": f"w{number}", "title": "", "text": text}) + "\n")
    print(f"{len(texts):,} passages")


def first_stage(dataset: str, out: str) -> None:
    found = load_dataset(dataset)
    assert found.corpus is not None
    index = BM25(found.corpus)  # type: ignore[arg-type]
    queries = list(found.queries.values())
    run = index.search(queries, DEPTH)
    rankings = (
        Ranking(q, tuple(Hit(i, s, Passage("", d)) for i, (d, s) in enumerate(run[q.query_id].items(), start=1)))
        for q in queries
        if run[q.query_id]
    )
    write_run(out, rankings, "bm25")


def teach(dataset: str, run: str, model: str, out: str) -> None:
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer

    found = load_dataset(dataset)
    requests = list(found.candidates(DEPTH, run=read_run(run) if run != "-" else None))
    cuda = torch.cuda.is_available()
    place, options = ("cuda", {"dtype": torch.float16}) if cuda else ("cpu", {})
    encoder = SentenceTransformer(model, device=place, model_kwargs=options)

    def embed(texts: Iterable[str]) -> dict[str, np.ndarray]:
        distinct = list(dict.fromkeys(texts))
        return dict(zip(distinct, encoder.encode(distinct, batch_size=256, normalize_embeddings=True), strict=True))

    passages = embed(p.full_text for c in requests for p in c.passages)
    queries = embed(c.query.text for c in requests)

    def ranking(request: Candidates) -> Ranking:
        query = queries[request.query.text].astype(np.float32)
        scores = [float(query @ passages[p.full_text].astype(np.float32)) for p in request.passages]
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        return Ranking.of(request, order, [scores[i] for i in order])

    write_run(out, map(ranking, requests), Path(model).name)


def split(requests: str, qrels: str, count: str, dev: str, held_out: str) -> None:
    judged = read_qrels(qrels)
    kept = list(read_rank_llm(requests))[: int(count)]
    with open(dev, "w", encoding="utf-8") as stream:
        for each in kept[::2]:
            labels = judged[each.query.query_id]
            shown = each.passages[:60:2]
            docs = [{"docid": p.doc_id, "text": p.text, "label": labels.get(p.doc_id)} for p in shown]
            stream.write(json.dumps({"qid": each.query.query_id, "query": each.query.text, "docs": docs}) + "\n")
    Path(held_out).write_text("".join(each.query.text + "\n" for each in kept), encoding="utf-8")


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"corpus": corpus, "first-stage": first_stage, "teach": teach, "split": split}[command](*arguments)
