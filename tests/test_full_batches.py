"""Strategies fill the batches of an engine that has a budget of tokens, across calls and across queries."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

import rerank
from rerank.backbones import Prepared, ScriptedBackbone, oracle
from rerank.backbones.packing import pack
from rerank.backbones.transformers_ import TransformersBackbone, _fed
from rerank.calls import Answer, Call, Constraint, Kind
from rerank.types import Candidates, Passage, Query

WORDS = ["relevance", "passages", "rank", "the", "most", "relevant", "first", "answer", "query", "a", "to", "of"]


@dataclass(frozen=True, slots=True)
class Grouped:
    """The transformers backbone's tokens and groups; the answers come from a script, for they are not in question."""

    engine: TransformersBackbone
    inner: ScriptedBackbone
    seen: list[list[Prepared]] = field(default_factory=list)
    name: str = "grouped"
    kinds: frozenset[Kind] = frozenset(Kind)
    constraints: frozenset[type[Constraint]] = frozenset()
    control_tokens: frozenset[str] = frozenset()

    def prepare(self, call: Call) -> Prepared:
        return self.engine.prepare(call)

    def group(self, items: Sequence[Prepared]) -> list[list[int]]:
        return self.engine.group(items)

    def answer(self, batch: Sequence[Prepared]) -> list[Answer]:
        self.seen.append(list(batch))
        return self.inner.answer(batch)

    def close(self) -> None:
        pass


def requests(queries: int, n: int) -> list[Candidates]:
    """Passages of 10 to 40 words, each query's its own."""
    draw = random.Random(0)
    return [
        Candidates(
            Query(f"{' '.join(draw.choices(WORDS, k=5))} {q}", f"q{q}"),
            tuple(Passage(" ".join(draw.choices(WORDS, k=draw.randint(10, 40))), f"d{i}") for i in range(n)),
        )
        for q in range(queries)
    ]


@pytest.mark.parametrize(
    ("prompt", "prefix_reuse"), [("pairwise", True), ("pairwise", False), ("listwise-permutation", True)]
)
def test_all_pairs_run_as_full_batches(tiny_model: Path, prompt: str, prefix_reuse: bool) -> None:
    """20 passages and 8 queries: the mean batch holds at least 80 % of the budget. Calls that are scored are counted as
    they are packed, what is shared once; calls that write as they are padded."""
    engine = TransformersBackbone.load(str(tiny_model), device="cpu", dtype="float32", prefix_reuse=prefix_reuse)
    budget = engine.batch_tokens
    assert budget == 2048  # what a CPU gets
    relevance = {f"d{i}": i / 10 for i in range(20)}
    backbone = Grouped(engine, ScriptedBackbone(oracle(relevance)))
    ranker = rerank.load("pairwise", algorithm="allpair", prompt=prompt, backbone=backbone)
    rankings = list(ranker.rank_many(requests(8, 20)))
    assert all(ranking.doc_ids == [f"d{i}" for i in reversed(range(20))] for ranking in rankings)
    assert sum(map(len, backbone.seen)) == 8 * 20 * 19

    def held(batch: list[Prepared]) -> int:
        if batch[0].call.kind == Kind.GENERATE:
            return max(item.tokens for item in batch) * len(batch)
        packed = pack(list(map(_fed, batch)), device=torch.device("cpu"), dtype=torch.float32, share=prefix_reuse)
        return packed.ids.shape[1]

    sizes = [held(batch) for batch in backbone.seen]
    assert max(sizes) <= budget
    assert sum(sizes) / len(sizes) >= 0.8 * budget
