"""A training run as one YAML file. It is checked before anything is loaded; no key of it is ignored."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Self, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from rerank.errors import InputError, UnknownNameError
from rerank.losses import LOSSES
from rerank.prompts import Prompt, load_prompt
from rerank.strategies import load_strategy
from rerank.strategies.base import Strategy, with_budget
from rerank.strategies.full import FullRanking
from rerank.training.click_parts import Clicks, check_clicks
from rerank.training.methods import METHODS
from rerank.training.mixture import Curriculum
from rerank.training.objectives import check_prompt
from rerank.training.parts import AdapterPart, Evaluation, LossPart, Part, Schedule, WritePart
from rerank.training.preferences import RankingsPart, ReferencePart, check_preferences
from rerank.training.reinforce.part import ReinforcePart, fits
from rerank.training.reinforce.rewards import FITS
from rerank.training.sources import Source, missing
from rerank.training.written import WRITERS

StrategyName = Literal[
    "pointwise", "score-head", "pairwise", "setwise", "first", "full-ranking",
    "rank-r1", "listwise", "groupwise", "elimination",
]  # fmt: skip
PROMPTS: Mapping[str, str] = {
    "pointwise": "pointwise-yes-no",
    "score-head": "pointwise-pair",
    "pairwise": "pairwise",
    "setwise": "setwise",
    "first": "first-identifier",
    "full-ranking": "full-ranking",
    "rank-r1": "setwise-reasoning",
    "listwise": "listwise-reasoning",
    "groupwise": "groupwise",
    "elimination": "elimination-permutation",
}


class Recipe(Part):
    """The whole of a run. Paths are relative to the recipe's folder."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    about: str = ""
    model: str | None = None
    strategy: StrategyName
    prompt: str | None = None
    passage_tokens: int | None = Field(None, ge=1)
    reason_tokens: int | None = Field(None, ge=1)
    pairs: int | None = Field(None, ge=1)
    loss: LossPart | None = None
    write: WritePart | None = None
    reference: ReferencePart | None = None
    rankings: RankingsPart | None = None
    reinforce: ReinforcePart | None = None
    adapter: AdapterPart = AdapterPart()
    start: str | None = None
    data: tuple[Source, ...] = Field(min_length=1)
    clicks: Clicks | None = None
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
            usual: dict[str, object] = {"passage_tokens": FullRanking().passage_tokens}
            return usual | ({} if "rankings" in data else {"write": {}}) | data
        return data

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_preferences(self)
        if self.strategy in WRITERS and self.rankings is None:
            if self.loss is not None:
                raise ValueError(
                    f"loss {self.loss.name} needs scores, and {self.strategy} only writes; give write: instead of loss:"
                )
            if self.write is None and self.reinforce is None:
                either = "leave write in" if self.strategy not in FITS else "give write: or reinforce:"
                raise ValueError(f"strategy {self.strategy} only writes; {either}")
        elif self.loss is None and self.reinforce is None:
            raise ValueError(f"strategy {self.strategy} needs a loss; known: {', '.join(LOSSES)}")
        if self.write is not None and self.strategy not in ("first", *WRITERS):
            raise ValueError(f"strategy {self.strategy} writes no permutation; take write out")
        fits_write(self)
        fits(self)
        if self.write is not None and self.write.top is not None and self.strategy != "full-ranking":
            raise ValueError("write.top is for full-ranking")
        if self.pairs is not None and self.strategy != "pairwise":
            raise ValueError("pairs is for strategy pairwise")
        if self.loss is not None and self.strategy == "pairwise" and LOSSES[self.loss.name].labels == "utility":
            raise ValueError(f"loss {self.loss.name} needs amounts, which a pair has not")
        taught = [source.title for source in self.data if source.ungraded]
        if self.loss is not None and taught and LOSSES[self.loss.name].labels in ("graded", "binary"):
            raise ValueError(
                f"loss {self.loss.name} wants {LOSSES[self.loss.name].labels} labels, and {taught[0]} has a teacher's "
                "scores; make grades of them (grades: [0.5, 1.5]), or give a loss for an order, such as ranknet or kl"
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
        if self.fsdp is not None and self.schedule.average > 1:
            raise ValueError("average needs the whole model in each process; take it out with fsdp")
        if self.fsdp is not None and self.strategy == "score-head" and self.adapter.method != "full":
            raise ValueError("a score-head's adapter is merged by a process that has it whole; take fsdp out")
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
        check_clicks(self)
        return self

    @property
    def asked(self) -> Prompt:
        return with_budget(load_prompt(self.prompt or PROMPTS[self.strategy]), self.reason_tokens)

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
        return load_strategy(self.strategy, prompt=self.asked, **{"passage_tokens": self.passage_tokens, **options})


def fits_write(recipe: Recipe) -> None:
    """What of `write` is for permutations only, and where a thought may be bounded. Raises ValueError."""
    write, strategy = recipe.write, recipe.strategy
    if recipe.reason_tokens is not None and strategy not in ("rank-r1", "listwise", "groupwise"):
        raise ValueError(f"reason_tokens bounds a thought, and strategy {strategy} has none written; take it out")
    if write is None:
        return
    if write.thought is not None and strategy not in FITS:
        raise ValueError(f"strategy {strategy} writes no thought; take write.thought out")
    ranked = write.importance or write.separators != 1.0
    if ranked and strategy in FITS:
        raise ValueError(f"write.importance and separators are for first and full-ranking, not {strategy}")


def mapping_of(path: str | Path) -> dict[str, object]:
    """What a recipe's file says, unchecked. Raises InputError."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the recipe {str(path)!r}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise InputError(f"the recipe {path} must be a mapping, with name, strategy, loss and data")
    return data


def read_recipe(path: str | Path) -> Recipe:
    """The recipe of a YAML file, checked as far as can be without a model. Raises InputError."""
    path = Path(path)
    data = mapping_of(path)
    base = path.resolve().parent
    prompt = data.get("prompt")
    if isinstance(prompt, str) and prompt.endswith((".yaml", ".yml")):
        data["prompt"] = str(base / prompt)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{path}: {told(error, Recipe)}") from None
    check_prompt(recipe.strategy, recipe.asked)
    if recipe.write is not None and recipe.write.thought is not None and not recipe.asked.reasons:
        raise InputError(f"{path}: prompt {recipe.asked.name!r} has no thought written; take write.thought out")
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
    if recipe.clicks is not None:
        recipe.clicks.check_files(base, max(source.size for source in recipe.data))
    for name, given in (("start", recipe.start), ("deepspeed", recipe.deepspeed), ("fsdp_config", recipe.fsdp_config)):
        if given is not None and not (base / given).exists():
            raise InputError(f"{path}: {missing(name + ':', given, base)}")
    if recipe.model is not None and recipe.model.startswith((".", "/")) and not (base / recipe.model).is_dir():
        raise InputError(f"{path}: {missing('model:', recipe.model, base)}")
    return recipe


def told(error: ValidationError, root: type[BaseModel]) -> str:
    """The first mistake, with its place, and the nearest key for an unknown one."""
    # a misspelt key goes before the one that is missing for it
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    place = [str(part) for part in first["loc"]]
    where = ".".join(place)
    if first["type"] == "extra_forbidden":
        known = _keys(place[:-1], root)
        near = get_close_matches(place[-1], known, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
        return f"unknown key {where!r}; {advice}"
    if first["type"] == "literal_error":
        return str(UnknownNameError(where, str(first["input"]), re.findall(r"'([^']+)'", first["ctx"]["expected"])))
    if first["type"] == "missing":
        return f"{where} is missing"
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"


def _keys(place: list[str], root: type[BaseModel]) -> set[str]:
    """What can stand at a place of the recipe."""
    part = root
    for name in place:
        if not name.isdecimal():  # a number is a place in a list
            part = next(_parts(part.model_fields[name].annotation), part)
    return set(part.model_fields)


def _parts(annotation: object) -> Iterator[type[BaseModel]]:
    """The parts that an annotation speaks of: `Schedule`, `Clicks | None`, `tuple[Source, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _parts(inner)
