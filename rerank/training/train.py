"""From a recipe to an adapter: what `rerank train` does.

In the output folder lie the recipe, `checkpoint-N` folders, `curve.jsonl` and `curve.png`, TensorBoard's files, and
at the end `adapter` (or `model`, where every weight was trained). A run that was stopped goes on where its newest
whole checkpoint stands: the lists, the schedule and the random numbers are those of an uninterrupted run.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank.errors import BackboneError, InputError, UnknownNameError
from rerank.training.mixture import Mixture
from rerank.training.recipe import Recipe, read_recipe
from rerank.training.sources import Pool, Source, read_pools

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainingArguments

    from rerank.backbones.weights import Weights
    from rerank.training.forward import Objective
    from rerank.training.objectives import Asker
    from rerank.training.trainer import Examples, RankingTrainer, Watch

log = logging.getLogger(__name__)

REQUIRES = ("torch", "transformers", "peft", "accelerate", "tensorboard", "matplotlib")


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out. `loss` is the mean of the last logged steps; `measure` the development set's, of the weights that
    were kept; `kept` the share of the adapter that its compression left; `tokens_per_s` while steps were computed."""

    folder: Path
    steps: int
    loss: float | None
    measure: float | None
    kept: float
    tokens_per_s: float


def train(path: str | Path, out: str | Path, *, fresh: bool = False, watch: Watch | None = None) -> Trained:
    """Trains what the recipe says, or goes on with it.

    Raises InputError for a mistake in the recipe, before a model is loaded; for an output folder of another recipe,
    unless `fresh` empties it.
    """
    missing = next((name for name in REQUIRES if importlib.util.find_spec(name) is None), None)
    path, out = Path(path), Path(out)
    recipe = read_recipe(path)
    if missing is not None:
        raise BackboneError(f"training needs {missing}: pip install 'rerank-llm[train]'")
    _claim(out, recipe, fresh)
    base = path.resolve().parent
    pools = [(source, read_pools(source, base)) for source in recipe.data]
    return _Session(recipe, base, out, pools, watch).run()


