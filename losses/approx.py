"""Metrics made into losses: 1 − metric with approximate ranks, and the same in expectation over Gumbel noise.

rank_i ≈ 1 + Σ_{j≠i} σ((s_j − s_i)/T), and "in the top k" ≈ σ((k + ½ − rank)/T) (Qin, Liu and Li, Information Retrieval
2010; T is their 1/α, 0.1 as in TF-Ranking). The lower T, the closer to the metric, and the fewer pairs have a gradient.
Shapes, mask and reduction: see rerank.losses.base. A list that orders nothing, or has nothing relevant, adds 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Generator, Tensor

from rerank.losses.base import (
    Gain,
    Reduction,
    both_real,
    differences,
    gumbel_noise,
    label_ranks,
    mean_where,
    orders,
    positive,
    read,
    reduced,
)
from rerank.losses.metrics import Step, average_precision, ndcg, precision, reciprocal_rank, relevant


class Metric(Protocol):
    """A function of ranks, as in rerank.losses.metrics."""

    def __call__(self, ranks: Tensor, labels: Tensor, mask: Tensor, *, step: Step) -> Tensor: ...


def approx_ranks(scores: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """1 + Σ_{j≠i} σ((s_j − s_i)/T) over the items j of the list; items with one score share the mean of their ranks."""
    above = torch.sigmoid(-differences(scores) / temperature)
    return 1 + torch.where(both_real(mask), above, 0.0).sum(-1)


def approx(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    metric: Metric,
    *,
    rel: float | None = None,
    temperature: float,
    reduction: Reduction,
) -> Tensor:
    """1 − metric of the approximate ranks. `rel` is the lowest label that the metric takes as relevant, if it does."""
    positive(temperature=temperature)
    scores, labels, mask = read(scores, labels, mask)
    values = metric(approx_ranks(scores, mask, temperature), labels, mask, step=partial(_soft_step, temperature))
    counts = orders(labels, mask) & (labels > 0 if rel is None else relevant(labels, mask, rel)).any(-1)
    return reduced(torch.where(counts, 1 - values, 0.0), reduction)


def approx_ndcg(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.1,
    k: int | None = None,
    gain: Gain = "exponential",
    reduction: Reduction = "mean",
) -> Tensor:
    """ApproxNDCG: 1 − nDCG@k of the approximate ranks."""
    positive(k=k)
    metric = partial(ndcg, k=k, gain=gain)
    return approx(scores, labels, mask, metric, temperature=temperature, reduction=reduction)


def approx_rr(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.1,
    k: int | None = None,
    rel: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """1 − RR@k of the approximate ranks; only the first relevant item has a gradient."""
    positive(k=k)
    metric = partial(reciprocal_rank, k=k, rel=rel)
    return approx(scores, labels, mask, metric, rel=rel, temperature=temperature, reduction=reduction)


def approx_ap(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.1,
    k: int | None = None,
    rel: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """1 − AP@k of the approximate ranks."""
    positive(k=k)
    metric = partial(average_precision, k=k, rel=rel)
    return approx(scores, labels, mask, metric, rel=rel, temperature=temperature, reduction=reduction)


def approx_precision(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.1,
    k: int = 10,
    rel: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """1 − P@k of the approximate ranks."""
    positive(k=k)
    metric = partial(precision, k=k, rel=rel)
    return approx(scores, labels, mask, metric, rel=rel, temperature=temperature, reduction=reduction)


def adr_mse(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """ADR-MSE: the mean over items of (r − approximate rank)²/log2(1 + r), r the rank by label.

    Schlatt et al., "Rank-DistiLLM", ECIR 2025: made to learn an LLM's order. Labels that tie share the mean of their
    ranks, as scores that tie do.
    """
    positive(temperature=temperature)
    scores, labels, mask = read(scores, labels, mask)
    ties = ((differences(labels) == 0) & both_real(mask)).sum(-1)
    ranks = label_ranks(labels, mask) + ties / 2
    errors = (ranks - approx_ranks(scores, mask, temperature)).square() / torch.log2(1 + ranks)
    return reduced(torch.where(orders(labels, mask), mean_where(errors, mask), 0.0), reduction)


def gumbel(
    loss: Callable[..., Tensor], *, samples: int = 8, scale: float = 1.0, generator: Generator | None = None
) -> Callable[..., Tensor]:
    """The loss averaged over `samples` draws of scores + scale·Gumbel noise, which ranks as Plackett–Luce does.

    Bruch et al., WSDM 2020; 8 samples as in TF-Ranking. The noise comes from `generator`, or from torch's own.
    """
    positive(samples=samples, scale=scale)

    def averaged(
        scores: Tensor, labels: Tensor, mask: Tensor | None = None, *, reduction: Reduction = "mean"
    ) -> Tensor:
        scores, labels, mask = read(scores, labels, mask)
        noise = gumbel_noise(scores, samples, generator)
        shape = noise.shape
        values = loss(scores + scale * noise, labels.expand(shape), mask.expand(shape), reduction="none")
        return reduced(values.mean(0), reduction)

    return averaged


def gumbel_approx_ndcg(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.1,
    k: int | None = None,
    gain: Gain = "exponential",
    samples: int = 8,
    scale: float = 1.0,
    generator: Generator | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """ApproxNDCG in expectation over Gumbel noise (Bruch et al., WSDM 2020)."""
    loss = partial(approx_ndcg, temperature=temperature, k=k, gain=gain)
    return gumbel(loss, samples=samples, scale=scale, generator=generator)(scores, labels, mask, reduction=reduction)


def _soft_step(temperature: float, values: Tensor) -> Tensor:
    return torch.sigmoid(values / temperature)
