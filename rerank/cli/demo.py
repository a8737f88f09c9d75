"""`rerank demo`: the main job on real input, with nothing to configure."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.table import Table

import rerank
from rerank.backbones import load_backbone
from rerank.calls import Kind
from rerank.cli.options import say, screen, show, show_log
from rerank.cli.progress import Bar
from rerank.data import load_dataset
from rerank.eval import evaluate
from rerank.strategies import load_strategy
from rerank.types import Outcomes, Ranking, Usage

SAMPLE = "sample:scifact"
STRATEGIES = ("pointwise", "listwise", "first")


def demo(
    queries: Annotated[
        int, typer.Option("--queries", "-n", metavar="N", min=1, help="How many of the 300 queries.")
    ] = 10,
    depth: Annotated[
        int, typer.Option("--depth", "-k", metavar="N", min=2, help="BM25 candidates for each query.")
    ] = 20,
    passage_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="What is read of each passage.")] = 100,
) -> None:
    """Rerank a sample of SciFact in three ways.

    With the embedded model, measured against the BM25 that fetched the passages.
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
    say("loading the embedded model")
    backbone = load_backbone("transformers", needs=Kind.GENERATE)
    screen.print(
        f"\nNow {backbone.name}, untuned, reorders the best {depth} candidates of {len(requests)} queries "
        f"(the first {passage_tokens} tokens of each):\n"
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("ranker", no_wrap=True)
    for name in ("nDCG@10", "calls", "prompt tokens", "generated", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("answers")
    bm25 = evaluate([r for r in everything if r.query.query_id in judged], judged).mean["nDCG@10"]
    table.add_row("BM25, as given", f"{bm25:.3f}", "", "", "", "", "")
    scores, unread = {}, []
    for name in STRATEGIES:
        strategy = load_strategy(name, passage_tokens=passage_tokens)
        with Bar(name, len(requests), strategy.calls) as bar:
            ranker = rerank.Reranker(strategy, backbone, on_progress=bar.show)
            started = time.monotonic()
            rankings = list(ranker.rank_many(bar.watch(requests)))
            seconds = time.monotonic() - started
        scores[name] = evaluate(rankings, judged).mean["nDCG@10"]
        usage = sum((r.usage for r in rankings), Usage())
        outcomes = sum((r.outcomes for r in rankings), Outcomes())
        if outcomes.failed == usage.calls:
            unread.append(name)
        table.add_row(
            name,
            f"{scores[name]:.3f}",
            f"{usage.calls:,}",
            f"{usage.prompt_tokens:,}",
            f"{usage.generated_tokens:,}",
            f"{seconds:.1f}",
            str(outcomes),
        )
    show(table)
    screen.print()
    for name in unread:
        screen.print(f"{name}: no answer could be read as a ranking, so the given order stands.")
    screen.print(verdict(bm25, scores))


def verdict(bm25: float, scores: dict[str, float]) -> str:
    """One plain sentence on who beats BM25."""
    better = [name for name, score in scores.items() if score > bm25]
    if not better:
        return (
            "The untuned model of 135M parameters does not beat BM25. Give a larger one with "
            "rerank.load(..., model=NAME), or a tuned adapter with rerank.load(..., adapter=PATH)."
        )
    return f"Above BM25 on these queries: {', '.join(better)}. So few queries show little: the spread is wide."
