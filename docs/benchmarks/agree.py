"""Whether trec_eval and ranx find in a suite's stored runs what its results.json says.

    python docs/benchmarks/agree.py runs/NAME

trec_eval (pytrec_eval) is asked for every query's value, ranx for the means; both get the files and nothing of ours but
the names of the measures. The exit status is 1 where a figure differs by more than 1e-4, and for a folder without any
run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytrec_eval
from ranx import Qrels, Run, evaluate

from rerank.data import read_qrels, read_run
from rerank.measure import Measure

CLOSE = 1e-4
TREC = {"nDCG": "ndcg", "RR": "recip_rank", "AP": "map", "R": "recall", "P": "P"}
RANX = {"nDCG": "ndcg", "RR": "mrr", "AP": "map", "R": "recall", "P": "precision"}

Labels = dict[str, dict[str, int]]
Scores = dict[str, dict[str, float]]


def of_trec_eval(measure: Measure, qrels: Labels, scores: Scores) -> dict[str, float]:
    """By query. trec_eval's recip_rank has no cutoff: beyond it it counts as 0."""
    name, cut = TREC[measure.name], measure.cutoff
    asked = (
        f"{name}_cut.{cut}"
        if cut and name in ("ndcg", "map")
        else f"{name}.{cut}"
        if cut and name != "recip_rank"
        else name
    )
    found = pytrec_eval.RelevanceEvaluator(qrels, {asked}, relevance_level=measure.rel or 1).evaluate(scores)
    values = {query_id: found.get(query_id, {}).get(asked.replace(".", "_"), 0.0) for query_id in qrels}
    if name == "recip_rank" and cut:
        return {query_id: value if value * cut > 1 - 1e-9 else 0.0 for query_id, value in values.items()}
    return values


def of_ranx(measure: Measure, qrels: Labels, scores: Scores) -> float:
    name = RANX[measure.name] + (f"@{measure.cutoff}" if measure.cutoff else "")
    level = f"-l{measure.rel}" if measure.rel else ""
    return float(evaluate(Qrels(qrels), Run(scores), f"{name}{level}", make_comparable=True))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="where 'rerank bench SUITE.yaml' left its runs and results.json")
    folder = parser.parse_args().folder
    runs, figures, worst = 0, 0, 0.0
    for dataset in json.loads((folder / "results.json").read_text(encoding="utf-8"))["datasets"]:
        for row in dataset.get("rankers", ()):
            if "run" not in row:  # it failed
                continue
            file = folder / row["run"]
            qrels, scores = read_qrels(file.with_name("qrels.txt")), read_run(file)
            runs += 1
            for name, ours in row["mean"].items():
                measure = Measure.parse(name)
                theirs = of_trec_eval(measure, qrels, scores)
                each = row["per_query"][name]
                apart = [abs(each[query_id] - theirs[query_id]) for query_id in qrels]
                apart += [abs(ours - sum(theirs.values()) / len(theirs)), abs(ours - of_ranx(measure, qrels, scores))]
                figures, worst = figures + len(apart), max(worst, *apart)
                if max(apart) > CLOSE:
                    print(f"{row['run']}: {name} differs by up to {max(apart):.6f}")
    print(f"{runs} runs, {figures} figures; the largest difference to trec_eval and ranx is {worst:.1e}")
    return 0 if runs and worst <= CLOSE else 1


if __name__ == "__main__":
    sys.exit(main())
