"""Suites over two small collections, and contestants whose calls are counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import yaml
from command import as_list

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.bench.cache import identity_of
from rerank.bench.cells import Contestant
from rerank.bench.run_suite import run_suite
from rerank.bench.standings import Standings
from rerank.bench.suite import read_suite
from rerank.calls import Call
from rerank.strategies import load_strategy

DOCUMENTS = 6
QUERIES = 8
RELEVANCE = {
    f"q{q}": {f"d{d}": float(Random(100 * q + d).randrange(4)) for d in range(DOCUMENTS)} for q in range(QUERIES)
}
PERFECT = oracle(RELEVANCE)


def two_lists(tmp_path: Path) -> Path:
    """A folder with two lists of eight queries, which differ in their texts, and the judgments of both."""
    for name in ("one", "two"):
        texts = [f"{name} text {d}" for d in range(DOCUMENTS)]
        lines = (as_list(f"q{q}", *texts, query=f"{name} question {q}") for q in range(QUERIES))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    labels = (f"{q} 0 {d} {int(label)}\n" for q, docs in RELEVANCE.items() for d, label in docs.items())
    (tmp_path / "qrels.txt").write_text("".join(labels))
    return tmp_path


def write(folder: Path, **more: object) -> Path:
    datasets = [{"dataset": f"{name}.jsonl", "name": name, "qrels": "qrels.txt"} for name in ("one", "two")]
    suite = {"name": "toy", "datasets": datasets, "rankers": ["pointwise"]} | more
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    return folder / "suite.yaml"


class Asked:
    """Contestants on scripted backbones, and the calls that these were asked."""

    def __init__(self, script: Callable[[Call], str | Sequence[float]] = PERFECT) -> None:
        self._script = script
        self.queries: list[str] = []
        self.loads = 0

    def contestant(self, name: str, strategy: str = "pointwise", **options: object) -> Contestant:
        def script(call: Call) -> str | Sequence[float]:
            self.queries.append(call.dialogue.query.query_id)
            return self._script(call)

        def load(show: object) -> rerank.Ranker:
            self.loads += 1
            return rerank.load(strategy, backbone=ScriptedBackbone(script), **options)

        made = load_strategy(strategy, **options)
        settings = {"strategy": strategy, "prompt": made.prompt.identity, "options": options}
        return Contestant(name, settings, made.calls, load, lambda: identity_of(settings), lambda: "a test", None)


def run(path: Path, *contestants: Contestant, out: str = "out", cache: str = "cache") -> Standings:
    suite, trials = read_suite(path)
    return run_suite(suite, trials, contestants, path.parent / out, path.parent / cache)
