"""The gradient is the same however the sequences are laid out, and however the batch is cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training import recipe, save_recipe

from rerank.backbones.transformers_ import load_weights
from rerank.backbones.weights import Weights
from rerank.losses import load_loss
from rerank.prompts import load_prompt
from rerank.prompts.answers import Identifier
from rerank.training.forward import Objective, Run
from rerank.training.mixture import Mixture
from rerank.training.objectives import Asked, Asker, Question
from rerank.training.recipe import PROMPTS, read_recipe
from rerank.training.sources import read_pools
from rerank.training.trainer import Examples, pieces

CPU = torch.device("cpu")
Lists = list[list[Question]]
STRATEGIES = ["pointwise", "pointwise-query-likelihood", "pairwise", "setwise", "first", "full-ranking", "score-head"]


@pytest.fixture(scope="module", params=STRATEGIES)
def case(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Weights, Objective, Lists]:
    folder = tmp_path_factory.mktemp("case")
    strategy, _, prompt = request.param.partition("-") if "likelihood" in request.param else (request.param, "", "")
    name = f"{strategy}-{prompt}" if prompt else PROMPTS[strategy]
    made = read_recipe(save_recipe(folder, recipe(tiny_model, strategy)))
    torch.manual_seed(0)  # the head is new
    weights = load_weights("tiny", str(tiny_model), CPU, torch.float32, head=strategy == "score-head")
    mixture = Mixture([(source, read_pools(source, folder)) for source in made.data], seed=3, total=6)
    write = strategy in ("first", "full-ranking")
    asker = Asker(load_prompt(name), weights.encoder, None, write=write)
    loss = load_loss("ranknet", reduction="none") if strategy != "full-ranking" else None
    objective = Objective(asker.prompt.answer, loss, 2.0, 0.7 if write else 0.0, importance=strategy == "full-ranking")
    examples = Examples(mixture, strategy, asker)
    return weights, objective, [list(examples[i]) for i in range(6)]


def gradient(
    weights: Weights, objective: Objective, lists: Lists, *, tokens: int | None = None, **how: bool
) -> tuple[float, Tensor]:
    """The loss of the lists and its gradient by all weights, computed in pieces of so many tokens."""
    weights.model.requires_grad_(True).zero_grad()
    options = {"packs": not how.get("head", False), **how}
    run = Run(weights.model, CPU, torch.float32, **options)
    total = 0.0
    for part in pieces(lists, tokens):
        loss = objective.loss(part, run)
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in weights.model.parameters() if p.grad is not None])


def test_every_layout_and_every_cut_give_the_same_gradient(case: tuple[Weights, Objective, Lists]) -> None:
    weights, objective, lists = case
    head = weights.model.get_output_embeddings() is None or not hasattr(weights.model, "lm_head")
    ways: list[dict[str, object]] = [{"tokens": 1}, {"tokens": 900}]
    if head:
        assert len(list(pieces(lists, 1))) == 6
        value, whole = gradient(weights, objective, lists, head=True)
        ways = [{"head": True, **way} for way in ways]
    else:
        value, whole = gradient(weights, objective, lists)
        ways += [{"share": False}, {"packs": False}, {"packs": False, "tokens": 1}]
    assert whole.norm() > 1e-3
    for way in ways:
        other, found = gradient(weights, objective, lists, **way)  # type: ignore[arg-type]
        assert other == pytest.approx(value, rel=1e-5), way
        assert (found - whole).norm() <= 1e-4 * whole.norm(), way


def test_a_piece_holds_at_most_so_many_tokens() -> None:
    lists = [[Question((Asked((1,) * n),), (1.0,))] for n in (3, 4, 5, 20, 2)]
    found = [[len(q.sequences[0].prompt) for each in part for q in each] for part in pieces(lists, 8)]
    assert found == [[3, 4], [5], [20], [2]]
    assert [len(part) for part in pieces(lists, None)] == [5]


class Fixed:
    """A run whose logits are given: `[count, V]` for each sequence."""

    device = CPU

    def __init__(self, *logits: Tensor) -> None:
        self._logits = logits

    def logits(self, sequences: list[Asked]) -> list[Tensor]:
        assert len(sequences) == len(self._logits)
        return list(self._logits)


def log_softmax(row: list[float], i: int) -> float:
    return row[i] - math.log(sum(map(math.exp, row)))


ROWS = [[1.0, 3.0, 0.5, -1.0], [0.2, 0.1, 2.0, 0.0], [0.0, 1.0, 0.0, 0.3], [0.7, -0.5, 0.1, 1.1]]
# tokens 0, 1, 2 are identifiers A, B, C; the teacher's order is C, A, B; written are C, 3, A and 3
ASKED = Asked((9,), labels=(0, 1, 2), targets=(2, 3, 0, 3), ranks=(1, 0, 2, 0))
LABELS = (2.0, 1.0, 3.0)


def objective(write: float, rank: float, **more: object) -> Objective:
    loss: Callable[..., Tensor] = load_loss("weighted_ranknet", reduction="none")
    return Objective(Identifier(kind="identifier"), loss, rank, write, **more)  # type: ignore[arg-type]


def rank_loss() -> float:
    """FIRST, equation 4: the scores are the identifiers' logits at the first written position."""
    s, teacher = ROWS[0], {2: 1, 0: 2, 1: 3}
    terms = [
        1 / (teacher[i] + teacher[j]) * math.log(1 + math.exp(s[j] - s[i]))
        for i in teacher for j in teacher if teacher[i] < teacher[j]
    ]  # fmt: skip
    return sum(terms) / len(terms)


