"""What the losses share: how a batch of lists is read, who is ranked where, and how lists become one number.

`scores` and `labels` are tensors `[..., n]`, a list of n items in the last dimension; a higher label is a better item.
`mask`, boolean, of the same shape, says which items are real (None: all). What stands in the other places is never
seen, NaN and infinity included, and gets the gradient 0. Scores in half precision are computed in float32, and so is
the loss.
`reduction` "none" gives one value a list `[...]`, "sum" adds them, "mean" divides that by the number of lists, those
that add 0 included.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from rerank.errors import InputError

Reduction = Literal["mean", "sum", "none"]
Gain = Literal["exponential", "linear"]


def read(
    scores: Tensor, labels: Tensor, mask: Tensor | None, *, names: tuple[str, str] = ("scores", "labels")
) -> tuple[Tensor, Tensor, Tensor]:
    """The three tensors in one shape and one float type, with 0 wherever there is no item.

    The replacement comes before any arithmetic: 0 · NaN is NaN, in the value and in the gradient. Labels get none.
    """
    first, second = names
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise InputError(f"{first} have the shape {list(scores.shape)}; give [..., n] with n ≥ 1 items")
    if not scores.is_floating_point():
        raise InputError(f"{first} are {scores.dtype}; give floating point numbers")
    if labels.shape != scores.shape:
        raise InputError(f"{second} have the shape {list(labels.shape)}, {first} {list(scores.shape)}; they must agree")
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    if mask.dtype != torch.bool:
        raise InputError(f"the mask is {mask.dtype}; give a boolean tensor, True for an item, False for padding")
    if mask.shape != scores.shape:
        raise InputError(f"the mask has the shape {list(mask.shape)}, {first} {list(scores.shape)}; they must agree")
    dtype = torch.promote_types(scores.dtype, torch.float32)
    clean = torch.where(mask, scores.to(dtype), 0.0)
    return clean, torch.where(mask, labels.detach().to(dtype), 0.0), mask


def reduced(values: Tensor, reduction: Reduction) -> Tensor:
    """One value a list, as asked for. The mean over no list at all is 0."""
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if reduction == "mean":
        return values.sum() / max(values.numel(), 1)
    raise InputError(f"reduction {reduction!r}; give 'mean', 'sum' or 'none'")


def positive(**options: float | None) -> None:
    """Raises InputError for an option that is given and not above 0."""
    for name, value in options.items():
        if value is not None and not value > 0:
            raise InputError(f"{name}={value}: give a number above 0")


def differences(values: Tensor) -> Tensor:
    """values_i − values_j at [..., i, j]."""
    return values[..., :, None] - values[..., None, :]  # [..., n, n]


def both_real(mask: Tensor) -> Tensor:
    """The pairs of two different items."""
    itself = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    return mask[..., :, None] & mask[..., None, :] & ~itself  # [..., n, n]


def ordered_pairs(labels: Tensor, mask: Tensor) -> Tensor:
    """The pairs (i, j) in which the labels put i above j."""
    return (labels[..., :, None] > labels[..., None, :]) & both_real(mask)  # [..., n, n]


def orders(labels: Tensor, mask: Tensor) -> Tensor:
    """The lists `[...]` in which the labels order something."""
    return ordered_pairs(labels, mask).any(-1).any(-1)


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """The mean of the values in the last dimension that count; 0 where none does."""
    return torch.where(where, values, 0.0).sum(-1) / where.sum(-1).clamp(min=1)


def label_ranks(labels: Tensor, mask: Tensor) -> Tensor:
    """1 + the number of items with a higher label: 1-based ranks, the same for items that tie."""
    above = (labels[..., None, :] > labels[..., :, None]) & both_real(mask)
    return 1 + above.sum(-1).to(labels)


def score_ranks(scores: Tensor, mask: Tensor) -> Tensor:
    """1-based ranks by descending score, all different: ties keep the given order, padding comes last.

    Were the ranks of ties the same, then a fresh score head, which gives one score to all, would get no gradient from
    a loss that weighs pairs by their ranks.
    """
    order = torch.where(mask, scores.detach(), -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1).to(scores) + 1


def gains(labels: Tensor, gain: Gain) -> Tensor:
    """2^label − 1 (Burges et al., ICML 2005), or the label itself (as trec_eval). A negative label gains 0."""
    positives = labels.clamp(min=0)
    if gain == "exponential":
        return torch.exp2(positives) - 1
    if gain == "linear":
        return positives
    raise InputError(f"gain {gain!r}; give 'exponential' or 'linear'")


def discounts(ranks: Tensor, k: int | None) -> Tensor:
    """1/log2(1 + rank), and 0 beyond the cutoff k."""
    values = 1 / torch.log2(1 + ranks)
    return values if k is None else torch.where(ranks <= k, values, 0.0)


def ideal_dcg(gain: Tensor, k: int | None) -> Tensor:
    """The DCG `[...]` of the best order; padding, whose gain is 0, does not matter."""
    best = gain.sort(dim=-1, descending=True).values
    return (best * discounts(torch.arange(1, best.shape[-1] + 1, device=gain.device).to(gain), k)).sum(-1)


def divided(values: Tensor, by: Tensor) -> Tensor:
    """values / by, and 0 where `by` is 0."""
    return torch.where(by > 0, values / torch.where(by > 0, by, 1.0), 0.0)


def gumbel_noise(scores: Tensor, samples: int, generator: Generator | None) -> Tensor:
    """Standard Gumbel noise `[samples, ..., n]` for scores `[..., n]`, from the generator or else torch's own."""
    shape = (samples, *scores.shape)
    draws = torch.empty(shape, dtype=scores.dtype, device=generator.device if generator else scores.device)
    noise = -draws.exponential_(generator=generator).clamp(min=torch.finfo(draws.dtype).tiny).log()
    return noise.to(scores.device)
