"""LoRA adapters with random weights, so that they do something."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def save_adapter(
    model: Path, folder: Path, *, seed: int, base: str, targets: Sequence[str] = ("q_proj", "v_proj")
) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        bare = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        tuned = get_peft_model(bare, LoraConfig(r=4, target_modules=list(targets), init_lora_weights=False))
    tuned.peft_config["default"].base_model_name_or_path = base
    tuned.save_pretrained(folder)
    return folder
