"""Our trainer's step beside the plain loop, on a tiny model: both do the same, and wrong is told before it is timed."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from command import Cli, assert_error
from training import losses, recipe, save_recipe, trained

from rerank.bench.training import OURS, PLAIN, UNSHARED, compare
from rerank.errors import BackboneError
from rerank.training.forward import Run

PASSAGES = 4
SCHEDULE = {"lists": 8, "batch": 4, "batch_tokens": 1200}


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_command_adds_up(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    toy = save_recipe(tmp_path, recipe(tiny_model, schedule=SCHEDULE))
    arguments = ["--steps", 2, "--rounds", 3, "--threads", 1, "--json", tmp_path / "figures.json"]
    done = cli("bench", "training", toy, *arguments)
    assert done.status == 0, done
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["machine"]["threads"] == 1
    assert (found["steps"], found["rounds"], found["batch"], found["lists"]) == (2, 3, 4, 24)
    assert found["prompts"] == 24 * PASSAGES
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == [OURS, UNSHARED, PLAIN]
    for name, row in rows.items():
        assert len(row["seconds"]) == 3
        quotients = [other / own for own, other in zip(row["seconds"], rows[PLAIN]["seconds"], strict=True)]
        assert row["times"] == pytest.approx(median(quotients))
        rates = [found["tokens"] / 3 / own for own in row["seconds"]]
        assert row["tokens_per_second"] == pytest.approx(median(rates), rel=0.1)  # rounds differ a little in tokens
        assert f"{name} " in done.out
    assert rows[OURS]["computed"] < rows[UNSHARED]["computed"] == 1 < rows[PLAIN]["computed"]


@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        ("pointwise", {}),
        ("pointwise", {"prompt": "pointwise-query-likelihood", "loss": "ranknet"}),
        ("first", {"write": {"factor": 0.5}}),
        ("pointwise", {"adapter": "full", "schedule": {**SCHEDULE, "learning_rate": 1e-3}}),
    ],
)
def test_all_take_the_steps_of_training(tiny_model: Path, tmp_path: Path, strategy: str, more: Any) -> None:
    """Of two steps on the same lists the first loss is the curve's, and the second is what one step makes of it."""
    made = recipe(tiny_model, strategy, **{"schedule": SCHEDULE, **more})
    found = compare(save_recipe(tmp_path, made), steps=1, rounds=1)
    trained(tmp_path, made)
    rows = {row.name: row for row in found.rows}
    for row in rows.values():
        assert row.loss == pytest.approx(losses(tmp_path / "out")[0], rel=1e-4)
    assert rows[PLAIN].loss_after == pytest.approx(rows[OURS].loss_after, rel=1e-3)
    assert rows[PLAIN].loss_after < 0.99 * rows[PLAIN].loss


def test_they_take_turns_on_other_lists(tiny_model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    toy = save_recipe(tmp_path, recipe(tiny_model, schedule=SCHEDULE))
    compare(toy, steps=1, rounds=3, say=said.append)
    turns = [line.partition(": ")[2] for line in said if line.startswith("round")]
    order = [OURS, UNSHARED, PLAIN]
    assert turns == order + order[1:] + order[:1] + order[2:] + order[:2]


def test_a_loop_that_computes_something_else_is_told(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here one that looks at its padding."""
    real = Run._padded
    monkeypatch.setattr(Run, "_padded", lambda *a, **k: (real(*a, **k)[0], torch.ones_like(real(*a, **k)[1])))
    toy = save_recipe(tmp_path, recipe(tiny_model, schedule=SCHEDULE))
    with pytest.raises(BackboneError, match=r"before a step the loss of 'rerank' is .* do not compute the same"):
        compare(toy, steps=1, rounds=1)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"adapter": "pissa"}, "adapter pissa is not one of full, lora"),
        ({"schedule": {"neftune": 5.0}}, "neftune adds noise; take it out to compare"),
        ({"schedule": {"gradient_checkpointing": True}}, "gradient_checkpointing is set"),
        ({"schedule": {"optimizer": "adafactor"}}, "optimizer adafactor is not adamw_torch"),
        ({"strategy": "score-head"}, "a score-head is trained on padded sequences by us too"),
        ({"prefix_reuse": False}, "prefix_reuse is switched off"),
    ],
)
def test_what_the_plain_loop_has_not_is_refused(
    cli: Cli, tiny_model: Path, tmp_path: Path, more: dict[str, object], told: str
) -> None:
    toy = save_recipe(tmp_path, recipe(tiny_model, **more))
    assert_error(cli("bench", "training", toy), told)


def test_a_json_that_cannot_be_written_is_told_at_once(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    toy = save_recipe(tmp_path, recipe(tiny_model))
    assert_error(cli("bench", "training", toy, "--json", tmp_path / "no" / "f.json"), "there is no such folder")
