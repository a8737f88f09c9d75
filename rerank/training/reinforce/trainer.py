"""GRPO over TRL's trainer: its loss, its advantages and its bookkeeping, with our prompts, answers and forward pass.

TRL is changed where it says that it can be: answers come from a `rollout_func`, rewards from a reward function, and
what subclasses may give, advantages for tokens, Rank-GRPO gives. Log-probabilities are computed by our packed pass,
which computes a prompt once for all answers to it that are learned from at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback
from trl import GRPOTrainer

from rerank.training.forward import Run
from rerank.training.objectives import Asked
from rerank.training.reinforce.answers import Row, Table, shown
from rerank.training.reinforce.part import ReinforcePart
from rerank.training.reinforce.posing import Poser
from rerank.training.reinforce.ranks import advantages, evened, named, places, returns, spread
from rerank.training.reinforce.rewards import Reward
from rerank.training.reinforce.rollout import Sampler
from rerank.training.trainer import Counts, RankingTrainer

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from rerank.backbones.weights import Weights

Batch = Mapping[str, Tensor]
Rows = Sequence[Mapping[str, int]]


class ReinforceTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL is not typed for us
    """`measure` evaluates the model as it is; `table` takes the answers."""

    def __init__(
        self,
        *,
        part: ReinforcePart,
        poser: Poser,
        weights: Weights,
        run: Run,
        table: Table,
        measure: Callable[[], float] | None,
        measure_name: str,
        **options: object,
    ) -> None:
        super().__init__(reward_funcs=self._reward, train_dataset=poser.dataset(), **options)
        self.part, self.poser, self.asking, self.table = part, poser, run, table
        self.sampler = Sampler(weights, part, tuple(self.eos_token_ids))
        self._measure, self._measure_name = measure, measure_name
        self.counts = Counts()
        self.rollout_func = self._rollout
        self._found: list[Reward] = []  # of the answers that were sampled last
        self._texts: Sequence[str] = ()

    evaluate = RankingTrainer.evaluate  # the strategy ranks a development set, as in supervised training

    def create_model_card(self, *_: object, **__: object) -> None:
        """Ours is written at the end; TRL would write one for every checkpoint."""

    def _send_telemetry(self) -> None:
        """Nothing is told to anyone."""

    def training_step(self, model: torch.nn.Module, inputs: Rows, num_items_in_batch: object = None) -> Tensor:
        started = time.monotonic()
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.counts.seconds += time.monotonic() - started
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.args.world_size > 1:
            self.counts.share(lambda sums: self.accelerator.reduce(sums.to(self.accelerator.device), "sum"))
        super().log(logs, start_time)

    def _rollout(self, prompts: Sequence[list[int]], _: object) -> dict[str, object]:
        """An answer to each prompt. TRL says which ones by their token ids."""
        calls = [self._calls[tuple(ids)] for ids in prompts]
        limits, stops = [call.max_tokens for call in calls], [call.stop for call in calls]
        if self.use_vllm:
            _, written, known, _ = self.vllm_generation.generate(
                prompts=prompts, images=None, num_generations=self.num_generations
            )
            found = [
                self.sampler.ended(row, limit, marks, [token[0] for token in row_known])
                for row, limit, marks, row_known in zip(written, limits, stops, known, strict=True)
            ]
        else:
            model = self.accelerator.unwrap_model(self.model)
            model.eval()  # an answer is the model's own, without dropout
            try:
                found = self.sampler.sample(prompts, limits, stops)
            finally:
                model.train()
        self.counts.tokens += sum(len(ids) + len(one.ids) for ids, one in zip(prompts, found, strict=True))
        return {
            "prompt_ids": prompts,
            "completion_ids": [one.ids for one in found],
            "logprobs": [one.logprobs for one in found] if self.use_vllm else None,
            "env_mask": [one.own for one in found],
            "truncated": [one.truncated for one in found],
        }

    def _reward(
        self,
        *,
        completions: Sequence[str],
        index: Sequence[int],
        truncated: Sequence[bool],
        log_metric: Callable[[str, float], None],
        **_: object,
    ) -> list[float]:
        answers = [self.poser.answer(i, text, cut) for i, text, cut in zip(index, completions, truncated, strict=True)]
        self._texts = completions
        self._found = [self.poser.reward(i, answer) for i, answer in zip(index, answers, strict=True)]
        for name in self._found[0].parts:
            log_metric(f"part/{name}", sum(found.parts[name] for found in self._found) / len(self._found))
        return [found.value for found in self._found]

    def _generate_and_score_completions(self, inputs: Rows) -> dict[str, Tensor]:
        posed = [self.poser.posed(row["index"]) for row in inputs]
        self._calls = {one.ids: one.call for one in posed}
        out: dict[str, Tensor] = super()._generate_and_score_completions(inputs)
        actions = self._advance(inputs, out)
        rows = (
            Row(
                self.state.global_step + 1,
                one.item.query.query_id,
                one.item.query.text,
                tuple(shown(p.doc_id, y, p.text) for p, y in zip(one.item.passages, one.item.labels, strict=True)),
                text,
                bool(row["truncated"]),
                found.value,
                found.parts,
                tuple(round(value, 4) for value in action),
            )
            for row, one, text, found, action in zip(inputs, posed, self._texts, self._found, actions, strict=True)
        )
        found = gather_object(list(rows))  # of all processes
        if self.accelerator.is_main_process:
            self.table.add(found)
        return out

    def _advance(self, inputs: Rows, out: dict[str, Tensor]) -> list[list[float]]:
        """The advantages as they are logged, one for each action; here the answer is the one action."""
        return [[value] for value in out["advantages"].tolist()]

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: object,
    ) -> tuple[Tensor, Tensor | None, None]:
        """The log-probability of each token of the answers at the sampling temperature, and the entropy there."""
        first = input_ids.shape[1] - logits_to_keep
        logps, entropies = [], []
        for start in range(0, len(input_ids), batch_size or len(input_ids)):
            stop = start + (batch_size or len(input_ids))
            asked = [
                Asked(tuple(ids[:first][m[:first]].tolist()), (), tuple(ids[first:][m[first:]].tolist()) or (0,))
                for ids, m in zip(input_ids[start:stop], attention_mask[start:stop].bool(), strict=True)
            ]
            self.asking.model = model
            with self.accelerator.autocast():
                found = self.asking.logits(asked)
            for one, logits in zip(asked, found, strict=True):
                own = (logits.float() / self.temperature).log_softmax(-1)
                targets = torch.tensor(one.targets, device=own.device)
                logps.append(own.gather(-1, targets[:, None])[:, 0])
                if compute_entropy:
                    entropies.append(self._entropy(own))
        entropy = _padded(entropies, logits_to_keep) if compute_entropy else None
        return self._taken(_padded(logps, logits_to_keep)), entropy, None

    def _taken(self, logps: Tensor) -> Tensor:
        """What importance ratios are made of: `[B, T]`."""
        return logps

    def _entropy(self, logps: Tensor) -> Tensor:
        """In nats. It has a gradient only where there is a bonus for it: else it is half of all memory."""
        with torch.set_grad_enabled(self._entropy_bonus_enabled and torch.is_grad_enabled()):
            return -(logps.exp() * logps).sum(-1)


def _padded(rows: Sequence[Tensor], length: int) -> Tensor:
    """`[B, T]`, 0 where nothing is."""
    padded = pad_sequence(list(rows), batch_first=True)
    return torch.nn.functional.pad(padded, (0, length - padded.shape[1]))


class RankTrainer(ReinforceTrainer):
    """Rank-GRPO: advantages and ratios for each rank; see `ranks`."""

    _ranks: Tensor | None = None  # of the answers whose loss is being computed
    _mask: Tensor

    def _advance(self, inputs: Rows, out: dict[str, Tensor]) -> list[list[float]]:
        decode = self._decode
        mask = out["completion_mask"]
        earned, ranks = [], []
        for row, text, ids, kept, found in zip(
            inputs, self._texts, out["completion_ids"], mask, self._found, strict=True
        ):
            chain = named(self.poser.asker.prompt, text) if found.parts["format"] else []
            labels = self.poser.posed(row["index"]).item.labels
            earned.append(returns([position for position, _ in chain], labels, self.part.returns or "relevance"))
            tokens = places(ids[: int(kept.sum())].tolist(), decode, [end for _, end in chain])
            ranks.append(torch.tensor(tokens, device=ids.device, dtype=torch.long))
        out["ranks"] = _padded(ranks, mask.shape[1])
        by_rank = advantages(earned, self.num_generations, scale=self.scale_rewards != "none").to(mask.device)
        whole = out["advantages"]
        own = mask * out["tool_mask"] if "tool_mask" in out else mask
        out["advantages"] = spread(out["ranks"], own, whole, by_rank)
        return [
            [value, *line[: len(row)]]
            for value, line, row in zip(whole.tolist(), by_rank.tolist(), earned, strict=True)
        ]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _compute_loss(self, model: torch.nn.Module, inputs: Batch) -> Tensor:
        self._ranks = inputs["ranks"]
        self._mask = inputs["completion_mask"] * inputs["tool_mask"]
        known = ("old_per_token_logps", "ref_per_token_logps")
        even = {name: evened(inputs[name], self._ranks, self._mask) for name in known if name in inputs}
        try:
            loss: Tensor = super()._compute_loss(model, {**inputs, **even})
        finally:
            self._ranks = None
        return loss

    def _taken(self, logps: Tensor) -> Tensor:
        """Within the loss, evened over each rank; as they are before, when answers are scored."""
        return logps if self._ranks is None else evened(logps, self._ranks, self._mask)


@dataclass(slots=True)
class Following(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Keeps the table of answers as long as the training is, and its Markdown beside each checkpoint."""

    table: Table

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if state.is_world_process_zero:
            self.table.cut(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if state.is_world_process_zero:
            self.table.tell()
