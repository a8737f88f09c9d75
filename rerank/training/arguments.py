"""A recipe's schedule as the arguments of Transformers' Trainer."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rerank.training.recipe import Recipe

if TYPE_CHECKING:
    from transformers import TrainingArguments


def arguments(
    recipe: Recipe, base: Path, out: Path, steps: int, made: type[TrainingArguments] | None = None, **more: object
) -> TrainingArguments:
    """What the Trainer is told: `steps` of the optimiser in all, a batch of lists shared by the processes. Another
    trainer's arguments are `made` in its own class, and `more` is its own or takes the place of ours."""
    from transformers import TrainingArguments

    from rerank.backbones.hardware import choose_device, choose_dtype

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / "tensorboard")
    schedule, evaluation = recipe.schedule, recipe.evaluation
    world = int(os.environ.get("WORLD_SIZE", "1"))
    place = choose_device(None)
    dtype = choose_dtype(recipe.dtype, place)
    every = evaluation.every if evaluation is not None else None
    saved = schedule.save_every or every or 100
    # a log between two checkpoints would be a mean over other steps after a resume
    logged = max(n for n in range(1, max(1, min(10, steps // 20)) + 1) if saved % n == 0)
    targets = schedule.optimizer_targets

    def placed(name: str | None) -> str | None:
        return None if name is None else str(base / name)

    kind: Callable[..., TrainingArguments] = TrainingArguments if made is None else made
    make = partial(
        kind,
        output_dir=str(out),
        per_device_train_batch_size=schedule.batch // world,
        max_steps=steps,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type=schedule.decay,
        warmup_steps=round(schedule.warmup * steps),
        optim=schedule.optimizer,
        optim_args=schedule.optimizer_options,
        optim_target_modules=list(targets) if isinstance(targets, tuple) else targets,
        weight_decay=schedule.weight_decay,
        max_grad_norm=schedule.clip,
        neftune_noise_alpha=schedule.neftune,
        activation_checkpointing=schedule.gradient_checkpointing,
        bf16=str(dtype) == "torch.bfloat16",
        use_cpu=place.type == "cpu",
        seed=recipe.seed,
        logging_steps=logged,
        save_strategy="steps",
        save_steps=saved,
        save_total_limit=schedule.keep,
        eval_strategy="no" if every is None else "steps",
        eval_steps=every,
        metric_for_best_model=None if evaluation is None else f"eval_{evaluation.measure}",
        greater_is_better=None if evaluation is None else True,
        load_best_model_at_end=evaluation is not None,
        restore_callback_states_from_checkpoint=True,  # how patient it still is
        ddp_timeout=4 * 3600,  # the other processes wait while the first ranks the development set
        report_to=["tensorboard"],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=schedule.workers,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        deepspeed=placed(recipe.deepspeed),
        fsdp=recipe.fsdp,
        fsdp_config=placed(recipe.fsdp_config),
    )
    args: TrainingArguments = make(**more)
    args._n_gpu = min(1, args.n_gpu)  # a second GPU is used through accelerate, never by copies of the model
    return args
