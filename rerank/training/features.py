"""From a recipe of strategy `features` to a network: what `rerank train` does with feature vectors.

In the output folder lie the recipe, `checkpoint-N.pt`, `curve.jsonl` and `curve.png`, what was learnt of positions (see
`propensities`), and at the end `network`. A run that was stopped goes on from its checkpoint, to the same weights.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rerank.data import Features, read_features
from rerank.errors import InputError
from rerank.losses import load_loss
from rerank.training.feature_recipe import FeatureRecipe, read_feature_recipe
from rerank.training.impressions import Impressions, read_impressions
from rerank.training.output import claim
from rerank.training.picture import draw_curve

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from rerank.training.learners import Learner
    from rerank.training.network import Network
    from rerank.training.trainer import Watch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """What came out. `loss` is the mean of the last logged steps; `measure` the evaluation's, of the network kept."""

    folder: Path
    steps: int
    loss: float
    measure: float | None
    lists_per_s: float


def check_features(recipe: FeatureRecipe, generator: Generator | None = None) -> Callable[..., Tensor]:
    """The recipe's loss, with the generator that it draws from where it samples; raises for an option that it has not,
    and in one of several processes. Loads torch."""
    if (world := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise InputError(f"a network is trained in one process, and there are {world}; start rerank train alone")
    if "reduction" in recipe.loss.options:
        raise InputError("loss: a batch is the mean over its lists; take reduction out")
    if "generator" in recipe.loss.options:
        raise InputError("loss: its random numbers come from the recipe's seed; take generator out")
    options: dict[str, Any] = recipe.loss.options
    return load_loss(recipe.loss.name, generator=generator, **options)


def train_features(
    path: str | Path, out: str | Path, *, fresh: bool = False, watch: Watch | None = None
) -> TrainedNetwork:
    """Trains what the recipe says, or goes on with it. Raises InputError for a mistake in the recipe before a file is
    read, and for an output folder of another recipe, unless `fresh` empties it."""
    path, out = Path(path), Path(out)
    recipe = read_feature_recipe(path)
    check_features(recipe)
    claim(out, recipe, fresh)
    if (out / "result.json").is_file():
        log.info("%s is finished; give --fresh to train it anew", out)
        told = json.loads((out / "result.json").read_text(encoding="utf-8"))
        return TrainedNetwork(out / "network", **told)
    return _Session(recipe, path.resolve().parent, out, watch).run()


@dataclass(slots=True)
class _Kept:
    """What a checkpoint says of the run so far, beside weights."""

    step: int = 0
    best: float | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    since: int = 0  # evaluations without a better one
    loss: float = math.nan
    measure: float | None = None


class _Session:
    """One run of one recipe in this process."""

    def __init__(self, recipe: FeatureRecipe, base: Path, out: Path, watch: Watch | None) -> None:
        import torch

        from rerank.training.gauges import drawing
        from rerank.training.network import Network
        from rerank.training.propensities import Journal, learner_of

        self.recipe, self.out, self.watch = recipe, out, watch
        self.draws = drawing(recipe)
        self.loss = check_features(recipe, self.draws.generator if self.draws is not None else None)
        self.steps = recipe.steps
        features = read_features(base / recipe.data.train)
        schedule = recipe.schedule
        self.lists: Impressions = read_impressions(
            features, recipe.data, recipe.clicks, base, batch=schedule.batch, steps=self.steps, seed=recipe.seed
        )
        part = recipe.network
        self.network: Network = Network(features.values.shape[1], part.hidden, part.normalise, seed=recipe.seed)
        self.network.fit(features)
        self.values = self.network.normalised(features)
        self.held: Features | None = None
        if recipe.evaluation is not None:
            self.held = read_features(base / recipe.evaluation.dataset, features.values.shape[1])
            if parts := [label for label in self.held.labels.tolist() if label % 1]:
                raise InputError(
                    f"evaluation.dataset: {recipe.evaluation.dataset} has the label {parts[0]:g}, and "
                    f"{recipe.evaluation.measure} is of whole grades; give a file with such"
                )
            self.held_values = self.network.normalised(self.held)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self.learner: Learner | None = None
        self.journal: Journal | None = None
        if recipe.clicks is not None:
            self.learner = learner_of(recipe.clicks, base, self.lists.longest, torch.device("cpu"))
            self.journal = Journal(out, self.learner, self.lists.curve)
        self.saved = recipe.evaluation.every if recipe.evaluation is not None else schedule.save_every or 100
        # a log between two checkpoints would be a mean over other steps after a resume
        self.logged = max(n for n in range(1, max(1, min(50, self.steps // 20)) + 1) if self.saved % n == 0)

    def run(self) -> TrainedNetwork:
        from rerank.training.trainer import read_curve

        kept = self._resume()
        curve = self.out / "curve.jsonl"
        lines = [line for line in read_curve(curve) if line["step"] <= kept.step]
        curve.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        if self.journal is not None:
            self.journal.begin(kept.step)
        began, started = kept.step, time.monotonic()
        self._tell(kept, began)
        with curve.open("a", encoding="utf-8") as stream:
            self._train(kept, began, stream)
        seconds = time.monotonic() - started
        if kept.best_weights:
            self.network.load_state_dict(kept.best_weights)
        self.network.save(self.out / "network")
        measured = self.recipe.evaluation.measure if self.recipe.evaluation is not None else "measure"
        draw_curve(read_curve(curve), self.out / "curve.png", measured)
        if self.journal is not None:
            self.journal.finish()
        speed = (kept.step - began) * self.recipe.schedule.batch / seconds if seconds and kept.step > began else 0.0
        result = TrainedNetwork(self.out / "network", kept.step, kept.loss, kept.best, speed)
        told = {name: value for name, value in asdict(result).items() if name != "folder"}
        (self.out / "result.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        return result

    def _train(self, kept: _Kept, began: int, curve: TextIO) -> None:
        total, count = 0.0, 0
        evaluation = self.recipe.evaluation
        patience = evaluation.patience if evaluation is not None else None
        while kept.step < self.steps and (patience is None or kept.since < patience):
            rate = self._rate(kept.step)
            total += self._step(kept.step, rate)
            count += 1
            kept.step += 1
            last = kept.step == self.steps
            if kept.step % self.logged == 0 or last:
                kept.loss = total / count
                total, count = 0.0, 0
                _write(curve, {"step": kept.step, "loss": kept.loss, "learning_rate": rate})
                if self.journal is not None:
                    self.journal.note(kept.step, self.steps)
            if evaluation is not None and (kept.step % evaluation.every == 0 or last):
                self._evaluate(kept)
                assert kept.measure is not None
                _write(curve, {"step": kept.step, "measure": kept.measure})
            if kept.step % self.saved == 0 or last:
                self._save(kept)
            self._tell(kept, began)

    def _rate(self, step: int) -> float:
        schedule = self.recipe.schedule
        if schedule.decay == "constant":
            return schedule.learning_rate
        return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def _step(self, step: int, rate: float) -> float:
        """One step of the ranker's optimiser and of the learner. Returns the loss."""
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.lists[step]
        labels, mask = torch.from_numpy(batch.labels), torch.from_numpy(batch.mask)
        scores: Tensor = self.network(self.values[torch.from_numpy(batch.rows)])  # [B, n]
        if self.learner is not None:
            labels = self.learner.targets(scores.detach(), labels, mask, torch.from_numpy(batch.positions))
        if self.draws is not None:
            self.draws.begin(step)
        loss = self.recipe.loss.factor * self.loss(scores, labels, mask)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.schedule.clip)
        self.optimizer.step()
        if self.learner is not None:
            self.learner.update(rate / self.recipe.schedule.learning_rate)
        return float(loss.detach())

    def _evaluate(self, kept: _Kept) -> None:
        from rerank.training.network import measured

        assert self.held is not None and self.recipe.evaluation is not None
        kept.measure = measured(self.held, self.network.scores(self.held_values), self.recipe.evaluation.measure)
        kept.since += 1
        if kept.best is None or kept.measure > kept.best:
            kept.best, kept.since = kept.measure, 0
            kept.best_weights = {name: value.clone() for name, value in self.network.state_dict().items()}

    def _save(self, kept: _Kept) -> None:
        import torch

        target = self.out / f"checkpoint-{kept.step}.pt"
        partial = self.out / "writing.pt"
        state = {
            "kept": {name: getattr(kept, name) for name in kept.__slots__},
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "learner": self.learner.state() if self.learner is not None else {},
        }
        torch.save(state, partial)
        partial.replace(target)  # whole, or not there
        for other in self.out.glob("checkpoint-*.pt"):
            if other != target:
                other.unlink()

    def _resume(self) -> _Kept:
        import torch

        found = sorted(self.out.glob("checkpoint-*.pt"), key=lambda file: int(file.stem.rpartition("-")[2]))
        if not found:
            return _Kept()
        log.info("going on from %s", found[-1].stem)
        state = torch.load(found[-1], weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.learner is not None:
            self.learner.load(state["learner"])
        return _Kept(**state["kept"])

    def _tell(self, kept: _Kept, began: int) -> None:
        if self.watch is None:
            return
        from rerank.training.trainer import Moment

        loss = None if math.isnan(kept.loss) else kept.loss
        self.watch(Moment(kept.step, self.steps, loss, kept.measure, kept.best, resumed=began))


def _write(curve: TextIO, line: dict[str, float]) -> None:
    curve.write(json.dumps(line) + "\n")
    curve.flush()
