"""The language-model loss of a ranking that is written out, `[12] > [3] > …`."""

from __future__ import annotations

import torch
from torch import Tensor

from rerank.errors import InputError
from rerank.losses.base import Reduction, mean_where, read, reduced


def importance_lm(
    log_probs: Tensor,
    ranks: Tensor,
    mask: Tensor | None = None,
    *,
    separator_weight: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """−(1/T)·Σ_t w_t·log p(y_t), w = 1 + 1/log2(1 + r) on the tokens of the identifier at rank r.

    Liu et al., "Sliding Windows Are Not the End", ACL 2025. `log_probs` `[..., T]` are those of the target's tokens;
    `ranks` `[..., T]` holds the 1-based rank that a token belongs to, 0 for a separator, which weighs
    `separator_weight` (the paper's α ≤ 1). T counts the tokens of the mask; the mean is over sequences.
    """
    if not separator_weight >= 0:
        raise InputError(f"separator_weight={separator_weight}: give 0 or more")
    log_probs, ranks, mask = read(log_probs, ranks, mask, names=("log_probs", "ranks"))
    weights = torch.where(ranks > 0, 1 + 1 / torch.log2(1 + ranks), separator_weight)
    return reduced(mean_where(-weights * log_probs, mask), reduction)
