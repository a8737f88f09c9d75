"""What only other libraries, or the data, know of a recipe with `reinforce:`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rerank.errors import BackboneError, InputError
from rerank.training.recipe import Recipe
from rerank.training.reinforce.rewards import check_labels

if TYPE_CHECKING:
    from rerank.training.sources import Pool, Source


def check_reinforce(recipe: Recipe) -> None:
    """Whether its libraries are installed, and its processes can share what is learned from at once."""
    if recipe.reinforce is None:
        return
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if (at_once := recipe.reinforce.answers_at_once) is not None and at_once % world:
        raise InputError(f"answers_at_once {at_once} cannot be shared by {world} processes; give a multiple of {world}")
    for name in ("trl", "datasets"):
        if find_spec(name) is None:
            raise BackboneError(f"reinforce needs {name}: pip install 'rerank-llm[reinforce]'")
    if recipe.reinforce.vllm is not None and find_spec("vllm") is None:
        raise BackboneError(
            "reinforce.vllm needs vllm: pip install 'rerank-llm[vllm]'; without it, take vllm out, and transformers "
            "writes the answers"
        )


def check_gold(recipe: Recipe, pools: Sequence[tuple[Source, Sequence[Pool]]]) -> None:
    """Whether the reward can read the labels that the sources have. Raises InputError."""
    if recipe.reinforce is None:
        return
    for source, own in pools:
        check_labels(recipe.reinforce.reward.name, source.title, [label for pool in own for label in pool.labels])
