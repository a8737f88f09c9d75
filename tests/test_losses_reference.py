"""Each loss against its formula, against enumeration where a list is short, and against torch and trec_eval."""

from __future__ import annotations

from functools import partial
from itertools import permutations
from math import exp, log, log1p, log2

import pytest
import torch
from loss_values import RANK, S, Y, close, softmax, tensor, value
from torch.nn import functional

from rerank.errors import InputError
from rerank.losses import LOSSES
from rerank.losses.curriculum import curriculum_weights
from rerank.losses.language import importance_lm
from rerank.losses.metrics import exact_step, ndcg
from rerank.losses.pairs import pairwise
from rerank.losses.weights import lambda_rank_weights

ORDERED = [(i, j) for i in range(5) for j in range(5) if Y[i] > Y[j]]
IDEAL = 7 / log2(2) + 3 / log2(3) + 1 / log2(4)
GAIN = [(2**y - 1) / IDEAL for y in Y]
DISCOUNT = [1 / log2(1 + RANK[i]) for i in range(5)]


def logistic(margin: float) -> float:
    return log1p(exp(-margin))


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
