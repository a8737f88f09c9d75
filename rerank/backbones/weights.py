"""One set of model weights with any number of LoRA adapters, and the forward passes over them.

The sequences of label and likelihood calls are packed (see `packing`): no padding, and a shared prefix is computed
once. The output matrix is applied to the asked positions, and for labels to the asked rows only. A model may do more
than that: cap its logits (Gemma 2), scale them (Granite), look back through a window, mix positions without
attention. A probe compares, and where the results differ the model's own forward pass and head are used, on
left-padded sequences.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

from rerank.backbones import packing, speedups
from rerank.backbones.base import common_prefix

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rerank.backbones.encoding import Encoder

Ids = Sequence[int]

_HEAD = 64  # tokens from which a beginning is read once before generation
_PROBED = 64  # tokens that packing is tried on


def exact(head: torch.nn.Linear, states: Tensor) -> Tensor:
    """The output matrix applied in float32 `[n, V]`: a logit of 30 in bfloat16 is off by up to 1/16."""
    with torch.autocast(states.device.type, enabled=False):
        bias = head.bias.float() if head.bias is not None else None
        return linear(states.float().contiguous(), head.weight.float(), bias)  # else a copy of the matrix for each row


def stopper(
    tokenizer: PreTrainedTokenizerBase, start: int, limits: Sequence[int], stops: Sequence[tuple[str, ...]]
) -> Callable[..., Tensor]:
    """For transformers' generation: which rows have reached their limit, or one of their stops, behind `start`."""

    def stopped(so_far: Tensor, _scores: object, **_: object) -> Tensor:
        tails = tokenizer.batch_decode(so_far[:, max(start, so_far.shape[1] - 16) :])
        hits = [
            so_far.shape[1] - start >= limit or any(mark in tail for mark in marks)
            for tail, marks, limit in zip(tails, stops, limits, strict=True)
        ]
        return torch.tensor(hits, device=so_far.device)

    return stopped


