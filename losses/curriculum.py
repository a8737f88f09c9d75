"""Curricula: lists that the first stage has nearly right weigh more at the beginning of training.

MacAvaney et al., "Training Curricula for Open Domain Answer Re-Ranking", SIGIR 2020 (arXiv 2004.14269). To be
multiplied with a loss of reduction "none":

    weights = curriculum_weights(first_stage, labels, mask, progress=step / end)
    (weights * ranknet(scores, labels, mask, reduction="none")).mean()
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rerank.errors import InputError
from rerank.losses.base import differences, divided, ordered_pairs, read, score_ranks

Heuristic = Literal["reciprocal_rank", "score", "kde"]


def curriculum_weights(
    first_stage: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    progress: float,
    heuristic: Heuristic = "reciprocal_rank",
) -> Tensor:
    """e + progress·(1 − e) for each list `[...]`, and 1 from progress 1 on; e in [0, 1] is how easy the list is.

    e is the mean of (h_i − h_j + 1)/2 over the pairs that the labels order, h ∈ [0, 1] what the first stage holds of an
    item; without a pair it is 1. For one pair this is the paper's; its code takes the hardest of several, not the mean.
    """
    if progress < 0:
        raise InputError(f"progress={progress}: give the part of the curriculum that is over, 0 or more")
    first_stage, labels, mask = read(first_stage, labels, mask, names=("first_stage", "labels"))
    if heuristic == "reciprocal_rank":
        held = 1 / score_ranks(first_stage, mask)
    elif heuristic == "score":
        held = _scaled(first_stage, mask)
    elif heuristic == "kde":
        held = _distribution(first_stage, mask)
    else:
        raise InputError(f"heuristic {heuristic!r}; give 'reciprocal_rank', 'score' or 'kde'")
    pairs = ordered_pairs(labels, mask)
    ease = torch.where(pairs, (differences(held) + 1) / 2, 0.0).sum((-2, -1))
    count = pairs.sum((-2, -1))
    ease = torch.where(count > 0, ease / count.clamp(min=1), 1.0).detach()
    return ease + min(progress, 1.0) * (1 - ease)


def _scaled(values: Tensor, mask: Tensor) -> Tensor:
    """From 0, the lowest value of the list, to 1, the highest."""
    low = torch.where(mask, values, torch.inf).amin(-1, keepdim=True)
    high = torch.where(mask, values, -torch.inf).amax(-1, keepdim=True)
    return divided(values - low, high - low)


def _distribution(values: Tensor, mask: Tensor) -> Tensor:
    """The cumulative distribution of the list's values, by Gaussian kernels of Scott's width: std·m^(−1/5)."""
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    mean = values.sum(-1, keepdim=True) / count  # padding is 0
    squares = torch.where(mask, (values - mean).square(), 0.0).sum(-1, keepdim=True)
    width = (squares / (count - 1).clamp(min=1)).sqrt() * count.to(values) ** -0.2
    below = torch.special.ndtr(divided(differences(values), width[..., None]))
    return torch.where(mask[..., None, :], below, 0.0).sum(-1) / count
