"""Each loss against its formula, against enumeration where a list is short, and against torch and trec_eval."""

from __future__ import annotations

from functools import partial
from itertools import permutations
from math import exp, log, log1p, log2

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rerank.errors import InputError
from rerank.eval import evaluate
from rerank.losses import LOSSES, load_loss
from rerank.losses.approx import approx, approx_ranks, gumbel
from rerank.losses.curriculum import curriculum_weights
from rerank.losses.language import importance_lm
from rerank.losses.metrics import average_precision, exact_step, ndcg, precision, reciprocal_rank
from rerank.losses.neural import neural_sort_matrix
from rerank.losses.pairs import pairwise
from rerank.losses.weights import lambda_rank_weights

S = [0.3, -1.2, 0.8, 1.9, -0.4]
Y = [1.0, 3.0, 0.0, 0.0, 2.0]
RANK = {3: 1, 2: 2, 0: 3, 4: 4, 1: 5}  # item -> 1-based rank by S
ORDERED = [(i, j) for i in range(5) for j in range(5) if Y[i] > Y[j]]
IDEAL = 7 / log2(2) + 3 / log2(3) + 1 / log2(4)
GAIN = [(2**y - 1) / IDEAL for y in Y]
DISCOUNT = [1 / log2(1 + RANK[i]) for i in range(5)]


def value(name: str, scores: list[float] = S, labels: list[float] = Y, **options: object) -> float:
    return LOSSES[name].function(tensor(scores), tensor(labels), **options).item()


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logistic(margin: float) -> float:
    return log1p(exp(-margin))


def close(number: float):
    return pytest.approx(number, rel=1e-9)


def softmax(values: list[float]) -> list[float]:
    return [exp(v) / sum(map(exp, values)) for v in values]


# pairs


def test_ranknet():
    total = sum(logistic(2 * (S[i] - S[j])) for i, j in ORDERED)
    assert value("ranknet", sigma=2.0) == close(total / 9)
    assert value("ranknet", sigma=2.0, average=False) == close(total)


def test_the_worst_pair_keeps_its_gradient():
    scores = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = LOSSES["ranknet"].function(scores, torch.tensor([1.0, 0.0]))
    loss.backward()
    assert loss == 2e4
    assert scores.grad.tolist() == [-1.0, 1.0]


def test_pairwise_hinge():
    assert value("pairwise_hinge", margin=0.5) == close(sum(max(0, 0.5 - S[i] + S[j]) for i, j in ORDERED) / 9)


def test_weighted_ranknet_is_firsts():
    teacher = {1: 1, 4: 2, 0: 3, 2: 4, 3: 5}  # item -> the teacher's rank, no ties
    labels = [-float(teacher[i]) for i in range(5)]
    total = sum(
        logistic(S[a] - S[b]) / (teacher[a] + teacher[b]) for a in range(5) for b in range(5) if teacher[a] < teacher[b]
    )
    assert value("weighted_ranknet", labels=labels) == close(total / 10)


@pytest.mark.parametrize(
    ("weight", "formula"),
    [
        ("uniform", lambda i, j: 1.0),
        ("utility", lambda i, j: Y[i] - Y[j]),
        ("log_utility", lambda i, j: log(1 + Y[i] - Y[j])),
        ("teacher_rank", lambda i, j: 1 / ([3, 1, 4, 4, 2][i] + [3, 1, 4, 4, 2][j])),
        ("lambda_rank", lambda i, j: swap(i, j)),
        ("ndcg_loss2", lambda i, j: step(i, j)),
        ("ndcg_loss2++", lambda i, j: swap(i, j) + 10 * step(i, j)),
    ],
)
@pytest.mark.parametrize(("pair", "cost"), [("logistic", logistic), ("hinge", lambda m: max(0, 1 - m))])
def test_pairwise_is_pair_times_weight(weight, formula, pair, cost):
    total = sum(formula(i, j) * cost(S[i] - S[j]) for i, j in ORDERED)
    assert value("pairwise", pair=pair, weight=weight) == close(total / 9)
    assert value("pairwise", pair=pair, weight=weight, average=False) == close(total)


def delta(i: int, j: int) -> float:
    apart = abs(RANK[i] - RANK[j])
    return 1 / log2(1 + apart) - 1 / log2(2 + apart)


