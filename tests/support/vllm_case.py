"""What the tests of the vLLM backbone ask, and the adapters that they ask under."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rerank.backbones.base import BatchBackbone
from rerank.backbones.embedded import EMBEDDED, resolve
from rerank.calls import Answer, Call, Dialogue, Message, Span
from rerank.prompts import load_prompt
from rerank.types import Candidates, Passage, Query

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TEXTS = ["A flea lives up to a year.", "The stock market fell today, and nobody knows why.", "Cats purr."]


def save_adapter(
    folder: Path, *, rank: int = 8, modules: Sequence[str] = MODULES, dora: bool = False, **shape: int
) -> Path:
    """A random adapter of the embedded model, or of one of another shape, that moves scores and not too far."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(resolve())
    for name, value in shape.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(rank)
        bare = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        tuned = get_peft_model(bare, LoraConfig(r=rank, lora_alpha=16, target_modules=list(modules), use_dora=dora))
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
    tuned.peft_config["default"].base_model_name_or_path = EMBEDDED
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder


def dialogue(text: str, prefix: str = "") -> Dialogue:
    return Dialogue((Message("user", (Span(text, passage=True),)),), prefix, Query("q"), (Passage(text, "p"),))


def ask(backbone: BatchBackbone, *calls: Call) -> list[Answer]:
    items = [backbone.prepare(call) for call in calls]
    answers: dict[int, Answer] = {}
    for batch in backbone.group(items):
        answers |= zip(batch, backbone.answer([items[i] for i in batch]), strict=True)
    return [answers[i] for i in range(len(items))]


def apart(one: Sequence[Answer], other: Sequence[Answer]) -> list[float]:
    """How far the log-probabilities are from each other, one by one, in nats."""
    pairs = zip(one, other, strict=True)
    return [abs(x - y) for a, b in pairs for x, y in zip(a.logprobs, b.logprobs, strict=True)]


def calls_of(name: str, requests: Sequence[Candidates]) -> list[Call]:
    prompt = load_prompt(name)
    if prompt.shows == "many":
        return [prompt.ask(r.query, list(r.passages), passage_tokens=60) for r in requests]
    return [prompt.ask(r.query, [p], passage_tokens=100) for r in requests for p in r.passages]
