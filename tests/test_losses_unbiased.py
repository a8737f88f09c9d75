"""Clicks weighed by propensities: unbiased on average, and the learners' fixed points."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from loss_values import S, close, softmax, value
from torch import Tensor

from rerank.clicks import EXAMINATION, PositionBased, attraction
from rerank.errors import InputError
from rerank.losses.unbiased import click_softmax, expected_relevance, inverse_propensities, inverse_relevance
from rerank.training.learners import DualLearning, InversePropensity, Naive, RegressionEM

CPU = torch.device("cpu")
THETA = torch.tensor(EXAMINATION)


def test_the_value_is_the_formula() -> None:
    weights = [0.0, 3.0, 0.0, 1.0, 11.0]
    assert value("click_softmax", labels=weights) == close(
        -sum(w * float(np.log(p)) for w, p in zip(weights, softmax(S), strict=True))
    )


def lists(count: int = 40, n: int = 10, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """P(relevant), positions and mask of lists, of which one in four has 7 documents."""
    generator = np.random.default_rng(seed)
    wanted = torch.tensor(attraction(generator.integers(0, 5, (count, n)), 4), dtype=torch.float32)
    mask = torch.ones(count, n, dtype=torch.bool)
    mask[::4, 7:] = False
    positions = torch.where(mask, torch.arange(1, n + 1), 0)
    return wanted, positions, mask


def test_the_weighted_loss_is_unbiased_and_the_naive_one_is_not() -> None:
    """The mean over 20,000 sessions of a list is what relevance itself gives, within 3 standard errors."""
    wanted = torch.tensor(attraction([0, 4, 1, 0, 2, 3, 0, 1, 4, 0], 4), dtype=torch.float64)
    drawn = PositionBased().draw(np.broadcast_to(wanted.numpy(), (20_000, 10)), np.random.default_rng(0))
    clicks = torch.tensor(drawn, dtype=torch.float64)
    scores = torch.linspace(-1, 1, 10, dtype=torch.float64).flip(0).expand_as(clicks)
    weights = inverse_propensities(THETA.double(), torch.arange(1, 11))
    values = click_softmax(scores, clicks * weights, reduction="none")
    full = click_softmax(scores[0], wanted * EXAMINATION[0])  # propensities are relative to the first one
    error = float(values.std()) / len(values) ** 0.5
    assert abs(float(values.mean() - full)) < 3 * error
    leaf = torch.linspace(1, -1, 10, dtype=torch.float64).requires_grad_()
    gradients = []
    for labels in (wanted * EXAMINATION[0], (clicks * weights).mean(0), clicks.mean(0)):
        (gradient,) = torch.autograd.grad(click_softmax(leaf, labels), leaf)
        gradients.append(gradient / gradient.norm())
    assert gradients[0] @ gradients[1] > 0.999
    assert gradients[0] @ gradients[2] < 0.9


def test_the_propensities_fixed_point_is_the_truth() -> None:
    """With the true relevance as scores and clicks in expectation the gradient is 0 at the users' curve, in lists of
    any length; and, with those propensities, the ranker's is 0 at the true relevance."""
    wanted, positions, mask = lists()
    clicks = torch.where(mask, wanted * THETA, 0.0)
    learner = DualLearning(10, CPU)
    with torch.no_grad():
        learner.logits.copy_(THETA.log())
    labels = learner.targets(wanted.log(), clicks, mask, positions)
    assert learner.logits.grad is not None
    assert learner.logits.grad.abs().max() < 1e-4 * clicks.sum()
    assert labels[mask].tolist() == pytest.approx((wanted * THETA[0])[mask].tolist(), rel=1e-5)
    scores = wanted.log().requires_grad_()
    click_softmax(scores, labels, mask, reduction="sum").backward()
    assert scores.grad is not None and scores.grad.abs().max() < 1e-5


@pytest.mark.parametrize("eta", [1.0, 2.0])
def test_propensities_are_learnt_from_sessions(eta: float) -> None:
    wanted, positions, mask = lists(256)
    users, generator = PositionBased(eta=eta), np.random.default_rng(0)
    learner = DualLearning(10, CPU, learning_rate=0.03)
    for _ in range(400):
        clicks = torch.tensor(users.draw(wanted.numpy().astype(float), generator)).float() * mask
        learner.targets(wanted.log(), clicks, mask, positions)
        learner.update(1.0)
    expected = (THETA / THETA[0]) ** eta
    assert float((torch.tensor(learner.curve()) - expected).abs().mean()) < 0.03


def test_propensities_follow_a_bias_that_drifts() -> None:
    wanted, positions, mask = lists(256)
    users, generator = PositionBased(eta=0.5, drift=2.0), np.random.default_rng(0)
    learner = DualLearning(10, CPU, learning_rate=0.03)
    errors = []
    for step in range(800):
        now = users.at(step / 800)
        clicks = torch.tensor(now.draw(wanted.numpy().astype(float), generator)).float() * mask
        learner.targets(wanted.log(), clicks, mask, positions)
        learner.update(1.0)
        truth = torch.tensor(now.curve(10)) / now.curve(1)
        errors.append(float((torch.tensor(learner.curve()) - truth).abs().mean()))
    assert max(errors[300:]) < 0.06
    moved = (THETA / THETA[0]) ** 0.5 - torch.tensor(learner.curve())
    assert float(moved.mean()) > 0.2  # the curve that it began with is far off


