"""A toy to train on, and a short training run of it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rerank.training.output import Trained
from rerank.training.train import train
from rerank.training.trainer import Moment, Watch

TOPICS = ("flea", "bone", "tea", "moon", "river", "stone")


def save_lists(path: Path, *, queries: int = 24, size: int = 5) -> Path:
    """Lists with one relevant passage, which says so."""
    drawn = random.Random(0)
    lines = []
    for i in range(queries):
        topic = TOPICS[i % len(TOPICS)]
        docs = [
            {"docid": f"{i}-{j}", "text": f"bad {topic} {drawn.choice(TOPICS)}", "label": 0} for j in range(size - 1)
        ]
        docs.append({"docid": f"{i}-best", "text": f"good {topic}", "label": 1})
        drawn.shuffle(docs)
        lines.append(json.dumps({"qid": f"q{i}", "query": f"what about {topic}", "docs": docs}) + "\n")
    path.write_text("".join(lines))
    return path


LOSSES = {"pairwise": "ranknet", "first": "weighted_ranknet", "full-ranking": None}


def recipe(model: Path, strategy: str = "pointwise", **changes: object) -> dict[str, object]:
    """Eight lists a step, in float32; `changes` take the place of whole keys, of `schedule` of single ones."""
    schedule = {"lists": 32, "batch": 8, "learning_rate": 1e-2, "warmup": 0} | changes.pop("schedule", {})
    made = {
        "name": "toy",
        "model": str(model),
        "strategy": strategy,
        "loss": LOSSES.get(strategy, "softmax"),
        "data": [{"dataset": "lists.jsonl", "size": 4}],
        "adapter": {"method": "lora", "r": 8},
        "dtype": "float32",
        "schedule": schedule,
    } | changes
    return {key: value for key, value in made.items() if value is not None}


def save_recipe(folder: Path, made: dict[str, object], name: str = "toy.yaml") -> Path:
    if not (folder / "lists.jsonl").exists():
        save_lists(folder / "lists.jsonl")
    (folder / name).write_text(yaml.safe_dump(made))
    return folder / name


def trained(folder: Path, made: dict[str, object], out: str = "out") -> Trained:
    return train(save_recipe(folder, made), folder / out)


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in curve(out) if "loss" in line]


def curve(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]


class Stopped(Exception):
    pass


def stop_at(step: int) -> Watch:
    def watch(moment: Moment) -> None:
        if moment.step == step:
            raise Stopped

    return watch


def weights(out: Path) -> dict[str, torch.Tensor]:
    folder = out / "adapter" if (out / "adapter").is_dir() else out / "model"
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def assert_same(one: Path, other: Path) -> None:
    assert [line["step"] for line in curve(one)] == [line["step"] for line in curve(other)]
    assert losses(one) == pytest.approx(losses(other), abs=1e-5)
    expected = weights(other)
    for name, value in weights(one).items():
        assert torch.allclose(value, expected[name], atol=1e-5), name
