"""How fast a recipe trains: our trainer's step beside the loop that one would write over PEFT.

All take the same steps: the same lists in the same order as the same prompts, the same adapter with the same first
weights, numbers and autocast, the same loss and scores, clipping, and torch's AdamW. Tokenising is not timed, for
none. The plain loop pads a piece of a batch to its longest prompt, on the left, with an attention mask, in the model
as transformers loads it, and computes logits only where they are read. Pieces hold the same lists for all.

Tokens are those of the prompts, each counted in full and padding not at all, so that a quotient of rates is one of
times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

from rerank.bench.machine import Machine, settle
from rerank.errors import BackboneError, InputError
from rerank.training.checks import check_labels, check_options
from rerank.training.recipe import Recipe, read_recipe
from rerank.training.sources import read_pools

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

    from rerank.training.forward import Objective, Run
    from rerank.training.objectives import Question
    from rerank.training.session import Session
    from rerank.training.trainer import RankingTrainer

    Lists = Sequence[Sequence[Question]]

OURS, UNSHARED, PLAIN = "rerank", "rerank, no prefix reuse", "plain PEFT loop"
METHODS = ("full", "lora", "rslora", "dora")  # that begin alike in both; others change weights on their way
FAR = {"bfloat16": 0.05, "float16": 0.02, "float32": 1e-3}  # of the loss: a larger difference is other work


@dataclass(frozen=True, slots=True)
class Row:
    """One contender. `times` is how many times faster than the plain loop it was, the median of the rounds'
    quotients; `computed` how many positions the model computes for a token of the prompts; `loss` is that of
    the first batch, `loss_after` the same after a step on it, which ours without prefix reuse has no own of."""

    name: str
    seconds: tuple[float, ...]
    tokens_per_second: float
    times: float
    computed: float
    loss: float
    loss_after: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """The rounds together, without the step that warms up: `prompts` are sequences, `tokens` theirs."""

    machine: Machine
    recipe: str
    model: str
    steps: int
    rounds: int
    batch: int
    lists: int
    prompts: int
    tokens: int
    rows: tuple[Row, ...]


class Contender(Protocol):
    def loss(self, lists: Lists) -> float: ...

    def step(self, lists: Lists) -> None: ...


def compare(
    path: str | Path, *, steps: int = 2, rounds: int = 3, say: Callable[[str], None] = lambda _: None
) -> Figures:
    """In every round each contender takes `steps` steps on the same batches; who begins changes.

    Raises InputError for a recipe that cannot be compared, and BackboneError where the losses are not the same.
    """
    path = Path(path)
    recipe = _comparable(read_recipe(path), path)
    batch = recipe.schedule.batch
    wanted = (1 + rounds * steps) * batch
    recipe = recipe.model_copy(
        update={"evaluation": None, "schedule": recipe.schedule.model_copy(update={"lists": wanted, "average": 1})}
    )
    check_options(recipe)
    base = path.resolve().parent
    say("reading data")
    pools = [(source, read_pools(source, base)) for source in recipe.data]
    check_labels(recipe, pools)
    from rerank.training.session import Session, quiet

    with TemporaryDirectory() as folder, quiet():
        say("loading the model twice")
        session = Session(recipe, base, Path(folder), pools, None, None)
        examples = session._examples()
        ours = _Trained(session)
        if not ours.run.packs:
            raise InputError(
                f"{path}: sequences of {session.weights.name} cannot be packed, so it is trained on padded ones, as in "
                "the plain loop; there is nothing to compare"
            )
        contenders: dict[str, Contender] = {
            OURS: ours,
            UNSHARED: _Unshared(ours),
            PLAIN: _Plain(session, ours, _plain_model(session)),
        }
        lists = [[examples[i] for i in range(start, start + batch)] for start in range(0, wanted, batch)]
        losses = _same(contenders, lists[0], str(session.dtype).removeprefix("torch."), say)
        laps = [lists[1 + turn * steps :][:steps] for turn in range(rounds)]
        seconds = _race(contenders, laps, session.args.device.type, say)
        machine = Machine.here(str(session.args.device), str(session.dtype).removeprefix("torch."))
        computed = _computed(ours, laps)
    tokens = [sum(_tokens(batch) for batch in lap) for lap in laps]
    rows = tuple(
        Row(
            name,
            tuple(own),
            median(n / s for n, s in zip(tokens, own, strict=True)),
            median(other / s for other, s in zip(seconds[PLAIN], own, strict=True)),
            computed[name] / sum(tokens),
            *losses[name],
        )
        for name, own in seconds.items()
    )
    prompts = sum(len(q.sequences) for lap in laps for each in lap for questions in each for q in questions)
    name = session.weights.name
    return Figures(machine, recipe.name, name, steps, rounds, batch, rounds * steps * batch, prompts, sum(tokens), rows)


def _comparable(recipe: Recipe, path: Path) -> Recipe:
    schedule, method = recipe.schedule, recipe.adapter.method
    reasons = {
        f"adapter {method} is not one of {', '.join(METHODS)}": method not in METHODS,
        f"optimizer {schedule.optimizer} is not adamw_torch": schedule.optimizer != "adamw_torch",
        "optimizer_options are set": schedule.optimizer_options is not None,
        "neftune adds noise": schedule.neftune is not None,
        "gradient_checkpointing is set": schedule.gradient_checkpointing,
        "deepspeed or fsdp is set": recipe.deepspeed is not None or recipe.fsdp is not None,
        "prefix_reuse is switched off": not recipe.prefix_reuse,
        "clicks have a learner of their own": recipe.clicks is not None,
        "a score-head is trained on padded sequences by us too": recipe.strategy == "score-head",
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(f"{path}: the plain loop is not written for this: {reason}; take it out to compare")
    return recipe


class _Trained:
    """The trainer that `rerank train` makes; a step is its own, and what its library does after it."""

    def __init__(self, session: Session) -> None:
        examples = session._examples()
        model = session._model(examples)
        self.trainer: RankingTrainer = session._trainer(model, examples)
        self.run: Run = self.trainer.asking
        self.objective: Objective = self.trainer.aim
        self.clip = session.recipe.schedule.clip
        self.wrapped: nn.Module = self.trainer.accelerator.prepare(model)  # as its library does: autocast around it
        self.optimizer = self.trainer.accelerator.prepare(_adamw(self.wrapped, session.recipe))

    def loss(self, lists: Lists) -> float:
        import torch

        self.wrapped.eval()
        self.run.model = self.wrapped
        with torch.no_grad(), self.trainer.compute_loss_context_manager():
            return float(self.objective.loss(lists, self.run)) / len(lists)

    def step(self, lists: Lists) -> None:
        self.trainer.training_step(self.wrapped, {"lists": lists})
        self.trainer.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


@dataclass(frozen=True, slots=True)
class _Unshared:
    """The same with every prompt computed by itself; in the same weights, of which no time depends."""

    ours: _Trained

    def loss(self, lists: Lists) -> float:
        with self._alone():
            return self.ours.loss(lists)

    def step(self, lists: Lists) -> None:
        with self._alone():
            self.ours.step(lists)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.ours.run.share = False
        try:
            yield
        finally:
            self.ours.run.share = True


class _Plain:
    """The loop over PEFT's model: pad, forward, backward, clip, step."""

    def __init__(self, session: Session, ours: _Trained, model: nn.Module) -> None:
        from rerank.training.forward import Run

        self.model, self.objective, self.device = model, ours.objective, session.args.device
        self.dtype, self.autocast = session.dtype, session.args.bf16
        self.run = Run(model, self.device, self.dtype, packs=False, pad=ours.run.pad)
        self.most, self.clip = ours.trainer.batch_tokens, ours.clip
        self.optimizer = _adamw(model, session.recipe)

    def loss(self, lists: Lists) -> float:
        import torch

        self.model.eval()
        with torch.no_grad(), torch.autocast(self.device.type, self.dtype, enabled=self.autocast):
            return float(self.objective.loss(lists, self.run)) / len(lists)

    def step(self, lists: Lists) -> None:
        import torch

        from rerank.training.trainer import pieces

        self.model.train()
        for part in pieces(lists, self.most):
            with torch.autocast(self.device.type, self.dtype, enabled=self.autocast):
                loss = self.objective.loss(part, self.run) / len(lists)
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _adamw(model: nn.Module, recipe: Recipe) -> Optimizer:
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=recipe.schedule.learning_rate, weight_decay=recipe.schedule.weight_decay)


