"""NeuralSort, a soft permutation matrix, and the losses made of it.

Shapes, mask and reduction: see rerank.losses.base. A list that orders nothing adds 0. In a matrix `[..., n, n]` row i
is the place of rank i + 1 and column j the item j; a list of m items uses its first m rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rerank.errors import InputError
from rerank.losses.base import (
    Gain,
    Reduction,
    both_real,
    differences,
    discounts,
    divided,
    gains,
    ideal_dcg,
    label_ranks,
    orders,
    positive,
    read,
    reduced,
)

_NOTHING = -1e30  # the logarithm of no probability; unlike −inf it has a gradient where a whole row holds nothing


def neural_sort_matrix(scores: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """Row r − 1: softmax(((m + 1 − 2r)·s − Σ_j |s − s_j|)/τ) (Grover et al., ICLR 2019); 0 outside the list."""
    positive(temperature=temperature)
    scores, _, mask = read(scores, scores, mask)
    logs, inside = _log_matrix(scores, mask, temperature)
    return torch.where(inside, logs.exp(), 0.0)


def neural_sort(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of the soft permutation with the labels' order, the mean over ranks (Grover et al., ICLR 2019).

    Where labels tie, each of the items may take each of their ranks, with equal probability.
    """
    positive(temperature=temperature)
    scores, labels, mask = read(scores, labels, mask)
    logs, inside = _log_matrix(scores, mask, temperature)
    first = label_ranks(labels, mask)[..., None, :]  # [..., 1, n]: the highest rank an item may take
    ties = 1 + ((differences(labels) == 0) & both_real(mask)).sum(-1)[..., None, :]
    ranks = torch.arange(1, mask.shape[-1] + 1, device=mask.device)[:, None]
    target = ((ranks >= first) & (ranks < first + ties)) / ties  # [..., n, n]
    values = -torch.where(inside, target * logs, 0.0).sum((-2, -1)) / mask.sum(-1).clamp(min=1)
    return reduced(torch.where(orders(labels, mask), values, 0.0), reduction)


def neural_ndcg(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    k: int | None = None,
    gain: Gain = "exponential",
    sinkhorn_steps: int = 30,
    reduction: Reduction = "mean",
) -> Tensor:
    """NeuralNDCG: 1 − nDCG@k of the gains as the soft permutation sorts them (Pobrotyn and Białobrzeski, 2021).

    Sinkhorn's steps scale rows and columns to 1, without which a gain can be counted twice. A fixed number of them.
    """
    positive(temperature=temperature, k=k)
    if sinkhorn_steps < 0:
        raise InputError(f"sinkhorn_steps={sinkhorn_steps}: give 0 or more")
    scores, labels, mask = read(scores, labels, mask)
    logs, inside = _log_matrix(scores, mask, temperature)
    for _ in range(sinkhorn_steps):
        for direction in (-2, -1):
            logs = torch.where(inside, logs - logs.logsumexp(direction, keepdim=True), _NOTHING)
    matrix = torch.where(inside, logs.exp(), 0.0)
    found = gains(labels, gain)
    placed = (matrix * found[..., None, :]).sum(-1)  # [..., n]: the gain at each rank
    ranks = torch.arange(1, found.shape[-1] + 1, device=found.device).to(found)
    values = divided((placed * discounts(ranks, k)).sum(-1), ideal_dcg(found, k))
    counts = orders(labels, mask) & (labels > 0).any(-1)
    return reduced(torch.where(counts, 1 - values, 0.0), reduction)


def _log_matrix(scores: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The logarithm of NeuralSort's matrix, and where in it the list is."""
    count = mask.sum(-1)[..., None, None]
    rows = torch.arange(mask.shape[-1], device=mask.device)[:, None]
    inside = (rows < count) & mask[..., None, :]  # [..., n, n]
    spread = torch.where(both_real(mask), differences(scores).abs(), 0.0).sum(-1)
    logits = (count - 1 - 2 * rows).to(scores) * scores[..., None, :] - spread[..., None, :]
    logs = torch.where(inside, logits / temperature, _NOTHING).log_softmax(-1)
    return torch.where(inside, logs, _NOTHING), inside  # a row of nothing became uniform
