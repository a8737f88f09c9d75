"""Pointwise losses: each item against its own label; a list's value is the mean over its items.

Shapes, mask and reduction: see rerank.losses.base. A label is a target here, not an order: a list of equal labels
counts, one without items adds 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rerank.errors import InputError
from rerank.losses.base import Reduction, mean_where, positive, read, reduced


def bce(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    threshold: float | None = None,
    positive_weight: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Binary cross-entropy of σ(s): −w·y·log σ(s) − (1 − y)·log σ(−s), labels between 0 and 1.

    With `threshold`, a label of at least that counts as 1 and a lower one as 0. `positive_weight` w makes up for few
    relevant items among many (Nogueira and Cho, arXiv 1901.04085, is the plain loss).
    """
    positive(positive_weight=positive_weight)
    scores, labels, mask = read(scores, labels, mask)
    if threshold is not None:
        labels = (labels >= threshold).to(scores)
    elif bool(((labels < 0) | (labels > 1)).any()):  # the loss has no lower bound there
        raise InputError(
            f"bce wants labels from 0 to 1 and was given {labels.min():g} to {labels.max():g}; "
            "set threshold, the lowest label that counts as relevant"
        )
    values = -positive_weight * labels * logsigmoid(scores) - (1 - labels) * logsigmoid(-scores)
    return reduced(mean_where(values, mask), reduction)


def mse(scores: Tensor, labels: Tensor, mask: Tensor | None = None, *, reduction: Reduction = "mean") -> Tensor:
    """(s − y)²: regression on grades or on a teacher's scores."""
    scores, labels, mask = read(scores, labels, mask)
    return reduced(mean_where((scores - labels).square(), mask), reduction)


def ordinal(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    levels: int = 4,
    spacing: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """All-threshold ordinal regression: Σ_t log(1 + exp(∓(s − θ_t))), a threshold between each two of `levels` grades.

    Rennie and Srebro, IJCAI workshop 2005: minus where the label is above the threshold. Labels are grades 0 …
    levels − 1; the thresholds are `spacing` apart and centred on 0, where the paper learns them: there is nowhere to
    keep a parameter in a function of scores.
    """
    positive(spacing=spacing)
    if levels < 2:
        raise InputError(f"levels={levels}: give 2 or more grades")
    scores, labels, mask = read(scores, labels, mask)
    steps = torch.arange(levels - 1, device=scores.device)
    thresholds = (steps - (levels - 2) / 2).to(scores) * spacing  # [levels − 1]
    above = labels[..., None] > steps.to(labels)  # [..., n, levels − 1]
    margins = scores[..., None] - thresholds
    values = -logsigmoid(torch.where(above, margins, -margins)).sum(-1)
    return reduced(mean_where(values, mask), reduction)
