"""Supervised training over Transformers' Trainer: it holds the optimiser, the schedule, checkpoints and processes.

What is ours is the step. A batch is a number of lists; it is cut into pieces of at most `batch_tokens`, and the
pieces' gradients add up to the whole batch's, so that memory decides about speed only.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from rerank.backbones.weights import exact
from rerank.prompts.neutralise import control_token_pattern
from rerank.training.forward import Objective, Run
from rerank.training.gauges import NAMES
from rerank.training.mixture import Mixture
from rerank.training.objectives import ASKS, Asker, Question, neutralised
from rerank.training.sessions import Sessions

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, TrainerControl, TrainerState

log = logging.getLogger(__name__)

Questions = Sequence[Question]
Batch = Mapping[str, Sequence[Questions]]


class Examples(TorchDataset[Questions]):
    """The lists of the mixture as questions. What list i asks depends on i alone."""

    def __init__(self, mixture: Mixture | Sessions, strategy: str, asker: Asker) -> None:
        self._mixture, self._ask, self._asker = mixture, ASKS[strategy], asker
        self._control = control_token_pattern(asker.encoder.control_tokens)

    def __len__(self) -> int:
        return len(self._mixture)

    def __getitem__(self, index: int) -> Questions:
        shown = neutralised(self._mixture[index], self._control, self._asker.prompt.identifiers)
        return [replace(question, index=index) for question in self._ask(shown, self._asker, index)]


def collate(lists: list[Questions]) -> dict[str, list[Questions]]:
    return {"lists": lists}


@dataclass(slots=True)
class Counts:
    """What this process has computed: `tokens` of the prompts in full, `seconds` in training steps. All processes
    together have computed `times` as many tokens, as they last told one another."""

    tokens: int = 0
    seconds: float = 0.0
    times: float = 1.0

    @property
    def speed(self) -> float:
        """Tokens a second of all processes."""
        return self.times * self.tokens / self.seconds if self.seconds else 0.0

    def share(self, together: Callable[[Tensor], Tensor]) -> None:
        """Tells the others, all at once; `together` adds up what the processes have."""
        total = float(together(torch.tensor(float(self.tokens))))
        self.times = total / self.tokens if self.tokens else 1.0


@dataclass(frozen=True, slots=True)
class Moment:
    """How training stands. `loss` and `reward` are means since the last one; `measure` the last evaluation's, if there
    was one."""

    step: int
    steps: int
    loss: float | None = None
    measure: float | None = None
    best: float | None = None
    tokens_per_s: float = 0.0
    resumed: int = 0
    reward: float | None = None


Watch = Callable[[Moment], None]


class RankingTrainer(Trainer):  # type: ignore[misc]  # transformers has no types
    """`measure` evaluates the model as it is; `objective` and `run` are how a batch becomes a loss, to which
    `regulariser` is added."""

    def __init__(
        self,
        *,
        objective: Objective,
        run: Run,
        batch_tokens: int,
        measure: Callable[[], float] | None,
        measure_name: str,
        regulariser: Callable[[], Tensor] | None = None,
        **options: object,
    ) -> None:
        super().__init__(data_collator=collate, **options)
        self.aim, self.asking, self.batch_tokens = objective, run, batch_tokens
        self._measure, self._measure_name, self._regulariser = measure, measure_name, regulariser
        self.counts = Counts()
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: object = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # the mixture is in random order, and resumes by index

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: object = None) -> Tensor:
        """The gradient of the mean over the batch's lists, piece by piece. Returns that mean."""
        started = time.monotonic()
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        lists = inputs["lists"]
        self.asking.model = model
        cut = None if self.is_deepspeed_enabled else self.batch_tokens  # its engine steps at every backward pass
        parts = list(pieces(lists, cut))
        total = torch.zeros((), device=self.asking.device)
        for number, part in enumerate(parts, start=1):
            # other processes' gradients are waited for once, at the last piece
            with nullcontext() if number == len(parts) else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self.aim.loss(part, self.asking) / len(lists)
                    if number == len(parts) and self._regulariser is not None:
                        loss = loss + self._regulariser()
                self.accelerator.backward(loss)
            total += loss.detach()
        self.counts.tokens += sum(len(a.fed) for each in lists for q in each for a in q.sequences)
        if self.asking.device.type == "cuda":
            torch.cuda.synchronize()
        self.counts.seconds += time.monotonic() - started
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Beside a loss stands what the gauges told in the same steps."""
        if "loss" in logs:
            logs |= self.aim.gauges.told(self._together)
            if self.args.world_size > 1:
                self.counts.share(self._together)
        super().log(logs, start_time)

    def _together(self, sums: Tensor) -> Tensor:
        found: Tensor = self.accelerator.reduce(sums.to(self.asking.device), "sum")
        return found

    def evaluate(self, *_: object, metric_key_prefix: str = "eval", **__: object) -> dict[str, float]:
        """The measure on the development set, by the first process for all."""
        assert self._measure is not None
        value = [self._measure() if self.is_world_process_zero() else None]
        if self.args.world_size > 1:
            torch.distributed.broadcast_object_list(value, src=0)
        found = {f"{metric_key_prefix}_{self._measure_name}": float(value[0] or 0.0)}
        self.log(found)
        control: TrainerControl = self.control  # type: ignore[has-type]
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, found)
        return found


def exact_head(model: PreTrainedModel) -> None:
    """Has the model's own output matrix computed in float32, as inference does; one with an adapter is left alone."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        head.forward = partial(exact, head)  # type: ignore[method-assign]


