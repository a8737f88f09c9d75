"""One run of one recipe in this process: model, adapter, trainer, and what is written at the end."""

from __future__ import annotations

import logging
import os
import random
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rerank.adapters import Purpose
from rerank.errors import InputError
from rerank.training.card import write_card
from rerank.training.checks import rank_loss
from rerank.training.development import Development
from rerank.training.mixture import Mixture
from rerank.training.output import Trained, record
from rerank.training.recipe import Recipe
from rerank.training.sources import Pool, Source

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainingArguments

    from rerank.backbones.weights import Weights
    from rerank.training.forward import Objective
    from rerank.training.objectives import Asker
    from rerank.training.trainer import Examples, RankingTrainer, Watch

log = logging.getLogger(__name__)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers and PEFT tell those who call them, and transformers' bars for writing a file."""
    from transformers.utils import logging as hf_logging

    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, UserWarning):
                warnings.filterwarnings("ignore", category=category, module=r"(transformers|peft)\.")
            yield
    finally:
        if bars:
            hf_logging.enable_progress_bar()


class Session:
    """One run of one recipe in this process."""

    def __init__(
        self,
        recipe: Recipe,
        base: Path,
        out: Path,
        pools: list[tuple[Source, list[Pool]]],
        development: Development | None,
        watch: Watch | None,
    ) -> None:
        self.recipe, self.base, self.out, self.development, self.watch = recipe, base, out, development, watch
        schedule = recipe.schedule
        wanted = schedule.lists or sum(len(own) for _, own in pools)
        self.steps = -(-wanted // schedule.batch)
        self.sources = [(source.title, len(own)) for source, own in pools]
        self.mixture = Mixture(pools, seed=recipe.seed, total=self.steps * schedule.batch, curriculum=recipe.order)
        self.args = self._arguments()
        self.weights = self._load()
        self.asker = self._asker()

    def run(self) -> Trained:
        from rerank.training.picture import draw_curve
        from rerank.training.trainer import last_checkpoint, read_curve

        examples = self._examples()
        model = self._model(examples)
        trainer = self._trainer(model, examples)
        found = last_checkpoint(self.out) if self.args.process_index == 0 else None
        if self.args.world_size > 1:
            import torch

            shared = [found]
            torch.distributed.broadcast_object_list(shared, src=0)
            found = shared[0]
        if found is not None:
            log.info("going on from %s", found.name)
        trainer.train(resume_from_checkpoint=str(found) if found is not None else None)
        measure = trainer.state.best_metric
        folder = self.out / ("model" if self.recipe.whole else "adapter")
        kept = 1.0
        if self.args.process_index == 0:
            measure = self._choose(trainer, measure)
            kept = self._write(folder)
            draw_curve(read_curve(self.out / "curve.jsonl"), self.out / "curve.png", self._measured)
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        result = Trained(folder, self.steps, losses[-1] if losses else None, measure, kept, trainer.counts.speed)
        if self.args.process_index == 0:
            record(self.out, result, self._measured)
            told = {"steps": result.steps, f"{self._measured}, development set": measure, "loss": result.loss}
            write_card(folder, self.recipe, self.weights.name, self.sources, told)
        return result

    @property
    def head(self) -> bool:
        return self.recipe.strategy == "score-head"

    @property
    def _measured(self) -> str:
        return self.recipe.evaluation.measure if self.recipe.evaluation is not None else "measure"

    def _arguments(self) -> TrainingArguments:
        from transformers import TrainingArguments

        from rerank.backbones.hardware import choose_device, choose_dtype

        os.environ["TENSORBOARD_LOGGING_DIR"] = str(self.out / "tensorboard")
        recipe, schedule, evaluation = self.recipe, self.recipe.schedule, self.recipe.evaluation
        world = int(os.environ.get("WORLD_SIZE", "1"))
        place = choose_device(None)
        self.dtype = choose_dtype(recipe.dtype, place)
        every = evaluation.every if evaluation is not None else None
        saved = schedule.save_every or every or 100
        # a log between two checkpoints would be a mean over other steps after a resume
        logged = max(n for n in range(1, max(1, min(10, self.steps // 20)) + 1) if saved % n == 0)
        targets = schedule.optimizer_targets
        args = TrainingArguments(
            output_dir=str(self.out),
            per_device_train_batch_size=schedule.batch // world,
            max_steps=self.steps,
            learning_rate=schedule.learning_rate,
            lr_scheduler_type=schedule.decay,
            warmup_steps=round(schedule.warmup * self.steps),
            optim=schedule.optimizer,
            optim_args=schedule.optimizer_options,
            optim_target_modules=list(targets) if isinstance(targets, tuple) else targets,
            weight_decay=schedule.weight_decay,
            max_grad_norm=schedule.clip,
            neftune_noise_alpha=schedule.neftune,
            activation_checkpointing=schedule.gradient_checkpointing,
            bf16=str(self.dtype) == "torch.bfloat16",
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
            report_to=["tensorboard"],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_num_workers=schedule.workers,
            dataloader_drop_last=True,
            dataloader_pin_memory=False,
            deepspeed=self._placed(recipe.deepspeed),
            fsdp=recipe.fsdp,
            fsdp_config=self._placed(recipe.fsdp_config),
        )
        args._n_gpu = min(1, args.n_gpu)  # a second GPU is used through accelerate, never by copies of the model
        return args

    def _placed(self, name: str | None) -> str | None:
        return None if name is None else str(self.base / name)

    def _load(self) -> Weights:
        import torch
        from transformers import set_seed

        from rerank.backbones.embedded import EMBEDDED, resolve
        from rerank.backbones.transformers_ import load_weights

        set_seed(self.recipe.seed)  # a new head is random
        name = self.recipe.model
        if name is None:
            name, path = EMBEDDED, str(resolve(progress=log.warning))
        else:
            path = name = str(self.base / name) if (self.base / name).is_dir() else name
        whole = self.recipe.adapter.method == "full"
        dtype = torch.float32 if whole else self.dtype  # bfloat16 is too coarse to be stepped in
        return load_weights(name, path, self.args.device, dtype, head=self.head)

    def _asker(self) -> Asker:
        from rerank.training.objectives import Asker

        recipe = self.recipe
        return Asker(
            recipe.asked,
            self.weights.encoder,
            recipe.passage_tokens,
            write=recipe.write is not None,
            pairs=recipe.pairs or 4,
            top=recipe.write.top if recipe.write is not None else None,
            seed=recipe.seed,
        )

    def _examples(self) -> Examples:
        from rerank.training.trainer import Examples

        return Examples(self.mixture, self.recipe.strategy, self.asker)

    def _model(self, examples: Examples) -> object:
        """The model as it is trained, with its adapter."""
        from transformers import set_seed

        from rerank.training.methods import adapted, configuration

        set_seed(self.recipe.seed)
        recipe, weights = self.recipe, self.weights
        if recipe.adapter.method == "full":
            weights.model.requires_grad_(True)
            return weights.model
        if recipe.start is not None:
            from peft import PeftModel

            from rerank.backbones.adapters import check_base, folder_of

            folder = folder_of(str(self.base / recipe.start))
            check_base(folder, weights.name)
            weights.peft = PeftModel.from_pretrained(weights.model, str(folder), is_trainable=True)
        else:
            part = recipe.adapter
            config = configuration(part.method, part.targets, part.options, head=self.head, steps=self.steps)
            batches = partial(self._batches, examples)
            weights.peft = adapted(weights.model, part.method, config, self.out / "beginning", batches)
            if recipe.evaluation is not None and not hasattr(weights.peft.base_model, "enable_adapter_layers"):
                raise InputError(f"adapter {part.method} cannot be switched on for an evaluation; take evaluation out")
        weights.adapters = {"trained": "default"}
        return weights.peft

    def _batches(self, examples: Examples) -> Iterable[Mapping[str, Tensor]]:
        """A few prompts as plain padded input, for an adapter that begins from what the layers see."""
        import torch

        for i in random.Random(self.recipe.seed).sample(range(len(examples)), min(64, len(examples))):
            asked = [a.fed for q in examples[i] for a in q.sequences]
            longest = max(map(len, asked))
            ids = torch.zeros(len(asked), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, fed in enumerate(asked):
                ids[row, : len(fed)] = torch.tensor(fed)
                mask[row, : len(fed)] = 1
            yield {"input_ids": ids.to(self.args.device), "attention_mask": mask.to(self.args.device)}

    def _trainer(self, model: object, examples: Examples) -> RankingTrainer:
        import torch
        from transformers import EarlyStoppingCallback, PrinterCallback

        from rerank.backbones.hardware import default_batch_tokens
        from rerank.training.forward import Run
        from rerank.training.methods import unorthogonal
        from rerank.training.trainer import Allocation, RankingTrainer, Reporter, exact_head

        weights, evaluation, noise = self.weights, self.recipe.evaluation, self.recipe.schedule.neftune
        fed = examples[0][0].sequences[0].fed
        (weights.peft or weights.model).eval()  # dropout would not let two passes compare
        with torch.no_grad():
            packs = not self.head and weights.probe(fed)
        allocates = weights.peft is not None and weights.peft.peft_config["default"].peft_type == "ADALORA"
        run = Run(
            weights.model,
            self.args.device,
            self.dtype,
            packs=packs,
            share=self.recipe.prefix_reuse,
            head=self.head,
            pad=weights.model.config.pad_token_id or 0,
            noise=(noise, weights.model.get_input_embeddings()) if noise is not None else None,
        )
        exact_head(weights.model)
        # experts that no token was sent to have no gradient; else all have one, and looking for more takes time
        self.args.ddp_find_unused_parameters = any("expert" in name for name, _ in weights.model.named_parameters())
        trainer = RankingTrainer(
            model=model,
            args=self.args,
            train_dataset=examples,
            eval_dataset=examples if evaluation is not None else None,
            objective=self._objective(),
            run=run,
            batch_tokens=self.recipe.schedule.batch_tokens or default_batch_tokens(self.args.device),
            measure=self._measure if evaluation is not None else None,
            measure_name=self._measured,
            regulariser=partial(unorthogonal, weights.peft) if allocates else None,
        )
        trainer.remove_callback(PrinterCallback)
        if evaluation is not None and evaluation.patience is not None:
            trainer.add_callback(EarlyStoppingCallback(evaluation.patience))
        if allocates:
            trainer.add_callback(Allocation(weights.peft))
        trainer.add_callback(Reporter(trainer.counts, self.watch, self.out / "curve.jsonl", self._measured))
        return trainer

    def _objective(self) -> Objective:
        from rerank.training.forward import Objective

        recipe, write = self.recipe, self.recipe.write
        return Objective(
            recipe.asked.answer,
            rank_loss(recipe),
            recipe.loss.factor if recipe.loss is not None else 1.0,
            write.factor if write is not None else 0.0,
            write.importance if write is not None else False,
            write.separators if write is not None else 1.0,
        )

    def _measure(self) -> float:
        """The development set's measure, of the weights as they are."""
        from rerank.backbones.transformers_ import TransformersBackbone

        assert self.development is not None
        model = self.weights.peft or self.weights.model
        model.eval()
        backbone = TransformersBackbone(self.weights, "trained" if self.weights.peft is not None else None)
        value = self.development.value(self.recipe.ranker(), backbone)
        model.train()
        return value

    def _choose(self, trainer: RankingTrainer, best: float | None) -> float | None:
        """The mean of the last checkpoints where the recipe wants it and it is no worse on the development set."""
        from rerank.training.methods import averaged

        wanted = self.recipe.schedule.average
        folders = sorted(self.out.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))[-wanted:]
        if wanted < 2 or len(folders) < 2:
            return best
        peft = self.weights.peft
        assert peft is not None
        with TemporaryDirectory() as made:
            single, mean = Path(made) / "single", Path(made) / "mean"
            peft.save_pretrained(str(single))
            averaged(folders, mean)
            peft.load_adapter(str(mean), "default", is_trainable=True)
            if best is None:
                return None
            value = self._measure()
            log.info("the mean of %d checkpoints has %s %.4f, one %.4f", len(folders), self._measured, value, best)
            if value < best:
                peft.load_adapter(str(single), "default", is_trainable=True)
            return max(value, best)

    def _write(self, folder: Path) -> float:
        from rerank.training.methods import export

        recipe, weights = self.recipe, self.weights
        if not recipe.whole:
            assert weights.peft is not None
            kept = export(weights.peft, folder, self.out / "beginning", weights.name, recipe.adapter.compress)
            note(recipe, self.base, weights.name, folder)
            return kept
        model = weights.model if weights.peft is None else weights.peft.merge_and_unload(safe_merge=True)
        model.to(self.dtype).save_pretrained(folder)
        weights.encoder.tokenizer.save_pretrained(folder)
        return 1.0


def note(recipe: Recipe, base: Path, model: str, folder: Path) -> None:
    """What the adapter is for, beside it; a prompt that does not ship goes along."""
    prompt = recipe.asked
    named = f"{prompt.name}@{prompt.version}"
    if recipe.prompt is not None and recipe.prompt.endswith((".yaml", ".yml")):
        named = "prompt.yaml"
        shutil.copy(base / recipe.prompt, folder / named)
    options: dict[str, object] = {} if recipe.passage_tokens is None else {"passage_tokens": recipe.passage_tokens}
    if recipe.evaluation is not None:
        options |= recipe.evaluation.options  # windows, say: what it was chosen with
    Purpose(model, recipe.strategy, named, options).write(folder)
