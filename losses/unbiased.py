"""Learning from clicks: the softmax loss of weighted clicks, the weights that make it unbiased, and regression-EM.

Clicks are 0 or 1, `[..., n]`, and `positions`, whole numbers of that shape, say where each item was shown, 1-based. A
click is weighed by how seldom its position is looked at: with P(click) = P(examined | position)·P(relevant), the mean
of clicks/P(examined) over sessions is P(relevant), and so the mean of the weighted loss is the loss on relevance
(Joachims, Swaminathan and Schnabel, WSDM 2017). Shapes, mask and reduction: see rerank.losses.base.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rerank.losses.base import Reduction, read, reduced
from rerank.losses.listwise import log_softmax


def click_softmax(
    scores: Tensor, labels: Tensor, mask: Tensor | None = None, *, reduction: Reduction = "mean"
) -> Tensor:
    """−Σ_i y_i·log softmax(s)_i, y a click times its weight; negative labels count as 0.

    The softmax loss of the dual learning algorithm, for the ranker and for the propensities (Ai et al., SIGIR 2018, eq.
    9 to 12). Unlike `softmax` it is linear in y, not in its shares: only then is a weighted click's mean what relevance
    would give. So a list in which all is clicked counts too.
    """
    scores, labels, mask = read(scores, labels, mask)
    return reduced(-(labels.clamp(min=0) * log_softmax(scores, mask)).sum(-1), reduction)


def inverse_propensities(propensities: Tensor, positions: Tensor, clip: float | None = None) -> Tensor:
    """P(examined | 1)/P(examined | position), `[..., n]`, at most `clip`; `propensities` are those of positions 1, 2, …

    Relative to the first position, as in Ai et al.: the loss has then the scale of the clicks. Padding (0) weighs 1.
    """
    weights = propensities[0] / propensities[(positions - 1).clamp(min=0)]
    weights = torch.where(positions > 0, weights, 1.0)
    return weights if clip is None else weights.clamp(max=clip)


def inverse_relevance(scores: Tensor, mask: Tensor, positions: Tensor, clip: float | None = None) -> Tensor:
    """P(relevant_first)/P(relevant_i) = exp(s_first − s_i), `[..., n]`, without gradient, at most `clip`; the first is
    the item that was shown highest (Ai et al., SIGIR 2018, eq. 12). Padding weighs 1."""
    first = torch.where(mask, positions, torch.iinfo(positions.dtype).max).argmin(-1, keepdim=True)
    clean = torch.where(mask, scores.detach().float(), 0.0)
    margins = clean.gather(-1, first) - clean
    if clip is not None:  # before exp, which would be infinite
        margins = margins.clamp(max=torch.log(torch.tensor(clip)).item())
    return torch.where(mask, margins, 0.0).exp()


def expected_relevance(scores: Tensor, clicks: Tensor, examined: Tensor) -> tuple[Tensor, Tensor]:
    """The E-step of regression-EM: P(relevant | click or none) and P(examined | click or none), each `[..., n]`.

    γ = σ(s), θ = P(examined at its position): 1 and 1 for a click, else γ(1 − θ)/(1 − θγ) and θ(1 − γ)/(1 − θγ) (Wang
    et al., WSDM 2018, eq. 1). The ranker then learns the first by `bce`; the paper draws labels from it.
    """
    likely = scores.detach().float().sigmoid()
    clicked = clicks > 0
    neither = (1 - examined * likely).clamp(min=1e-6)
    relevant = likely * (1 - examined) / neither
    seen = examined * (1 - likely) / neither
    return torch.where(clicked, 1.0, relevant), torch.where(clicked, 1.0, seen)