def _claim(out: Path, recipe: Recipe, fresh: bool) -> None:
    """Makes the output folder this recipe's."""
    import shutil

    text = json.dumps(recipe.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
    file = out / "recipe.json"
    first = int(os.environ.get("RANK", "0")) == 0  # of several processes one writes
    if fresh and first and file.is_file():  # only a folder of ours is emptied
        shutil.rmtree(out)
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        old = json.loads(file.read_text(encoding="utf-8"))
        new = json.loads(text)
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        raise InputError(
            f"{out} holds a run of another recipe (they differ in {', '.join(changed)}); give another --out, or "
            "--fresh to begin anew"
        )
    if not file.is_file() and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no training run; give another --out")
    if first:
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


class _Session:
    """One run of one recipe in this process."""

    def __init__(
        self, recipe: Recipe, base: Path, out: Path, pools: list[tuple[Source, list[Pool]]], watch: Watch | None
    ) -> None:
        self.recipe, self.base, self.out, self.watch = recipe, base, out, watch
        schedule = recipe.schedule
        wanted = schedule.lists or sum(len(own) for _, own in pools)
        self.steps = -(-wanted // schedule.batch)
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
        folder = self.out / ("model" if self.whole else "adapter")
        kept = 1.0
        if self.args.process_index == 0:
            measure = self._choose(trainer, measure)
            kept = self._write(folder)
            draw_curve(read_curve(self.out / "curve.jsonl"), self.out / "curve.png", self._measured)
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        result = Trained(folder, self.steps, losses[-1] if losses else None, measure, kept, trainer.counts.speed)
        if self.args.process_index == 0:
            told = {"steps": result.steps, "loss": result.loss, self._measured: measure, "kept": kept}
            told["tokens_per_s"] = result.tokens_per_s
            (self.out / "result.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        return result

    @property
    def whole(self) -> bool:
        """Whether the result is a model and not an adapter."""
        return self.recipe.adapter.method == "full" or self.head

    @property
    def head(self) -> bool:
        return self.recipe.strategy == "score-head"

    @property
    def _measured(self) -> str:
        return self.recipe.evaluation.measure if self.recipe.evaluation is not None else "measure"

    def _arguments(self) -> TrainingArguments:
        from transformers import TrainingArguments
        from transformers.training_args import OptimizerNames

        from rerank.backbones.hardware import choose_device, choose_dtype

        os.environ["TENSORBOARD_LOGGING_DIR"] = str(self.out / "tensorboard")
        recipe, schedule, evaluation = self.recipe, self.recipe.schedule, self.recipe.evaluation
        known = [name.value for name in OptimizerNames]
        if schedule.optimizer not in known:
            raise UnknownNameError("optimizer", schedule.optimizer, known)
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if schedule.batch % world:
            raise InputError(f"a batch of {schedule.batch} lists cannot be shared by {world} processes")
        place = choose_device(None)
        self.dtype = choose_dtype(recipe.dtype, place)
        every = evaluation.every if evaluation is not None else None
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
            logging_steps=max(1, min(10, self.steps // 20)),
            save_strategy="steps",
            save_steps=schedule.save_every or every or 100,
            save_total_limit=schedule.keep,
            eval_strategy="no" if every is None else "steps",
            eval_steps=every,
            metric_for_best_model=None if evaluation is None else f"eval_{evaluation.measure}",
            greater_is_better=None if evaluation is None else True,
            load_best_model_at_end=evaluation is not None,
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

        from rerank.backbones.embedded import EMBEDDED, resolve
        from rerank.backbones.transformers_ import load_weights

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
        weights.adapters = {"trained": "default"}
        return weights.peft

    def _batches(self, examples: Examples) -> Iterable[Mapping[str, Tensor]]:
        """A few prompts as plain padded input, for an adapter that begins from what the layers see."""
        import torch

        for i in islice(random.Random(self.recipe.seed).sample(range(len(examples)), min(64, len(examples))), 64):
            asked = [a.fed for q in examples[i] for a in q.sequences]
            longest = max(map(len, asked))
            ids = torch.zeros(len(asked), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, fed in enumerate(asked):
                ids[row, : len(fed)] = torch.tensor(fed)
                mask[row, : len(fed)] = 1
            yield {"input_ids": ids.to(self.args.device), "attention_mask": mask.to(self.args.device)}

    def _trainer(self, model: object, examples: Examples) -> RankingTrainer:
        from transformers import EarlyStoppingCallback, PrinterCallback

        from rerank.backbones.hardware import default_batch_tokens
        from rerank.training.forward import Run
        from rerank.training.trainer import RankingTrainer, Reporter

        weights, evaluation = self.weights, self.recipe.evaluation
        fed = examples[0][0].sequences[0].fed
        run = Run(
            weights.model,
            self.args.device,
            self.dtype,
            packs=not self.head and weights.probe(fed),
            share=self.recipe.prefix_reuse,
            head=self.head,
            pad=weights.model.config.pad_token_id or 0,
        )
        trainer = RankingTrainer(
            model=model,
            args=self.args,
            train_dataset=examples,
            eval_dataset=examples if evaluation is not None else None,
            objective=self._objective(),
            run=run,
            batch_tokens=self.recipe.schedule.batch_tokens or default_batch_tokens(self.args.device),
            measure=self._measurer() if evaluation is not None else None,
            measure_name=self._measured,
        )
        trainer.remove_callback(PrinterCallback)
        if evaluation is not None and evaluation.patience is not None:
            trainer.add_callback(EarlyStoppingCallback(evaluation.patience))
        trainer.add_callback(Reporter(trainer.counts, self.watch, self.out / "curve.jsonl", self._measured))
        self.measure = trainer._measure
        return trainer

    def _objective(self) -> Objective:
        from rerank.losses import load_loss
        from rerank.training.forward import Objective

        recipe = self.recipe
        rank = None
        if recipe.loss is not None:
            options: dict[str, Any] = {**recipe.loss.options, "reduction": "none"}
            rank = load_loss(recipe.loss.name, **options)
        write = recipe.write
        return Objective(
            recipe.asked.answer,
            rank,
            recipe.loss.weight if recipe.loss is not None else 1.0,
            write.weight if write is not None else 0.0,
            write.importance if write is not None else False,
            write.separators if write is not None else 1.0,
        )

    def _measurer(self) -> Callable[[], float]:
        from rerank.backbones.transformers_ import TransformersBackbone
        from rerank.data import load_dataset, read_run
        from rerank.eval import evaluate
        from rerank.reranker import Reranker
        from rerank.training.sources import placed

        evaluation = self.recipe.evaluation
        assert evaluation is not None
        dataset = load_dataset(placed(evaluation.dataset, self.base))
        if dataset.qrels is None:
            raise InputError(f"evaluation.dataset {evaluation.dataset} has no judgments")
        run = read_run(self.base / evaluation.run) if evaluation.run is not None else None
        requests = [c for c in dataset.candidates(evaluation.depth, run=run) if c.query.query_id in dataset.qrels]
        requests = requests[: evaluation.queries]
        judged = {c.query.query_id: dataset.qrels[c.query.query_id] for c in requests}
        adapter = "trained" if self.weights.peft is not None else None

        def measure() -> float:
            model = self.weights.peft or self.weights.model
            model.eval()
            ranker = Reranker(self.recipe.ranker(), TransformersBackbone(self.weights, adapter))
            rankings = list(ranker.rank_many(requests))
            model.train()
            return evaluate(rankings, judged, (evaluation.measure,)).mean[evaluation.measure]

        return measure

    def _choose(self, trainer: RankingTrainer, best: float | None) -> float | None:
        """The mean of the last checkpoints where the recipe wants it and it is no worse on the development set."""
        from rerank.training.methods import averaged

        wanted = self.recipe.schedule.average
        folders = sorted(self.out.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))[-wanted:]
        if wanted < 2 or len(folders) < 2:
            return best
        peft = self.weights.peft
        assert peft is not None
        kept = self.out / "single"
        peft.save_pretrained(str(kept))
        averaged(folders, self.out / "average")
        peft.load_adapter(str(self.out / "average"), "default", is_trainable=True)
        if self.measure is None:
            return best
        value = self.measure()
        log.info("the mean of %d checkpoints has %s %.4f, the best one %.4f", len(folders), self._measured, value, best)
        if best is not None and value < best:
            peft.load_adapter(str(kept), "default", is_trainable=True)
            return best
        return value

    def _write(self, folder: Path) -> float:
        from rerank.training.methods import export

        recipe, weights = self.recipe, self.weights
        if not self.whole:
            assert weights.peft is not None
            return export(
                weights.peft,
                recipe.adapter.method,
                folder,
                self.out / "beginning",
                weights.name,
                recipe.adapter.compress,
            )
        model = weights.model if weights.peft is None else weights.peft.merge_and_unload(safe_merge=True)
        model.to(self.dtype).save_pretrained(folder)
        weights.encoder.tokenizer.save_pretrained(folder)
        return 1.0
