"""Training by policy gradient: what is drawn depends on the list alone, and the utility rises."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch
import yaml
from training import Stopped, assert_same, curve, losses, recipe, stop_at, trained

from rerank.losses import load_loss
from rerank.losses.policy import expected_utility
from rerank.prompts.answers import Identifier
from rerank.training.forward import Objective
from rerank.training.gauges import UTILITY, Draws, Gauges
from rerank.training.objectives import Asked, Question
from rerank.training.recipe import Recipe
from rerank.training.train import train

CPU = torch.device("cpu")
DOCS = Path(__file__).parents[1] / "docs"
LOSS = {"name": "pg_rank", "samples": 16}


def test_a_killed_run_draws_the_same_and_the_curve_has_the_utility(tiny_model: Path, tmp_path: Path) -> None:
    made = recipe(tiny_model, "setwise", loss=LOSS, schedule={"lists": 48, "save_every": 3})
    trained(tmp_path, made, "whole")
    lines = curve(tmp_path / "whole")
    assert [line["utility"] for line in lines] == pytest.approx([1 - line["loss"] for line in lines], abs=1e-6)
    with pytest.raises(Stopped):
        train(tmp_path / "toy.yaml", tmp_path / "stopped", watch=stop_at(4))
    train(tmp_path / "toy.yaml", tmp_path / "stopped")
    assert_same(tmp_path / "stopped", tmp_path / "whole")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert [line["utility"] for line in curve(tmp_path / "stopped")] == [line["utility"] for line in lines]


def test_the_utility_rises(tiny_model: Path, tmp_path: Path) -> None:
    loss = LOSS | {"measure": "RR", "entropy": 0.01, "reward_to_go": True}
    result = trained(tmp_path, recipe(tiny_model, loss=loss, schedule={"lists": 96}))
    found = [line["utility"] for line in curve(tmp_path / "out")]
    assert mean(found[-3:]) > mean(found[:3]) + 0.15
    assert result.gauges == {"utility": found[-1]}


class Fixed:
    device = CPU

    def __init__(self, *logits: torch.Tensor) -> None:
        self._logits = logits

    def logits(self, sequences: list[Asked]) -> list[torch.Tensor]:
        return list(self._logits)


ROWS = [
    torch.tensor([[0.3, -1.0, 0.5, 0.1]]),
    torch.tensor([[1.0, 0.2, -0.5, 0.9]]),
    torch.tensor([[0.0, 0.4, 0.1, 1.0]]),
]
LISTS = [
    [Question((Asked((9,), labels=(0, 1, 2, 3)),), (2.0, 0.0, 1.0, 0.0), index=7)],
    [
        Question((Asked((9,), labels=(0, 1)),), (0.0, 1.0), index=8),
        Question((Asked((9,), (1, 0)),), (1.0, 0.0), index=8),
    ],
]


def made(seed: int) -> Objective:
    draws = Draws(seed)
    gauges = Gauges({UTILITY: lambda s, y, m, _: expected_utility(s, y, m, samples=4, generator=draws.generator)})
    loss = load_loss("pg_rank", samples=4, reduction="none", generator=draws.generator)
    return Objective(Identifier(kind="identifier"), loss, draws=draws, gauges=gauges)


def test_a_list_is_given_the_same_draws_however_the_batch_is_cut() -> None:
    aim = made(3)
    whole = aim.loss(LISTS, Fixed(*ROWS)).item()  # type: ignore[arg-type]
    told = aim.gauges.told(lambda sums: sums)
    parts = [aim.loss(LISTS[1:], Fixed(*ROWS[1:])).item(), aim.loss(LISTS[:1], Fixed(ROWS[0])).item()]  # type: ignore[arg-type]
    assert whole == pytest.approx(sum(parts), rel=1e-6)
    assert aim.gauges.told(lambda sums: sums) == pytest.approx(told)
    assert aim.gauges.told(lambda sums: sums) == {}
    other = [[replace(question, index=9) for question in each] for each in LISTS]
    found = {
        made(3).loss(LISTS, Fixed(*ROWS)).item(),  # type: ignore[arg-type]
        made(4).loss(LISTS, Fixed(*ROWS)).item(),  # type: ignore[arg-type]
        made(3).loss(other, Fixed(*ROWS)).item(),  # type: ignore[arg-type]
    }
    assert whole in found and len(found) == 3  # other draws with another seed, and at another place


@pytest.mark.parametrize("path", sorted((DOCS / "policy").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_were_run_are_sound(path: Path) -> None:
    read = Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert read.asked.answer.kind in ("likelihood", "permutation")
    if read.start is not None and read.start.startswith("work/"):  # what another of these recipes makes
        assert (path.parent / f"{Path(read.start).parts[1]}.yaml").is_file()
    elif read.start is not None:
        assert (path.parent / read.start / "adapter_config.json").is_file()


@pytest.mark.parametrize("page", ["policy-gradient.md", "preferences.md"])
def test_the_pages_show_recipes(page: str) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        Recipe.model_validate({"name": "shown", "data": [{"dataset": "lists.jsonl"}]} | yaml.safe_load(block))
