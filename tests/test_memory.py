"""Memory is flat: what is in flight is bounded, however many candidates come."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import resource, sys
import rerank
from rerank.types import Candidates, Passage, Query

def requests(queries):
    for q in range(queries):
        texts = [f"passage {i} of query {q} " + "words " * (i % 7) for i in range(100)]
        yield Candidates(Query(f"query {q}", f"q{q}"), tuple(Passage(t, f"d{i}") for i, t in enumerate(texts)))

ranker = rerank.load("pointwise", model=sys.argv[1], device="cpu", dtype="float32")
for queries in (2, 200):
    count = sum(len(ranking) for ranking in ranker.rank_many(requests(queries)))
    print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_twenty_thousand_candidates_take_the_memory_of_two_hundred(tiny_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_model)], capture_output=True, text=True, check=True, timeout=500
    )
    (few, before), (many, after) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (few, many) == (200, 20_000)
    assert after - before < 300, f"{before} MB for {few} candidates, {after} MB for {many}"
