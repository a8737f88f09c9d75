"""`rerank train`: what is printed, and where things go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Cli
from training import recipe, save_recipe

from rerank.cli import train as module
from rerank.cli.train import Steps
from rerank.training.trainer import Moment


def test_a_run_in_a_pipe(
    tiny_model: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """A few lines, no bar, nothing of transformers'; the folder is runs/ and the name unless given."""
    monkeypatch.chdir(tmp_path)
    adapter = {"method": "rslora", "r": 8, "compress": 2}
    evaluation = {"dataset": "lists.jsonl", "every": 1, "queries": 4}
    path = save_recipe(tmp_path, recipe(tiny_model, adapter=adapter, evaluation=evaluation, schedule={"lists": 16}))
    done = cli("train", path)
    assert done.status == 0, done.err
    told = json.loads(Path("runs/toy/result.json").read_text())
    summary, share, *files = done.out.splitlines()
    assert summary.startswith(f"2 steps, loss {told['loss']:.4f}, nDCG@10 {told['nDCG@10']:.4f}, ")
    assert share == f"rank 2 keeps {told['kept']:.1%} of the adapter"
    assert files == ["runs/toy/adapter", "runs/toy/curve.png"] and all(Path(file).exists() for file in files)
    assert done.err.splitlines() == ["lists.jsonl: 24 of 24 queries; dropped: none"]
    assert not [str(w.message) for w in recwarn if "transformers" in w.filename or "peft" in w.filename]
    again = cli("train", path)
    assert again.out == done.out
    assert again.err == "runs/toy is finished; give --fresh to train it anew\n"
    other = cli("train", path, "--fresh", "--out", "elsewhere", "--check")
    assert other.out == f"{path}: a sound recipe: toy, pointwise, 1 source\n"
    assert not Path("elsewhere").exists()


def test_another_process_says_nothing(
    tiny_model: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds the run finished, as the first would."""
    path = save_recipe(tmp_path, recipe(tiny_model, schedule={"lists": 8}))
    assert cli("train", path, "--out", tmp_path / "out").out.startswith("1 step, loss ")
    monkeypatch.setenv("RANK", "1")
    done = cli("train", path, "--out", tmp_path / "out")
    assert (done.status, done.out) == (0, "")


def test_progress_in_a_pipe_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 10.0, 40.0, 75.0, 80.0, 140.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    with Steps("toy", "nDCG@10") as steps:
        steps.show(Moment(20, 1000, resumed=20))  # loading took 10 s, which do not count
        steps.show(Moment(21, 1000, 0.7, tokens_per_s=900, resumed=20))
        steps.show(Moment(23, 1000, 0.5, 0.25, 0.75, 1234.5, resumed=20))
        steps.show(Moment(24, 1000, 0.5, 0.25, 0.75, 1234.5, resumed=20))
        steps.show(Moment(30, 1000, 0.4, 0.25, 0.75, 1234.5, resumed=20))
    first, second = capsys.readouterr().err.splitlines()
    seen = "nDCG@10 0.2500 (best 0.7500), 1,234 tokens/s"
    assert first == f"23/1,000 steps, loss 0.5000, {seen}, {left(65 / 3 * 977)} left"
    assert second == f"30/1,000 steps, loss 0.4000, {seen}, {left(130 / 10 * 970)} left"


def left(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
