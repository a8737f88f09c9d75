"""Runs of first stages side by side: `python docs/benchmarks/first_stages.py DATASET BASELINE.trec OTHER.trec …`.

nDCG@10 and recall@100 of all judged queries, and the share of the best ten of the baseline that a run has too, over the
queries that both answer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean

from rerank.data import Run, load_dataset, read_run
from rerank.eval import evaluate
from rerank.eval.measures import order_of_scores


def overlap(one: Run, other: Run, k: int = 10) -> float:
    first, second = order_of_scores(one), order_of_scores(other)
    shares = []
    for query_id in first.keys() & second.keys():
        best = set(first[query_id][:k])
        shares.append(len(best & set(second[query_id][:k])) / len(best))
    return fmean(shares)


def main(dataset: str, *paths: str) -> None:
    qrels = load_dataset(dataset).qrels or {}
    runs = [read_run(path) for path in paths]
    print(f"| {dataset} | nDCG@10 | R@100 | overlap@10 |\n|---|---|---|---|")
    for path, run in zip(paths, runs, strict=True):
        found = evaluate(run, qrels, ("nDCG@10", "R@100")).mean
        print(f"| {Path(path).stem} | {found['nDCG@10']:.4f} | {found['R@100']:.4f} | {overlap(runs[0], run):.3f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
