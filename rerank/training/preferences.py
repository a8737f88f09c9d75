"""Learning from preferences against a reference, as parts of a recipe (LiPO: Liu et al., NAACL 2025, arXiv 2402.01878).

With `reference` the loss is given s_i = β·log(π_θ(y_i|x)/π_ref(y_i|x)) in place of scores. What y_i is depends on the
strategy: the answer that the passage is relevant, the query's text, a passage's letter; or, with `rankings`, the text
of a whole ranking, labelled with its measure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rerank.prompts.answers import Graded, Likelihood
from rerank.training.parts import MeasureName, Part

if TYPE_CHECKING:
    from rerank.training.recipe import Recipe

_TRIES = 16  # for a ranking that is not there yet


class ReferencePart(Part):
    """The reference is the model as it stands when training begins: itself where the adapter is new, and with the
    adapter of `start` where there is one. `beta` is the paper's 0.05. The log-probability of a text is the `sum` over
    its tokens, as in the paper, or their `mean`."""

    beta: float = Field(0.05, gt=0)
    length: Literal["sum", "mean"] | None = None


class RankingsPart(Part):
    """`count` different rankings of each list's passages. The first is by label, the i-th drawn from Plackett–Luce
    with the labels as scores and the temperature `spread`·(i − 1)/(count − 1). Their labels are their `measure`."""

    count: int = Field(4, ge=2, le=64)
    spread: float = Field(1.0, gt=0)
    measure: MeasureName = "nDCG@10"

    def draw(self, labels: Sequence[float], drawn: random.Random) -> list[tuple[int, ...]]:
        """Rankings as positions, best first; fewer than `count` where no other was found in some tries."""
        found = [_by(labels)]
        for i in range(1, self.count):
            temperature = self.spread * i / (self.count - 1)
            for _ in range(_TRIES):
                # 1 - random() is never 0, and -log of it is exponential
                noise = [-math.log(max(-math.log(1 - drawn.random()), 1e-300)) for _ in labels]
                ranking = _by([label + temperature * own for label, own in zip(labels, noise, strict=True)])
                if ranking not in found:
                    found.append(ranking)
                    break
        return found


def _by(values: Sequence[float]) -> tuple[int, ...]:
    return tuple(sorted(range(len(values)), key=lambda i: -values[i]))


def check_preferences(recipe: Recipe) -> None:
    """Whether `reference` and `rankings` fit the rest. Raises ValueError."""
    if recipe.rankings is not None:
        _check_rankings(recipe)
    if recipe.reference is None:
        return
    if recipe.loss is None:
        raise ValueError("reference makes scores for a loss, and there is none; give a loss, or take reference out")
    if recipe.strategy == "score-head":
        raise ValueError("a score-head gives no probabilities to compare with a reference; take reference out")
    if recipe.adapter.method == "full":
        raise ValueError("method full leaves no model to compare with; give an adapter, or take reference out")
    if recipe.fsdp is not None or recipe.deepspeed is not None:
        raise ValueError("reference needs the whole model in each process; take fsdp and deepspeed out")
    answer = recipe.asked.answer
    if recipe.reference.length is not None and recipe.rankings is None and not isinstance(answer, Likelihood):
        raise ValueError(f"reference.length is for texts, and prompt {recipe.asked.name} scores single tokens")
    if isinstance(answer, Graded) and (min(answer.grades.values()) < 0 or not any(answer.grades.values())):
        raise ValueError(
            f"reference reads a grade as a share of the highest, and prompt {recipe.asked.name} has grades from "
            f"{min(answer.grades.values()):g}; give one with grades from 0"
        )


def _check_rankings(recipe: Recipe) -> None:
    if recipe.strategy != "full-ranking":
        raise ValueError(f"rankings are for strategy full-ranking, which writes them; {recipe.strategy} does not")
    if recipe.loss is None:
        raise ValueError("rankings are compared by a loss; give one, such as lipo_lambda, or take rankings out")
    if recipe.write is not None:
        raise ValueError("rankings take the place of the one that write trains; take one of the two out")
    if recipe.reference is None:
        raise ValueError("rankings are scored against a reference; give reference: {beta: 0.05}")
    if taught := [source.title for source in recipe.data if source.ungraded]:
        raise ValueError(
            f"rankings are measured by judgments, and {taught[0]} has a teacher's scores; give judgments, or grades"
        )