def test_the_steps_have_the_length_that_the_schedule_has() -> None:
    wanted, positions, mask = lists()
    clicks = (wanted > 0.4).float() * mask
    curves = []
    for scale in (1.0, 0.5, 0.0):
        learner = DualLearning(10, CPU, learning_rate=0.2)
        learner.targets(wanted.log(), clicks, mask, positions)
        learner.update(scale)
        curves.append(learner.logits.detach().abs().max().item())
    assert curves == pytest.approx([0.2, 0.1, 0.0], rel=1e-4)  # Adam's first


def test_a_state_goes_on_as_if_nothing_had_been() -> None:
    wanted, positions, mask = lists()

    def learnt(learner: DualLearning | RegressionEM, steps: range) -> None:
        for step in steps:
            users, generator = PositionBased(), np.random.default_rng(step)
            clicks = torch.tensor(users.draw(wanted.numpy().astype(float), generator)).float() * mask
            learner.targets(wanted.log(), clicks, mask, positions)
            learner.update(1.0)

    for make in (DualLearning, RegressionEM):
        whole, begun, rest = make(10, CPU), make(10, CPU), make(10, CPU)
        learnt(whole, range(10))
        learnt(begun, range(6))
        rest.load(begun.state())
        learnt(rest, range(6, 10))
        assert rest.curve() == whole.curve() != begun.curve()


def test_a_batch_in_pieces_is_the_same_step() -> None:
    wanted, positions, mask = lists()
    clicks = (wanted > 0.4).float() * mask
    for make in (DualLearning, RegressionEM):
        one, two = make(10, CPU), make(10, CPU)
        one.targets(wanted.log(), clicks, mask, positions)
        for part in (slice(0, 7), slice(7, None)):
            two.targets(wanted.log()[part], clicks[part], mask[part], positions[part])
        one.update(1.0)
        two.update(1.0)
        assert one.curve() == pytest.approx(two.curve(), rel=1e-5)
        assert one.curve() != pytest.approx([1.0] * 10)


def test_expected_relevance_is_bayes() -> None:
    """By enumeration of examined and relevant, without clicks by mistake: a click is both."""
    for theta, gamma in product((0.2, 0.9), repeat=2):
        joint = {
            (e, r): (theta if e else 1 - theta) * (gamma if r else 1 - gamma) for e, r in product((0, 1), repeat=2)
        }
        none = {pair: chance for pair, chance in joint.items() if pair != (1, 1)}
        total = sum(none.values())
        score = torch.tensor([[np.log(gamma / (1 - gamma))] * 2])
        relevant, seen = expected_relevance(score, torch.tensor([[0.0, 1.0]]), torch.tensor([[theta, theta]]))
        assert relevant[0].tolist() == pytest.approx([(none[0, 1]) / total, 1.0], rel=1e-5)
        assert seen[0].tolist() == pytest.approx([(none[1, 0]) / total, 1.0], rel=1e-5)


def test_regression_em_at_the_truth_stays_there() -> None:
    """With clicks without noise and the true relevance as scores, the mean of P(examined) is the curve itself."""
    wanted = torch.tensor(np.random.default_rng(0).uniform(0.05, 0.95, (20_000, 10)))
    users, generator = PositionBased(), np.random.default_rng(1)
    clicks = torch.tensor(users.draw(wanted.numpy(), generator)).float()
    learner = RegressionEM(10, CPU, rate=1.0)
    learner.propensities.copy_(THETA)
    mask = torch.ones(20_000, 10, dtype=torch.bool)
    learner.targets(wanted.logit().float(), clicks, mask, torch.arange(1, 11).expand(20_000, 10))
    learner.update(1.0)
    assert learner.propensities.tolist() == pytest.approx(list(EXAMINATION), abs=0.01)
    one = torch.ones(1, 2, dtype=torch.bool)
    learner.targets(torch.zeros(1, 2), torch.zeros(1, 2), one, torch.tensor([[3, 4]]))
    before = learner.propensities.clone()
    learner.update(1.0)  # positions that were not shown keep theirs
    assert (learner.propensities == before).tolist() == [i not in (2, 3) for i in range(10)]


def test_weights_are_clipped_by_value_and_have_no_gradient() -> None:
    positions = torch.tensor([[2, 1, 3, 0]])
    assert inverse_propensities(torch.tensor([0.8, 0.4, 0.01]), positions).tolist()[0] == pytest.approx([2, 1, 80, 1])
    assert inverse_propensities(torch.tensor([0.8, 0.4, 0.01]), positions, 5).tolist()[0] == pytest.approx([2, 1, 5, 1])
    scores = torch.tensor([[1.0, 3.0, -500.0, torch.nan]], requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    found = inverse_relevance(scores, mask, positions, 20.0)
    assert not found.requires_grad
    assert found.tolist()[0] == pytest.approx([np.exp(2.0), 1, 20, 1])  # relative to what stood first


def test_given_propensities_and_naive_clicks() -> None:
    wanted, positions, mask = lists(3)
    clicks = (wanted > 0.4).float() * mask
    assert Naive().targets(wanted, clicks, mask, positions) is clicks
    learner = InversePropensity(EXAMINATION, CPU, 4.0)
    expected = clicks * (THETA[0] / THETA).clamp(max=4.0)
    assert torch.allclose(learner.targets(wanted, clicks, mask, positions), expected)
    with pytest.raises(InputError, match="position 10, and propensities end at 9"):
        InversePropensity(EXAMINATION[:9], CPU).targets(wanted, clicks, mask, positions)
