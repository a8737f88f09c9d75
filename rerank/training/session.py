"""One run of one recipe in this process: model, adapter, trainer, and what is written at the end."""

from __future__ import annotations

import logging
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
from rerank.backbones.hardware import choose_dtype
from rerank.errors import InputError
from rerank.training.arguments import arguments
from rerank.training.card import write_card
from rerank.training.checks import rank_loss
from rerank.training.development import Development
from rerank.training.mixture import Mixture
from rerank.training.output import Trained, record
from rerank.training.recipe import Recipe
from rerank.training.sessions import Sessions
from rerank.training.sources import Pool, Source

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import TrainingArguments

    from rerank.backbones.weights import Weights
    from rerank.training.forward import Objective, Run
    from rerank.training.learners import Learner
    from rerank.training.objectives import Asker
    from rerank.training.reference import Reference
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
        total = self.steps * schedule.batch
        self.mixture: Mixture | Sessions
        self.learner: Learner | None = None
        if recipe.clicks is None:
            self.mixture = Mixture(pools, seed=recipe.seed, total=total, curriculum=recipe.order)
        else:
            self.mixture = Sessions([pool for _, own in pools for pool in own], recipe.clicks, recipe.seed, total)
        self.args = self._arguments()
        if isinstance(self.mixture, Sessions) and recipe.clicks is not None:
            from rerank.training.propensities import learner_of

            self.learner = learner_of(recipe.clicks, base, self.mixture.longest, self.args.device)
        self.dtype = choose_dtype(recipe.dtype, self.args.device)
        self.weights = self._load()
        self.asker = self._asker()

    def run(self) -> Trained:
        from rerank.training.gauges import NAMES
        from rerank.training.trainer import last_checkpoint

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
        # with fsdp no process holds the whole, and all take part in putting it together
        whole = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.is_fsdp_enabled else None
        folder = self.out / ("model" if self.recipe.whole else "adapter")
        kept = 1.0
        if self.args.process_index == 0:
            measure = self._choose(trainer, measure)
            kept = self._write(folder, whole)
            self._draw()
        last: dict[str, float] = next((line for line in reversed(trainer.state.log_history) if "loss" in line), {})
        told = {name: last[name] for name in NAMES if name in last}
        result = Trained(folder, self.args.max_steps, last.get("loss"), measure, kept, trainer.counts.speed, told)
        if self.args.process_index == 0:
            record(self.out, result, self._measured)
            figures = {"steps": result.steps, f"{self._measured}, development set": measure, "loss": result.loss}
            write_card(folder, self.recipe, self.weights.name, self.sources, figures | told)
        return result

    def _arguments(self) -> TrainingArguments:
        return arguments(self.recipe, self.base, self.out, self.steps)

    def _draw(self) -> None:
        from rerank.training.picture import draw_curve
        from rerank.training.trainer import read_curve

        draw_curve(read_curve(self.out / "curve.jsonl"), self.out / "curve.png", self._measured)

    @property
    def head(self) -> bool:
        return self.recipe.strategy == "score-head"

    @property
    def _measured(self) -> str:
        return self.recipe.evaluation.measure if self.recipe.evaluation is not None else "measure"

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
            write=recipe.write is not None or recipe.rankings is not None,
            pairs=recipe.pairs or 4,
            top=recipe.write.top if recipe.write is not None else None,
            rankings=recipe.rankings,
            thought=(recipe.write.thought if recipe.write is not None else None) or "verdicts",
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
        from rerank.training.methods import unorthogonal
        from rerank.training.trainer import Allocation, RankingTrainer, Reporter, exact_head

        weights, evaluation, noise = self.weights, self.recipe.evaluation, self.recipe.schedule.neftune
        fed = examples[0][0].sequences[0].fed
        (weights.peft or weights.model).eval()  # dropout would not let two passes compare
        with torch.no_grad():
            packs = not self.head and weights.probe(fed)
        allocates = weights.peft is not None and weights.peft.peft_config["default"].peft_type == "ADALORA"
        run = self._run(packs, (noise, weights.model.get_input_embeddings()) if noise is not None else None)
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
        if self.learner is not None:
            from rerank.training.click_callback import ClickCallback
            from rerank.training.propensities import Journal

            trainer.add_callback(ClickCallback(Journal(self.out, self.learner, self._true_curve)))
        trainer.add_callback(Reporter(trainer.counts, self.watch, self.out / "curve.jsonl", self._measured))
        return trainer

    def _run(self, packs: bool, noise: tuple[float, nn.Module] | None = None) -> Run:
        from rerank.training.forward import Run

        return Run(
            self.weights.model,
            self.args.device,
            self.dtype,
            packs=packs,
            share=self.recipe.prefix_reuse,
            head=self.head,
            pad=self.weights.model.config.pad_token_id or 0,
            noise=noise,
        )

    def _objective(self) -> Objective:
        from rerank.training.forward import Objective
        from rerank.training.gauges import Gauges, drawing, gauges

        recipe, write = self.recipe, self.recipe.write
        draws = drawing(recipe)
        return Objective(
            recipe.asked.answer,
            rank_loss(recipe, draws.generator if draws is not None else None),
            recipe.loss.factor if recipe.loss is not None else 1.0,
            write.factor if write is not None else 0.0,
            write.importance if write is not None else False,
            write.separators if write is not None else 1.0,
            draws,
            self._reference(),
            Gauges(gauges(recipe, draws)),
            self.learner,
        )

    def _reference(self) -> Reference | None:
        """Made before a checkpoint is read: the model as training found it."""
        from rerank.training.reference import Beginning, Reference

        part, peft = self.recipe.reference, self.weights.peft
        if part is None or peft is None:
            return None
        return Reference(Beginning(peft), part.beta, part.length == "mean")

    def _true_curve(self, progress: float) -> list[float] | None:
        return self.mixture.curve(progress) if isinstance(self.mixture, Sessions) else None

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

    def _write(self, folder: Path, whole: dict[str, Tensor] | None) -> float:
        from rerank.training.methods import export

        recipe, weights = self.recipe, self.weights
        if not recipe.whole:
            assert weights.peft is not None
            kept = export(weights.peft, folder, self.out / "beginning", weights.name, recipe.adapter.compress, whole)
            note(recipe, self.base, weights.name, folder)
            return kept
        model = weights.model if weights.peft is None else weights.peft.merge_and_unload(safe_merge=True)
        model.to(self.dtype).save_pretrained(folder, state_dict=whole)
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
    if recipe.reason_tokens is not None:
        options["reason_tokens"] = recipe.reason_tokens
    Purpose(model, recipe.strategy, named, options).write(folder)
