"""Measuring runs against relevance judgments."""

if __name__ != "rerank.eval":
    raise ImportError("import this package as rerank.eval")

from rerank.eval.comparison import Compared, Comparison, ceiling, compare, consensus, judged_at, no_kemeny, stars
from rerank.eval.efficiency import Cost, Prices, frontier
from rerank.eval.measures import Evaluation, evaluate
from rerank.measure import Measure

__all__ = [
    "Compared",
    "Comparison",
    "Cost",
    "Evaluation",
    "Measure",
    "Prices",
    "ceiling",
    "compare",
    "consensus",
    "evaluate",
    "frontier",
    "judged_at",
    "no_kemeny",
    "stars",
]