def swap(i: int, j: int) -> float:
    return abs(GAIN[i] - GAIN[j]) * abs(DISCOUNT[i] - DISCOUNT[j])


def step(i: int, j: int) -> float:
    return abs(GAIN[i] - GAIN[j]) * delta(i, j)


def test_lambda_rank():
    assert value("lambda_rank") == close(sum(swap(i, j) * logistic(S[i] - S[j]) for i, j in ORDERED))


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9, None])
def test_lambda_ranks_weight_is_what_the_exchange_changes(k):
    weights = lambda_rank_weights(tensor(S), tensor(Y), torch.ones(5, dtype=torch.bool), k=k)
    metric = partial(ndcg, labels=tensor(Y), mask=torch.ones(5, dtype=torch.bool), step=exact_step, k=k)
    ranks = tensor([RANK[i] for i in range(5)])
    for i, j in ORDERED:
        exchanged = ranks.clone()
        exchanged[i], exchanged[j] = ranks[j], ranks[i]
        change = metric(exchanged, gain="exponential") - metric(ranks, gain="exponential")
        torch.testing.assert_close(weights[i, j], change.abs())


def test_lambda_loss():
    loss1 = sum(GAIN[i] * DISCOUNT[i] * logistic(S[i] - S[j]) for i in range(5) for j in range(5) if i != j)
    loss2 = sum(step(i, j) * logistic(S[i] - S[j]) for i, j in ORDERED)
    both = sum((swap(i, j) + 3 * step(i, j)) * logistic(S[i] - S[j]) for i, j in ORDERED)
    assert value("lambda_loss", weight="ndcg_loss1") == close(loss1)
    assert value("lambda_loss", weight="ndcg_loss2") == close(loss2)
    assert value("lambda_loss", weight="ndcg_loss2++", mu=3.0) == close(both)
    assert value("lambda_loss", mu=0.0) == close(value("lambda_rank"))


def test_lambda_loss_with_a_cutoff_counts_pairs_that_touch_the_top():
    ideal = 7 / log2(2) + 3 / log2(3)
    touching = [(i, j) for i, j in ORDERED if min(RANK[i], RANK[j]) <= 2]
    total = sum(step(i, j) * IDEAL / ideal * logistic(S[i] - S[j]) for i, j in touching)
    assert value("lambda_loss", weight="ndcg_loss2", k=2) == close(total)
    assert 0 < len(touching) < len(ORDERED)


def test_equal_scores_still_have_a_gradient():
    """A fresh score head gives one score to all; ranks shared by ties would weigh every pair with 0."""
    for name in ("lambda_rank", "lambda_loss"):
        scores = torch.zeros(4, requires_grad=True)
        LOSSES[name].function(scores, torch.tensor([0.0, 0, 0, 1])).backward()
        assert scores.grad[3] < 0 and bool((scores.grad[:3] > 0).any())


def test_pa_bce():
    profit = [10.0, 2000.0, -5.0, 0.0, 300.0]
    pairs = [(1, 4), (1, 0), (4, 0)]  # the best three
    total = sum(log(1 + profit[i] - profit[j]) * logistic(S[i] - S[j]) for i, j in pairs)
    assert value("pa_bce", labels=profit, k=3) == close(total / 3)


# lists


def test_listnet():
    target = softmax([y / 2 for y in Y])
    assert value("listnet", temperature=2.0) == close(-sum(t * log(p) for t, p in zip(target, softmax(S), strict=True)))


def test_softmax_and_poly1():
    entropy = -sum(y / 6 * log(p) for y, p in zip(Y, softmax(S), strict=True))
    taken = sum(y / 6 * p for y, p in zip(Y, softmax(S), strict=True))
    assert value("softmax") == close(entropy)
    assert value("poly1", epsilon=0.5) == close(entropy + 0.5 * (1 - taken))
    one = functional.cross_entropy(tensor(S), torch.tensor(1))
    assert value("softmax", labels=[0, 1, 0, 0, 0]) == close(one.item())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_listmle_is_the_probability_of_an_order(n):
    labels = [[float(-order.index(i)) for i in range(n)] for order in permutations(range(n))]
    found = [exp(-value("listmle", S[:n], y)) for y in labels]
    for order, probability in zip(permutations(range(n)), found, strict=True):
        expected = 1.0
        for r, item in enumerate(order):
            expected *= exp(S[item]) / sum(exp(S[rest]) for rest in order[r:])
        assert probability == close(expected)
    assert sum(found) == close(1.0)


