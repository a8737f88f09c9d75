"""A training run as one YAML file. It is checked before anything is loaded; no key of it is ignored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rerank.errors import InputError, UnknownNameError
from rerank.eval import Measure
from rerank.losses import LOSSES
from rerank.prompts import Prompt, load_prompt
from rerank.strategies import load_strategy
from rerank.strategies.base import Strategy
from rerank.strategies.full import FullRanking
from rerank.training.methods import METHODS
from rerank.training.mixture import Curriculum
from rerank.training.objectives import check_prompt
from rerank.training.sources import Source

StrategyName = Literal["pointwise", "score-head", "pairwise", "setwise", "first", "full-ranking"]
PROMPTS: Mapping[str, str] = {
    "pointwise": "pointwise-yes-no",
    "score-head": "pointwise-pair",
    "pairwise": "pairwise",
    "setwise": "setwise",
    "first": "first-identifier",
    "full-ranking": "full-ranking",
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LossPart(_Part):
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


class WritePart(_Part):
    """The language-model loss of the permutation. `importance`: identifiers at the top weigh more, what stands
    between them `separators` (Liu et al., ACL 2025)."""

    factor: float = Field(1.0, gt=0)
    importance: bool = False
    separators: float = Field(1.0, gt=0, le=1)
    top: int | None = Field(None, ge=1)


class AdapterPart(_Part):
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


class Schedule(_Part):
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


class Evaluation(_Part):
    """Ranks `dataset` every `every` steps and at the end, when a checkpoint is written too; the one with the best
    `measure` is kept, and training stops after `patience` evaluations without a better one."""

    dataset: str
    run: str | None = None
    depth: int = Field(100, ge=2)
    queries: int | None = Field(None, ge=1)
    measure: str = "nDCG@10"
    every: int = Field(100, ge=1)
    patience: int | None = Field(None, ge=1)
    options: dict[str, object] = Field(default_factory=dict)

    @field_validator("measure")
    @classmethod
    def _measure(cls, name: str) -> str:
        return str(Measure.parse(name))


class Recipe(_Part):
    """The whole of a run. Paths are relative to the recipe's folder."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    about: str = ""
    model: str | None = None
    strategy: StrategyName
    prompt: str | None = None
    passage_tokens: int | None = Field(None, ge=1)
    pairs: int | None = Field(None, ge=1)
    loss: LossPart | None = None
    write: WritePart | None = None
    adapter: AdapterPart = AdapterPart()
    start: str | None = None
    data: tuple[Source, ...] = Field(min_length=1)
    curriculum: float | None = Field(None, gt=0, le=1)
    schedule: Schedule = Schedule()
    evaluation: Evaluation | None = None
    dtype: Literal["bfloat16", "float32"] | None = None
    prefix_reuse: bool = True
    seed: int = Field(0, ge=0)
    deepspeed: str | None = None
    fsdp: str | None = None
    fsdp_config: str | None = None

    @field_validator("loss", mode="before")
    @classmethod
    def _loss_by_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("adapter", mode="before")
    @classmethod
    def _method_by_name(cls, value: object) -> object:
        return {"method": value} if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _as_it_ranks(cls, data: object) -> object:
        """Full ranking writes, and cuts passages as its strategy does, unless the recipe says otherwise."""
        if isinstance(data, dict) and data.get("strategy") == "full-ranking":
            return {"write": {}, "passage_tokens": FullRanking().passage_tokens, **data}
        return data

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.strategy == "full-ranking":
            if self.loss is not None:
                raise ValueError(
                    f"loss {self.loss.name} needs scores, and full-ranking only writes; give write: instead of loss:"
                )
            if self.write is None:
                raise ValueError("strategy full-ranking only writes; leave write in")
        elif self.loss is None:
            raise ValueError(f"strategy {self.strategy} needs a loss; known: {', '.join(LOSSES)}")
        if self.write is not None and self.strategy not in ("first", "full-ranking"):
            raise ValueError(f"strategy {self.strategy} writes no permutation; take write out")
        if self.write is not None and self.write.top is not None and self.strategy != "full-ranking":
            raise ValueError("write.top is for full-ranking")
        if self.pairs is not None and self.strategy != "pairwise":
            raise ValueError("pairs is for strategy pairwise")
        if self.loss is not None and self.strategy == "pairwise" and LOSSES[self.loss.name].labels == "utility":
            raise ValueError(f"loss {self.loss.name} needs amounts, which a pair has not")
        taught = [source.title for source in self.data if source.taught]
        if self.loss is not None and taught and LOSSES[self.loss.name].labels in ("graded", "binary"):
            raise ValueError(
                f"loss {self.loss.name} wants {LOSSES[self.loss.name].labels} labels, and {taught[0]} has a teacher's "
                "scores; give one for an order or a teacher's scores, such as ranknet or kl"
            )
        if self.start is not None and self.adapter.model_copy(update={"compress": None}) != AdapterPart():
            raise ValueError("start goes on with an adapter as it is; leave out all of adapter but compress")
        if self.strategy == "score-head" and (self.start is not None or self.adapter.compress is not None):
            raise ValueError(
                "a score-head ends as a whole model, so it has no compress, and no adapter to start from; "
                "to go on with one, give its folder as model"
            )
        if self.evaluation is not None and self.schedule.save_every not in (None, self.evaluation.every):
            raise ValueError(
                f"save_every {self.schedule.save_every}: with an evaluation a checkpoint is written every "
                f"{self.evaluation.every} steps, as it evaluates, so that the best one is there; take save_every out"
            )
        if self.schedule.average > self.schedule.keep:
            raise ValueError(f"average {self.schedule.average} needs as many checkpoints; keep is {self.schedule.keep}")
        if self.schedule.average > 1 and self.adapter.method == "full":
            raise ValueError("average is for adapters; method full has none")
        if self.deepspeed is not None and self.fsdp is not None:
            raise ValueError("deepspeed and fsdp exclude one another")
        if self.fsdp_config is not None and self.fsdp is None:
            raise ValueError("fsdp_config without fsdp would be ignored")
        if self.evaluation is not None and (self.fsdp is not None or self.strategy == "score-head"):
            raise ValueError(
                "evaluation during training needs the whole model in one process and answers by label: "
                "take it out with fsdp or a score-head, and evaluate the result"
            )
        limits = {"setwise": 26, "first": 26, "pairwise": None}
        most = limits.get(self.strategy)
        for source in self.data:
            if most is not None and source.size > most:
                raise ValueError(f"{source.title}: size {source.size}, and {self.strategy} can name {most} passages")
        return self

    @property
    def asked(self) -> Prompt:
        return load_prompt(self.prompt or PROMPTS[self.strategy])

    @property
    def whole(self) -> bool:
        """Whether what comes out is a model and not an adapter."""
        return self.adapter.method == "full" or self.strategy == "score-head"

    @property
    def order(self) -> Curriculum | None:
        return Curriculum(self.curriculum) if self.curriculum is not None else None

    def ranker(self) -> Strategy:
        """The strategy that the evaluation ranks with. Raises UnknownNameError for an option that it has not."""
        options = dict(self.evaluation.options) if self.evaluation is not None else {}
        return load_strategy(
            self.strategy, prompt=self.prompt or None, **{"passage_tokens": self.passage_tokens, **options}
        )