def pieces(lists: Sequence[Questions], tokens: int | None) -> Iterator[list[Questions]]:
    """Runs of lists of at most so many tokens; a list is never cut."""
    part: list[Questions] = []
    held = 0
    for each in lists:
        own = sum(len(asked.fed) for question in each for asked in question.sequences)
        if part and tokens is not None and held + own > tokens:
            yield part
            part, held = [], 0
        part.append(each)
        held += own
    if part:
        yield part


@dataclass(slots=True)
class Reporter(TrainerCallback):  # type: ignore[misc]
    """Tells `watch` how training stands, and keeps the curve in `file`, a line of JSON a moment."""

    counts: Counts
    watch: Watch | None
    file: Path
    measure: str
    follows: tuple[str, ...] = ()  # beginnings of other logged values that belong into the curve
    _seen: dict[str, float] = field(default_factory=dict)
    _from: int = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._from = state.global_step
        if state.is_world_process_zero:
            kept = [line for line in read_curve(self.file) if line["step"] <= state.global_step]
            self.file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            for line in kept:
                if "measure" in line:
                    self._note(line["measure"])
        self._tell(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self._tell(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        logs = logs or {}
        line: dict[str, float] = {"step": state.global_step}
        if "loss" in logs:
            line |= {"loss": logs["loss"], "learning_rate": logs["learning_rate"]}
            line |= {"tokens_per_s": self.counts.speed}
            line |= {name: logs[name] for name in NAMES if name in logs}
            line |= {name: logs[name] for name in logs if name.startswith(self.follows) and logs[name] is not None}
            self._seen |= {name: line[name] for name in ("loss", "reward") if name in line}
        if (value := logs.get(f"eval_{self.measure}")) is not None:
            line["measure"] = value
            self._note(value)
        if state.is_world_process_zero and len(line) > 1:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        self._tell(state)

    def _note(self, value: float) -> None:
        self._seen |= {"measure": value, "best": max(value, self._seen.get("best", value))}

    def _tell(self, state: TrainerState) -> None:
        if self.watch is not None and state.is_world_process_zero:
            self.watch(
                Moment(
                    state.global_step, state.max_steps, tokens_per_s=self.counts.speed, resumed=self._from, **self._seen
                )
            )


@dataclass(slots=True)
class Allocation(TrainerCallback):  # type: ignore[misc]
    """Tells AdaLoRA of every step, so that it gives up the least important directions of its layers.

    PEFT would write what is left as smaller tensors, which neither resume nor give the same scores; here they keep
    their size, with zeros. What it has counted so far lies beside each checkpoint.
    """

    model: PeftModel
    _pattern: object = None

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        config = self.model.peft_config["default"]
        config.rank_pattern = self._pattern
        self.model.base_model.update_and_allocate(state.global_step)
        self._pattern, config.rank_pattern = config.rank_pattern, None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if state.is_world_process_zero:
            allocator = self.model.base_model.rankallocator
            kept = {name: getattr(allocator, name) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
            torch.save({"pattern": self._pattern, **kept}, self._file(args, state))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self._file(args, state).is_file():
            kept = torch.load(self._file(args, state), map_location=args.device, weights_only=True)
            self._pattern = kept.pop("pattern")
            for name, counted in kept.items():
                setattr(self.model.base_model.rankallocator, name, counted)

    def _file(self, args: TrainingArguments, state: TrainerState) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "adalora.pt"


def read_curve(file: Path) -> list[dict[str, float]]:
    """The curve's moments; a last line that a kill cut off is left out."""
    if not file.is_file():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint. What a kill left half-written is removed: its state file comes last."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            whole.append(path)
        except (OSError, ValueError):
            log.warning("%s is not whole (training was stopped while it was written); removed", path.name)
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
