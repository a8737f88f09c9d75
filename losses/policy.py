"""Neural PG-Rank: the policy gradient of any measure, with the ranker as a Plackett–Luce distribution over rankings.

A ranking r is drawn place by place, π(r) = Π_i exp(s_{r_i}/τ)/Σ_{j≥i} exp(s_{r_j}/τ), and the expected measure of what
is drawn is what counts (Gao et al., "Policy-Gradient Training of Language Models for Ranking", arXiv 2310.04407).
Shapes, mask and reduction: see rerank.losses.base; S is the number of rankings that are drawn of each list.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from rerank.errors import InputError
from rerank.losses.base import Reduction, gumbel_noise, orders, positive, read, reduced
from rerank.losses.metrics import earned, relevant
from rerank.measure import Measure

Baseline = Literal["leave-one-out", "none"]


def sample_rankings(
    scores: Tensor, mask: Tensor, samples: int, *, temperature: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """`samples` rankings `[S, ..., n]` of each list, as positions in it from the first place on; padding comes last.

    Items by descending s/τ + Gumbel noise are an exact draw from Plackett–Luce (Yellott, J. Math. Psychology 1977).
    """
    noisy = scores.detach() / temperature + gumbel_noise(scores, samples, generator)
    return torch.where(mask, noisy, -torch.inf).argsort(dim=-1, descending=True)


def log_choices(
    scores: Tensor, rankings: Tensor, mask: Tensor, *, temperature: float = 1.0, k: int | None = None
) -> Tensor:
    """log of the probability of each place's item given those above it `[..., n]`; their sum is log π(r).

    0 at the padding and beyond the top k: what is left is the probability of the ranking's top. The sums over what is
    not yet taken are one log-cumsum-exp from the last place to the first, O(n).
    """
    expanded = scores.expand(rankings.shape)
    real = mask.expand(rankings.shape).gather(-1, rankings)
    # not -inf: the gradient of a log-cumsum-exp of nothing is NaN
    taken = torch.where(real, expanded.gather(-1, rankings) / temperature, torch.finfo(scores.dtype).min / 2)
    left = taken.flip(-1).logcumsumexp(-1).flip(-1)
    if k is not None:
        real = real & (torch.arange(real.shape[-1], device=real.device) < k)
    return torch.where(real, taken - left, 0.0)


def pg_rank(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    measure: str = "nDCG@10",
    samples: int = 32,
    temperature: float = 1.0,
    baseline: Baseline = "leave-one-out",
    reward_to_go: bool = False,
    entropy: float = 0.0,
    generator: Generator | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """1 − E[measure] − entropy·H(π), estimated from `samples` drawn rankings; the gradient is REINFORCE's estimate.

    The gradient is −(1/S) Σ_s (Δ(r_s) − b_s) ∇log π(r_s), with b_s the mean of the other rankings' measures, which
    depends on no draw of its own and so leaves the mean as it is. The value and the gradient are two estimates from
    the same draws: the gradient is not the derivative of the value, which does not change with small steps.

    `measure` is any name of rerank.eval, with its conventions. log π ends at its cutoff, below which nothing is earned
    (an entropy then is that of the top). `reward_to_go` credits a place with what it and the places below it earn, not
    with what those above did; that is right for sums over places, which all measures here are. The entropy bonus is
    −log π as a reward, place by place. Both are options of ours; the paper's utility is nDCG@10.
    """
    positive(samples=samples, temperature=temperature)
    if baseline not in ("leave-one-out", "none"):
        raise InputError(f"baseline {baseline!r}; give 'leave-one-out' or 'none'")
    if baseline == "leave-one-out" and samples < 2:
        raise InputError(f"samples={samples}: the leave-one-out baseline needs 2 or more; or give baseline='none'")
    if not entropy >= 0:
        raise InputError(f"entropy={entropy}: give 0 or more")
    asked = Measure.parse(measure)
    scores, labels, mask = read(scores, labels, mask)
    rankings = sample_rankings(scores, mask, samples, temperature=temperature, generator=generator)
    choices = log_choices(scores, rankings, mask, temperature=temperature, k=asked.cutoff)  # [S, ..., n]
    rewards = earned(asked, labels.expand(rankings.shape).gather(-1, rankings)) - entropy * choices.detach()
    total = rewards.sum(-1, keepdim=True)
    returns = rewards.flip(-1).cumsum(-1).flip(-1) if reward_to_go else total
    if baseline == "leave-one-out":
        returns = (returns - returns.mean(0)) * (samples / (samples - 1))  # = returns - mean of the others
    surrogate = -(returns * choices).sum(-1).mean(0)
    values = 1 - total.squeeze(-1).mean(0) + (surrogate - surrogate.detach())
    return reduced(torch.where(_counts(asked, labels, mask), values, 0.0), reduction)


def expected_utility(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    measure: str = "nDCG@10",
    samples: int = 32,
    temperature: float = 1.0,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The mean measure `[...]` of the rankings that `pg_rank` draws, and the lists that count."""
    asked = Measure.parse(measure)
    scores, labels, mask = read(scores, labels, mask)
    rankings = sample_rankings(scores, mask, samples, temperature=temperature, generator=generator)
    values = earned(asked, labels.expand(rankings.shape).gather(-1, rankings)).sum(-1).mean(0)
    return values, _counts(asked, labels, mask)


def _counts(measure: Measure, labels: Tensor, mask: Tensor) -> Tensor:
    """The lists `[...]` whose measure the order can change: they order something, and something in them is relevant."""
    found = labels > 0 if measure.name == "nDCG" else relevant(labels, mask, measure.rel or 1)
    return orders(labels, mask) & found.any(-1)
