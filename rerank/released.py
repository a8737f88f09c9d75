"""Released rerankers by name: the strategy, the engine, the prompt and the options that each was made for.

A reranker that was trained in one form scores nonsense in another, so a model that is known here is asked in its own,
unless another prompt is given. A new one is a row, and a prompt file where its form is new. Only what needs no code of
the model's own is listed, and no `revision` but one that holds safetensors where the model's main branch has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Released:
    """`names` are the hub's. `prompt` is `name@version`, None where the engine has its own. `options` are the
    strategy's, and `engine_options` the engine's."""

    names: tuple[str, ...]
    prompt: str | None
    strategy: str = "pointwise"
    backbone: str = "transformers"
    options: Mapping[str, object] = field(default_factory=dict)
    engine_options: Mapping[str, object] = field(default_factory=dict)

    @property
    def engines(self) -> tuple[str, ...]:
        """Where the model can be asked in its form: one that a decoder answers, also by vLLM and behind a server."""
        return (self.backbone, "vllm", "openai") if self.backbone == "transformers" else (self.backbone,)


_WINDOWS: Mapping[str, object] = MappingProxyType({"window": 20, "step": 10})  # as in both papers


def _named(organisation: str, *models: str) -> tuple[str, ...]:
    return tuple(f"{organisation}/{model}" for model in models)


def _monot5(name: str, revision: str | None = None) -> Released:
    """`revision` is the commit of the hub's own conversion to safetensors."""
    options: dict[str, object] = {"max_length": 512} | ({} if revision is None else {"revision": revision})
    return Released((f"castorini/{name}",), "monot5@1", backbone="encoder-decoder", engine_options=options)


RELEASED: tuple[Released, ...] = (
    Released(_named("Qwen", *(f"Qwen3-Reranker-{size}" for size in ("0.6B", "4B", "8B"))), "qwen3-reranker@1"),
    Released(_named("mixedbread-ai", "mxbai-rerank-base-v2", "mxbai-rerank-large-v2"), "mxbai-rerank-v2@1"),
    Released(("BAAI/bge-reranker-v2-gemma",), "bge-reranker-v2-gemma@1"),
    Released(("castorini/rank_zephyr_7b_v1_full",), "rank-zephyr@1", "listwise", options=_WINDOWS),
    Released(("castorini/first_mistral",), "first-mistral@1", "first", options=_WINDOWS),
    _monot5("monot5-base-msmarco", "fe3d672610d8d316ac57958bfeab9aa400bab1eb"),
    _monot5("monot5-base-msmarco-10k", "6cf163ea5e682997dd97343142a10af9ec97e7ca"),
    _monot5("monot5-large-msmarco", "d1f0276d5aba079ecaec5008083e446fad4dbfd8"),
    _monot5("monot5-large-msmarco-10k"),
    _monot5("monot5-base-med-msmarco"),
    _monot5("monot5-3b-msmarco-10k"),
    _monot5("monot5-3b-med-msmarco"),
    Released(
        _named(
            "cross-encoder",
            *("ms-marco-TinyBERT-L2-v2", "ms-marco-MiniLM-L2-v2", "ms-marco-MiniLM-L4-v2", "ms-marco-MiniLM-L6-v2"),
            *("ms-marco-MiniLM-L12-v2", "ms-marco-electra-base"),
            *("ms-marco-TinyBERT-L-2-v2", "ms-marco-MiniLM-L-2-v2", "ms-marco-MiniLM-L-4-v2"),  # as they were spelled
            *("ms-marco-MiniLM-L-6-v2", "ms-marco-MiniLM-L-12-v2"),
        )
        + _named("BAAI", "bge-reranker-base", "bge-reranker-large", "bge-reranker-v2-m3")
        + _named("mixedbread-ai", *(f"mxbai-rerank-{size}-v1" for size in ("xsmall", "base", "large"))),
        None,
        backbone="cross-encoder",
    ),
)


def released(model: str | None) -> Released | None:
    """The row of a model: by its name on the hub, or by the name of the directory that it lies in."""
    if model is None:
        return None
    wanted = model.lower()
    folder = Path(model).expanduser()
    known = {name.lower(): row for row in RELEASED for name in row.names}
    if folder.is_dir():
        own = folder.resolve().name.lower()
        return next((row for name, row in known.items() if name.rpartition("/")[2] == own), None)
    return known.get(wanted)
