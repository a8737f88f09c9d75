"""Does a LoRA adapter belong to a model? Asked before vLLM sees it, which takes what is too small in silence."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from rerank.backbones import adapters
from rerank.errors import AdapterError, InputError

_log = logging.getLogger(__name__)
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vllm.config.lora.MaxLoRARanks, wanted before vLLM is imported
_USUAL_RANK = 16  # at least so much room beside the first adapter's rank, for others that follow it


@dataclass(frozen=True, slots=True)
class Base:
    """A model by its identity, and where its configuration is: a directory or a hub name."""

    name: str
    path: str

    def folder_of(self, adapter: str, room: int) -> Path:
        """The adapter's folder. Raises AdapterError where it is missing, of another model, or of a rank above
        `room`."""
        folder = adapters.folder_of(adapter)
        adapters.check_base(folder, self.name)
        if (rank := _rank(folder)) > room:
            raise AdapterError(
                f"adapter {adapter!r} has rank {rank}, and the engine has room for {room}; load it with "
                f"max_lora_rank={rank}"
            )
        _check_tensors(folder, self)
        return folder


def room(rank: int | None, adapter: str | None) -> int | None:
    """The rank that vLLM is to make room for: at least the one given, or the adapter's; None for no adapters."""
    if rank is None:
        if adapter is None:
            return None
        rank = max(_rank(adapters.folder_of(adapter)), _USUAL_RANK)
    if not 1 <= rank <= _RANKS[-1]:
        raise InputError(f"max_lora_rank is {rank}; vLLM takes adapters of rank 1 to {_RANKS[-1]}")
    return next(most for most in _RANKS if most >= rank)


def _rank(folder: Path) -> int:
    """The highest rank in the adapter."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AdapterError(f"adapter {str(folder)!r} is not a LoRA adapter: its config has no rank") from error


def _check_tensors(folder: Path, base: Base) -> None:
    """The adapter's tensors are those, and of those shapes, that its config makes on this model."""
    import torch
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):  # no memory, no weights
            bare = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.path))
    except (OSError, ValueError, KeyError, ImportError) as error:
        _log.warning("cannot check whether adapter %s fits %s: %s", folder, base.name, error)
        return
    ends = (bare.get_input_embeddings(), bare.get_output_embeddings())
    outer = [name for name, module in bare.named_modules() if any(module is end for end in ends)]
    try:
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            given = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        if found := [name for name in outer if any(key.startswith(f"base_model.model.{name}.") for key in given)]:
            raise AdapterError(
                f"adapter {str(folder)!r} changes {found[0]}, which vLLM does not do as it was trained (on a CPU it "
                "leaves embeddings as they are, and changes the bare model's output too); use the transformers backbone"
            )
        with torch.device("meta"):
            made = PeftModel(bare, PeftConfig.from_pretrained(str(folder)), low_cpu_mem_usage=True)
        wanted = {key: list(t.shape) for key, t in get_peft_model_state_dict(made, save_embedding_layers=False).items()}
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(f"adapter {str(folder)!r} does not fit {base.name}: {reason}") from error
    wrong = sorted(key for key in wanted.keys() | given.keys() if wanted.get(key) != given.get(key))
    if wrong:
        has, needs = given.get(wrong[0]), wanted.get(wrong[0])
        raise AdapterError(
            f"adapter {str(folder)!r} does not fit {base.name}: {len(wrong)} tensors differ, as {wrong[0]}, which is "
            f"{has or 'not there'} and should be {needs or 'not there'}"
        )
