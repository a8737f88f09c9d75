"""One run of a recipe with `reinforce:` as the supervised one runs, with another trainer and its arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank.training.arguments import arguments
from rerank.training.mixture import Mixture
from rerank.training.reinforce.answers import Table
from rerank.training.reinforce.options import options
from rerank.training.reinforce.part import ReinforcePart
from rerank.training.reinforce.reading import longest
from rerank.training.session import Session

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from rerank.training.reinforce.trainer import ReinforceTrainer
    from rerank.training.trainer import Examples, RankingTrainer

FOLLOWED = ("reward", "part/", "kl", "entropy", "completions/", "frac_reward_zero_std")  # in the curve, beside the loss


class ReinforceSession(Session):
    """One run of a recipe with `reinforce:` in this process."""

    @property
    def part(self) -> ReinforcePart:
        assert self.recipe.reinforce is not None
        return self.recipe.reinforce

    def _arguments(self) -> TrainingArguments:
        from trl import GRPOConfig

        steps = self.steps * self.part.num_iterations
        most, stop = longest(self.recipe.asked, max(source.size for source in self.recipe.data))
        more = options(self.recipe, most, stop)
        return arguments(self.recipe, self.base, self.out, steps, GRPOConfig, **more)

    def _trainer(self, model: object, examples: Examples) -> ReinforceTrainer:
        import torch
        from transformers import EarlyStoppingCallback, PrinterCallback

        from rerank.training.reinforce.posing import Poser
        from rerank.training.reinforce.trainer import Following, RankTrainer, ReinforceTrainer
        from rerank.training.trainer import Reporter, exact_head

        weights, evaluation, part = self.weights, self.recipe.evaluation, self.part
        assert isinstance(self.mixture, Mixture)  # clicks and reinforce exclude one another
        poser = Poser(self.mixture, self.asker, part.reward)
        (weights.peft or weights.model).eval()
        with torch.no_grad():
            packs = weights.probe(poser.posed(0).ids)
        exact_head(weights.model)
        table = Table(self.out / "completions.jsonl")
        made = RankTrainer if part.algorithm == "rank-grpo" else ReinforceTrainer
        trainer = made(
            model=model,
            args=self.args,
            processing_class=weights.encoder.tokenizer,
            eval_dataset=poser.dataset() if evaluation is not None else None,  # never read
            part=part,
            poser=poser,
            weights=weights,
            run=self._run(packs),
            table=table,
            measure=self._measure if evaluation is not None else None,
            measure_name=self._measured,
        )
        trainer.remove_callback(PrinterCallback)
        if evaluation is not None and evaluation.patience is not None:
            trainer.add_callback(EarlyStoppingCallback(evaluation.patience))
        trainer.add_callback(Following(table))
        curve = self.out / "curve.jsonl"
        trainer.add_callback(Reporter(trainer.counts, self.watch, curve, self._measured, FOLLOWED))
        return trainer

    def _choose(self, trainer: RankingTrainer, best: float | None) -> float | None:
        """Without TRL's copy of the adapter that training started from."""
        if self.weights.peft is not None and "ref" in self.weights.peft.peft_config:
            self.weights.peft.delete_adapter("ref")
        return super()._choose(trainer, best)

    def _draw(self) -> None:
        from rerank.training.reinforce.picture import draw_rewards
        from rerank.training.trainer import read_curve

        draw_rewards(read_curve(self.out / "curve.jsonl"), self.out / "curve.png", self._measured)