def test_listmle_of_the_top_k_is_the_probability_of_its_beginning():
    """The k first steps: what the orders that begin so add up to."""
    orders = [o for o in permutations(range(5)) if o[:2] == (1, 4)]
    total = sum(exp(-value("listmle", labels=[float(-o.index(i)) for i in range(5)])) for o in orders)
    assert value("listmle", labels=[2, 4, 0, 1, 3], k=2) == close(-log(total))


def test_listmle_does_not_order_what_ties():
    first = log(exp(S[1]) + sum(exp(S[j]) for j in (0, 2, 3, 4))) - S[1]
    second = log(exp(S[4]) + sum(exp(S[j]) for j in (0, 2, 3))) - S[4]
    third = log(exp(S[0]) + sum(exp(S[j]) for j in (2, 3))) - S[0]
    assert value("listmle") == close(first + second + third)


def test_p_listmle():
    labels, order = [3.0, 5.0, 2.0, 1.0, 4.0], [1, 4, 0, 2, 3]
    total = 0.0
    for r, item in enumerate(order, start=1):
        total += (2 ** (5 - r) - 1) * (log(sum(exp(S[rest]) for rest in order[r - 1 :])) - S[item])
    assert value("p_listmle", labels=labels) == close(total / (2**4 - 1))


def test_p_listmle_of_a_long_list_is_no_larger_than_its_steps():
    scores, labels = torch.zeros(200), torch.arange(200.0)
    expected = sum(2.0 ** (1 - r) * log(201 - r) for r in range(1, 201))  # 2^−199 is nothing
    torch.testing.assert_close(LOSSES["p_listmle"].function(scores, labels), torch.tensor(expected))


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


# points and teachers


def test_bce():
    labels = [0.0, 1.0, 1.0, 0.0, 0.3]
    expected = functional.binary_cross_entropy_with_logits(tensor(S), tensor(labels))
    assert value("bce", labels=labels) == close(expected.item())
    weighted = functional.binary_cross_entropy_with_logits(tensor(S), tensor(labels), pos_weight=tensor([3.0]))
    assert value("bce", labels=labels, positive_weight=3.0) == close(weighted.item())
    assert value("bce", threshold=2.0) == close(value("bce", labels=[float(y >= 2) for y in Y]))
    with pytest.raises(InputError, match="labels from 0 to 1 and was given 0 to 3; set threshold"):
        value("bce")


def test_mse():
    assert value("mse") == close(sum((s - y) ** 2 for s, y in zip(S, Y, strict=True)) / 5)


def test_ordinal():
    thresholds = {0: -2.0, 1: 0.0, 2: 2.0}  # between grade k and grade k + 1
    total = 0.0
    for s, y in zip(S, Y, strict=True):
        total += sum(logistic(s - t if y > k else t - s) for k, t in thresholds.items())
    assert value("ordinal", spacing=2.0) == close(total / 5)


def test_margin_mse():
    def error(i: int, j: int) -> float:
        return ((S[i] - S[j]) - (Y[i] - Y[j])) ** 2

    assert value("margin_mse") == close(sum(error(i, j) for i in range(5) for j in range(i)) / 10)
    assert value("margin_mse", pairs="first") == close(sum(error(0, j) for j in range(1, 5)) / 4)


def test_kl():
    teacher, student = softmax([y / 2 for y in Y]), softmax([s / 2 for s in S])
    total = sum(t * log(t / p) for t, p in zip(teacher, student, strict=True))
    assert value("kl", temperature=2.0) == close(4 * total)
    assert value("kl", scores=[y + 7 for y in Y]) == pytest.approx(0, abs=1e-12)


# a ranking as text, and curricula


