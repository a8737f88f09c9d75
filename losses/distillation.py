"""Distillation: the labels are a teacher's scores, and the student is to have the same differences between items.

Shapes, mask and reduction: see rerank.losses.base. What the teacher says of equal items is to be learned too, so a
list of equal labels counts. For the teacher's order alone take `ranknet`, `weighted_ranknet`, `listmle` or `adr_mse`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rerank.errors import InputError
from rerank.losses.base import Reduction, both_real, differences, positive, read, reduced
from rerank.losses.listwise import log_softmax


def margin_mse(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    pairs: Literal["all", "first"] = "all",
    reduction: Reduction = "mean",
) -> Tensor:
    """MarginMSE: the mean over pairs of ((s_i − s_j) − (t_i − t_j))² (Hofstätter et al., arXiv 2010.02666).

    `first` is the paper's: the first item of the list is the positive one, and is paired with each other item.
    """
    if pairs not in ("all", "first"):
        raise InputError(f"pairs {pairs!r}; give 'all' or 'first'")
    scores, labels, mask = read(scores, labels, mask)
    counted = both_real(mask)  # each pair twice, which the mean does not see
    if pairs == "first":
        counted = counted & (torch.arange(mask.shape[-1], device=mask.device) == 0)[:, None]
    squares = torch.where(counted, differences(scores - labels), 0.0).square()
    return reduced(squares.sum((-2, -1)) / counted.sum((-2, -1)).clamp(min=1), reduction)


def kl(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """T²·KL(softmax(t/T) ‖ softmax(s/T)) over the list; T² keeps the gradient's size (Hinton et al., 2015, sec. 2)."""
    positive(temperature=temperature)
    scores, labels, mask = read(scores, labels, mask)
    teacher, student = log_softmax(labels / temperature, mask), log_softmax(scores / temperature, mask)
    values = torch.where(mask, teacher.exp() * (teacher - student), 0.0).sum(-1)
    return reduced(temperature**2 * values, reduction)
