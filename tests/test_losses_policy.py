"""PG-Rank against all rankings of short lists, and against trec_eval's measures."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from rerank.eval import evaluate
from rerank.losses import load_loss
from rerank.losses.metrics import earned
from rerank.losses.policy import expected_utility, log_choices, pg_rank
from rerank.measure import Measure

SCORES = torch.tensor([0.3, -1.2, 0.8, 1.9, -0.4], dtype=torch.float64)
LABELS = torch.tensor([1.0, 3.0, 0.0, 0.0, 2.0], dtype=torch.float64)
MEASURES = ("nDCG@10", "nDCG@2", "AP", "AP(rel=2)@3", "RR", "RR@2", "P@2", "R@3", "R(rel=2)@1")


def rankings(n: int, padding: int = 0) -> Tensor:
    return torch.tensor([[*order, *range(n, n + padding)] for order in permutations(range(n))])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_probabilities_of_all_rankings_add_up_to_one(n: int, temperature: float) -> None:
    every = rankings(n, padding=2)
    scores = torch.cat([SCORES[:n], torch.tensor([torch.nan, 1e30])])
    mask = torch.arange(n + 2) < n
    logs = log_choices(torch.where(mask, scores, 0.0), every, mask, temperature=temperature)
    assert bool((logs[:, n:] == 0).all())
    torch.testing.assert_close(logs.sum(-1).exp().sum(), torch.ones((), dtype=torch.float64))
    for k in range(1, n + 1):
        heads, first = every[:, :k].unique(dim=0, return_inverse=True)
        cut = log_choices(torch.where(mask, scores, 0.0), every, mask, temperature=temperature, k=k).sum(-1)
        each = torch.stack([cut[first == i][0] for i in range(len(heads))])
        torch.testing.assert_close(each.exp().sum(), torch.ones((), dtype=torch.float64))


def test_the_probability_of_a_ranking_is_its_formula() -> None:
    order = [3, 0, 4, 2, 1]
    expected, left = 0.0, list(order)
    for i in order:
        expected += (SCORES[i] / 0.5 - (SCORES[left] / 0.5).logsumexp(0)).item()
        left.remove(i)
    mask = torch.ones(5, dtype=torch.bool)
    found = log_choices(SCORES, torch.tensor(order), mask, temperature=0.5)
    assert found.sum().item() == pytest.approx(expected, rel=1e-12)
    scores = SCORES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: log_choices(s, torch.tensor(order), mask, k=3), scores)


@pytest.mark.parametrize("measure", MEASURES)
def test_what_places_earn_adds_up_to_trec_evals_value(measure: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        labels = torch.randint(0, 4, (7,), generator=generator).double()
        order = torch.randperm(7, generator=generator).tolist()
        run = {"q": {f"d{i}": float(7 - place) for place, i in enumerate(order)}}
        qrels = {"q": {f"d{i}": int(label) for i, label in enumerate(labels)}}
        expected = evaluate(run, qrels, (measure,)).mean[measure]
        assert earned(Measure.parse(measure), labels[order]).sum().item() == pytest.approx(expected, abs=1e-12)


def exact(measure: str, temperature: float, entropy: float) -> tuple[Tensor, Tensor]:
    """1 - E[measure] - entropy·H by enumeration, and its gradient."""
    asked = Measure.parse(measure)
    scores = SCORES.clone().requires_grad_()
    every, mask = rankings(5), torch.ones(5, dtype=torch.bool)
    whole = log_choices(scores, every, mask, temperature=temperature).sum(-1)
    top = log_choices(scores, every, mask, temperature=temperature, k=asked.cutoff).sum(-1)
    utility = earned(asked, LABELS[every]).sum(-1)
    value = 1 - (whole.exp() * (utility - entropy * top)).sum()
    value.backward()
    assert scores.grad is not None
    return value.detach(), scores.grad


def estimates(count: int, seed: int, **options: object) -> tuple[Tensor, Tensor]:
    """Values `[count]` and gradients `[count, 5]`, each of draws of its own."""
    scores = SCORES.expand(count, 5).clone().requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    values = pg_rank(scores, LABELS.expand(count, 5), generator=generator, reduction="none", **options)  # type: ignore[arg-type]
    values.sum().backward()
    assert scores.grad is not None
    return values.detach(), scores.grad


@pytest.mark.parametrize("measure", ["nDCG@10", "nDCG@2", "AP", "RR", "P@2", "R(rel=2)@3"])
@pytest.mark.parametrize(
    "options",
    [
        {"baseline": "none"},
        {},
        {"reward_to_go": True, "temperature": 0.6},
        {"baseline": "none", "reward_to_go": True, "entropy": 0.2},
        {"entropy": 0.2},
    ],
    ids=str,
)
def test_the_mean_of_many_estimates_is_the_gradient(measure: str, options: dict[str, float | str]) -> None:
    """5,000 estimates of 4 rankings each, 20,000 in all, within 3 standard errors."""
    values, gradients = estimates(5000, 0, measure=measure, samples=4, **options)
    value, gradient = exact(measure, float(options.get("temperature", 1.0)), float(options.get("entropy", 0.0)))
    assert gradient.abs().max() > 0.01
    assert abs(values.mean() - value) < 3 * values.std() / 5000**0.5
    assert bool(((gradients.mean(0) - gradient).abs() < 3 * gradients.std(0) / 5000**0.5).all())


def spread(**options: object) -> float:
    """The estimates' total variance: the expected squared distance of one from their mean."""
    return estimates(5000, 2, **options)[1].var(0).sum().item()


def test_a_baseline_and_reward_to_go_lower_the_variance() -> None:
    plain = spread(samples=8, baseline="none")
    assert spread(samples=8) < 0.2 * plain
    assert spread(samples=8, baseline="none", reward_to_go=True) < 0.8 * plain


def test_the_utility_that_is_told_is_of_the_rankings_that_are_drawn() -> None:
    scores, labels = torch.stack([SCORES, SCORES]), torch.stack([LABELS, torch.zeros(5)])
    mask = torch.tensor([[True, True, True, True, False]] * 2)
    loss = load_loss("pg_rank", generator=torch.Generator().manual_seed(3), reduction="none")
    told, counts = expected_utility(scores, labels, mask, generator=torch.Generator().manual_seed(3))
    assert counts.tolist() == [True, False]
    assert loss(scores, labels, mask).tolist() == [pytest.approx(1 - told[0].item()), 0.0]
