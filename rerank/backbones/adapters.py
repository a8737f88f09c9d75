"""LoRA adapters, shipped, local or from the hub: safetensors only, and only on the model they were trained for."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from rerank.adapters import NOTE, shipped
from rerank.errors import AdapterError

if TYPE_CHECKING:
    from rerank.backbones.weights import Weights

_FILES = ("adapter_config.json", "adapter_model.safetensors")


def attach(weights: Weights, adapter: str) -> None:
    """Loads the adapter beside those that are there. Raises AdapterError when it does not belong to the model."""
    if adapter in weights.adapters:
        return
    folder = folder_of(adapter)
    check_base(folder, weights.name)
    from peft import PeftConfig, PeftModel

    if weights.int8:
        raise AdapterError(
            f"{weights.name} is int8 and takes no further adapter; give it when loading, as load(adapter={adapter!r})"
        )
    name = f"adapter{len(weights.adapters)}"
    fresh = weights.peft is None
    try:
        if weights.peft is None:
            config = PeftConfig.from_pretrained(str(folder))
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # between PEFT and transformers
                weights.peft = PeftModel(weights.model, config, adapter_name=name, autocast_adapter_dtype=False)
        found = weights.peft.load_adapter(
            str(folder), adapter_name=name, torch_device=str(weights.device), autocast_adapter_dtype=False
        )
        if wrong := [*found.missing_keys, *found.unexpected_keys]:
            raise ValueError(f"{len(wrong)} tensors have no counterpart, as {wrong[0]}")
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        _detach(weights, name, whole=fresh)
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(f"adapter {adapter!r} does not fit {weights.name}: {reason}") from error
    weights.peft.eval()
    weights.adapters[adapter] = name
    weights.packs = None  # the adapter may change the head


def _detach(weights: Weights, name: str, *, whole: bool) -> None:
    """Takes out what a failed load left in the model."""
    if weights.peft is None:
        return
    if whole:
        weights.model, weights.peft = weights.peft.unload(), None
    elif name in weights.peft.peft_config:
        weights.peft.delete_adapter(name)


def merge(weights: Weights, adapter: str) -> None:
    """Writes the adapter into the weights for good; no adapter is left then."""
    if list(weights.adapters) != [adapter] or weights.peft is None:
        raise AdapterError(f"to merge {adapter!r} it must be the only adapter; loaded: {list(weights.adapters)}")
    weights.model = weights.peft.merge_and_unload(safe_merge=True)
    weights.peft, weights.adapters, weights.packs = None, {}, None


def folder_of(adapter: str) -> Path:
    """Where its files are, fetched from the hub where it is no directory. Raises AdapterError where they are not."""
    path = shipped().get(adapter) or Path(adapter).expanduser()
    if not path.is_dir():
        if adapter.startswith((".", "/", "~")):
            raise AdapterError(f"no adapter directory {adapter!r}")
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(adapter, allow_patterns=[*_FILES, NOTE]))
        except Exception as error:  # the hub's client has many
            raise AdapterError(
                f"no adapter {adapter!r}: not a directory here, and the hub says: {str(error).splitlines()[0]}"
            ) from error
    if missing := [name for name in _FILES if not (path / name).is_file()]:
        raise AdapterError(f"adapter {adapter!r} lacks {' and '.join(missing)} (only safetensors are read)")
    return path


def check_base(folder: Path, model: str) -> None:
    """Same-shaped models differ silently, so the name that the adapter recorded is compared, unless it was a
    path: then only shapes can tell."""
    try:
        base = json.loads((folder / _FILES[0]).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise AdapterError(f"{folder / _FILES[0]} is not a JSON object") from error
    if not isinstance(base, str) or base.startswith((".", "/", "~")) or Path(model).is_dir():
        return
    if base.rpartition("/")[2].lower() != model.rpartition("/")[2].lower():
        raise AdapterError(f"adapter {str(folder)!r} was trained for {base!r}, not for {model!r}")
