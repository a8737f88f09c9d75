"""What a caller left open: the adapter that ships for a strategy, what an adapter was trained with, and what a released
reranker brings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rerank.adapters import NONE, purpose_of, shipped_for
from rerank.backbones import own_prompt
from rerank.backbones.adapters import folder_of
from rerank.backbones.base import Backbone
from rerank.backbones.embedded import EMBEDDED
from rerank.errors import InputError
from rerank.prompts import Prompt, load_prompt
from rerank.released import Released, released
from rerank.strategies import STRATEGIES, load_strategy, options_of
from rerank.strategies.base import Strategy

DEFAULT_BACKBONE = "transformers"
LOCAL = ("transformers", "vllm")  # engines that hold the model itself, and take adapters
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """Who is asked, and how. `engine_options` are what the engine is told beside the model."""

    strategy: str
    model: str | None
    backbone: str | Backbone
    engine_options: Mapping[str, object]


def resolve(asked: Asked) -> Asked:
    """With what a released reranker brings: its name may stand for the strategy, and one that the default engine cannot
    load comes with the engine that can, and that engine's options. What is given counts."""
    row = None if asked.strategy in STRATEGIES else released(asked.strategy)
    if row is not None:
        if asked.model not in (None, asked.strategy):
            raise InputError(f"{asked.strategy!r} is a model, and model={asked.model!r} another; give one of them")
        asked = replace(asked, strategy=row.strategy, model=asked.strategy)
    row = released(asked.model)
    if row is None or asked.model is None or asked.backbone not in (DEFAULT_BACKBONE, row.backbone):
        return asked
    brought = dict(row.engine_options)
    if Path(asked.model).expanduser().is_dir():
        brought.pop("revision", None)  # a directory is what it is
    return replace(asked, backbone=row.backbone, engine_options=brought | dict(asked.engine_options))


def _own_form(strategy: str, model: str | None, backbone: str | Backbone) -> Released | None:
    """The row of a released reranker that is asked by the strategy, and by an engine, that its form is for."""
    name = model if isinstance(backbone, str) else backbone.name
    row = released(name)
    if row is None or row.prompt is None:
        return None
    needs = load_prompt(row.prompt).needs
    if not (backbone in row.engines if isinstance(backbone, str) else needs in backbone.kinds):
        return None
    if strategy == row.strategy:
        _log.info("%s is asked in its own form: strategy %s, prompt %s", name, strategy, row.prompt)
        return row
    if strategy in STRATEGIES:
        _log.warning("%s was made for strategy %r; %r asks it as it asks any model", name, row.strategy, strategy)
    return None


def settle(
    strategy: str,
    *,
    model: str | None = None,
    adapter: str | None = None,
    prompt: str | Prompt | None = None,
    backbone: str | Backbone = "transformers",
    options: Mapping[str, object] | None = None,
) -> tuple[Strategy, str | None]:
    """The strategy with its prompt and options, and the adapter's name.

    The embedded model gets the adapter that ships for the strategy, unless another prompt than the adapter's is given,
    or the adapter "none". With an adapter that was trained for this strategy, prompt and options that are not
    given are those of its training. Else a released reranker is asked in its own form. Beside the strategy's options
    there is `instruction`, for prompts that have a place for one.
    """
    given = dict(options or {})
    instruction = given.pop("instruction", None)
    fixed = own_prompt(backbone)
    if isinstance(prompt, str):
        prompt = load_prompt(prompt)
    folder = None
    if adapter == NONE:
        adapter = None
    elif adapter is not None and backbone in LOCAL and strategy in STRATEGIES:
        folder = folder_of(adapter)
    elif adapter is None and model in (None, EMBEDDED) and backbone in LOCAL:
        folder = shipped_for(strategy, EMBEDDED)
    purpose = purpose_of(folder) if folder is not None else None
    if folder is not None and purpose is not None and purpose.serves(strategy):
        trained = load_prompt(purpose.prompt)
        if adapter is None and (prompt is None or prompt == trained):
            adapter = folder.name
        if adapter is not None:
            prompt = prompt or trained
            takes = options_of(STRATEGIES[strategy])
            given = {name: value for name, value in purpose.options.items() if name in takes} | given
    if prompt is None and (row := _own_form(strategy, model, backbone)) is not None and row.prompt is not None:
        prompt, given = load_prompt(row.prompt), {**row.options, **given}
    prompt = fixed if prompt is None else prompt
    made = load_strategy(strategy, prompt=prompt, **given)
    if instruction is not None:
        if not isinstance(instruction, str):
            raise InputError(f"instruction is {instruction!r}; give a text")
        made = load_strategy(strategy, prompt=made.prompt.instructed(instruction), **given)
    return made, adapter