@dataclass(slots=True)
class Weights:
    """The model, its tokenizer, and which adapter is switched on. `lock` guards the switch and the pass."""

    model: PreTrainedModel
    encoder: Encoder
    name: str
    adapters: dict[str, str] = field(default_factory=dict)  # path or hub name -> the name peft knows it by
    peft: PeftModel | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    int8: bool = False
    compiled: bool = False
    packs: bool | None = None  # whether sequences can be packed; None: not probed yet

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    def switch(self, adapter: str | None) -> None:
        """Makes this adapter, or none, the active one."""
        if self.peft is None:
            return
        if adapter is None:
            self.peft.base_model.disable_adapter_layers()
        else:
            self.peft.base_model.enable_adapter_layers()
            self.peft.set_adapter(self.adapters[adapter])

    def quantise(self) -> None:
        """Puts the linear layers into int8; no adapter can be attached after that.

        Whether sequences can be packed is seen before: a last digit that differs is a step of int8 afterwards.
        """
        with torch.inference_mode():
            self.packs = self.probe(range(min(_PROBED, self.model.config.vocab_size)))
        speedups.quantise(self.model)
        self.int8 = True

    def compile(self) -> None:
        """Compiles the layers; only packed sequences, which are all of one form, are run through the result."""
        speedups.compile_layers(self.model)
        self.compiled = True

    def _uncompiled(self) -> AbstractContextManager[object]:
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def logits(
        self,
        sequences: Sequence[Ids],
        counts: Sequence[int],
        rows: Sequence[Ids] | None,
        *,
        share: bool = True,
    ) -> list[Tensor]:
        """For each sequence the float32 logits at its last `count` positions.

        With `rows` only these rows of the vocabulary, one list a sequence: `[count, len(rows)]`; else `[count, V]`.
        """
        if self.packs is None:
            self.packs = self.probe(sequences[0])
        if self.packs:
            try:
                return self._logits_packed(sequences, counts, rows, share)
            except NotImplementedError:  # sequences longer than the window that its layers look back
                self.packs = False
        keep = max(counts)
        ids, mask, positions = self.pad_left(sequences)
        with self._uncompiled():
            logits = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=keep
            ).logits.float()
        found = [logits[i, keep - count :] for i, count in enumerate(counts)]
        return found if rows is None else [part[:, list(r)] for part, r in zip(found, rows, strict=True)]

    def _logits_packed(
        self, sequences: Sequence[Ids], counts: Sequence[int], rows: Sequence[Ids] | None, share: bool
    ) -> list[Tensor]:
        pack = packing.pack(sequences, device=self.device, dtype=self.model.dtype, share=share)
        hidden = self.model.get_decoder()(
            input_ids=pack.ids,
            position_ids=pack.positions,
            attention_mask=torch.empty(1, 1, 1, 1, device=self.device),  # of four dimensions: transformers makes none
            use_cache=False,
            pack=pack,
        ).last_hidden_state[0]  # [T, H]
        head = self.model.get_output_embeddings()
        found = []
        for i, (own, count) in enumerate(zip(pack.rows, counts, strict=True)):
            states = hidden[own[-count:]]  # [count, H]
            if rows is None:
                found.append(states)
            else:
                row = torch.tensor(rows[i], device=self.device)
                bias = head.bias[row].float() if head.bias is not None else None
                found.append(linear(states.float(), head.weight[row].float(), bias))
        return found if rows is not None else list(torch.split(exact(head, torch.cat(found)), list(counts)))

    def probe(self, sequence: Ids) -> bool:
        """Whether packing two sequences that share a beginning gives the model's own logits."""
        head = self.model.get_output_embeddings()
        if head is None or type(head).__name__ != "Linear":  # an adapter of the head itself, say
            return False
        if getattr(self.model.config, "_attn_implementation", None) != packing.NAME:
            return False
        tokens = list(sequence)[:_PROBED]
        pair = [tokens, [*tokens[: len(tokens) // 2 + 1], *tokens[:3]]]
        try:
            ours = torch.cat(self._logits_packed(pair, [1, 1], None, True))
        except (NotImplementedError, TypeError):  # no packed form of its attention, or no way to hand it the pack
            return False
        with self._uncompiled():
            own = torch.stack([self.model(torch.tensor([p], device=self.device)).logits[0, -1].float() for p in pair])
        # an order of magnitude above what the order of additions changes, and far below what a mistake does
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.1
        return bool((own - ours).abs().max() <= tolerance * own.abs().max())

    def _shared_head(self, sequences: Sequence[Ids]) -> list[int]:
        """What all sequences begin with, where reading it once is worth a cache of its own: few-shot examples, say.

        At least a token of each is left. Only where every layer looks at all positions, so that the padding that
        stands behind the head changes nothing.
        """
        ordered = sorted(map(tuple, sequences))  # what the first and the last have in common, all have
        common = min(common_prefix(ordered[0], ordered[-1]), min(map(len, sequences)) - 1)
        if len(sequences) < 2 or common < _HEAD or common * 4 < max(map(len, sequences)):
            return []
        if self.packs is None:
            self.packs = self.probe(sequences[0])
        return list(sequences[0][:common]) if self.packs else []

    def pad_left(self, sequences: Sequence[Ids]) -> tuple[Tensor, Tensor, Tensor]:
        longest = max(map(len, sequences))
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, sequence in enumerate(sequences):
            ids[i, longest - len(sequence) :] = torch.tensor(sequence)
            mask[i, longest - len(sequence) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return ids.to(self.device), mask.to(self.device), positions.to(self.device)

    def generate(
        self, sequences: Sequence[Ids], max_tokens: Sequence[int], stop: Sequence[tuple[str, ...]]
    ) -> list[Ids]:
        """Greedy continuations, each up to its own `max_tokens`, the model's end, or shortly after a stop."""
        from transformers import GenerationConfig, StoppingCriteriaList

        head = self._shared_head(sequences)
        ids, mask, _ = self.pad_left([sequence[len(head) :] for sequence in sequences])
        known: dict[str, object] = {}
        if head:
            first = torch.tensor([head], device=self.device).expand(len(sequences), -1)
            ids, mask = torch.cat([first, ids], 1), torch.cat([torch.ones_like(first), mask], 1)
            with self._uncompiled():
                cache = self.model(input_ids=first[:1], use_cache=True, logits_to_keep=1).past_key_values
            cache.batch_repeat_interleave(len(sequences))
            known["past_key_values"] = cache
        own = self.model.generation_config
        end = own.eos_token_id if own is not None else None
        ends = [] if end is None else [end] if isinstance(end, int) else list(end)
        start = ids.shape[1]
        stopped = stopper(self.encoder.tokenizer, start, max_tokens, stop)
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max(max_tokens),
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
        )
        with self._uncompiled():
            written = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([stopped]),
                **known,
            )[:, start:].tolist()
        found = []
        for row, limit in zip(written, max_tokens, strict=True):
            row = row[:limit]
            found.append(row[: min((row.index(e) for e in ends if e in row), default=len(row))])
        return found
