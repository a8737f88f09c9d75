"""A training run on feature vectors as one YAML file, `strategy: features`: a small network, any list loss, clicks.

It is checked before anything is read, like the recipe of a language model, and no key of it is ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from rerank.errors import InputError
from rerank.training.click_parts import Clicks
from rerank.training.parts import LossPart, MeasureName, Part
from rerank.training.recipe import mapping_of, told
from rerank.training.sources import missing

STRATEGY = "features"


class FeatureData(Part):
    """`train` is a SVMLight file (see rerank.data.svmlight).

    run    a TREC run with the documents that users saw, in that order; default: the file's
    size   how many of them, from the top; null for all
    share  of the queries, drawn at random (always the same ones): a logging ranker is trained on few
    """

    train: str
    run: str | None = None
    size: int | None = Field(10, ge=2)
    share: float | None = Field(None, gt=0, le=1)


class NetworkPart(Part):
    """Layers of `hidden` widths, none for a linear ranker, with ELU between. `normalise` features by each query's least
    and greatest (query), by the training file's mean and deviation (standard), or not at all (none)."""

    hidden: tuple[int, ...] = (64, 32)
    normalise: Literal["query", "standard", "none"] = "standard"

    @field_validator("hidden")
    @classmethod
    def _widths(cls, hidden: tuple[int, ...]) -> tuple[int, ...]:
        if any(width < 1 for width in hidden):
            raise ValueError(f"hidden {list(hidden)}: give widths of at least 1")
        return hidden


class FeatureSchedule(Part):
    """As `Schedule` of a language model. A checkpoint is written every `save_every` steps, or as it evaluates."""

    lists: int = Field(256_000, ge=1)
    batch: int = Field(256, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    decay: Literal["constant", "cosine"] = "constant"
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(5.0, gt=0)
    save_every: int | None = Field(None, ge=1)


class FeatureEvaluation(Part):
    """Ranks all documents of `dataset`, a SVMLight file, every `every` steps and at the end; the best network is kept,
    and training stops after `patience` evaluations without a better one."""

    dataset: str
    measure: MeasureName = "nDCG@10"
    every: int = Field(100, ge=1)
    patience: int | None = Field(None, ge=1)


class FeatureRecipe(Part):
    """The whole of a run. Paths are relative to the recipe's folder. Without `clicks` the labels are the judgments."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    about: str = ""
    strategy: Literal["features"]
    loss: LossPart
    data: FeatureData
    network: NetworkPart = NetworkPart()
    clicks: Clicks | None = None
    schedule: FeatureSchedule = FeatureSchedule()
    evaluation: FeatureEvaluation | None = None
    seed: int = Field(0, ge=0)

    @field_validator("loss", mode="before")
    @classmethod
    def _loss_by_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.evaluation is not None and self.schedule.save_every not in (None, self.evaluation.every):
            raise ValueError(
                f"save_every {self.schedule.save_every}: with an evaluation a checkpoint is written every "
                f"{self.evaluation.every} steps, as it evaluates; take save_every out"
            )
        if self.clicks is None:
            return self
        self.clicks.check_loss(self.loss.name)
        data = self.data
        if self.clicks.log is not None and (data.run is not None or data.share is not None):
            raise ValueError("clicks.log says what was shown; take data.run and data.share out")
        if data.size is None:
            raise ValueError("size: null shows users all there is; give a number with clicks")
        if self.clicks.simulate is not None:
            self.clicks.simulate.users().curve(data.size)  # says where there are too few positions
        return self

    @property
    def steps(self) -> int:
        return -(-self.schedule.lists // self.schedule.batch)


def is_of_features(path: str | Path) -> bool:
    """Whether the recipe of that file is one for feature vectors."""
    return mapping_of(path).get("strategy") == STRATEGY


def read_feature_recipe(path: str | Path) -> FeatureRecipe:
    """The recipe of a YAML file. Raises InputError."""
    path = Path(path)
    try:
        recipe = FeatureRecipe.model_validate(mapping_of(path))
    except ValidationError as error:
        raise InputError(f"{path}: {told(error, FeatureRecipe)}") from None
    base = path.resolve().parent
    evaluated = recipe.evaluation.dataset if recipe.evaluation is not None else None
    for name, given in (
        ("data.train", recipe.data.train), ("data.run", recipe.data.run), ("evaluation.dataset", evaluated),
    ):  # fmt: skip
        if given is not None and not (base / given).is_file():
            raise InputError(f"{path}: {missing(name + ':', given, base)}")
    if recipe.clicks is not None:
        recipe.clicks.check_files(base, recipe.data.size)
    return recipe
