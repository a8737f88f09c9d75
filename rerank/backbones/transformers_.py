"""Any causal language model of the hub or of a directory, in this process, on CPU or GPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rerank.backbones import adapters
from rerank.backbones.base import Prepared, by_kind, by_length, check_constraint
from rerank.backbones.embedded import EMBEDDED, resolve
from rerank.backbones.encoding import Encoder
from rerank.backbones.hardware import choose_device, choose_dtype, default_batch_tokens, set_threads
from rerank.backbones.memory import within_memory
from rerank.calls import Answer, Call, Constraint, GenerateCall, Kind
from rerank.errors import BackboneError, InputError, UnknownNameError

if TYPE_CHECKING:
    from rerank.backbones.weights import Weights

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TransformersBackbone:
    """A view of shared weights with one adapter, or none, switched on.

    `with_adapter` gives another view of the same weights; both can be used in turn.
    """

    weights: Weights
    adapter: str | None = None
    batch_tokens: int | None = None
    prefix_reuse: bool = True
    kinds: frozenset[Kind] = frozenset({Kind.LABELS, Kind.LIKELIHOOD, Kind.GENERATE, Kind.LOGIT})
    constraints: frozenset[type[Constraint]] = frozenset()

    @classmethod
    def load(
        cls,
        model: str | None = None,
        *,
        adapter: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_tokens: int | None = None,
        prefix_reuse: bool = True,
        compile: bool = False,
        threads: int | None = None,
    ) -> TransformersBackbone:
        """`model` is a hub name or a directory; None is the embedded model. Only safetensors are read.

        `dtype` is bfloat16, float16 or float32, or int8 (on a CPU: the linear layers in int8, an adapter merged for
        good before); None chooses what the device multiplies fast. `batch_tokens` is the most tokens in a batch.
        `prefix_reuse=False` computes every call by itself. `compile=True` lets torch.compile fuse the layers.
        `threads` is how many threads torch computes with, in the whole process.
        """
        if batch_tokens is not None and batch_tokens < 1:
            raise InputError(f"batch_tokens is {batch_tokens}; give at least 1")
        place = choose_device(device)
        set_threads(threads)
        numbers = choose_dtype(dtype, place, int8=True)
        name = EMBEDDED if model is None else model
        path = str(resolve(progress=_log.warning)) if model is None else model
        weights = load_weights(name, path, place, numbers)
        if adapter is not None:
            adapters.attach(weights, adapter)
        backbone = cls(weights, adapter, batch_tokens or default_batch_tokens(place), prefix_reuse)
        if dtype == "int8":
            backbone = backbone.merge() if adapter is not None else backbone
            weights.quantise()
        if compile:
            weights.compile()
        return backbone

    def with_adapter(self, adapter: str | None) -> TransformersBackbone:
        """The same weights under another adapter, loaded if it is not yet; None for the bare model.

        Raises AdapterError where the weights are int8: an adapter is merged into these when they are loaded.
        """
        if adapter is not None:
            with self.weights.lock:
                adapters.attach(self.weights, adapter)
        return replace(self, adapter=adapter)

    def merge(self) -> TransformersBackbone:
        """Writes the one loaded adapter into the weights: faster, and final for every view of them."""
        if self.adapter is None:
            raise InputError("there is no adapter to merge")
        with self.weights.lock:
            adapters.merge(self.weights, self.adapter)
            self.weights.name = f"{self.weights.name}+{self.adapter}"
        return replace(self, adapter=None)

    @property
    def name(self) -> str:
        return self.weights.name if self.adapter is None else f"{self.weights.name}+{self.adapter}"

    @property
    def control_tokens(self) -> frozenset[str]:
        return self.weights.encoder.control_tokens

    def prepare(self, call: Call) -> Prepared:
        if isinstance(call, GenerateCall):
            check_constraint(self, call)
        return self.weights.encoder.prepare(call)

    def group(self, items: Sequence[Prepared]) -> list[list[int]]:
        from rerank.backbones.packing import by_prefix

        def batches(kind: Kind, same: Sequence[Prepared]) -> list[list[int]]:
            if kind == Kind.GENERATE:
                return by_length(same, self.batch_tokens)
            return by_prefix(list(map(_fed, same)), self.batch_tokens, share=self.prefix_reuse)

        return by_kind(items, batches)

    def close(self) -> None:
        """The weights go when the last view of them does."""

    def answer(self, batch: Sequence[Prepared]) -> list[Answer]:
        return within_memory(
            batch,
            self._computed,
            lambda item: (
                f"{self.name} runs out of memory on one call of {item.tokens} tokens; cut the passages "
                "(passage_tokens=...), show fewer at once (window=...), or use a smaller dtype or model"
            ),
        )

    def _computed(self, batch: Sequence[Prepared]) -> list[Answer]:
        import torch

        with self.weights.lock, torch.inference_mode():
            self.weights.switch(self.adapter)
            kind = batch[0].call.kind
            if kind in (Kind.LABELS, Kind.LOGIT):
                return self._labels(batch)
            return self._likelihood(batch) if kind == Kind.LIKELIHOOD else self._generate(batch)

    def _labels(self, batch: Sequence[Prepared]) -> list[Answer]:
        rows = [item.targets for item in batch]
        logits = self.weights.logits(list(map(_fed, batch)), [1] * len(batch), rows, share=self.prefix_reuse)
        if batch[0].call.kind == Kind.LOGIT:
            return [
                Answer(score=row[0, 0].item(), prompt_tokens=len(item.token_ids))
                for item, row in zip(batch, logits, strict=True)
            ]
        return [
            Answer(tuple(row[0].log_softmax(-1).tolist()), prompt_tokens=len(item.token_ids))
            for item, row in zip(batch, logits, strict=True)
        ]

    def _likelihood(self, batch: Sequence[Prepared]) -> list[Answer]:
        counts = [len(item.targets) for item in batch]
        logits = self.weights.logits(list(map(_fed, batch)), counts, None, share=self.prefix_reuse)
        answers = []
        for item, rows in zip(batch, logits, strict=True):
            found = rows.log_softmax(-1)[range(len(item.targets)), list(item.targets)]
            answers.append(Answer(tuple(found.tolist()), prompt_tokens=len(item.token_ids) + len(item.targets)))
        return answers

    def _generate(self, batch: Sequence[Prepared]) -> list[Answer]:
        calls = [item.call for item in batch if isinstance(item.call, GenerateCall)]
        limits, stops = [call.max_tokens for call in calls], [call.stop for call in calls]
        written = self.weights.generate([item.token_ids for item in batch], limits, stops)
        texts = self.weights.encoder.tokenizer.batch_decode(written, skip_special_tokens=True)
        answers = []
        for item, ids, text, limit, marks in zip(batch, written, texts, limits, stops, strict=True):
            end = min((text.index(mark) for mark in marks if mark in text), default=None)
            answers.append(
                Answer(
                    text=text[:end],
                    truncated=end is None and len(ids) >= limit,
                    prompt_tokens=len(item.token_ids),
                    generated_tokens=len(ids),
                )
            )
        return answers


def _fed(item: Prepared) -> tuple[int, ...]:
    """What the model is fed. The token at position t is predicted at t - 1: a last target is only scored."""
    return (*item.token_ids, *item.targets[:-1]) if item.call.kind == Kind.LIKELIHOOD else item.token_ids


def load_weights(name: str, path: str, device: object, dtype: object, *, head: bool = False) -> Weights:
    """The model in `path`, known as `name`; with `head` as a classifier that gives one score, its head made anew."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig
    from transformers.utils import logging as hf_logging

    from rerank.backbones import packing
    from rerank.backbones.weights import Weights

    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise InputError(f"model directory {path!r} has no config.json")
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        if head:
            kind, options = AutoModelForSequenceClassification, {"num_labels": 1}
            tokenizer.chat_template = None  # a pair is read as a tokenizer joins it
        else:
            kind, options = AutoModelForCausalLM, {}
        model = kind.from_pretrained(path, dtype=dtype, use_safetensors=True, **options).to(device).eval()
        if head:
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            model.config.pad_token_id = tokenizer.pad_token_id  # a head reads the last token that is none
        else:
            packing.offer(model)
            own = model.generation_config  # some carry sampling and penalties, which a greedy answer must not have
            model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise unloadable(name, path, error) from error
    finally:
        if bars:
            hf_logging.enable_progress_bar()
    text = getattr(model.config, "get_text_config", lambda: model.config)()
    limits = [getattr(text, "max_position_embeddings", None), tokenizer.model_max_length]
    context = min((n for n in limits if isinstance(n, int) and 0 < n < 10**9), default=4096)
    return Weights(model, Encoder(tokenizer, context, name), name)


def unloadable(name: str, path: str, error: Exception) -> BackboneError | UnknownNameError:
    reason = " ".join(str(error).split())[:200]
    if Path(path).is_dir():
        return BackboneError(f"cannot load the model in {path!r}: {reason}")
    return UnknownNameError("model", name, _known_models(), hint=f"(no such directory, and the hub says: {reason})")


def _known_models() -> set[str]:
    """The embedded model and those in the hub's cache here."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cached = {repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model"}
    except CacheNotFound:
        cached = set()
    return cached | {EMBEDDED}
