"""The adapters that ship, and what any adapter that was trained here says of itself.

Beside PEFT's two files a trained adapter has `rerank.json`: the strategy and the prompt that it was trained for, and
the options that it was trained with. A ranker asked for by its strategy alone, on the embedded model, gets the
adapter that ships for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rerank.errors import AdapterError

NOTE = "rerank.json"
NONE = "none"
"""The name that stands for no adapter at all, where one would come by itself."""

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Purpose:
    """What an adapter was trained for. `prompt` is `name@version`, or the path of a prompt that lies beside the
    adapter; `options` are the strategy's; `also` names strategies that ask this prompt too, and do well with it."""

    model: str
    strategy: str
    prompt: str
    options: Mapping[str, object]
    also: tuple[str, ...] = ()

    def serves(self, strategy: str) -> bool:
        return strategy in (self.strategy, *self.also)

    def write(self, folder: Path) -> None:
        told = {"model": self.model, "strategy": self.strategy, "prompt": self.prompt, "options": dict(self.options)}
        if self.also:
            told["also"] = list(self.also)
        (folder / NOTE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def purpose_of(folder: Path) -> Purpose | None:
    """None for an adapter from elsewhere, which does not say. Raises AdapterError where it says it unreadably."""
    file = folder / NOTE
    if not file.is_file():
        return None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        beside = folder / told["prompt"]
        prompt = str(beside) if beside.is_file() else told["prompt"]
        return Purpose(told["model"], told["strategy"], prompt, dict(told["options"]), tuple(told.get("also", ())))
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{file} is damaged: {type(error).__name__} {error}") from error


def shipped() -> dict[str, Path]:
    """The folders of the adapters that come with the package, by name."""
    return {note.parent.name: note.parent for note in sorted(_FOLDER.glob(f"*/{NOTE}"))}


def shipped_for(strategy: str, model: str) -> Path | None:
    """The adapter that goes with a strategy on a model."""
    for folder in shipped().values():
        purpose = purpose_of(folder)
        if purpose is not None and purpose.model == model and purpose.serves(strategy):
            return folder
    return None


def digest(adapter: str) -> str | None:
    """SHA-256 of the weights of an adapter that ships or lies in a folder; None where it is elsewhere."""
    weights = shipped().get(adapter, Path(adapter)) / "adapter_model.safetensors"
    if not weights.is_file():
        return None
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
