"""The engines by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from rerank.backbones.base import Backbone, Prepared
from rerank.backbones.scripted import ScriptedBackbone, oracle
from rerank.calls import Kind
from rerank.errors import BackboneError, CapabilityError, InputError, UnknownNameError


def _transformers(model: str | None, adapter: str | None, device: str | None, dtype: str | None) -> Backbone:
    for module in ("torch", "transformers", "peft"):
        if importlib.util.find_spec(module) is None:
            raise BackboneError(f"the transformers backbone needs {module}: pip install 'rerank-llm[llm]'")
    from rerank.backbones.transformers_ import TransformersBackbone

    return TransformersBackbone.load(model, adapter=adapter, device=device, dtype=dtype)


# name -> what it answers, and how it is made; what it answers is known before anything is loaded
BACKBONES: dict[str, tuple[frozenset[Kind], Callable[..., Backbone]]] = {
    "transformers": (frozenset(Kind), _transformers),
}


def load_backbone(
    backbone: str | Backbone,
    *,
    needs: Kind,
    model: str | None = None,
    adapter: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Backbone:
    """An engine by name, refused before anything is loaded when it cannot answer `needs`; or the given one."""
    if not isinstance(backbone, str):
        given = {"model": model, "adapter": adapter, "device": device, "dtype": dtype}
        if used := [name for name, value in given.items() if value is not None]:
            raise InputError(
                f"{', '.join(used)} given beside a ready backbone {backbone.name!r}; give one or the other"
            )
        return backbone
    if backbone not in BACKBONES:
        raise UnknownNameError("backbone", backbone, BACKBONES)
    kinds, make = BACKBONES[backbone]
    if needs not in kinds:
        raise CapabilityError(f"the {backbone} backbone does not answer {needs!s} calls")
    return make(model=model, adapter=adapter, device=device, dtype=dtype)


__all__ = ["BACKBONES", "Backbone", "Prepared", "ScriptedBackbone", "load_backbone", "oracle"]
