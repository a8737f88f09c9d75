"""What a caller left open: the adapter that ships for a strategy, and what an adapter was trained with."""

from __future__ import annotations

from collections.abc import Mapping

from rerank.adapters import NONE, purpose_of, shipped_for
from rerank.backbones import own_prompt
from rerank.backbones.adapters import folder_of
from rerank.backbones.base import Backbone
from rerank.backbones.embedded import EMBEDDED
from rerank.prompts import Prompt, load_prompt
from rerank.strategies import STRATEGIES, load_strategy, options_of
from rerank.strategies.base import Strategy

LOCAL = ("transformers", "vllm")  # engines that hold the model itself, and take adapters


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
    given are those of its training.
    """
    given = dict(options or {})
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
    return load_strategy(strategy, prompt=fixed if prompt is None else prompt, **given), adapter