def test_importance_lm():
    logs = torch.tensor([[-0.5, -1.0, -0.25, -2.0, torch.nan], [-1.0, -1.0, -1.0, -1.0, -1.0]], requires_grad=True)
    ranks = torch.tensor([[1, 1, 0, 3, 7], [0, 0, 0, 0, 0]])
    mask = torch.tensor([[True, True, True, True, False], [False] * 5])
    each = importance_lm(logs, ranks, mask, separator_weight=0.2, reduction="none")
    expected = (2 * 0.5 + 2 * 1.0 + 0.2 * 0.25 + (1 + 1 / log2(4)) * 2.0) / 4
    assert each.tolist() == pytest.approx([expected, 0.0])
    importance_lm(logs, ranks, mask, separator_weight=0.2).backward()
    assert logs.grad[0].tolist() == pytest.approx([-2 / 8, -2 / 8, -0.2 / 8, -1.5 / 8, 0])
    assert logs.grad[1].tolist() == [0.0] * 5
    with pytest.raises(InputError, match=r"ranks have the shape \[5\], log_probs \[2, 5\]"):
        importance_lm(logs, ranks[0], mask)
    with pytest.raises(InputError, match="separator_weight=-1"):
        importance_lm(logs, ranks, mask, separator_weight=-1)


def test_curriculum_of_one_pair_is_the_papers():
    """Relevant at rank 4, not relevant at rank 1: (1/4 − 1/1 + 1)/2."""
    first_stage, labels = tensor([9.0, 7.0, 6.0, 5.0]), tensor([0.0, 0.0, 0.0, 1.0])
    mask = torch.tensor([True, False, False, True])
    full = torch.ones(4, dtype=torch.bool)

    def weight(**options: object) -> float:
        return curriculum_weights(first_stage, labels, **options).item()

    assert weight(mask=mask, progress=0) == close((1 / 2 - 1 + 1) / 2)  # alone, it stands at rank 2
    pairs = [(1 / 4 - 1 / r + 1) / 2 for r in (1, 2, 3)]
    assert weight(mask=full, progress=0) == close(sum(pairs) / 3)
    assert weight(progress=0.25) == close(sum(pairs) / 3 * 0.75 + 0.25)
    assert weight(progress=1) == weight(progress=3.5) == 1
    held = [(x - 5) / 4 for x in (9, 7, 6, 5)]
    assert weight(progress=0, heuristic="score") == close(sum((held[3] - h + 1) / 2 for h in held[:3]) / 3)


def test_curriculum_by_kernel_density():
    values = [9.0, 7.0, 6.0, 5.0]
    mean = sum(values) / 4
    width = (sum((v - mean) ** 2 for v in values) / 3) ** 0.5 * 4**-0.2
    held = [torch.special.ndtr((v - tensor(values)) / width).mean().item() for v in values]
    found = curriculum_weights(tensor(values), tensor([1.0, 0.0, 0.0, 0.0]), progress=0, heuristic="kde")
    assert found.item() == close(sum((held[0] - h + 1) / 2 for h in held[1:]) / 3)


@pytest.mark.parametrize("heuristic", ["reciprocal_rank", "score", "kde"])
def test_curriculum_weights_of_any_list(heuristic):
    """Easy lists weigh more; padding is not seen; a list that orders nothing, or is empty, weighs 1."""
    nan = torch.nan
    first_stage = torch.tensor([[3.0, 2.0, 1.0, nan], [1.0, 2.0, 3.0, nan], [2.0, 2.0, 2.0, nan], [nan] * 4])
    labels = torch.tensor([[1.0, 0.0, 0.0, nan], [1.0, 0.0, 0.0, nan], [0.0, 0.0, 0.0, nan], [nan] * 4])
    mask = torch.tensor([[True, True, True, False]] * 3 + [[False] * 4])
    weights = curriculum_weights(first_stage, labels, mask, progress=0, heuristic=heuristic)
    assert 0 < weights[1] < 0.5 < weights[0] < 1
    assert weights[2:].tolist() == [1, 1]
    losses = weights * pairwise(torch.zeros(4, 4), labels, mask, reduction="none")
    torch.testing.assert_close(losses, weights * torch.tensor([log(2), log(2), 0, 0]))


def test_a_curriculum_that_means_nothing_is_refused():
    with pytest.raises(InputError, match="progress=-1"):
        curriculum_weights(tensor(S), tensor(Y), progress=-1)
    with pytest.raises(InputError, match="heuristic 'age'"):
        curriculum_weights(tensor(S), tensor(Y), progress=0, heuristic="age")
