"""Listwise losses: one distribution, or one likelihood, over the items of a list.

Shapes, mask and reduction: see rerank.losses.base. A list whose labels are all the same adds 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rerank.losses.base import (
    Reduction,
    divided,
    label_ranks,
    ordered_pairs,
    orders,
    positive,
    read,
    reduced,
)


def log_softmax(values: Tensor, mask: Tensor) -> Tensor:
    """Over the items of each list; 0 at the padding, so that it can be multiplied."""
    filled = torch.where(mask, values, -torch.inf)
    filled = torch.where(mask.any(-1, keepdim=True), filled, 0.0)  # a list of nothing: any finite number will do
    return torch.where(mask, filled.log_softmax(-1), 0.0)


def listnet(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """ListNet, top one: −Σ_i softmax(y/T)_i·log softmax(s)_i (Cao et al., ICML 2007). T softens only the labels."""
    positive(temperature=temperature)
    scores, labels, mask = read(scores, labels, mask)
    target = torch.where(mask, log_softmax(labels / temperature, mask).exp(), 0.0)
    values = -(target * log_softmax(scores, mask)).sum(-1)
    return reduced(torch.where(orders(labels, mask), values, 0.0), reduction)


def softmax(scores: Tensor, labels: Tensor, mask: Tensor | None = None, *, reduction: Reduction = "mean") -> Tensor:
    """Softmax cross-entropy: −Σ_i y_i/Σy·log softmax(s)_i (Bruch et al., ICTIR 2019); negative labels count as 0.

    With one relevant item among negatives that is the InfoNCE (localised contrastive) loss of rerankers.
    """
    scores, labels, mask = read(scores, labels, mask)
    values = -(_shares(labels) * log_softmax(scores, mask)).sum(-1)
    return reduced(torch.where(orders(labels, mask), values, 0.0), reduction)


def poly1(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    epsilon: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Poly-1: softmax cross-entropy + ε·(1 − Σ_i y_i/Σy·softmax(s)_i) (Leng et al., ICLR 2022)."""
    scores, labels, mask = read(scores, labels, mask)
    target, logs = _shares(labels), log_softmax(scores, mask)
    values = -(target * logs).sum(-1) + epsilon * (1 - (target * logs.exp()).sum(-1))
    relevant = orders(labels, mask) & (target.sum(-1) > 0)
    return reduced(torch.where(relevant, values, 0.0), reduction)


def listmle(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    k: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """ListMLE: −log of the Plackett–Luce probability of the labels' order (Xia et al., ICML 2008).

    Each item competes with itself and those below it: Σ_i log Σ_{j: j = i or y_j < y_i} exp(s_j) − s_i. Items that tie
    are not ordered against one another (as in Zhu and Klabjan, WSDM 2020), where the paper has one order of them all.
    With `k`, only the steps of the top k are counted (top-k ListMLE: Xia et al., NIPS 2009).
    """
    positive(k=k)
    scores, labels, mask = read(scores, labels, mask)
    steps = _plackett_luce(scores, labels, mask)
    if k is not None:
        steps = torch.where(label_ranks(labels, mask) <= k, steps, 0.0)
    return reduced(steps.sum(-1), reduction)


def p_listmle(scores: Tensor, labels: Tensor, mask: Tensor | None = None, *, reduction: Reduction = "mean") -> Tensor:
    """Position-aware ListMLE: the step at rank r weighs 2^(n−r) − 1 (Lan et al., UAI 2014), over that of rank 1.

    The division is ours: at 100 items the paper's first weight is 6e29.
    """
    scores, labels, mask = read(scores, labels, mask)
    count = mask.sum(-1, keepdim=True)
    last = torch.exp2(1 - count.to(scores))  # 2^(1−n)
    weights = divided(torch.exp2(1 - label_ranks(labels, mask)) - last, 1 - last)
    return reduced((weights * _plackett_luce(scores, labels, mask)).sum(-1), reduction)


def _shares(labels: Tensor) -> Tensor:
    relevant = labels.clamp(min=0)
    return divided(relevant, relevant.sum(-1, keepdim=True))


def _plackett_luce(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """−log of the probability that an item is taken before those below it, `[..., n]`; 0 at the padding."""
    itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    rivals = ordered_pairs(labels, mask) | itself  # [..., n, n]; each row holds at least the item itself
    total = torch.where(rivals, scores[..., None, :], -torch.inf).logsumexp(-1)
    return torch.where(mask, total - scores, 0.0)
