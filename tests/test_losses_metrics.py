"""Losses that are metrics made smooth: against trec_eval, exact metrics and exact permutations."""

from __future__ import annotations

from functools import partial
from itertools import permutations
from math import exp, log2

import pytest
import torch
from loss_values import RANK, S, Y, close, softmax, tensor, value
from torch import Tensor

from rerank.eval import evaluate
from rerank.losses import load_loss
from rerank.losses.approx import approx, approx_ranks, gumbel
from rerank.losses.metrics import average_precision, exact_step, ndcg, precision, reciprocal_rank
from rerank.losses.neural import neural_sort_matrix

# metrics


def exact_ranks(scores: Tensor) -> Tensor:
    return scores.argsort(descending=True).argsort().to(scores) + 1


METRICS = {
    "nDCG": lambda k: partial(ndcg, k=k, gain="linear"),
    "AP": lambda k: partial(average_precision, k=k, rel=1.0),
    "RR": lambda k: partial(reciprocal_rank, k=k, rel=1.0),
    "P": lambda k: partial(precision, k=k, rel=1.0),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("k", [1, 3, 10])
def test_with_whole_ranks_the_metrics_are_trec_evals(name, k):
    generator = torch.Generator().manual_seed(k)
    for _ in range(20):
        scores = torch.rand(7, generator=generator)
        labels = torch.randint(0, 4, (7,), generator=generator) * torch.randint(0, 2, (7,), generator=generator)
        run = {"q": {f"d{i}": s for i, s in enumerate(scores.tolist())}}
        qrels = {"q": {f"d{i}": y for i, y in enumerate(labels.tolist())}}
        measure = f"{name}@{k}"
        mask = torch.ones(7, dtype=torch.bool)
        ours = METRICS[name](k)(exact_ranks(scores), labels.float(), mask, step=exact_step)
        assert ours.item() == pytest.approx(evaluate(run, qrels, [measure]).mean[measure], abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("name", ["approx_ndcg", "approx_rr", "approx_ap", "approx_precision"])
def test_at_a_low_temperature_the_loss_is_one_minus_the_metric(name, k):
    metric = {
        "approx_ndcg": partial(ndcg, k=k, gain="exponential"),
        "approx_rr": partial(reciprocal_rank, k=k, rel=2.0),
        "approx_ap": partial(average_precision, k=k, rel=2.0),
        "approx_precision": partial(precision, k=k, rel=2.0),
    }[name]
    options = {} if name == "approx_ndcg" else {"rel": 2.0}
    for order in permutations(range(5)):
        labels = [Y[i] for i in order]
        exact = metric(exact_ranks(tensor(S)), tensor(labels), torch.ones(5, dtype=torch.bool), step=exact_step)
        loss = value(name, labels=labels, k=k, temperature=1e-3, **options)
        assert loss == pytest.approx(1 - exact.item(), abs=1e-9)


@pytest.mark.parametrize("name", ["approx_ndcg", "neural_ndcg", "softmax", "poly1"])
def test_a_negative_label_gains_nothing(name):
    assert Y[2] == Y[3] == 0
    assert value(name, labels=[1.0, 3.0, -2.0, 0.0, 2.0]) == value(name)
    assert value(name, labels=[1.0, 3.0, 0.0, -9.0, 2.0]) == value(name)


def test_approx_ranks():
    ranks = approx_ranks(tensor(S), torch.tensor([True, True, True, True, False]), 0.5)
    for i in range(4):
        others = [j for j in range(4) if j != i]
        assert ranks[i].item() == close(1 + sum(1 / (1 + exp((S[i] - S[j]) / 0.5)) for j in others))
    assert ranks[:4].sum().item() == close(1 + 2 + 3 + 4)  # σ(x) + σ(−x) = 1


def test_any_metric_becomes_a_loss():
    def of_the_best(ranks: Tensor, labels: Tensor, mask: Tensor, *, step: object) -> Tensor:
        return torch.where(mask & (labels == 3), 1 / ranks, 0.0).sum(-1)

    loss = approx(tensor(S), tensor(Y), None, of_the_best, temperature=1e-3, reduction="mean")
    assert loss.item() == pytest.approx(1 - 1 / RANK[1])


def test_adr_mse():
    ranks = [3.0, 1.0, 4.5, 4.5, 2.0]  # the two that tie share 4 and 5
    soft = [1 + sum(1 / (1 + exp(S[i] - S[j])) for j in range(5) if j != i) for i in range(5)]
    assert value("adr_mse") == close(sum((r - a) ** 2 / log2(1 + r) for r, a in zip(ranks, soft, strict=True)) / 5)


def test_gumbel_noise_ranks_as_plackett_luce():
    """How often an item comes first is its softmax."""

    def first(scores: Tensor, labels: Tensor, mask: Tensor, *, reduction: str) -> Tensor:
        return (scores.argmax(-1) == 3).double()

    share = gumbel(first, samples=20_000, generator=torch.Generator().manual_seed(0))(tensor(S), tensor(Y))
    p = softmax(S)[3]
    assert abs(share.item() - p) < 4 * (p * (1 - p) / 20_000) ** 0.5


def test_gumbel_averages_the_loss_of_its_draws():
    options = {"samples": 3, "scale": 0.5, "temperature": 0.7, "k": 3}
    loss = load_loss("gumbel_approx_ndcg", generator=torch.Generator().manual_seed(5), **options)
    uniform = torch.empty(3, 5, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(5))
    draws = [(tensor(S) + 0.5 * -row.log()).tolist() for row in uniform]
    expected = sum(value("approx_ndcg", scores, temperature=0.7, k=3) for scores in draws) / 3
    assert loss(tensor(S), tensor(Y), None).item() == close(expected)


# soft permutations


def test_neural_sort_matrix():
    matrix = neural_sort_matrix(tensor(S), temperature=0.7)
    spread = [sum(abs(S[j] - other) for other in S) for j in range(5)]
    for i in range(5):
        expected = softmax([((5 + 1 - 2 * (i + 1)) * S[j] - spread[j]) / 0.7 for j in range(5)])
        torch.testing.assert_close(matrix[i], tensor(expected))


@pytest.mark.parametrize("mask", [[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0]])
def test_neural_sort_at_a_low_temperature_is_the_permutation(mask):
    items = sorted((i for i in range(5) if mask[i]), key=lambda i: -S[i])
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for rank, item in enumerate(items):
        expected[rank, item] = 1
    matrix = neural_sort_matrix(tensor(S), torch.tensor(mask).bool(), temperature=1e-3)
    torch.testing.assert_close(matrix, expected)


def test_neural_sort_is_the_cross_entropy_with_the_true_permutation():
    matrix = neural_sort_matrix(tensor(S), temperature=2.0).log()
    order = [1, 4, 0]
    total = sum(matrix[rank, item] for rank, item in enumerate(order))
    total += sum(matrix[rank, item] for rank in (3, 4) for item in (2, 3)) / 2  # the two that tie
    assert value("neural_sort", temperature=2.0) == close(-total.item() / 5)


@pytest.mark.parametrize("k", [1, 3, None])
def test_neural_ndcg_at_a_low_temperature_is_the_ndcg(k):
    for order in permutations(range(5)):
        labels = tensor([Y[i] for i in order])
        mask = torch.ones(5, dtype=torch.bool)
        exact = ndcg(exact_ranks(tensor(S)), labels, mask, step=exact_step, k=k, gain="exponential")
        loss = value("neural_ndcg", labels=labels.tolist(), temperature=1e-3, k=k)
        assert loss == pytest.approx(1 - exact.item(), abs=1e-6)


def test_sinkhorns_steps_keep_a_gain_from_being_counted_twice():
    scores, labels = [2.0, 1.9, 0.0, -4.0], [0.0, 0.0, 1.0, 0.0]
    matrix = neural_sort_matrix(tensor(scores))
    plain = sum(matrix[i, 2] / log2(2 + i) for i in range(4))
    assert value("neural_ndcg", scores, labels, sinkhorn_steps=0) == close(1 - plain.item())
    assert matrix.sum(0).max() > 1.07
    for _ in range(30):
        matrix = matrix / matrix.sum(0, keepdim=True)
        matrix = matrix / matrix.sum(1, keepdim=True)
    scaled = sum(matrix[i, 2] / log2(2 + i) for i in range(4))
    assert value("neural_ndcg", scores, labels) == close(1 - scaled.item())
    assert matrix.sum(0).max() < 1.002
