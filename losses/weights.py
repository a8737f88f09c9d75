"""Weights of pairs, `weights(scores, labels, mask) -> [..., n, n]`; what stands at pairs that do not count is not read.

G is an item's gain over the list's ideal DCG, D(r) = log2(1 + r), rank_i the 1-based rank by the present scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rerank.losses.base import Gain, differences, discounts, divided, gains, ideal_dcg, label_ranks, score_ranks


def utility_weights(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """|y_i − y_j|: what the pair is worth, in the unit of the labels."""
    return differences(labels).abs()


def log_utility_weights(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """log(1 + |y_i − y_j|): as `utility_weights`, where utilities differ by orders of magnitude."""
    return torch.log1p(differences(labels).abs())


def teacher_rank_weights(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """1/(r_i + r_j), r the 1-based ranks by label (FIRST: Reddy et al., EMNLP 2024)."""
    ranks = label_ranks(labels, mask)
    return 1 / (ranks[..., :, None] + ranks[..., None, :])


def lambda_rank_weights(
    scores: Tensor, labels: Tensor, mask: Tensor, *, k: int | None = None, gain: Gain = "exponential"
) -> Tensor:
    """|G_i − G_j|·|1/D(rank_i) − 1/D(rank_j)|, the change of nDCG@k when i and j change places."""
    inverse = discounts(score_ranks(scores, mask), k)
    return differences(_normalised(labels, k, gain)).abs() * differences(inverse).abs()


def ndcg_loss1_weights(
    scores: Tensor, labels: Tensor, mask: Tensor, *, k: int | None = None, gain: Gain = "exponential"
) -> Tensor:
    """G_i/D(rank_i) (NDCG-Loss1: Wang et al., CIKM 2018)."""
    inverse = discounts(score_ranks(scores, mask), k)
    rows = _normalised(labels, k, gain) * inverse
    return rows[..., :, None].expand(*rows.shape, rows.shape[-1])


def ndcg_loss2_weights(
    scores: Tensor, labels: Tensor, mask: Tensor, *, k: int | None = None, gain: Gain = "exponential"
) -> Tensor:
    """|G_i − G_j|·δ_ij, δ_ij = 1/D(d) − 1/D(d + 1), d = |rank_i − rank_j| (NDCG-Loss2: Wang et al., CIKM 2018)."""
    ranks = score_ranks(scores, mask)
    apart = differences(ranks).abs().clamp(min=1)  # an item against itself is no pair
    step = discounts(apart, None) - discounts(apart + 1, None)
    weights = differences(_normalised(labels, k, gain)).abs() * step
    if k is None:
        return weights
    return torch.where((ranks[..., :, None] <= k) | (ranks[..., None, :] <= k), weights, 0.0)


def ndcg_loss2pp_weights(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    mu: float = 10.0,
    k: int | None = None,
    gain: Gain = "exponential",
) -> Tensor:
    """LambdaRank's weights + μ times NDCG-Loss2's (NDCG-Loss2++: Wang et al., CIKM 2018)."""
    swap = lambda_rank_weights(scores, labels, mask, k=k, gain=gain)
    return swap + mu * ndcg_loss2_weights(scores, labels, mask, k=k, gain=gain)


def lipo_weights(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """|2^y_i − 2^y_j|·|1/log(1 + rank_i) − 1/log(1 + rank_j)| (LiPO-λ: Liu et al., arXiv 2402.01878).

    As LambdaRank's, but not divided by the ideal DCG, and with the natural logarithm.
    """
    inverse = 1 / torch.log1p(score_ranks(scores, mask))
    return differences(torch.exp2(labels)).abs() * differences(inverse).abs()


def _normalised(labels: Tensor, k: int | None, gain: Gain) -> Tensor:
    found = gains(labels, gain)
    return divided(found, ideal_dcg(found, k)[..., None])
