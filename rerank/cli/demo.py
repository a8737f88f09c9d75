"""`rerank demo`: the main job on real input, with nothing to configure."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.table import Table

import rerank
from rerank.backbones import BACKBONES, Backbone, load_backbone
from rerank.calls import Kind
from rerank.cli.options import say, screen, show, show_log
from rerank.cli.progress import Bar
from rerank.data import load_dataset
from rerank.defaults import settle
from rerank.eval import evaluate
from rerank.types import Candidates, Outcomes, Ranking, Usage

if TYPE_CHECKING:
    from rerank.backbones.transformers_ import TransformersBackbone

SAMPLE = "sample:scifact"
STRATEGIES = ("pointwise", "first")
BI_ENCODER = "bi-encoder"
BM25_WEIGHT = 0.2  # beside `pointwise`, by z-scores; chosen on held-out queries of TREC DL 2021, SciFact and NFCorpus


def demo(
    queries: Annotated[
        int, typer.Option("--queries", "-n", metavar="N", min=1, help="How many of the 300 queries.")
    ] = 20,
    depth: Annotated[
        int, typer.Option("--depth", "-k", metavar="N", min=2, help="BM25 candidates for each query.")
    ] = 10,
    passage_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="What is read of each passage.")] = 100,
) -> None:
    """Rerank a sample of SciFact.

    With the embedded models, measured against the BM25 that fetched the passages: a bi-encoder, which compares
    embeddings, and the language model with the adapters that ship.
    """
    show_log()
    dataset = load_dataset(SAMPLE)
    assert dataset.qrels is not None
    everything = [Ranking.of(c, range(len(c)), map(float, range(len(c), 0, -1))) for c in dataset.candidates()]
    whole = evaluate(everything, dataset.qrels).mean["nDCG@10"]
    screen.print(
        f"SciFact: {len(dataset.queries)} claims to check against abstracts of papers; BM25 has fetched 100 "
        f"candidates for each. nDCG@10 of BM25 over all: {whole:.3f}"
    )
    requests = list(dataset.candidates(depth))[:queries]
    judged = {c.query.query_id: dataset.qrels[c.query.query_id] for c in requests}
    say("loading the embedded models")
    backbone = load_backbone("transformers", needs=Kind.LABELS)
    screen.print(
        f"\nNow the best {depth} candidates of {len(requests)} queries are reordered (from the first {passage_tokens} "
        "tokens of each):\n"
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("ranker", no_wrap=True)
    for name in ("nDCG@10", "calls", "prompt tokens", "generated", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("answers")
    bm25 = evaluate([r for r in everything if r.query.query_id in judged], judged).mean["nDCG@10"]
    table.add_row("BM25, as given", f"{bm25:.3f}", "", "", "", "", "")
    scores = {}
    for name, ranker in _rankers(backbone, passage_tokens):
        with Bar(name, len(requests), ranker.strategy.calls) as bar:
            ranker = rerank.Reranker(ranker.strategy, ranker.backbone, on_progress=bar.show)
            started = time.monotonic()
            rankings = list(ranker.rank_many(bar.watch(requests)))
            seconds = time.monotonic() - started
        scores[name] = evaluate(rankings, judged).mean["nDCG@10"]
        usage = sum((r.usage for r in rankings), Usage())
        outcomes = sum((r.outcomes for r in rankings), Outcomes())
        table.add_row(
            name,
            f"{scores[name]:.3f}",
            f"{usage.calls:,}",
            f"{usage.prompt_tokens:,}",
            f"{usage.generated_tokens:,}",
            f"{seconds:.1f}",
            str(outcomes),
        )
        if name == "pointwise":
            both = f"{BM25_WEIGHT:g} BM25 + {1 - BM25_WEIGHT:g} {name}"
            scores[both] = evaluate(_with_bm25(ranker, requests, rankings), judged).mean["nDCG@10"]
            table.add_row(both, f"{scores[both]:.3f}", "", "", "", "", "")
    show(table)
    screen.print()
    screen.print(verdict(bm25, scores))


def _rankers(backbone: Backbone, passage_tokens: int) -> Iterator[tuple[str, rerank.Reranker]]:
    """Each by its name in the table; the language model's share its weights."""
    if BACKBONES[BI_ENCODER].missing is None:
        yield BI_ENCODER, rerank.load("pointwise", backbone=BI_ENCODER, passage_tokens=passage_tokens)
    for name in STRATEGIES:
        strategy, adapter = settle(name, options={"passage_tokens": passage_tokens})
        own = cast("TransformersBackbone", backbone).with_adapter(adapter)
        yield name if adapter is not None else f"{name}, untuned", rerank.Reranker(strategy, own)


def _with_bm25(ranker: rerank.Ranker, requests: Sequence[Candidates], rankings: Sequence[Ranking]) -> list[Ranking]:
    """The rankings and the order that the passages came in, each brought to mean 0 and variance 1, as one."""
    fusion = rerank.fuse(
        rerank.FirstStage(), ranker, method="wsum", norm="zmuv", weights=(BM25_WEIGHT, 1 - BM25_WEIGHT)
    )
    given = rerank.FirstStage().rank_many(requests)
    return [fusion.fused(c, (first, own)) for c, first, own in zip(requests, given, rankings, strict=True)]


def verdict(bm25: float, scores: dict[str, float]) -> str:
    """One plain sentence on who beats BM25."""
    better = [name for name, score in scores.items() if score > bm25]
    if not better:
        return "None of them is above BM25 on these queries. So few queries show little: the spread is wide."
    return f"Above BM25 on these queries: {', '.join(better)}. So few queries show little: the spread is wide."
