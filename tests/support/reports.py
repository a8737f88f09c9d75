"""Sections of a report, small ones, and one whose every text attacks the page."""

from __future__ import annotations

from dataclasses import asdict

from rerank.eval import compare, evaluate
from rerank.eval.report import RunCard, Section
from rerank.types import Candidates, Passage, Query, Usage

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>",
    "\"'><svg/onload=window.hacked=1>{{ 7*7 }}{% raw %}",
    "<!-- <script> \u2028 \u202eevil & <a href='javascript:window.hacked=1'>x</a>",
)
QUERIES = 12


def section(
    dataset: str = "tiny", *, names: tuple[str, ...] = ("base", "better", "same"), hostile: bool = False
) -> Section:
    """The baseline has the relevant document of each query last, the second run first in all queries but one."""

    def text(i: int) -> str:
        return HOSTILE[i % len(HOSTILE)] if hostile else f"words of document {i}"

    ids = [f"q{i}" for i in range(QUERIES)]
    docs = ["bad", "worse", "good"] if not hostile else ["</script>", '"><b>', "good"]
    labels = {query_id: {docs[0]: 0, "good": 2} for query_id in ids}  # docs[1] is not judged

    def run(*orders: list[str]) -> dict[str, dict[str, float]]:
        return {q: {d: -float(i) for i, d in enumerate(orders[n % len(orders)])} for n, q in enumerate(ids)}

    up = run(*[docs[::-1]] * (QUERIES - 1), docs)
    runs = dict(zip(names, (run(docs), up, run(docs)), strict=True))
    measured = {name: evaluate(each, labels, ["nDCG@10"]) for name, each in runs.items()}
    queries = {q: Query(f"what is {n}? {text(n) if hostile else ''}", q) for n, q in enumerate(ids)}
    passages = tuple(Passage(text(i) + " long" * (200 if i == 2 else 0), doc) for i, doc in enumerate(docs))
    usage = Usage(calls=24, prompt_tokens=1200, generated_tokens=120, seconds=6.0)
    told = {"queries": QUERIES, "usage": asdict(usage), "settings": {"model": text(0), "options": {"seed": 7}}}
    return Section(
        dataset,
        compare(measured, "nDCG@10", seed=3),
        runs,
        labels,
        {q: Candidates(query, passages) for q, query in queries.items()},
        {names[1]: RunCard("better.trec", "ab" * 32, told)},
    )
