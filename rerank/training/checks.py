"""What only other libraries know of a recipe: the options of losses and adapters, and which optimisers there are.

They are loaded for it, which takes seconds, but no data and no model is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rerank.backbones.hardware import choose_device
from rerank.errors import BackboneError, InputError, UnknownNameError
from rerank.training.recipe import Recipe
from rerank.training.reinforce.checks import check_reinforce

if TYPE_CHECKING:
    from torch import Generator

    from rerank.training.forward import RankLoss
    from rerank.training.sources import Pool, Source

REQUIRES = ("torch", "transformers", "peft", "accelerate", "tensorboard", "matplotlib")
_LIBRARIES = {  # what transformers imports for an optimiser, by the beginning of its name, and what pip calls it
    "galore_": ("galore_torch", "galore-torch"),
    "apollo_": ("apollo_torch", "apollo-torch"),
    "lomo": ("lomo_optim", "lomo-optim"),
    "adalomo": ("lomo_optim", "lomo-optim"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free_": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
    "adamw_torch_4bit": ("torchao", "torchao"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "adamw_torch_xla": ("torch_xla", "torch-xla"),
    "adamw_torch_npu_fused": ("torch_npu", "torch-npu"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
} | dict.fromkeys(
    ("adamw_bnb", "adamw_8bit", "ademamix", "lion_", "paged_", "rmsprop_bnb"), ("bitsandbytes", "bitsandbytes")
)
_PROJECTS = ("galore_", "apollo_")  # train whole weights through a projection of their gradients


def check_options(recipe: Recipe) -> None:
    """Raises InputError for what does not fit, and BackboneError where a library is not installed."""
    if missing := next((name for name in REQUIRES if find_spec(name) is None), None):
        raise BackboneError(f"training needs {missing}: pip install 'rerank-llm[train]'")
    _check_optimizer(recipe)
    _check_processes(recipe)
    rank_loss(recipe)
    check_reinforce(recipe)
    if recipe.adapter.method != "full" and recipe.start is None:
        from rerank.training.methods import configuration

        part = recipe.adapter
        configuration(part.method, part.targets, part.options, head=recipe.strategy == "score-head", steps=1000)


def _check_optimizer(recipe: Recipe) -> None:
    from transformers.training_args import OptimizerNames

    schedule, known = recipe.schedule, [name.value for name in OptimizerNames]
    name = schedule.optimizer
    if name not in known:
        raise UnknownNameError("optimizer", name, known)
    if name.startswith(_PROJECTS) != (schedule.optimizer_targets is not None):
        raise InputError(
            "optimizer_targets names the layers whose gradients galore and apollo project: "
            + (f"{name} needs it, as all-linear" if name.startswith(_PROJECTS) else f"{name} would ignore it")
        )
    if name.startswith(_PROJECTS) and recipe.adapter.method != "full":
        raise InputError(f"optimizer {name} trains whole weights; give adapter: full")
    for beginning, (module, package) in _LIBRARIES.items():
        if name.startswith(beginning) and find_spec(module) is None:
            raise BackboneError(f"optimizer {name} needs {module}: pip install {package}")


def _check_processes(recipe: Recipe) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.schedule.batch % world:
        raise InputError(f"a batch of {recipe.schedule.batch} lists cannot be shared by {world} processes")
    if recipe.clicks is not None and world > 1:
        raise InputError(f"clicks are learnt from in one process, and there are {world}; start rerank train alone")
    if recipe.deepspeed is not None and find_spec("deepspeed") is None:
        raise BackboneError("the recipe's deepspeed needs deepspeed: pip install deepspeed")
    if recipe.fsdp is not None and world == 1:
        raise InputError("fsdp shares a model among processes; start with: accelerate launch -m rerank train RECIPE")
    if recipe.fsdp is not None and choose_device(None).type == "cpu":
        raise InputError("fsdp: on a CPU accelerate would ignore it: it shares models among GPUs alone; take it out")


def rank_loss(recipe: Recipe, generator: Generator | None = None) -> RankLoss | None:
    """The recipe's loss with its options, one value a list. Raises UnknownNameError for an option it has not."""
    if recipe.loss is None:
        return None
    from rerank.losses import load_loss

    if "reduction" in recipe.loss.options:
        raise InputError("loss: a batch is the mean over its lists; take reduction out")
    if "generator" in recipe.loss.options:
        raise InputError("loss: its random numbers come from the recipe's seed; take generator out")
    options: dict[str, Any] = {**recipe.loss.options, "reduction": "none"}
    return load_loss(recipe.loss.name, generator=generator, **options)


def check_labels(recipe: Recipe, pools: Sequence[tuple[Source, Sequence[Pool]]]) -> None:
    """Whether the loss can read what the sources have, now and not at the first list that it cannot read."""
    import torch

    if (loss := rank_loss(recipe)) is None or recipe.clicks is not None:  # which are 0 and 1
        return
    for source, own in pools:
        ends = [max(max(pool.labels) for pool in own), min(min(pool.labels) for pool in own)]
        if recipe.rankings is not None:
            ends = [1.0, 0.0]  # what a measure can be
        try:
            loss(torch.zeros(1, 2), torch.tensor([ends]), torch.ones(1, 2, dtype=torch.bool))
        except InputError as error:
            raise InputError(f"{source.title}: {error}") from error
