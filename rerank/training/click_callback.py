"""Learning from clicks beside Transformers' Trainer: the learner's step after each of the ranker's, its state in every
checkpoint, and its curve at every log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback, TrainingArguments

from rerank.training.propensities import Journal

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState


@dataclass(slots=True)
class ClickCallback(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Of one process: a recipe with clicks has no more."""

    journal: Journal

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        file = self._file(args, state)
        if file.is_file():
            self.journal.learner.load(torch.load(file, map_location=args.device, weights_only=True))
        self.journal.begin(state.global_step)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        lr_scheduler: LRScheduler | None = None,
        **_: object,
    ) -> None:
        assert lr_scheduler is not None
        self.journal.learner.update(lr_scheduler.get_last_lr()[0] / args.learning_rate)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if "loss" in (logs or {}):
            self.journal.note(state.global_step, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Before the checkpoint's own files, of which the last says that it is whole."""
        if control.should_save:
            self._file(args, state).parent.mkdir(exist_ok=True)
            torch.save(self.journal.learner.state(), self._file(args, state))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.journal.finish()

    def _file(self, args: TrainingArguments, state: TrainerState) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "clicks.pt"
