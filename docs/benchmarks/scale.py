"""Whether a pair costs the same, and memory stays the same, from a thousand pairs to a hundred thousand, on Ray.

    python docs/benchmarks/scale.py [PAIRS ...] [--workers N | --here]

The backbone is scripted, so what is measured is all but the model: reading shards, prompts, scheduling, journals,
parts, joining, and Ray. Every size is a run of its own with new workers. CPU seconds are the workers' own, from the
second shard to the last, of which each has two more than the pairs need, and the driver's; on a machine that does other
things as well they mean more than the clock's. With --here it is the same without Ray, in this one process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rerank import ScriptedBackbone
from rerank.calls import Call
from rerank.data.shards import list_shards, write_shards
from rerank.ray_pool import Pool
from rerank.reranker import Reranker
from rerank.sharded import Executor, Work, here, parts_path, run_shards
from rerank.strategies import load_strategy
from rerank.types import Candidates, Passage, Query

DEPTH, QUERIES_A_SHARD, BLOCK = 100, 5, 5
A_SHARD = QUERIES_A_SHARD * DEPTH
UNCOUNTED = 2 * A_SHARD  # pairs of each worker
TEXT = "the flea lives for a hundred days on the blood of cats and dogs and lays eggs that fall to the floor"


def used() -> tuple[float, float]:
    """CPU seconds and peak memory in MB of this process."""
    now = resource.getrusage(resource.RUSAGE_SELF)
    return now.ru_utime + now.ru_stime, now.ru_maxrss / 1024


@dataclass
class Script:
    """Answers, and notes what was used where the answers to a shard begin."""

    answered: int = 0
    seconds: list[float] = field(default_factory=list)

    def __call__(self, call: Call) -> list[float]:
        if self.answered % A_SHARD == 0:
            self.seconds.append(used()[0])
        self.answered += 1
        return [float(hash(call.dialogue.passages[0].text) % 1000) / 1000, 0.0]

    def account(self) -> tuple[float, float, int]:
        """CPU seconds, peak memory in MB, pairs: from the second shard to the last, so whole rounds of reading, asking
        and writing, without what is imported and read for the first time, by Ray too."""
        return self.seconds[-1] - self.seconds[1], used()[1], self.answered - UNCOUNTED


@dataclass(frozen=True)
class Accounted(ScriptedBackbone):
    """Leaves behind what its process used."""

    counted: Script = field(default_factory=Script)
    folder: Path = Path()

    def close(self) -> None:
        (self.folder / f"{os.getpid()}.json").write_text(json.dumps(self.counted.account()))


def load(folder: Path) -> Reranker:
    script = Script()
    return Reranker(load_strategy("pointwise"), Accounted(script, counted=script, folder=folder))


def requests(pairs: int) -> Iterator[Candidates]:
    words = TEXT.split()
    for q in range(pairs // DEPTH):
        texts = (" ".join(words[(q + i + j) % len(words)] for j in range(60)) for i in range(DEPTH))
        yield Candidates(Query(f"question {q}", f"q{q}"), tuple(Passage(t, f"d{i}") for i, t in enumerate(texts)))


def measure(pairs: int, workers: int, executor: Executor, folder: Path) -> str:
    asked = pairs + workers * UNCOUNTED
    write_shards(requests(asked), folder / "shards", per_shard=QUERIES_A_SHARD)
    shards = list_shards(folder / "shards")
    output, accounts = folder / "out.trec", folder / "accounts"
    accounts.mkdir()
    work = Work(partial(load, accounts), parts_path(output), {"pairs": pairs}, "t", DEPTH, BLOCK)
    started, before = time.perf_counter(), used()[0]
    run_shards(work, shards, output, executor, lambda step: None)
    seconds, (after, peak) = time.perf_counter() - started, used()
    ranked = sum(1 for _ in output.open())
    assert ranked == asked, f"{ranked} of {asked} pairs came back"
    each = [json.loads(path.read_text()) for path in accounts.iterdir()]
    assert sum(counted for _, _, counted in each) == pairs, each
    cpu = sum(spent for spent, _, _ in each)
    return (
        f"| {pairs:,} | {len(shards)} | {1e6 * cpu / pairs:.1f} | {max(memory for _, memory, _ in each):.0f} "
        f"| {after - before:.1f} | {peak:.0f} | {seconds:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pairs", nargs="*", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--here", action="store_true", help="in this process, without Ray")
    given = parser.parse_args()
    if given.here:
        report(given.pairs, 1, here)
        return
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    from ray.cluster_utils import Cluster

    head = {"num_cpus": given.workers, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        report(given.pairs, given.workers, Pool(given.workers, cluster.address))
    finally:
        cluster.shutdown()


def report(sizes: list[int], workers: int, executor: Executor) -> None:
    theirs, ours = ("workers' CPU, us a pair", "worker's peak, MB"), ("driver's CPU, s", "its peak, MB")
    names = ("pairs", "shards", *theirs, *ours, "clock, s")
    print(f"| {' | '.join(names)} |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for pairs in sizes:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(pairs, workers, executor, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
