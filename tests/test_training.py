"""Training with a tiny model: every strategy learns, and what comes out ranks as the trained model did."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training import curve, losses, recipe, save_lists, trained

import rerank
from rerank.backbones.transformers_ import TransformersBackbone
from rerank.data import load_dataset
from rerank.training import development
from rerank.training.train import train
from rerank.types import Ranking


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[Ranking]]:
    """The rankings of every evaluation."""
    found: list[list[Ranking]] = []
    real = development.evaluate

    def evaluate(rankings: list[Ranking], *more: Any) -> Any:
        found.append(rankings)
        return real(rankings, *more)

    monkeypatch.setattr(development, "evaluate", evaluate)
    return found


def scores(ranking: Ranking) -> dict[str, float]:
    return {hit.passage.doc_id: hit.score for hit in ranking}


@pytest.mark.parametrize(
    ("strategy", "options", "more"),
    [
        ("pointwise", {}, {}),
        ("pointwise", {}, {"prompt": "pointwise-query-likelihood", "loss": "ranknet"}),
        ("pointwise", {}, {"prompt": "pointwise-graded", "loss": {"name": "mse", "factor": 2.0}}),
        ("pairwise", {"algorithm": "allpair", "soft": True}, {"pairs": 3}),
        ("setwise", {}, {}),
        ("first", {}, {"write": {"factor": 0.5}}),
        ("full-ranking", {}, {"write": {"importance": True, "separators": 0.5}, "passage_tokens": 50}),
    ],
    ids=lambda value: str(value.get("prompt", "")) if isinstance(value, dict) else value,
)
def test_a_strategy_learns_and_its_adapter_ranks_as_the_trained_model(
    tiny_model: Path, tmp_path: Path, seen: list[list[Ranking]], strategy: str, options: Any, more: Any
) -> None:
    evaluation = {"dataset": "lists.jsonl", "queries": 6, "every": 9, "options": options}
    made = recipe(tiny_model, strategy, evaluation=evaluation, schedule={"lists": 72}, **more)
    result = trained(tmp_path, made)
    found = losses(tmp_path / "out")
    assert len(found) == result.steps == 9
    assert mean(found[-3:]) < 0.8 * mean(found[:3])
    (last,) = seen
    options = options | {"passage_tokens": more.get("passage_tokens")}
    ranker = rerank.load(
        strategy, prompt=more.get("prompt"), model=str(tiny_model), adapter=str(result.folder), device="cpu",
        dtype="float32", **options,
    )  # fmt: skip
    requests = list(load_dataset(str(tmp_path / "lists.jsonl")).candidates())[:6]
    again = list(ranker.rank_many(requests))
    for one, other in zip(last, again, strict=True):
        assert one.doc_ids == other.doc_ids
        assert scores(one) == pytest.approx(scores(other), abs=1e-4)
    bare = list(rerank.Reranker(ranker.strategy, ranker.backbone.with_adapter(None)).rank_many(requests))
    if strategy != "full-ranking":  # what it writes cannot be read after so few steps
        assert [scores(one) for one in bare] != [scores(one) for one in again]


def test_the_best_checkpoint_is_kept(tiny_model: Path, tmp_path: Path, seen: list[list[Ranking]]) -> None:
    """The learning rate is so high that what was learned is lost again."""
    evaluation = {"dataset": "lists.jsonl", "every": 1, "measure": "RR", "patience": 3}
    schedule = {"lists": 160, "learning_rate": 0.2, "decay": "constant", "keep": 1}
    result = trained(tmp_path, recipe(tiny_model, evaluation=evaluation, schedule=schedule))
    values = [line["measure"] for line in curve(tmp_path / "out") if "measure" in line]
    best = values.index(max(values))
    assert values[-1] < values[best] == result.measure
    assert len(values) == best + 1 + 3 < 20  # stopped when its patience was at an end
    ranker = rerank.load("pointwise", model=str(tiny_model), adapter=str(result.folder), device="cpu", dtype="float32")
    again = list(ranker.rank_many([(one.query, [hit.passage for hit in one]) for one in seen[best]]))
    for one, other in zip(seen[best], again, strict=True):
        assert scores(one) == pytest.approx(scores(other), abs=1e-4)


def test_the_last_checkpoints_are_averaged(tiny_model: Path, tmp_path: Path) -> None:
    schedule = {"lists": 48, "save_every": 2, "keep": 3, "average": 3}
    result = trained(tmp_path, recipe(tiny_model, schedule=schedule))
    name = "adapter_model.safetensors"
    parts = [load_file(tmp_path / "out" / f"checkpoint-{n}" / name) for n in (2, 4, 6)]
    found = load_file(result.folder / name)
    for key, value in found.items():
        assert torch.allclose(value, sum(part[key] for part in parts) / 3, atol=1e-6)
    assert not torch.equal(found[key], parts[-1][key])


def test_an_average_that_ranks_worse_is_not_taken(tiny_model: Path, tmp_path: Path) -> None:
    evaluation = {"dataset": "lists.jsonl", "every": 1, "measure": "RR"}
    schedule = {"lists": 32, "learning_rate": 0.2, "decay": "constant", "keep": 4, "average": 4}
    result = trained(tmp_path, recipe(tiny_model, evaluation=evaluation, schedule=schedule))
    values = [line["measure"] for line in curve(tmp_path / "out") if "measure" in line]
    assert result.measure is not None and result.measure >= max(values)
    ranker = rerank.load("pointwise", model=str(tiny_model), adapter=str(result.folder), device="cpu", dtype="float32")
    dataset = load_dataset(str(tmp_path / "lists.jsonl"))
    assert dataset.qrels is not None
    from rerank.eval import evaluate

    again = evaluate(list(ranker.rank_many(dataset.candidates())), dataset.qrels, ("RR",)).mean["RR"]
    assert again == pytest.approx(result.measure)


def test_a_seed_gives_the_same_adapter_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((1, 1, 2)):
        made = recipe(tiny_model, seed=seed, adapter={"method": "lora", "lora_dropout": 0.1}, schedule={"lists": 16})
        result = trained(tmp_path, made, f"out{number}")
        found.append((result.folder / "adapter_model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


def test_a_model_that_cannot_be_packed_is_trained_as_well(tiny_model: Path, tmp_path: Path) -> None:
    """It looks back 16 tokens, which a pack does not."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=16, initializer_range=0.3, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mistral")
    tokenizer.save_pretrained(tmp_path / "mistral")
    result = trained(tmp_path, recipe(tmp_path / "mistral", "first", write={}, schedule={"lists": 72}))
    found = losses(tmp_path / "out")
    assert mean(found[-3:]) < 0.8 * mean(found[:3])
    backbone = TransformersBackbone.load(
        str(tmp_path / "mistral"), adapter=str(result.folder), device="cpu", dtype="float32"
    )
    rerank.load("first", backbone=backbone).rank("what about tea", ["good tea", "bad tea moon"])
    assert backbone.weights.packs is False


@pytest.mark.model
def test_the_embedded_model_is_trained(tmp_path: Path) -> None:
    save_lists(tmp_path / "lists.jsonl", queries=2, size=3)
    made = recipe(tmp_path, adapter={"method": "lora", "r": 2, "targets": "q_proj"}, schedule={"lists": 2, "batch": 1})
    del made["model"]
    result = trained(tmp_path, made)
    ranker = rerank.load("pointwise", adapter=str(result.folder), device="cpu", dtype="float32")
    assert "SmolLM2" in (result.folder / "adapter_config.json").read_text()
    assert len(ranker.rank("what about tea", ["good tea", "bad tea moon"])) == 2


def test_a_finished_run_is_not_done_again(tiny_model: Path, tmp_path: Path) -> None:
    made = recipe(tiny_model, schedule={"lists": 8}, evaluation={"dataset": "lists.jsonl", "every": 1, "queries": 2})
    first = trained(tmp_path, made)
    told: list[object] = []
    assert train(tmp_path / "toy.yaml", tmp_path / "out", watch=told.append) == first
    assert not told
    assert train(tmp_path / "toy.yaml", tmp_path / "out", watch=told.append, fresh=True).steps == 1
    assert told