def read_recipe(path: str | Path) -> Recipe:
    """The recipe of a YAML file, checked as far as can be without a model. Raises InputError."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the recipe {str(path)!r}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise InputError(f"the recipe {path} must be a mapping, with name, strategy, loss and data")
    base = path.resolve().parent
    prompt = data.get("prompt")
    if isinstance(prompt, str) and prompt.endswith((".yaml", ".yml")):
        data["prompt"] = str(base / prompt)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{path}: {_told(error)}") from None
    check_prompt(recipe.strategy, recipe.asked)
    if recipe.adapter.method not in METHODS:
        from rerank.training.methods import peft_types

        if recipe.adapter.method.upper() not in peft_types():
            known = {*METHODS, *(name.lower() for name in peft_types())}
            raise UnknownNameError("adapter method", recipe.adapter.method, known)
    for source in recipe.data:
        source.check(base)
    if recipe.evaluation is not None:
        Source(dataset=recipe.evaluation.dataset, run=recipe.evaluation.run).check(base)
        recipe.ranker()
    for name, given in (("start", recipe.start), ("deepspeed", recipe.deepspeed), ("fsdp_config", recipe.fsdp_config)):
        if given is not None and not (base / given).exists():
            raise InputError(f"{path}: {name}: {given!r} is not there (looked for {str(base / given)!r})")
    if recipe.model is not None and recipe.model.startswith((".", "/")) and not (base / recipe.model).is_dir():
        raise InputError(f"{path}: model: there is no directory {str(base / recipe.model)!r}")
    return recipe


def _told(error: ValidationError) -> str:
    """The first mistake, with its place, and the nearest key for an unknown one."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    where = ".".join(place)
    if first["type"] == "extra_forbidden":
        known = _keys(place[:-1])
        near = get_close_matches(place[-1], known, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
        return f"unknown key {where!r}; {advice}"
    if first["type"] == "literal_error":
        return str(UnknownNameError(where, str(first["input"]), re.findall(r"'([^']+)'", first["ctx"]["expected"])))
    if first["type"] == "missing":
        return f"{where} is missing"
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"


def _keys(place: list[str]) -> set[str]:
    parts: Mapping[str, type[BaseModel]] = {
        "data": Source, "schedule": Schedule, "evaluation": Evaluation, "write": WritePart,
    }  # fmt: skip
    return set((parts[place[0]] if place else Recipe).model_fields)
