"""Ranking metrics as functions of ranks, `metric(ranks, labels, mask, ...) -> [...]`, for ranks of any kind.

With whole ranks and the step function `exact_step` they are trec_eval's metrics; with the soft ranks and the soft step
of rerank.losses.approx they have a gradient. A list with nothing relevant has the value 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rerank.losses.base import Gain, both_real, differences, divided, gains, ideal_dcg

Step = Callable[[Tensor], Tensor]  # 1 where its argument is above 0, 0 where it is below


def exact_step(values: Tensor) -> Tensor:
    return (values > 0).to(values)


def ndcg(ranks: Tensor, labels: Tensor, mask: Tensor, *, step: Step, k: int | None, gain: Gain) -> Tensor:
    """nDCG@k: Σ gain/log2(1 + rank) over the top k, divided by that of the best order."""
    found = gains(labels, gain)
    terms = found / torch.log2(1 + ranks) * within(ranks, step, k)
    return divided(torch.where(mask, terms, 0.0).sum(-1), ideal_dcg(found, k))


def reciprocal_rank(ranks: Tensor, labels: Tensor, mask: Tensor, *, step: Step, k: int | None, rel: float) -> Tensor:
    """RR@k: 1/rank of the first item with a label of at least `rel`."""
    terms = within(ranks, step, k) / ranks
    return torch.where(relevant(labels, mask, rel), terms, 0.0).amax(-1)


def average_precision(ranks: Tensor, labels: Tensor, mask: Tensor, *, step: Step, k: int | None, rel: float) -> Tensor:
    """AP@k: the precision at each relevant item of the top k, added up, over the number of relevant items."""
    wanted = relevant(labels, mask, rel)
    others = wanted[..., None, :] & both_real(mask)
    before = torch.where(others, step(differences(ranks)), 0.0).sum(-1)  # relevant items above item i
    terms = (1 + before) / ranks * within(ranks, step, k)
    return divided(torch.where(wanted, terms, 0.0).sum(-1), wanted.sum(-1).to(ranks))


def precision(ranks: Tensor, labels: Tensor, mask: Tensor, *, step: Step, k: int, rel: float) -> Tensor:
    """P@k: the number of relevant items in the top k, over k."""
    return torch.where(relevant(labels, mask, rel), within(ranks, step, k), 0.0).sum(-1) / k


def within(ranks: Tensor, step: Step, k: int | None) -> Tensor:
    """Whether an item is in the top k."""
    return torch.ones_like(ranks) if k is None else step(k + 0.5 - ranks)


def relevant(labels: Tensor, mask: Tensor, rel: float) -> Tensor:
    return mask & (labels >= rel)
