"""What every loss of the table must do; a new line there is tested here."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rerank import losses
from rerank.errors import InputError, UnknownNameError
from rerank.losses import LOSSES, load_loss, options_of

VARIANTS: dict[str, dict[str, object]] = {
    "ranknet sum": {"average": False},
    "pairwise hinge": {"pair": "hinge", "weight": "utility"},
    "pairwise teacher_rank": {"weight": "teacher_rank"},
    "pairwise log_utility": {"weight": "log_utility"},
    "lambda_rank k": {"k": 2, "gain": "linear"},
    "lambda_loss 1": {"weight": "ndcg_loss1"},
    "lambda_loss 1 k": {"weight": "ndcg_loss1", "k": 2},
    "lambda_loss 2": {"weight": "ndcg_loss2"},
    "lambda_loss 2++ k": {"k": 2},
    "pa_bce k": {"k": 3},
    "listmle k": {"k": 2},
    "approx_ndcg k": {"k": 2, "temperature": 0.5},
    "approx_ap k": {"k": 3, "temperature": 0.5},
    "pg_rank AP": {"measure": "AP@3", "samples": 4, "temperature": 0.7, "reward_to_go": True, "entropy": 0.1},
    "pg_rank alone": {"measure": "AP", "samples": 1, "baseline": "none"},
    "neural_ndcg k": {"k": 2, "gain": "linear", "sinkhorn_steps": 3},
    "bce threshold": {"threshold": 0.5, "positive_weight": 2.0},
    "margin_mse first": {"pairs": "first"},
}
POINTWISE = {"bce", "mse", "ordinal"}
ESTIMATED = {"pg_rank"}  # the gradient is that of an expectation, which the value is an estimate of
TARGETS = POINTWISE | {"margin_mse", "kl"}  # labels are values to be met, not only an order
CASES = [*LOSSES, *VARIANTS]  # a loss, or its name and what is special
FILLERS = [0.0, 1e30, torch.inf, -torch.inf, torch.nan]

SCORES = torch.tensor([[0.3, -1.2, 0.8, 1.9, -0.4], [2.0, 0.5, -0.7, 0.1, 1.1], [-0.2, 0.4, 0.0, -1.5, 0.9]]).double()
LABELS = {
    "graded": torch.tensor([[0, 2, 1, 0, 3], [1, 0, 0, 0, 0], [3, 2, 2, 1, 0]]),
    "binary": torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0.25, 1]]),
    "order": torch.tensor([[5, 1, 2, 3, 4], [-1, -2, -3, 7, 0.5], [0, 1, 1, 2, 3]]),
    "teacher": torch.tensor([[0.5, -2, 3, 1, 0], [4, 1, 0, -1, 2.5], [0.1, 0.2, 0.2, 0.3, -3]]),
    "utility": torch.tensor([[100, -20, 3, 0, 0.5], [1, 0, 0, 0, 0], [1e4, 1e3, 2, 1, 0]]),
}
every = pytest.mark.parametrize("name", LOSSES)
cases = pytest.mark.parametrize("case", CASES)


def name_of(case: str) -> str:
    return case.partition(" ")[0]


def call(case: str, scores: Tensor, labels: Tensor, mask: Tensor | None = None, **options: object) -> Tensor:
    """A loss that samples draws the same numbers at each call."""
    loss = LOSSES[name_of(case)]
    if loss.samples:
        options["generator"] = torch.Generator().manual_seed(0)
    return loss.function(scores, labels, mask, **VARIANTS.get(case, {}), **options)


def labels_of(case: str) -> Tensor:
    return LABELS[LOSSES[name_of(case)].labels].double()


def with_gradient(case: str, scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    leaf = scores.clone().requires_grad_()
    value = call(case, leaf, labels, mask)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def padded(tensor: Tensor, filler: float) -> Tensor:
    return torch.cat([tensor[:, :2], torch.full((len(tensor), 3), filler).to(tensor), tensor[:, 2:]], dim=1)


@every
def test_the_signature_is_the_common_one(name):
    parameters = list(inspect.signature(LOSSES[name].function).parameters.values())
    assert [p.name for p in parameters[:3]] == ["scores", "labels", "mask"]
    assert parameters[2].default is None
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[3:])
    assert parameters[-1].name == "reduction" and parameters[-1].default == "mean"
    assert ("generator" in [p.name for p in parameters]) == LOSSES[name].samples
    assert LOSSES[name].function.__doc__
    assert getattr(losses, name) is LOSSES[name].function


# The noise of an item depends on its place; the first item is the positive one.
@pytest.mark.parametrize("case", [c for c in CASES if not LOSSES[name_of(c)].samples and c != "margin_mse first"])
def test_the_order_of_the_items_does_not_matter(case):
    order = torch.tensor([3, 0, 4, 2, 1])
    value, gradient = with_gradient(case, SCORES, labels_of(case))
    moved, moved_gradient = with_gradient(case, SCORES[:, order], labels_of(case)[:, order])
    torch.testing.assert_close(moved, value)
    torch.testing.assert_close(moved_gradient, gradient[:, order])


@cases
@pytest.mark.parametrize("filler", FILLERS)
def test_padding_is_never_seen(case, filler):
    labels = labels_of(case)
    mask = padded(torch.ones_like(SCORES), 0.0).bool()
    expected, expected_gradient = with_gradient(case, padded(SCORES, 0.0), padded(labels, 0.0), mask)
    if not LOSSES[name_of(case)].samples:  # the noise of an item depends on its place
        short, short_gradient = with_gradient(case, SCORES, labels)
        torch.testing.assert_close(expected, short)
        torch.testing.assert_close(expected_gradient, padded(short_gradient, 0.0))
    value, gradient = with_gradient(case, padded(SCORES, filler), padded(labels, filler), mask)
    assert value == expected and bool((gradient == expected_gradient).all())
    assert bool((gradient[~mask] == 0).all())


@cases
@pytest.mark.parametrize("filler", FILLERS)
def test_a_list_without_items_adds_nothing(case, filler):
    scores, labels = SCORES.clone(), labels_of(case).clone()
    scores[1], labels[1] = filler, filler
    mask = torch.ones_like(SCORES, dtype=torch.bool)
    mask[1] = False
    each = call(case, scores, labels, mask, reduction="none")
    assert each[1] == 0 and bool((each[[0, 2]] != 0).all())
    value, gradient = with_gradient(case, scores, labels, mask)
    torch.testing.assert_close(value, each.sum() / 3)
    assert bool((gradient[1] == 0).all()) and bool(gradient.isfinite().all())
    value, gradient = with_gradient(case, scores[1], labels[1], mask[1])
    assert value == 0 and bool((gradient == 0).all())


@cases
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_list_that_orders_nothing_adds_nothing(case, label):
    value, gradient = with_gradient(case, SCORES[0], torch.full((5,), label).double())
    assert bool(gradient.isfinite().all())
    counts = name_of(case) in TARGETS or (case == "click_softmax" and label > 0)  # linear in its labels
    assert bool((gradient != 0).any()) == counts
    assert (value != 0) == counts


@cases
def test_one_item_is_in_order(case):
    value, gradient = with_gradient(case, SCORES[:, :1], torch.ones(3, 1))
    assert (value != 0) == (name_of(case) in POINTWISE)
    assert bool((gradient != 0).any()) == (name_of(case) in POINTWISE)


@cases
def test_only_differences_of_scores_count_except_pointwise(case):
    value, shifted = (call(case, SCORES + shift, labels_of(case)) for shift in (0.0, 3.0))
    assert torch.allclose(value, shifted, rtol=1e-9) == (name_of(case) not in POINTWISE)


@pytest.mark.parametrize("case", [case for case in CASES if name_of(case) not in ESTIMATED])
def test_the_gradient_is_the_derivative(case):
    labels = labels_of(case)
    mask = torch.tensor([[True] * 5, [True, True, False, True, True], [True] * 5])
    scores = SCORES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: call(case, s, labels, mask, reduction="none"), scores)


@every
def test_reductions_agree(name):
    scores, labels = SCORES.reshape(3, 1, 5).expand(3, 2, 5), labels_of(name).reshape(3, 1, 5).expand(3, 2, 5)
    each = call(name, scores, labels, reduction="none")
    assert each.shape == (3, 2)
    torch.testing.assert_close(call(name, scores, labels, reduction="sum"), each.sum())
    torch.testing.assert_close(call(name, scores, labels), each.mean())
    if not LOSSES[name].samples:
        torch.testing.assert_close(each[1, 1], call(name, SCORES[1], labels_of(name)[1]))
    with pytest.raises(InputError, match="reduction 'avg'; give 'mean', 'sum' or 'none'"):
        call(name, scores, labels, reduction="avg")


@every
def test_no_list_at_all_is_zero(name):
    value, gradient = with_gradient(name, torch.zeros(0, 4), torch.zeros(0, 4))
    assert value == 0 and gradient.shape == (0, 4)


@cases
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(case, dtype):
    scores = SCORES.to(dtype)
    value, gradient = with_gradient(case, scores, labels_of(case).float())
    single, single_gradient = with_gradient(case, scores.float(), labels_of(case).float())
    assert value.dtype == torch.float32 and value == single
    assert gradient.dtype == dtype and torch.equal(gradient, single_gradient.to(dtype))


@cases
def test_large_scores_stay_finite(case):
    value, gradient = with_gradient(case, (SCORES * 1e4).float(), labels_of(case).float())
    assert bool(value.isfinite()) and bool(gradient.isfinite().all())


@every
def test_labels_get_no_gradient_and_nothing_is_written(name):
    scores, labels = SCORES.clone().requires_grad_(), labels_of(name).clone().requires_grad_()
    call(name, scores, labels).backward()
    assert labels.grad is None
    assert torch.equal(scores, SCORES) and torch.equal(labels, labels_of(name))


# no order among the relevant
BINARY = {"bce", "softmax", "click_softmax", "poly1", "approx_rr", "approx_ap", "approx_precision"}


@every
def test_descent_finds_the_order(name):
    labels = torch.tensor([1.0, 1, 0, 0] if name in BINARY else [3.0, 2, 1, 0])
    soft = {"temperature": 1.0} if "temperature" in options_of(name) else {}  # at 0.1 the worst order is a plateau
    options = soft | ({"k": 2} if name == "approx_precision" else {})
    scores = torch.tensor([-1.5, -0.5, 0.5, 1.5], requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        call(name, scores, labels, **options).backward()
        optimizer.step()
    if name == "approx_rr":  # only one of the relevant items has to be first
        assert scores.argmax() in (0, 1)
    else:
        margins = scores[:, None] - scores[None, :]
        assert bool((margins[labels[:, None] > labels[None, :]] > 0).all())


@every
def test_wrong_tensors_are_refused(name):
    scores, labels, mask = torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(InputError, match=r"labels have the shape \[3\], scores \[2, 3\]"):
        call(name, scores, labels[0])
    with pytest.raises(InputError, match=r"labels have the shape \[2, 2\]"):
        call(name, scores, labels[:, :2])
    with pytest.raises(InputError, match=r"mask has the shape \[3\]"):
        call(name, scores, labels, mask[0])
    with pytest.raises(InputError, match=r"mask is torch.float32; give a boolean tensor"):
        call(name, scores, labels, mask.float())
    with pytest.raises(InputError, match=r"scores are torch.int64"):
        call(name, scores.long(), labels)
    for empty in (torch.zeros(()), torch.zeros(2, 0)):
        with pytest.raises(InputError, match="n ≥ 1"):
            call(name, empty, empty)


@every
def test_a_loss_by_name_is_the_function(name):
    loss = load_loss(name, **({"generator": torch.Generator().manual_seed(0)} if LOSSES[name].samples else {}))
    torch.testing.assert_close(loss(SCORES, labels_of(name), None), call(name, SCORES, labels_of(name)))


@every
def test_names_and_values_are_checked_when_a_loss_is_made(name):
    with pytest.raises(UnknownNameError, match=f"unknown {name} option 'colour'"):
        load_loss(name, colour=1)
    with pytest.raises(InputError, match="reduction"):
        load_loss(name, reduction="avg")
    for option in {"sigma", "temperature", "k", "margin", "samples", "scale", "spacing"} & set(options_of(name)):
        with pytest.raises(InputError, match=f"{option}=0"):
            load_loss(name, **{option: 0})


def test_options_are_converted_and_used():
    value = load_loss("ranknet", sigma="2", average="false")(SCORES, LABELS["order"], None)
    assert value == LOSSES["ranknet"].function(SCORES, LABELS["order"], sigma=2.0, average=False)
    with pytest.raises(UnknownNameError, match="did you mean 'ranknet'"):
        load_loss("ranknt")
    with pytest.raises(UnknownNameError, match="did you mean 'sigma'"):
        load_loss("ranknet", sigm=2)
    with pytest.raises(InputError, match="sigma='x'"):
        load_loss("ranknet", sigma="x")
    with pytest.raises(InputError, match="does not sample"):
        load_loss("ranknet", generator=torch.Generator())
    with pytest.raises(AttributeError, match="no_such_loss"):
        losses.no_such_loss  # noqa: B018


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pairwise", {"pair": "cubic"}),
        ("pairwise", {"weight": "heavy"}),
        ("lambda_loss", {"weight": "ndcg_loss3"}),
        ("lambda_rank", {"gain": "square"}),
        ("ordinal", {"levels": 1}),
        ("margin_mse", {"pairs": "some"}),
        ("neural_ndcg", {"sinkhorn_steps": -1}),
        ("bce", {"positive_weight": -1.0}),
        ("pg_rank", {"baseline": "mean"}),
        ("pg_rank", {"samples": 1}),
        ("pg_rank", {"entropy": -0.1}),
        ("pg_rank", {"measure": "nDGC@10"}),
        ("pg_rank", {"measure": "P"}),
    ],
)
def test_values_that_mean_nothing_are_refused(name, options):
    with pytest.raises(InputError, match=next(iter(options))):
        load_loss(name, **options)
    with pytest.raises(InputError, match=next(iter(options))):
        call(name, SCORES, labels_of(name), **options)


def test_what_is_drawn_depends_on_the_generator_alone():
    labels = LABELS["graded"]
    draw = [
        load_loss("gumbel_approx_ndcg", generator=torch.Generator().manual_seed(s))(SCORES, labels, None)
        for s in (1, 1, 2)
    ]
    assert draw[0] == draw[1] != draw[2]


def test_the_names_are_there_without_torch():
    code = (
        "import sys; from rerank.losses import LOSSES; "
        "assert 'torch' not in sys.modules; assert LOSSES['ranknet'].about; "
        "from rerank.losses import ranknet; assert 'torch' in sys.modules and callable(ranknet)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@cases
def test_everything_stays_on_the_device(case):
    """What is made on the way is made where the scores are; the device "meta" refuses a mixture, as a GPU does."""
    more = {"threshold": 0.5} if case == "bce" else {}  # a check of values needs values
    tensors = [torch.ones(2, 4, device="meta", requires_grad=True), torch.ones(2, 4, device="meta")]
    mask = torch.ones(2, 4, dtype=torch.bool, device="meta")
    value = call(case, *tensors, mask, **more)
    value.backward()
    assert value.device.type == "meta" and tensors[0].grad.device.type == "meta"


def test_the_page_lists_every_loss_and_its_code_runs():
    page = (Path(__file__).parents[1] / "docs" / "losses.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, flags=re.MULTILINE)
    assert sorted(re.findall(r"\w+", " ".join(rows))) == sorted(LOSSES)
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "losses.md", "exec"), {})
