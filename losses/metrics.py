"""Ranking metrics as functions of ranks, `metric(ranks, labels, mask, ...) -> [...]`, for ranks of any kind.

With whole ranks and the step function `exact_step` they are trec_eval's metrics; with the soft ranks and the soft step
of rerank.losses.approx they have a gradient. A list with nothing relevant has the value 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rerank.losses.base import Gain, both_real, differences, discounts, divided, gains, ideal_dcg
from rerank.measure import Measure

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


def earned(measure: Measure, labels: Tensor) -> Tensor:
    """What each place of a ranking adds to the measure; `labels` `[..., n]` are those of the items by rank, 0 for none.

    Their sum over the last dimension is trec_eval's value of the ranking. What a place adds depends on that place and
    those above it only, which is what reward-to-go needs; the functions of ranks above have no order of places.
    """
    ranks = torch.arange(1, labels.shape[-1] + 1, device=labels.device).to(labels)
    if measure.name == "nDCG":
        gain = gains(labels, "linear")
        return divided(gain * discounts(ranks, measure.cutoff), ideal_dcg(gain, measure.cutoff)[..., None])
    hits = (labels >= (measure.rel or 1)).to(labels)
    before = hits.cumsum(-1)
    top = hits if measure.cutoff is None else torch.where(ranks <= measure.cutoff, hits, 0.0)
    if measure.name == "RR":
        return torch.where(before == 1, top, 0.0) / ranks
    if measure.name == "P":
        return top / (measure.cutoff or labels.shape[-1])
    terms = top * before / ranks if measure.name == "AP" else top
    return divided(terms, hits.sum(-1, keepdim=True))
