"""A run that was stopped goes on as if it had not been; a folder of another run is left alone."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from training import Stopped, assert_same, curve, losses, recipe, save_recipe, stop_at, trained

from rerank.errors import InputError
from rerank.training import train as module
from rerank.training.train import train
from rerank.training.trainer import Moment, last_checkpoint, read_curve

KILLED_AT = """
import os, signal, sys
from rerank.training.train import train
train(sys.argv[1], sys.argv[2], watch=lambda m: os.kill(os.getpid(), signal.SIGKILL) if m.step == 5 else None)
"""
RANDOM = {"method": "lora", "r": 8, "lora_dropout": 0.2}  # so that random numbers count


def test_a_killed_run_goes_on_at_the_same_loss(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = {"lists": 64, "save_every": 2, "neftune": 1.0}
    evaluation = {"dataset": "lists.jsonl", "every": 2, "queries": 4}
    made = recipe(tiny_model, adapter=RANDOM, schedule=schedule | {"save_every": None}, evaluation=evaluation)
    trained(tmp_path, made, "whole")
    command = [sys.executable, "-c", KILLED_AT, tmp_path / "toy.yaml", tmp_path / "killed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    out = tmp_path / "killed"
    assert losses(out) == pytest.approx(losses(tmp_path / "whole")[:4], abs=1e-5)  # the fifth was not written yet
    with (out / "curve.jsonl").open("a") as stream:
        stream.write('{"step": 5, "loss": 9.0}\n{"step": 6, "lo')  # and a line that the kill cut off
    half = out / "checkpoint-6"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half of it")
    told: list[Moment] = []
    with caplog.at_level(logging.INFO, logger="rerank"):
        train(tmp_path / "toy.yaml", out, watch=told.append)
    assert "checkpoint-6 is not whole" in caplog.text and "going on from checkpoint-4" in caplog.text
    assert told[0].step == told[0].resumed == 4
    assert_same(out, tmp_path / "whole")


@pytest.mark.parametrize(
    "adapter",
    [
        {"method": "adalora", "init_r": 6, "target_r": 2, "deltaT": 1, "tfinal": 2},
        {"method": "pissa", "r": 4},
        "full",
    ],
    ids=str,
)
def test_every_kind_of_adapter_resumes(tiny_model: Path, tmp_path: Path, adapter: Any) -> None:
    made = recipe(tiny_model, adapter=adapter, schedule={"lists": 48, "save_every": 3})
    trained(tmp_path, made, "whole")
    with pytest.raises(Stopped):
        train(tmp_path / "toy.yaml", tmp_path / "stopped", watch=stop_at(4))
    train(tmp_path / "toy.yaml", tmp_path / "stopped")
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_patience_goes_on_too(tiny_model: Path, tmp_path: Path) -> None:
    evaluation = {"dataset": "lists.jsonl", "every": 1, "measure": "RR", "patience": 3}
    schedule = {"lists": 160, "learning_rate": 0.2, "decay": "constant"}
    trained(tmp_path, recipe(tiny_model, evaluation=evaluation, schedule=schedule), "whole")
    end = curve(tmp_path / "whole")[-1]["step"]
    with pytest.raises(Stopped):
        train(tmp_path / "toy.yaml", tmp_path / "stopped", watch=stop_at(int(end)))
    train(tmp_path / "toy.yaml", tmp_path / "stopped")
    assert curve(tmp_path / "stopped") == [
        line | {"tokens_per_s": other["tokens_per_s"]} if "loss" in line else line
        for line, other in zip(curve(tmp_path / "whole"), curve(tmp_path / "stopped"), strict=True)
    ]


def test_logs_fall_on_checkpoints(tiny_model: Path, tmp_path: Path) -> None:
    """Else the first loss after a resume would be the mean over other steps than it was."""
    made = recipe(tiny_model, schedule={"lists": 40, "batch": 1, "save_every": 5, "learning_rate": 1e-3})
    trained(tmp_path, made, "whole")
    assert [line["step"] for line in curve(tmp_path / "whole")][:4] == [1, 2, 3, 4]  # a twentieth would be 2
    with pytest.raises(Stopped):
        train(tmp_path / "toy.yaml", tmp_path / "stopped", watch=stop_at(7))
    train(tmp_path / "toy.yaml", tmp_path / "stopped")
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_a_folder_of_another_recipe_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    small = {"lists": 8}
    trained(tmp_path, recipe(tiny_model, schedule=small))
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    changed = recipe(tiny_model, schedule=small, seed=3, loss="ranknet")
    with pytest.raises(InputError, match=r"another recipe \(they differ in loss, seed\); .*--fresh"):
        trained(tmp_path, changed)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    assert train(save_recipe(tmp_path, changed), tmp_path / "out", fresh=True).steps == 1
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["seed"] == 3
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(InputError, match="is not empty and holds no training run"):
            train(tmp_path / "toy.yaml", tmp_path / "full", fresh=fresh)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_a_mistake_can_be_mended_in_the_same_folder(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that failed before its first checkpoint does not lay claim to its folder."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_pools", lambda *_: (_ for _ in ()).throw(InputError("no query is left")))
        with pytest.raises(InputError, match="no query is left"):
            trained(tmp_path, recipe(tiny_model, seed=1))
    assert trained(tmp_path, recipe(tiny_model, seed=2, schedule={"lists": 8})).steps == 1


def test_the_curve_is_drawn_and_in_tensorboard(tiny_model: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    evaluation = {"dataset": "lists.jsonl", "every": 2, "queries": 4}
    trained(tmp_path, recipe(tiny_model, evaluation=evaluation))
    picture = matplotlib.image.imread(tmp_path / "out" / "curve.png")
    assert picture.shape[:2] == (540, 960)
    colours = {tuple(round(float(c) * 255) for c in pixel[:3]) for row in picture[::2] for pixel in row[::2]}
    assert {(0x4C, 0x72, 0xB0), (0xC4, 0x4E, 0x52)} <= colours  # the lines of the loss and of the measure
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses(tmp_path / "out"))
    assert [event.step for event in events.Scalars("eval/nDCG@10")] == [2, 4]
    told = json.loads((tmp_path / "out" / "result.json").read_text())
    assert told["loss"] == losses(tmp_path / "out")[-1]
    assert told["nDCG@10"] == max(line["measure"] for line in curve(tmp_path / "out") if "measure" in line)


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for number, state in ((8, "{}"), (10, "{}"), (12, '{"global_'), (14, None)):
        (tmp_path / f"checkpoint-{number}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-8"]


def test_a_curve_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    assert read_curve(tmp_path / "curve.jsonl") == []
    (tmp_path / "curve.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_curve(tmp_path / "curve.jsonl") == [{"step": 1, "loss": 2.0}]
