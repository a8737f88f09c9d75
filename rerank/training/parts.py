"""The parts of a recipe, each a mapping of the YAML file. No key of them is ignored."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from rerank.errors import UnknownNameError
from rerank.eval import Measure
from rerank.losses import LOSSES

MeasureName = Annotated[str, AfterValidator(lambda name: str(Measure.parse(name)))]
"""Of rerank.eval, in ir_measures' spelling."""


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LossPart(Part):
    """`name` in rerank.losses, and the loss's own options beside it. The loss is multiplied by `factor`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str
    factor: float = Field(1.0, gt=0)

    @property
    def options(self) -> dict[str, object]:
        return dict(self.model_extra or {})

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in LOSSES:
            raise UnknownNameError("loss", name, LOSSES)
        return name


class WritePart(Part):
    """The language-model loss of the permutation. `importance`: identifiers at the top weigh more, what stands
    between them `separators` (Liu et al., ACL 2025). Where a thought is written before the answer, `thought` is the
    template that makes it from the labels (see `rerank.training.written`)."""

    factor: float = Field(1.0, gt=0)
    importance: bool = False
    separators: float = Field(1.0, gt=0, le=1)
    top: int | None = Field(None, ge=1)
    thought: Literal["order", "verdicts"] | None = None


class AdapterPart(Part):
    """`method` as `rerank.training.methods` names it, `targets` the layers ("all-linear", or names), and the options
    of PEFT's configuration. `compress` is the rank that the finished adapter is brought to by SVD."""

    model_config = ConfigDict(extra="allow", frozen=True)
    method: str = "lora"
    targets: str | tuple[str, ...] = "all-linear"
    compress: int | None = Field(None, ge=1)

    @property
    def options(self) -> dict[str, object]:
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _full_has_none(self) -> Self:
        if self.method == "full" and (self.options or self.compress or self.targets != "all-linear"):
            raise ValueError("method full trains every weight: it has no targets, compress or other options")
        return self


class Schedule(Part):
    """`lists` in all, `batch` lists for each step of the optimiser, over all processes. `batch_tokens` is the most
    that is computed at once: a larger batch is done in pieces, to the same gradient. `average` gives the mean of the
    weights of that many last checkpoints."""

    lists: int | None = Field(None, ge=1)
    batch: int = Field(16, ge=1)
    batch_tokens: int | None = Field(None, ge=64)
    learning_rate: float = Field(1e-4, gt=0)
    decay: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    optimizer: str = "adamw_torch"
    optimizer_options: str | None = None
    optimizer_targets: str | tuple[str, ...] | None = None
    neftune: float | None = Field(None, gt=0)
    gradient_checkpointing: bool = False
    save_every: int | None = Field(None, ge=1)
    keep: int = Field(2, ge=1)
    average: int = Field(1, ge=1)
    workers: int = Field(0, ge=0)


class Evaluation(Part):
    """Ranks `dataset` every `every` steps and at the end, when a checkpoint is written too; the one with the best
    `measure` is kept, and training stops after `patience` evaluations without a better one."""

    dataset: str
    run: str | None = None
    depth: int = Field(100, ge=2)
    queries: int | None = Field(None, ge=1)
    measure: MeasureName = "nDCG@10"
    every: int = Field(100, ge=1)
    patience: int | None = Field(None, ge=1)
    options: dict[str, object] = Field(default_factory=dict)
