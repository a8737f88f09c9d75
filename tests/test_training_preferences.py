"""Log-ratios to a reference: what they are for each kind of answer, and that the reference stays what it was."""

from __future__ import annotations

import random
from itertools import pairwise
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import save_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from training import Stopped, assert_same, curve, recipe, save_recipe, stop_at, trained

from rerank.backbones.transformers_ import load_weights
from rerank.losses import load_loss
from rerank.prompts import load_prompt
from rerank.prompts.answers import AnswerSpec, Binary, Graded, Identifier, Likelihood, Permutation
from rerank.training.forward import Objective, Run
from rerank.training.mixture import Mixture
from rerank.training.objectives import Asked, Asker, Question
from rerank.training.preferences import RankingsPart
from rerank.training.recipe import PROMPTS, Recipe, read_recipe
from rerank.training.reference import Beginning, Reference, idealised_accuracy, ranking_accuracy
from rerank.training.session import Session
from rerank.training.sources import read_pools
from rerank.training.train import train
from rerank.training.trainer import Examples, pieces

CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {
    "pointwise": {},
    "graded": {"strategy": "pointwise", "prompt": "pointwise-graded"},
    "likelihood": {"strategy": "pointwise", "prompt": "pointwise-query-likelihood"},
    "pairwise": {},
    "setwise": {},
    "first": {},
    "full-ranking": {"rankings": {"count": 4, "spread": 3.0}},
    "permutation": {"strategy": "full-ranking", "prompt": "first-query-last-permutation", "rankings": {}},
}


# what is compared


class Given:
    """Logits that are given, in place of a model and of its reference."""

    device, beta = CPU, 0.5

    def __init__(self, own: list[Tensor], before: list[Tensor], *, mean: bool = False) -> None:
        self.own, self.before, self.mean = own, before, mean

    def logits(self, sequences: list[Asked], run: object = None) -> list[Tensor]:
        return self.own if run is None else self.before


def given_loss(answer: AnswerSpec, question: Question, own: list[Tensor], before: list[Tensor], **how: bool) -> float:
    run = Given(own, before, **how)
    made = Objective(answer, load_loss("mse", reduction="none"), reference=run)  # type: ignore[arg-type]
    return made.loss([[question]], run).item()  # type: ignore[arg-type]


def log_of(row: list[float], i: int, among: list[int] | None = None) -> float:
    return row[i] - log(sum(exp(row[j]) for j in (among or range(len(row)))))


NEW, OLD = [[1.0, 3.0, 0.5, -1.0], [0.2, 0.1, 2.0, 0.0]], [[0.5, 1.0, 0.0, 1.0], [0.3, -0.1, 1.0, 0.4]]
LOGITS, BEFORE = [torch.tensor([row]) for row in NEW], [torch.tensor([row]) for row in OLD]


def expected(ratios: list[float], labels: tuple[float, ...] = (1.0, 0.0)) -> Any:
    return pytest.approx(sum((0.5 * r - y) ** 2 for r, y in zip(ratios, labels, strict=True)) / len(labels), rel=1e-5)


def test_the_answer_yes_is_compared() -> None:
    question = Question((Asked((9,), (2, 0)), Asked((9,), (2, 0))), (1.0, 0.0))
    answer = Binary(kind="binary", positive="Yes", negative="No")
    ratios = [log_of(new, 2, [0, 2]) - log_of(old, 2, [0, 2]) for new, old in zip(NEW, OLD, strict=True)]
    assert given_loss(answer, question, LOGITS, BEFORE) == expected(ratios)


def test_a_grade_is_a_share_of_the_highest() -> None:
    def share(row: list[float]) -> float:
        return log(sum(exp(log_of(row, i, [0, 1, 2])) * grade / 2 for i, grade in enumerate((0, 1, 2))))

    question = Question((Asked((9,), (0, 1, 2)), Asked((9,), (0, 1, 2))), (1.0, 0.0))
    answer = Graded(kind="graded", grades={"a": 0.0, "b": 1.0, "c": 2.0})
    ratios = [share(new) - share(old) for new, old in zip(NEW, OLD, strict=True)]
    assert given_loss(answer, question, LOGITS, BEFORE) == expected(ratios)


def test_a_letter_is_among_the_letters() -> None:
    question = Question((Asked((9,), (3, 1)),), (1.0, 0.0))
    ratios = [log_of(NEW[0], i, [1, 3]) - log_of(OLD[0], i, [1, 3]) for i in (3, 1)]
    assert given_loss(Identifier(kind="identifier"), question, LOGITS[:1], BEFORE[:1]) == expected(ratios)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(
    "answer", [Likelihood(kind="likelihood"), Permutation(kind="permutation", tokens_per_item=6)], ids=lambda a: a.kind
)
def test_a_text_is_the_sum_or_the_mean_over_its_tokens(answer: AnswerSpec, mean: bool) -> None:
    question = Question((Asked((9,), (), (1, 2)), Asked((9,), (), (3,))), (1.0, 0.0))
    own, before = [torch.tensor(NEW), torch.tensor(NEW[:1])], [torch.tensor(OLD), torch.tensor(OLD[:1])]
    first = log_of(NEW[0], 1) + log_of(NEW[1], 2) - log_of(OLD[0], 1) - log_of(OLD[1], 2)
    ratios = [first / (2 if mean else 1), log_of(NEW[0], 3) - log_of(OLD[0], 3)]
    assert given_loss(answer, question, own, before, mean=mean) == expected(ratios)


