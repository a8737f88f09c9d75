"""Two processes do what one does, and only one of them talks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training import curve, losses, recipe, save_recipe, trained

from rerank.training.reinforce.answers import Table
from rerank.training.trainer import Counts

DRAWN = {"loss": {"name": "pg_rank", "samples": 8}, "reference": {"beta": 1.0}}


def launched(folder: Path, path: Path, out: str) -> subprocess.CompletedProcess[str]:
    """In two processes, which `accelerate launch --cpu` would not start: "multi_gpu" is its word for torchrun."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        "-m", "rerank", "train", str(path), "--out", str(folder / out),
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COLUMNS", "FORCE", "ACCELERATE"))}
    environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


def test_two_processes_train_what_one_trains(tiny_model: Path, tmp_path: Path) -> None:
    """A batch of 8 is shared as 4 and 4. Without Adam, which would make much of differences in the last bit.

    The loss samples, and compares with a reference: what is drawn, and what is told beside the loss, is the same too.
    """
    schedule = {"lists": 32, "optimizer": "sgd", "learning_rate": 1.0, "batch_tokens": 400}
    evaluation = {"dataset": "lists.jsonl", "every": 2, "queries": 4}
    made = recipe(tiny_model, "first", write={}, schedule=schedule, evaluation=evaluation, **DRAWN)
    alone = trained(tmp_path, made, "one")
    done = launched(tmp_path, tmp_path / "toy.yaml", "two")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    for name in ("utility", "ranking_accuracy", "idealised_accuracy"):
        told = [[line[name] for line in curve(tmp_path / out) if "loss" in line] for out in ("one", "two")]
        assert told[0] == pytest.approx(told[1], abs=1e-4) and len(set(told[0])) > 1
    assert {path.name for path in (tmp_path / "two" / "checkpoint-4").glob("rng*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    expected = load_file(alone.folder / "adapter_model.safetensors")
    found = load_file(tmp_path / "two" / "adapter" / "adapter_model.safetensors")
    assert max(v.abs().max() for name, v in found.items() if "lora_B" in name) > 1e-2
    for name, value in found.items():
        assert torch.allclose(value, expected[name], atol=1e-4), name
    one, two = (json.loads((tmp_path / out / "result.json").read_text()) for out in ("one", "two"))
    assert two["nDCG@10"] == pytest.approx(one["nDCG@10"], abs=1e-3)
    assert done.stdout.count("4 steps, loss") == 1
    assert done.stdout.splitlines()[1:] == [str(tmp_path / "two" / "adapter"), str(tmp_path / "two" / "curve.png")]
    said = [line for line in done.stderr.splitlines() if "lists.jsonl" in line]
    assert len(said) == 1
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr


def test_two_processes_tell_all_their_answers(tiny_model: Path, tmp_path: Path) -> None:
    """Each writes those to half of the prompts; the table has them all, as the reward of the curve has."""
    part = {"reward": "iranker", "group": 3, "beta": 0}
    made = recipe(tiny_model, "elimination", loss=None, reinforce=part, schedule={"lists": 8, "batch": 4})
    done = launched(tmp_path, save_recipe(tmp_path, made), "two")
    assert done.returncode == 0, done.stderr
    rows = Table(tmp_path / "two" / "completions.jsonl").rows()
    for step, line in enumerate(curve(tmp_path / "two"), start=1):
        own = [row for row in rows if row.step == step]
        assert len(own) == 12 and len({row.query_id for row in own}) == 4
        assert line["reward"] == pytest.approx(sum(row.reward for row in own) / 12, abs=1e-6)


def test_tokens_are_those_of_all_processes() -> None:
    counts = Counts(tokens=300, seconds=2.0)
    counts.share(lambda own: own + 500)
    assert counts.speed == 400
    counts.tokens += 300
    assert counts.speed == 800
    nothing = Counts()
    nothing.share(lambda own: own + 500)
    assert nothing.speed == 0
