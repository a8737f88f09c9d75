"""Pairwise losses: a function of the margin s_i − s_j of each pair that the labels order, times a weight of the pair.

Shapes, mask and reduction: see rerank.losses.base. A list that orders no pair adds 0. Weights get no gradient.
Logarithms are natural; where a paper has log2 that is a factor of 1.44, which the learning rate absorbs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rerank.errors import InputError
from rerank.losses.base import (
    Gain,
    Reduction,
    both_real,
    differences,
    label_ranks,
    ordered_pairs,
    positive,
    read,
    reduced,
)
from rerank.losses.weights import (
    lambda_rank_weights,
    lipo_weights,
    log_utility_weights,
    ndcg_loss1_weights,
    ndcg_loss2_weights,
    ndcg_loss2pp_weights,
    teacher_rank_weights,
    utility_weights,
)

Pair = Literal["logistic", "hinge"]
Weight = Literal[
    "uniform", "utility", "log_utility", "teacher_rank", "lambda_rank", "ndcg_loss2", "ndcg_loss2++", "lipo_lambda"
]
LambdaWeight = Literal["ndcg_loss1", "ndcg_loss2", "ndcg_loss2++"]

PairFunction = Callable[[Tensor], Tensor]
WeightFunction = Callable[[Tensor, Tensor, Tensor], Tensor]  # scores, labels, mask -> [..., n, n]

_WEIGHTS: Mapping[str, WeightFunction] = MappingProxyType(
    {
        "utility": utility_weights,
        "log_utility": log_utility_weights,
        "teacher_rank": teacher_rank_weights,
        "lambda_rank": lambda_rank_weights,
        "ndcg_loss2": ndcg_loss2_weights,
        "ndcg_loss2++": ndcg_loss2pp_weights,
        "lipo_lambda": lipo_weights,
    }
)


def logistic(margins: Tensor, sigma: float = 1.0) -> Tensor:
    """log(1 + exp(−σ·margin)), as a log-sigmoid: a clamped sigmoid has no gradient where the order is worst."""
    return -logsigmoid(sigma * margins)


def hinge(margins: Tensor, margin: float = 1.0) -> Tensor:
    return torch.relu(margin - margins)


def over_pairs(
    scores: Tensor,
    pairs: Tensor,
    costs: PairFunction,
    weights: Tensor | None = None,
    *,
    average: bool,
    reduction: Reduction,
) -> Tensor:
    """Σ weight·cost over the pairs, or their mean; the core of every pairwise loss."""
    values = costs(torch.where(pairs, differences(scores), 0.0))
    if weights is not None:
        values = values * torch.where(pairs, weights.detach(), 0.0)
    total = torch.where(pairs, values, 0.0).sum((-2, -1))
    return reduced(total / pairs.sum((-2, -1)).clamp(min=1) if average else total, reduction)


def pairwise(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    pair: Pair = "logistic",
    weight: Weight = "uniform",
    average: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """Any pair function times any weight function, by their names; `average` divides by the number of pairs."""
    if pair not in ("logistic", "hinge"):
        raise InputError(f"pair {pair!r}; give 'logistic' or 'hinge'")
    if weight != "uniform" and weight not in _WEIGHTS:
        raise InputError(f"weight {weight!r}; give one of: uniform, {', '.join(_WEIGHTS)}")
    scores, labels, mask = read(scores, labels, mask)
    weights = None if weight == "uniform" else _WEIGHTS[weight](scores, labels, mask)
    costs = logistic if pair == "logistic" else hinge
    return over_pairs(scores, ordered_pairs(labels, mask), costs, weights, average=average, reduction=reduction)


def ranknet(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    sigma: float = 1.0,
    average: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """RankNet: log(1 + exp(−σ(s_i − s_j))) of every pair that the labels order (Burges et al., ICML 2005).

    The paper adds up the pairs; the mean, our default, keeps a long list from outweighing a short one.
    """
    positive(sigma=sigma)
    scores, labels, mask = read(scores, labels, mask)
    pairs = ordered_pairs(labels, mask)
    return over_pairs(scores, pairs, lambda m: logistic(m, sigma), average=average, reduction=reduction)


def pairwise_hinge(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    margin: float = 1.0,
    average: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """max(0, margin − (s_i − s_j)) of every pair that the labels order (Ranking SVM: Joachims, KDD 2002)."""
    positive(margin=margin)
    scores, labels, mask = read(scores, labels, mask)
    pairs = ordered_pairs(labels, mask)
    return over_pairs(scores, pairs, lambda m: hinge(m, margin), average=average, reduction=reduction)


def weighted_ranknet(
    scores: Tensor, labels: Tensor, mask: Tensor | None = None, *, reduction: Reduction = "mean"
) -> Tensor:
    """FIRST's RankNet: the mean over pairs of log(1 + exp(s_j − s_i))/(r_i + r_j), r the 1-based teacher ranks.

    Reddy et al., EMNLP 2024. The labels give the teacher's order, the best item the highest label; items that tie have
    one rank and are no pair.
    """
    scores, labels, mask = read(scores, labels, mask)
    weights = teacher_rank_weights(scores, labels, mask)
    return over_pairs(scores, ordered_pairs(labels, mask), logistic, weights, average=True, reduction=reduction)


def lambda_rank(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    sigma: float = 1.0,
    k: int | None = None,
    gain: Gain = "exponential",
    reduction: Reduction = "mean",
) -> Tensor:
    """LambdaRank: each pair weighs what its exchange would change in nDCG@k, by the present scores.

    Σ |G_i − G_j|·|1/D_i − 1/D_j|·log(1 + exp(−σ(s_i − s_j))), with G = gain/ideal DCG and D = log2(1 + rank)
    (Burges et al., NIPS 2006; the loss whose gradient this is: Wang et al., CIKM 2018).
    """
    positive(sigma=sigma, k=k)
    scores, labels, mask = read(scores, labels, mask)
    weights = lambda_rank_weights(scores, labels, mask, k=k, gain=gain)
    pairs = ordered_pairs(labels, mask)
    return over_pairs(scores, pairs, lambda m: logistic(m, sigma), weights, average=False, reduction=reduction)


def lambda_loss(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    weight: LambdaWeight = "ndcg_loss2++",
    sigma: float = 1.0,
    mu: float = 10.0,
    k: int | None = None,
    gain: Gain = "exponential",
    reduction: Reduction = "mean",
) -> Tensor:
    """LambdaLoss: Σ weight·log(1 + exp(−σ(s_i − s_j))) with weights that bound nDCG's loss (Wang et al., CIKM 2018).

    `ndcg_loss1`: G_i/D_i over all pairs i ≠ j; `ndcg_loss2`: |G_i − G_j|·δ_ij over the ordered pairs, with
    δ_ij = 1/D(|rank_i − rank_j|) − 1/D(|rank_i − rank_j| + 1); `ndcg_loss2++`: |G_i − G_j|·(|1/D_i − 1/D_j| + μ·δ_ij),
    with allRank's μ. D(r) = log2(1 + r), ranks are by the present scores.
    Departures: loss1 skips lists that order nothing. With a cutoff 1/D is 0 beyond it, and δ is for pairs of which one
    is in the top k.
    """
    positive(sigma=sigma, k=k)
    scores, labels, mask = read(scores, labels, mask)
    pairs = ordered_pairs(labels, mask)
    if weight == "ndcg_loss1":
        weights = ndcg_loss1_weights(scores, labels, mask, k=k, gain=gain)
        pairs = both_real(mask) & pairs.any(-1, keepdim=True).any(-2, keepdim=True)
    elif weight == "ndcg_loss2":
        weights = ndcg_loss2_weights(scores, labels, mask, k=k, gain=gain)
    elif weight == "ndcg_loss2++":
        weights = ndcg_loss2pp_weights(scores, labels, mask, mu=mu, k=k, gain=gain)
    else:
        raise InputError(f"weight {weight!r}; give 'ndcg_loss1', 'ndcg_loss2' or 'ndcg_loss2++'")
    return over_pairs(scores, pairs, lambda m: logistic(m, sigma), weights, average=False, reduction=reduction)


def lipo_lambda(scores: Tensor, labels: Tensor, mask: Tensor | None = None, *, reduction: Reduction = "mean") -> Tensor:
    """LiPO-λ: Σ |2^y_i − 2^y_j|·|1/log(1 + rank_i) − 1/log(1 + rank_j)|·log(1 + exp(−(s_i − s_j))), ranks by s.

    Liu et al., "LiPO: Listwise Preference Optimization through Learning-to-Rank", NAACL 2025, where s is β times a
    log-ratio of probabilities (in a recipe: `reference`) and y a reward; a sum over the ordered pairs, as there.
    """
    scores, labels, mask = read(scores, labels, mask)
    weights = lipo_weights(scores, labels, mask)
    return over_pairs(scores, ordered_pairs(labels, mask), logistic, weights, average=False, reduction=reduction)


def pa_bce(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    k: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Profit-aware BCE: (1/m)·Σ log(1 + u_i − u_j)·log(1 + exp(s_j − s_i)) over the pairs with u_i > u_j.

    The labels are utilities u, in any unit; m is the number of items, with `k` only the k of highest utility (more
    where the k-th is tied), as in the authors' code for "Learn to Rank Risky Investors" (Li and Ma, TOIS 2025). It is a
    pairwise loss in spite of its name. Their code takes log10 for networks and the natural logarithm, ours, for trees.
    """
    positive(k=k)
    scores, labels, mask = read(scores, labels, mask)
    if k is not None:
        mask = mask & (label_ranks(labels, mask) <= k)
    weights = log_utility_weights(scores, labels, mask) / mask.sum(-1).clamp(min=1)[..., None, None]
    return over_pairs(scores, ordered_pairs(labels, mask), logistic, weights, average=False, reduction=reduction)