def test_the_loss_of_first_is_its_formula() -> None:
    question = Question((ASKED,), LABELS)
    lm = -sum(log_softmax(row, t) for row, t in zip(ROWS, ASKED.targets, strict=True)) / 4
    found = objective(1.0, 10.0).loss([[question]], Fixed(torch.tensor(ROWS)))  # type: ignore[arg-type]
    assert found.item() == pytest.approx(lm + 10 * rank_loss(), rel=1e-5)
    lm_only = objective(0.5, 1.0).loss([[question]], Fixed(torch.tensor(ROWS)))  # type: ignore[arg-type]
    assert lm_only.item() == pytest.approx(0.5 * lm + rank_loss(), rel=1e-5)


def test_importance_weighs_identifiers_by_rank_and_separators_alike() -> None:
    weights = [1 + 1 / math.log2(2), 0.25, 1 + 1 / math.log2(3), 0.25]
    lm = -sum(w * log_softmax(row, t) for w, row, t in zip(weights, ROWS, ASKED.targets, strict=True)) / 4
    made = objective(1.0, 1.0, importance=True, separators=0.25)
    found = made.loss([[Question((ASKED,), LABELS)]], Fixed(torch.tensor(ROWS)))  # type: ignore[arg-type]
    assert found.item() == pytest.approx(lm + rank_loss(), rel=1e-5)


def test_a_list_weighs_what_its_weight_says_and_its_questions_alike() -> None:
    short = Asked((9,), labels=(0, 1))
    first, second = torch.tensor(ROWS[:1]), torch.tensor(ROWS[1:2])
    lists = [
        [Question((short,), (1.0, 0.0), 0.5), Question((short,), (0.0, 1.0), 0.5)],
        [Question((short,), (1.0, 0.0))],
    ]
    ranknet = Objective(Identifier(kind="identifier"), load_loss("ranknet", reduction="none"))
    found = ranknet.loss(lists, Fixed(first, second, second))  # type: ignore[arg-type]
    logistic = [math.log(1 + math.exp(b - a)) for a, b in ((1.0, 3.0), (0.1, 0.2), (0.2, 0.1))]
    assert found.item() == pytest.approx(0.5 * (logistic[0] + logistic[1]) / 2 + logistic[2], rel=1e-5)