# rankings as candidates


def test_rankings_are_drawn_around_the_labels() -> None:
    labels = (0.0, 3.0, 1.0, 0.0, 2.0)
    part = RankingsPart(count=6, spread=4.0)
    found = part.draw(labels, random.Random(1))
    assert found[0] == (1, 4, 2, 0, 3)
    assert len(set(found)) == len(found) == 6
    assert all(sorted(ranking) == [0, 1, 2, 3, 4] for ranking in found)
    assert part.draw(labels, random.Random(1)) == found != part.draw(labels, random.Random(2))
    assert len(RankingsPart(count=6).draw((1.0, 0.0), random.Random(0))) == 2  # there are no more

    def far(spread: float) -> float:
        """How many pairs the last of three rankings has in another order than the labels, on the mean."""
        last = [RankingsPart(count=3, spread=spread).draw(labels, random.Random(i))[-1] for i in range(200)]
        return sum(labels[a] < labels[b] for r in last for n, a in enumerate(r) for b in r[n + 1 :]) / 200

    assert far(0.3) < far(1.0) < far(3.0)


def examples(folder: Path, model: Path, kind: str, **more: object) -> tuple[Recipe, Examples, Any]:
    """The recipe, its lists as questions, and the model with an adapter that does something."""
    options = {"strategy": kind, "loss": "ranknet", "reference": {}} | KINDS[kind] | more
    made = read_recipe(save_recipe(folder, recipe(model, options.pop("strategy"), **options)))
    weights = load_weights("tiny", str(model), CPU, torch.float32)
    mixture = Mixture([(source, read_pools(source, folder)) for source in made.data], seed=3, total=4)
    prompt = load_prompt(made.prompt or PROMPTS[made.strategy])
    asker = Asker(prompt, weights.encoder, None, write=made.rankings is not None, rankings=made.rankings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights.peft = get_peft_model(weights.model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    return made, Examples(mixture, made.strategy, asker), weights


def test_rankings_are_written_and_measured(tiny_model: Path, tmp_path: Path) -> None:
    _, lists, weights = examples(tmp_path, tiny_model, "full-ranking")
    (question,) = lists[2]
    texts = [weights.encoder.tokenizer.decode(asked.targets) for asked in question.sequences]
    assert len({asked.prompt for asked in question.sequences}) == 1
    assert len(set(texts)) == len(texts) == 4
    item = lists._mixture[2]
    for text, label in zip(texts, question.labels, strict=True):
        order = [int(piece) for piece in text.removesuffix("<|im_end|>").strip("[]").split("] > [")]
        assert sorted(order) == [1, 2, 3, 4]
        relevant = 1 + item.labels.index(1.0)
        assert label == pytest.approx(1 / log(2 + order.index(relevant), 2))  # nDCG with one relevant passage
    assert question.labels[0] == 1 > min(question.labels)
    assert lists[2][0] == question


# the reference


def objective(made: Recipe, answer: AnswerSpec, weights: Any, loss: str = "ranknet") -> Objective:
    reference = Reference(Beginning(weights.peft), 0.1)
    return Objective(answer, load_loss(loss, reduction="none"), reference=reference)


def moved(model: PeftModel) -> None:
    """As an optimiser would leave it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))


@pytest.mark.parametrize("kind", KINDS)
def test_every_ratio_is_0_at_first_and_the_reference_is_the_model_without_its_adapter(
    tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    made, lists, weights = examples(tmp_path, tiny_model, kind)
    aim = objective(made, made.asked.answer, weights)
    run = Run(weights.peft, CPU, torch.float32, packs=True)
    questions = [list(lists[i]) for i in range(4)]
    asked = [each for one in questions for question in one for each in question.sequences]
    ordered = sum(len(set(question.labels)) > 1 for one in questions for question in one) / len(questions[0])
    assert ordered > 0
    assert aim.loss(questions, run).item() == pytest.approx(log(2) * ordered, rel=1e-6)  # each margin is exactly 0
    moved(weights.peft)
    assert aim.reference is not None
    before = aim.reference.logits(asked, run)
    assert not any(row.requires_grad for row in before)
    with torch.no_grad(), weights.peft.disable_adapter():
        bare = run.logits(asked)
    for one, other in zip(before, bare, strict=True):
        torch.testing.assert_close(one, other)
    loss = aim.loss(questions, run)
    assert loss.item() != pytest.approx(log(2) * ordered, rel=1e-3)
    loss.backward()
    whole = gradient(weights.peft)
    assert whole.norm() > 1e-4
    weights.peft.zero_grad()
    for part in pieces(questions, 1):
        aim.loss(part, run).backward()
    torch.testing.assert_close(gradient(weights.peft), whole, rtol=1e-3, atol=1e-6)


def gradient(model: PeftModel) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_the_reference_has_no_dropout_and_leaves_the_model_as_it_was(tiny_model: Path, tmp_path: Path) -> None:
    _, lists, weights = examples(tmp_path, tiny_model, "setwise")
    model = get_peft_model(weights.peft.unload(), LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.5))
    moved(model)
    run = Run(model, CPU, torch.float32, packs=True)
    asked = list(lists[0][0].sequences)
    reference = Reference(Beginning(model), 0.1)
    model.train()
    one, other = reference.logits(asked, run)[0], reference.logits(asked, run)[0]
    assert torch.equal(one, other)
    assert model.training and all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())
    assert not torch.equal(run.logits(asked)[0], run.logits(asked)[0])


# how many preferences are in order


def test_ranking_accuracy_and_what_it_could_be() -> None:
    before = torch.tensor([[-4.0, -2.0, -3.0], [-1.0, -1.0, -9.0]])
    scores = torch.tensor([[0.3, 0.0, 0.2], [0.0, 0.0, 9.0]])  # 0.1 times the log-ratios
    labels = torch.tensor([[2.0, 1.0, 0.0], [1.0, 0.0, 3.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    told, pairs = ranking_accuracy(scores, labels, mask, before, beta=0.1)
    # now -1, -2, -1: the first pair is in order, the second tied, the third not; the second list's only pair is tied
    assert told.tolist() == pytest.approx([1.5 / 3, 0.5]) and pairs.tolist() == [3.0, 1.0]
    told, _ = idealised_accuracy(scores, labels, mask, before, beta=0.6)
    # margins -2 + 1/.6, -1 + 2/.6 and 1 + 1/.6; 0 + 1/.6
    assert told.tolist() == pytest.approx([2 / 3, 1.0])
    alpha = [1 / (1 + exp(-margin)) for margin in (1.0, 2.0, 1.0)]
    ratios = [exp(r) * (a / (1 - a)) ** (1 / 0.6) for r, a in zip((-2.0, -1.0, 1.0), alpha, strict=True)]
    assert told[0].item() == pytest.approx(sum(ratio > 1 for ratio in ratios) / 3)  # Theorem 3.1, as it is written


# whole runs


def test_rankings_are_learned(tiny_model: Path, tmp_path: Path) -> None:
    options = {"loss": "lipo_lambda", "reference": {"beta": 0.1}, "rankings": {"count": 4, "spread": 3.0}}
    result = trained(tmp_path, recipe(tiny_model, "full-ranking", **options, schedule={"lists": 96}))
    found = [line["ranking_accuracy"] for line in curve(tmp_path / "out") if "loss" in line]
    assert sum(found[-3:]) / 3 > sum(found[:3]) / 3 + 0.1
    assert result.gauges.keys() == {"ranking_accuracy", "idealised_accuracy"}
    assert result.gauges["ranking_accuracy"] == found[-1]
    assert train(tmp_path / "toy.yaml", tmp_path / "out").gauges == result.gauges


def test_the_adapter_that_training_starts_from_is_the_reference_after_a_resume_too(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_adapter(tiny_model, tmp_path / "start", seed=1, base=str(tiny_model))
    options: dict[str, Any] = {"loss": "ranknet", "reference": {"beta": 0.2}, "start": "start", "adapter": None}
    made = recipe(tiny_model, "setwise", **options, schedule={"lists": 48, "save_every": 3})
    seen: list[Reference] = []
    real = Session._reference
    monkeypatch.setattr(Session, "_reference", lambda self: seen.append(real(self)) or seen[-1])  # type: ignore[func-returns-value]
    trained(tmp_path, made, "whole")
    lines = [line for line in curve(tmp_path / "whole") if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(log(2), rel=1e-6)
    assert min(line["loss"] for line in lines) < 0.99 * log(2)
    with pytest.raises(Stopped):
        train(tmp_path / "toy.yaml", tmp_path / "stopped", watch=stop_at(4))
    train(tmp_path / "toy.yaml", tmp_path / "stopped")
    assert_same(tmp_path / "stopped", tmp_path / "whole")
    same = [[line[name] for line in curve(tmp_path / out) if "loss" in line] for out in ("whole", "stopped")
            for name in ("ranking_accuracy", "idealised_accuracy")]  # fmt: skip
    assert same[:2] == same[2:]
    for one, other in pairwise(seen):
        assert all(torch.equal(value, other.model._kept[name]) for name, value in one.model._kept.items())
