"""Measuring runs against relevance judgments."""

if __name__ != "rerank.eval":
    raise ImportError("import this package as rerank.eval")

from rerank.eval.measures import Evaluation, Measure, evaluate

__all__ = ["Evaluation", "Measure", "evaluate"]
