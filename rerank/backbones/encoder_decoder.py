"""Models that read with an encoder and answer with a decoder, such as T5 and the rerankers made of it.

The encoder reads the prompt, and the decoder begins with its start token and the prompt's prefix: what comes next is
asked of the decoder. Calls are padded to the longest of a batch of like lengths. The last product is computed in
float32, as for the other engines.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rerank.backbones.base import Prepared, by_kind, by_length
from rerank.backbones.encoding import Encoder
from rerank.backbones.hardware import choose_device, choose_dtype, default_batch_tokens, set_threads
from rerank.backbones.memory import within_memory
from rerank.backbones.transformers_ import unloadable
from rerank.calls import Answer, Call, Constraint, GenerateCall, Kind, LabelCall, LikelihoodCall, ScoreCall
from rerank.errors import BackboneError, CapabilityError, InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EXAMPLE = "castorini/monot5-base-msmarco"
_LENGTH = 512  # tokens that T5 was trained on, where neither the tokenizer nor the user says how many
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncoderDecoderBackbone:
    """Answers what the decoder's tokens say: labels, a logit, a likelihood. It generates nothing."""

    model: PreTrainedModel
    encoder: Encoder  # of texts to tokens; its `context` is the most that the model's encoder is given
    name: str
    batch_tokens: int | None = None
    kinds: frozenset[Kind] = frozenset({Kind.LABELS, Kind.LIKELIHOOD, Kind.LOGIT})
    constraints: frozenset[type[Constraint]] = frozenset()
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    @classmethod
    def load(
        cls,
        model: str | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        batch_tokens: int | None = None,
        max_length: int | None = None,
        revision: str | None = None,
        threads: int | None = None,
    ) -> EncoderDecoderBackbone:
        """`model` is a hub name or a directory; only safetensors are read. `revision` is a branch, tag or commit of the
        hub's, for models whose safetensors lie in a conversion beside the main branch.

        `max_length` is the most tokens that a prompt may take, None is the tokenizer's limit, else 512. `threads` is
        how many threads torch computes with, in the whole process.
        """
        if model is None:
            raise InputError(f"the encoder-decoder backbone needs a model, such as model={EXAMPLE!r}")
        for name, value in (("batch_tokens", batch_tokens), ("max_length", max_length)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; give at least 1")
        place = choose_device(device)
        set_threads(threads)
        loaded, tokenizer = _load(model, revision, place, choose_dtype(dtype, place))
        own = tokenizer.model_max_length
        limit = max_length or (own if 0 < own < 10**9 else _LENGTH)
        if (start := loaded.config.decoder_start_token_id) is None:
            raise BackboneError(f"{model} names no token that its decoder begins with (decoder_start_token_id)")
        _log.debug("%s: at most %d tokens; its decoder begins with token %d", model, limit, start)
        return cls(loaded, Encoder(tokenizer, limit, model), model, batch_tokens or default_batch_tokens(place))

    @property
    def control_tokens(self) -> frozenset[str]:
        return self.encoder.control_tokens

    def prepare(self, call: Call) -> Prepared:
        """The prefix goes to the decoder, so that labels are read after it and not after the prompt."""
        if isinstance(call, GenerateCall | ScoreCall):
            raise CapabilityError(f"{self.name} does not answer {call.kind!s} calls; it says how probable a token is")
        ids, _, cut = self.encoder.encode(replace(call.dialogue, prefix=""), 0)
        if isinstance(call, LikelihoodCall):
            targets = self.encoder.continuation(call.continuation)
            return Prepared(call, ids, len(ids) + len(targets), cut, targets)
        labels = call.labels if isinstance(call, LabelCall) else (call.label,)
        return Prepared(call, ids, len(ids), cut, self.encoder.label_ids(call.dialogue.prefix, labels))

    def group(self, items: Sequence[Prepared]) -> list[list[int]]:
        return by_kind(items, lambda _, same: by_length(same, self.batch_tokens))

    def close(self) -> None:
        """The weights go when the backbone does."""

    def answer(self, batch: Sequence[Prepared]) -> list[Answer]:
        return within_memory(
            batch,
            self._computed,
            lambda item: (
                f"{self.name} runs out of memory on one call of {item.tokens} tokens; cut the passages "
                "(passage_tokens=...), or use a smaller dtype or model"
            ),
        )

    def _computed(self, batch: Sequence[Prepared]) -> list[Answer]:
        import torch

        with self.lock, torch.inference_mode():
            return [_read(item, rows) for item, rows in zip(batch, self._logits(batch), strict=True)]

    def _logits(self, batch: Sequence[Prepared]) -> list[Tensor]:
        """For each call the float32 logits `[n, V]` of what follows the prefix: a token, or all of a likelihood."""
        begun = [
            (self.model.config.decoder_start_token_id, *self.encoder.continuation(item.call.dialogue.prefix))
            for item in batch
        ]
        likelihood = batch[0].call.kind == Kind.LIKELIHOOD
        fed = [(*head, *item.targets[:-1]) if likelihood else head for head, item in zip(begun, batch, strict=True)]
        ids, mask = self._padded([item.token_ids for item in batch])
        with _exact_head(self.model):
            # what pads the decoder stands behind all that is read, and no token looks ahead
            logits = self.model(
                input_ids=ids, attention_mask=mask, decoder_input_ids=self._padded(fed)[0], use_cache=False
            ).logits.float()
        return [
            rows[len(head) - 1 : max(len(head), len(given))]
            for rows, head, given in zip(logits, begun, fed, strict=True)
        ]

    def _padded(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The tokens and the mask `[B, T]`, padded behind."""
        import torch

        longest = max(map(len, sequences))
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, sequence in enumerate(sequences):
            ids[i, : len(sequence)] = torch.tensor(sequence)
            mask[i, : len(sequence)] = 1
        return ids.to(self.model.device), mask.to(self.model.device)


def _read(item: Prepared, rows: Tensor) -> Answer:
    if item.call.kind == Kind.LIKELIHOOD:
        found = rows.log_softmax(-1)[range(len(item.targets)), list(item.targets)]
        return Answer(tuple(found.tolist()), prompt_tokens=len(item.token_ids) + len(item.targets))
    asked = rows[0, list(item.targets)]
    if item.call.kind == Kind.LOGIT:
        return Answer(score=asked[0].item(), prompt_tokens=len(item.token_ids))
    return Answer(tuple(asked.log_softmax(-1).tolist()), prompt_tokens=len(item.token_ids))


@contextmanager
def _exact_head(model: PreTrainedModel) -> Iterator[None]:
    """What the output matrix gives is computed anew in float32, before the model does anything more with it."""
    from rerank.backbones.weights import exact

    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda matrix, given, _: exact(matrix, given[0]))
    try:
        yield
    finally:
        hook.remove()


def _load(
    name: str, revision: str | None, device: object, dtype: object
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    local = Path(name).is_dir()
    if local and not (Path(name) / "config.json").is_file():
        raise InputError(f"model directory {name!r} has no config.json")
    if local and revision is not None:
        raise InputError(f"revision is {revision!r}, and {name!r} is a directory, which has none; leave it out")
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    at: dict[str, str] = {} if revision is None else {"revision": revision}
    load: Callable[..., PreTrainedModel] = AutoModelForSeq2SeqLM.from_pretrained
    try:
        if not AutoConfig.from_pretrained(name, **at).is_encoder_decoder:
            raise CapabilityError(f"{name} has no encoder and decoder; ask it by backbone='transformers'")
        tokenizer = AutoTokenizer.from_pretrained(name, **at)
        return load(name, dtype=dtype, use_safetensors=True, **at).to(device).eval(), tokenizer
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if "tiktoken" in str(error):  # which transformers tries last of what could read a spiece.model
            raise BackboneError(
                f"the tokenizer of {name} is a SentencePiece file, and sentencepiece, which reads it, is missing: "
                "pip install 'rerank-llm[encoder-decoder]'"
            ) from error
        if "safetensors" in str(error):
            raise BackboneError(
                f"{name} has no safetensors, and nothing else is read, since unpickling a .bin runs what is in it. The "
                "hub's converter may have made some: give its pull request, as revision=refs/pr/1; or, where you trust "
                f"the file, convert it once: AutoModelForSeq2SeqLM.from_pretrained({name!r}).save_pretrained(FOLDER), "
                "and the same with AutoTokenizer"
            ) from error
        raise unloadable(name, name, error) from error
    finally:
        if bars:
            hf_logging.enable_progress_bar()
