"""LiPO's forms as losses of log-ratios, by formula; DPO and SLiC are those of two answers."""

from __future__ import annotations

from math import log, log1p

import pytest
import torch
from loss_values import RANK, S, Y, close, value
from torch.nn.functional import logsigmoid

from rerank.losses import LOSSES

ORDERED = [(i, j) for i in range(5) for j in range(5) if Y[i] > Y[j]]


def weight(i: int, j: int) -> float:
    return abs(2 ** Y[i] - 2 ** Y[j]) * abs(1 / log(1 + RANK[i]) - 1 / log(1 + RANK[j]))


def test_lipo_lambda() -> None:
    total = sum(weight(i, j) * log1p(torch.tensor(S[j] - S[i]).exp().item()) for i, j in ORDERED)
    assert value("lipo_lambda") == pytest.approx(total, rel=1e-6)
    hinges = sum(weight(i, j) * max(0.0, 1 - S[i] + S[j]) for i, j in ORDERED)
    assert value("pairwise", pair="hinge", weight="lipo_lambda", average=False) == close(hinges)


# log-probabilities of a preferred and a rejected answer, of the policy and of the reference
LOGS = torch.tensor([[-3.0, -2.5], [-7.0, -9.0], [-1.0, -0.2]], dtype=torch.float64)
BEFORE = torch.tensor([[-3.5, -2.0], [-7.2, -8.0], [-1.5, -1.0]], dtype=torch.float64)
BETA = 0.5


@pytest.mark.parametrize(
    ("name", "options", "formula"),
    [
        ("ranknet", {}, lambda delta: -logsigmoid(BETA * delta)),  # DPOTrainer, loss_type "sigmoid"
        ("pairwise_hinge", {}, lambda delta: torch.relu(1 - BETA * delta)),  # DPOTrainer, loss_type "hinge": SLiC
        ("listmle", {}, lambda delta: -logsigmoid(BETA * delta)),
        ("softmax", {}, lambda delta: -logsigmoid(BETA * delta)),
        ("lipo_lambda", {}, lambda delta: -logsigmoid(BETA * delta) * (1 / log(2) - 1 / log(3))),
    ],
)
def test_of_two_answers_the_losses_are_dpo_and_slic_as_trl_computes_them(name, options, formula) -> None:
    """trl 1.16: delta_score is the chosen log-ratio less the rejected one; the loss is a function of beta·delta."""
    ratios = LOGS - BEFORE
    labels = torch.tensor([[1.0, 0.0]] * 3)
    found = LOSSES[name].function(BETA * ratios, labels, reduction="none", **options)
    torch.testing.assert_close(found, formula(ratios[:, 0] - ratios[:, 1]))


def test_the_pointwise_forms_are_sums_over_the_answers_but_for_the_length() -> None:
    labels = [1.0, 0.2, 0.0, 0.5, 0.9]
    scores = torch.tensor(S, dtype=torch.float64)
    psi = torch.tensor(labels, dtype=torch.float64)
    assert value("mse", labels=labels) * 5 == close((psi - scores).square().sum().item())
    sigmoid = psi * scores.sigmoid().log() + (1 - psi) * (-scores).sigmoid().log()
    assert value("bce", labels=labels) * 5 == close(-sigmoid.sum().item())
