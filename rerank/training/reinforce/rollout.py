"""Answers sampled from the model that is trained, by transformers or by vLLM.

An answer ends where a ranker's generation ends: at the prompt's stop, at the model's own end, or at its bound. Behind a
stop the model's end is written, which the model is not taught: it did not choose it. So TRL tells an answer that
stopped from one that was cut off.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rerank.backbones.weights import stopper
from rerank.training.reinforce.part import ReinforcePart

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from rerank.backbones.weights import Weights

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Sampled:
    """An answer's tokens; `own` says of each whether the model chose it, and `logprobs` how probable it was to vLLM."""

    ids: list[int]
    own: list[int]
    truncated: bool
    logprobs: list[float | None] | None = None


@dataclass(frozen=True, slots=True)
class Sampler:
    """Samples with transformers. Answers to one prompt share what is computed of it."""

    weights: Weights
    part: ReinforcePart
    ends: tuple[int, ...]

    def sample(self, prompts: Sequence[Ids], limits: Sequence[int], stops: Sequence[tuple[str, ...]]) -> list[Sampled]:
        """An answer to each prompt; equal prompts stand next to each other."""
        import torch

        with torch.no_grad():
            written = self._write(prompts, limits, stops)
        return [self.ended(row, limit, marks) for row, limit, marks in zip(written, limits, stops, strict=True)]

    def ended(
        self, row: Ids, limit: int, marks: tuple[str, ...], logprobs: Sequence[float | None] | None = None
    ) -> Sampled:
        """An answer as it came, cut at its end; with the model's end behind a stop."""
        ids = list(row[:limit])
        end = next((i + 1 for i, token in enumerate(ids) if token in self.ends), None)
        stop = self._stop(ids[:end], marks)  # behind it transformers fills up with the model's end
        ids = ids[: stop or end]
        own = [1] * len(ids)
        known = None if logprobs is None else list(logprobs[: len(ids)])
        if stop is not None:
            ids, own = [*ids, self.ends[0]], [*own, 0]
            known = None if known is None else [*known, 0.0]
        return Sampled(ids, own, stop is None and end is None, known)

    def _stop(self, ids: Ids, marks: tuple[str, ...]) -> int | None:
        """How many tokens there are up to the one that completes a stop."""
        decode = self.weights.encoder.tokenizer.decode

        def done(count: int) -> bool:
            text = decode(ids[:count])
            return any(mark in text for mark in marks)

        return bisect_left(range(len(ids) + 1), True, key=done) if done(len(ids)) else None

    def _write(
        self, prompts: Sequence[Ids], limits: Sequence[int], stops: Sequence[tuple[str, ...]]
    ) -> list[list[int]]:
        from transformers import GenerationConfig, StoppingCriteriaList

        weights, part, model = self.weights, self.part, self.weights.peft or self.weights.model
        ids, mask, cache = self._read(prompts)
        start = ids.shape[1]
        config = GenerationConfig(
            do_sample=True,
            temperature=part.temperature,
            top_p=part.top_p,
            top_k=part.top_k or 0,
            min_p=part.min_p,
            repetition_penalty=part.repetition_penalty,
            max_new_tokens=max(limits),
            eos_token_id=list(self.ends),
            pad_token_id=self.ends[0],
        )
        ended = StoppingCriteriaList([stopper(weights.encoder.tokenizer, start, limits, stops)])
        with _head_at_hand(weights.model):
            found: list[list[int]] = model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                generation_config=config,
                stopping_criteria=ended,
            )[:, start:].tolist()
        return found

    def _read(self, prompts: Sequence[Ids]) -> tuple[Tensor, Tensor, object]:
        """The prompts, left-padded, with a cache of all but their last token, which is computed once for equal ones."""
        import torch

        weights = self.weights
        single = [p for p, before in zip(prompts, [None, *prompts], strict=False) if p != before]
        times = len(prompts) // len(single)
        if [p for p in single for _ in range(times)] != list(prompts):
            single, times = list(prompts), 1
        ids, mask, positions = weights.pad_left(single)
        model = weights.peft or weights.model
        cache = model(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=positions[:, :-1],
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        cache.batch_repeat_interleave(times)
        return torch.repeat_interleave(ids, times, 0), torch.repeat_interleave(mask, times, 0), cache


@contextmanager
def _head_at_hand(model: PreTrainedModel) -> Iterator[None]:
    """The output matrix in float32, made once and not for every token."""
    import torch

    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.weight.device.type != "cpu":
        yield
        return
    weight, bias = head.weight.float(), None if head.bias is None else head.bias.float()
    before = head.forward
    head.forward = partial(_apply, weight, bias)  # type: ignore[method-assign]
    try:
        yield
    finally:
        head.forward = before  # type: ignore[method-assign]


def _apply(weight: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    from torch.nn.functional import linear

    return linear(states.float(), weight, bias)
