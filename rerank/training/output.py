"""The output folder of a training run: whose it is, and what came out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rerank.errors import InputError
from rerank.training.parts import Part
from rerank.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out. `loss` is the mean of the last logged steps; `measure` the development set's, of the weights that
    were kept; `kept` the share of the adapter that its compression left; `tokens_per_s` while steps were computed;
    `gauges` what else was told of the last logged steps, by name."""

    folder: Path
    steps: int
    loss: float | None
    measure: float | None
    kept: float
    tokens_per_s: float
    gauges: Mapping[str, float] = field(default_factory=dict)


def claim(out: Path, recipe: Part, fresh: bool) -> None:
    """Makes the output folder this recipe's; of several processes the first does. Only a folder of ours is emptied,
    and without being asked only one where nothing was trained yet."""
    if os.environ.get("RANK", "0") != "0":
        return
    text = json.dumps(recipe.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
    file = out / "recipe.json"
    if file.is_file():
        old, new = json.loads(file.read_text(encoding="utf-8")), json.loads(text)
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if changed and not fresh and ((out / "result.json").is_file() or any(out.glob("checkpoint-*"))):
            raise InputError(
                f"{out} holds a run of another recipe (they differ in {', '.join(changed)}); give another --out, or "
                "--fresh to begin anew"
            )
        if changed or fresh:
            shutil.rmtree(out)
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no training run; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def finished(out: Path, recipe: Recipe) -> Trained | None:
    """What came out, where all is done."""
    folder = out / ("model" if recipe.whole else "adapter")
    if not (out / "result.json").is_file() or not folder.is_dir():
        return None
    told = json.loads((out / "result.json").read_text(encoding="utf-8"))
    measure = told[recipe.evaluation.measure] if recipe.evaluation is not None else None
    return Trained(
        folder, told["steps"], told["loss"], measure, told["kept"], told["tokens_per_s"], told.get("gauges", {})
    )


def record(out: Path, result: Trained, measure: str) -> None:
    """Says in the folder that all is done."""
    told: dict[str, object] = {"steps": result.steps, "loss": result.loss, measure: result.measure}
    told |= {"kept": result.kept, "tokens_per_s": result.tokens_per_s, "gauges": dict(result.gauges)}
    (out / "result.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
