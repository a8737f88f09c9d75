"""Options that several commands share, and the ranker that they describe."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console

import rerank
from rerank.errors import InputError
from rerank.scheduler import Progress

screen = Console(highlight=False)
notes = Console(stderr=True, highlight=False)

StrategyName = Annotated[str, typer.Option("--strategy", "-s", help="How to rank; see 'rerank ls strategies'.")]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="A model's hub name or directory; default: the embedded model.")
]
Adapter = Annotated[str | None, typer.Option("--adapter", "-a", help="A LoRA adapter's directory or hub name.")]
PromptName = Annotated[
    str | None, typer.Option("--prompt", "-p", help="NAME, NAME@VERSION or a YAML file; see 'rerank ls prompts'.")
]
StrategyOptions = Annotated[
    list[str] | None, typer.Option("--option", "-O", help="A strategy's option, as window=10; may be repeated.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: the best that is there.")]
Dtype = Annotated[str | None, typer.Option(help="bfloat16, float16 or float32; default: what the device is fast at.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse passages that would be cut to fit or hold control tokens.")
]


def pairs(options: list[str] | None) -> dict[str, object]:
    """`["window=10"]` as `{"window": "10"}`; the strategy converts the values."""
    found: dict[str, object] = {}
    for option in options or []:
        name, equals, value = option.partition("=")
        if not equals:
            raise InputError(f"option {option!r} is not of the form name=value")
        found[name.strip().replace("-", "_")] = None if value == "none" else value
    return found


def load_ranker(
    strategy: str,
    *,
    model: str | None,
    adapter: str | None,
    prompt: str | None,
    options: list[str] | None,
    device: str | None,
    dtype: str | None,
    strict: bool,
    on_progress: Callable[[Progress], None] | None = None,
) -> rerank.Reranker:
    """The ranker, with what it says of fetching and loading on stderr."""
    show_log()
    return rerank.load(
        strategy,
        model=model,
        adapter=adapter,
        prompt=prompt,
        backbone="transformers",
        device=device,
        dtype=dtype,
        strict=strict,
        on_progress=on_progress,
        **pairs(options),
    )


def show_log() -> None:
    """The library's own log on stderr, from 'info' up."""
    log = logging.getLogger("rerank")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