def _plain_model(session: Session) -> nn.Module:
    """The model anew as transformers loads it, with the session's adapter in its present state."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    trained = session.weights.model
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        trained.name_or_path, dtype=trained.dtype, use_safetensors=True
    ).to(session.args.device)
    # else torch multiplies the slice that is kept as a batch, on a CPU with a copy of the matrix for every prompt
    found.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))
    if session.weights.peft is None:
        whole: nn.Module = found.requires_grad_(True)
        return whole
    peft: nn.Module = get_peft_model(found, session.weights.peft.peft_config["default"])
    set_peft_model_state_dict(peft, get_peft_model_state_dict(session.weights.peft))
    return peft


def _same(
    contenders: Mapping[str, Contender], lists: Lists, dtype: str, say: Callable[[str], None]
) -> dict[str, tuple[float, float | None]]:
    """Their losses before and after a first step on `lists`, which also warms them up.

    Ours have the same weights, so the second of them is compared before its step only. The tolerance is a part of the
    loss before the step for both: AdamW's first step goes by the gradient's sign, also where that is only rounding.
    """
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    for name, contender in contenders.items():
        say(f"warming up: {name}")
        before[name] = contender.loss(lists)
    for name, contender in contenders.items():
        say(f"warming up: {name}")
        contender.step(lists)
        if name != UNSHARED:
            after[name] = contender.loss(lists)
    for when, found in (("before a step", before), ("after one", after)):
        for name, loss in found.items():
            if abs(loss - found[PLAIN]) > FAR[dtype] * max(abs(before[PLAIN]), 1e-2):
                raise BackboneError(
                    f"{when} the loss of {name!r} is {loss:.5f} and that of the {PLAIN} {found[PLAIN]:.5f}: they do "
                    f"not compute the same, so their times say nothing; please report it (tolerance {FAR[dtype]:.1%})"
                )
    return {name: (before[name], after.get(name)) for name in contenders}


def _race(
    contenders: Mapping[str, Contender], laps: Sequence[Sequence[Lists]], device: str, say: Callable[[str], None]
) -> dict[str, list[float]]:
    order = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for turn, lap in enumerate(laps):
        first = turn % len(order)
        for name in order[first:] + order[:first]:
            say(f"round {turn + 1} of {len(laps)}: {name}")
            settle(device)
            started = time.perf_counter()
            for lists in lap:
                contenders[name].step(lists)
            settle(device)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _tokens(lists: Lists) -> int:
    return sum(len(asked.fed) for questions in lists for q in questions for asked in q.sequences)


def _computed(ours: _Trained, laps: Sequence[Sequence[Lists]]) -> dict[str, int]:
    """At how many positions the model of each is computed."""
    import torch

    from rerank.backbones.packing import pack
    from rerank.training.trainer import pieces

    found = dict.fromkeys((OURS, UNSHARED, PLAIN), 0)
    for part in (part for lap in laps for lists in lap for part in pieces(lists, ours.trainer.batch_tokens)):
        fed = [asked.fed for questions in part for q in questions for asked in q.sequences]
        for name, share in ((OURS, True), (UNSHARED, False)):
            found[name] += pack(fed, device=torch.device("cpu"), dtype=torch.float32, share=share).ids.shape[1]
        found[PLAIN] += len(fed) * max(map(len, fed))
    return found
