"""What is told of training beside the loss, and the random numbers of losses that sample.

A gauge looks at the scores that the loss is given and says a value for each list, of which the curve has the mean.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from rerank.losses import LOSSES
from rerank.options import checked, names
from rerank.training.feature_recipe import FeatureRecipe
from rerank.training.recipe import Recipe

# scores, labels, mask [Q, n], and with a reference its log-probabilities -> values [Q], weights [Q]
Gauge = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]

UTILITY, ACCURACY, IDEAL = "utility", "ranking_accuracy", "idealised_accuracy"
NAMES = (UTILITY, ACCURACY, IDEAL)  # as the curve has them


@dataclass(frozen=True, slots=True)
class Draws:
    """The generator of a loss that samples. What is drawn for a list depends on the seed and the list's place in the
    run alone: not on how a batch is cut or shared by processes, nor on where a stopped run goes on. With feature
    vectors, where a batch is one tensor, it is the step's place."""

    seed: int
    generator: Generator = field(default_factory=Generator)

    def begin(self, index: int) -> None:
        self.generator.manual_seed(random.Random(f"draws/{self.seed}/{index}").getrandbits(63))


@dataclass(slots=True)
class Gauges:
    """Means of several gauges, by name, over the lists since they were last told."""

    known: Mapping[str, Gauge] = field(default_factory=dict)
    _sums: dict[str, Tensor] = field(default_factory=dict)  # of weighted values, and of weights

    def look(self, name: str, scores: Tensor, labels: Tensor, mask: Tensor, before: Tensor | None) -> None:
        with torch.no_grad():
            values, weights = self.known[name](scores, labels, mask, before)
            own = torch.stack([(values * weights).sum(), weights.to(values).sum()]).float()
        self._sums[name] = self._sums[name] + own if name in self._sums else own

    def told(self, together: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means, and begins anew; `together` adds up what the processes have."""
        found = {}
        for name in self.known:
            total, weight = together(self._sums.pop(name, torch.zeros(2))).tolist()
            if weight:
                found[name] = total / weight
        return found


def drawing(recipe: Recipe | FeatureRecipe) -> Draws | None:
    """What the recipe's loss draws from, if it samples."""
    sampled = recipe.loss is not None and LOSSES[recipe.loss.name].samples
    return Draws(recipe.seed) if sampled else None


def gauges(recipe: Recipe, draws: Draws | None) -> dict[str, Gauge]:
    """What is told of this recipe's training: of PG-Rank the measure of the very rankings that the loss draws, of
    preferences how many of them the policy's probabilities have in order, and how many they could."""
    found: dict[str, Gauge] = {}
    if recipe.loss is not None and recipe.loss.name == "pg_rank" and draws is not None:
        from rerank.losses.policy import expected_utility

        shared = names(expected_utility, without={"scores", "labels", "mask", "generator"})
        options = {name: value for name, value in recipe.loss.options.items() if name in shared}
        given: dict[str, Any] = checked("pg_rank", expected_utility, options)

        def utility(scores: Tensor, labels: Tensor, mask: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
            return expected_utility(scores, labels, mask, generator=draws.generator, **given)

        found[UTILITY] = utility
    if recipe.reference is not None:
        from rerank.training.reference import idealised_accuracy, ranking_accuracy

        found[ACCURACY] = partial(ranking_accuracy, beta=recipe.reference.beta)
        found[IDEAL] = partial(idealised_accuracy, beta=recipe.reference.beta)
    return found
