"""The ranker that --strategy describes: one strategy, a sum, or a cascade, checked first and loaded later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING, cast

from rerank.backbones import Backbone, check_answers
from rerank.cli.cascade_text import Term, parse
from rerank.cli.options import Engine, pairs
from rerank.cli.progress import Summed
from rerank.defaults import LOCAL
from rerank.errors import InputError
from rerank.fusion import fuse
from rerank.jobs import Progress
from rerank.reranker import Cascade, FirstStage, Ranker, Reranker, Stage
from rerank.scheduler import MAX_CALLS
from rerank.strategies import Strategy, options_of

if TYPE_CHECKING:
    from rerank.backbones.transformers_ import TransformersBackbone
    from rerank.backbones.vllm_ import VLLMBackbone

FIRST_STAGE = "first-stage"
_ENGINES = ("model", "adapter", "backbone")


@dataclass(frozen=True, slots=True)
class Planned:
    """A term that is checked and not loaded. Without a strategy it is the first stage."""

    name: str
    strategy: Strategy | None
    engine: Engine
    weight: float = 1.0

    @property
    def settings(self) -> dict[str, object]:
        if self.strategy is None:
            return {"strategy": self.name}
        options = {name: getattr(self.strategy, name) for name in options_of(type(self.strategy))}
        prompt = self.strategy.prompt.identity
        return {"strategy": self.name, "options": options, "prompt": prompt, **self.engine.settings}


@dataclass(frozen=True, slots=True)
class PlannedStage:
    terms: tuple[Planned, ...]
    keep: int | None

    @property
    def title(self) -> str:
        return self._sum if self.keep is None else f"{self._sum} % {self.keep}"

    @property
    def _sum(self) -> str:
        first, *more = self.terms
        return first.name if not more else " + ".join(f"{term.weight:g}*{term.name}" for term in self.terms)

    @property
    def settings(self) -> dict[str, object]:
        first, *more = self.terms
        if not more:
            return first.settings
        return {"strategy": self._sum, "sum": [{**term.settings, "weight": term.weight} for term in self.terms]}

    def put_together(self, rankers: Sequence[Ranker]) -> Ranker:
        """Of the terms' rankers. Scores of different rankers compare as z-scores only."""
        if len(rankers) == 1:
            return rankers[0]
        return fuse(*rankers, method="wsum", norm="zmuv", weights=[term.weight for term in self.terms])


@dataclass(frozen=True, slots=True)
class Plan:
    """A ranker that is checked and not loaded."""

    stages: tuple[PlannedStage, ...]

    def calls(self, n: int) -> int:
        """What n passages cost at most."""
        total = 0
        for stage in self.stages:
            total += sum(term.strategy.calls(n) for term in stage.terms if term.strategy is not None)
            n = n if stage.keep is None else min(n, stage.keep)
        return total

    @property
    def title(self) -> str:
        return " >> ".join(stage.title for stage in self.stages)

    @property
    def tag(self) -> str:
        """For a run: no white space."""
        return "-".join(["rerank", *(part for part in self.title.split() if part not in ("%", ">>", "+"))])

    @property
    def settings(self) -> dict[str, object]:
        """For a run's card: of one strategy what it is, of a cascade that of every stage."""
        if len(self.stages) == 1 and self.stages[0].keep is None:
            return self.stages[0].settings
        return {"strategy": self.title, "stages": [{**stage.settings, "keep": stage.keep} for stage in self.stages]}

    def load(
        self,
        *,
        strict: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        max_calls: int = MAX_CALLS,
    ) -> Ranker:
        """The ranker. Stages with the same model share it, each under its own adapter."""
        asking = self.asking
        shows = [on_progress]
        if on_progress is not None and len(asking) > 1:
            shows = [*Summed(on_progress, len(asking)).shows]
        return self._on(
            [
                Reranker(strategy, backbone, strict=strict, on_progress=show, max_calls=max_calls)
                for (strategy, _), backbone, show in zip(asking, _loaded(asking), cycle(shows), strict=False)
            ]
        )

    @property
    def asking(self) -> list[tuple[Strategy, Engine]]:
        """The strategies that ask a model, and whom."""
        terms = [term for stage in self.stages for term in stage.terms]
        return [(term.strategy, term.engine) for term in terms if term.strategy is not None]

    def _on(self, loaded: Sequence[Reranker]) -> Ranker:
        """The ranker, of those that ask a model."""
        rankers = iter(loaded)
        made = [
            Stage(
                stage.put_together([FirstStage() if t.strategy is None else next(rankers) for t in stage.terms]),
                stage.keep,
            )
            for stage in self.stages
        ]
        return made[0].ranker if len(made) == 1 and made[0].keep is None else Cascade(tuple(made))


def load_all(plans: Sequence[Plan], *, strict: bool = False) -> list[Ranker]:
    """The rankers. What they have in common is loaded once, as by `Plan.load` for one."""
    backbones = iter(_loaded([each for planned in plans for each in planned.asking]))
    return [
        planned._on([Reranker(strategy, next(backbones), strict=strict) for strategy, _ in planned.asking])
        for planned in plans
    ]


def plan(text: str, engine: Engine, prompt: str | None, options: list[str] | None) -> Plan:
    """What --strategy, --prompt and --option describe, checked; `engine` serves the stages that name none."""
    written = parse(text)
    asking = [term for stage in written for term in stage.terms if term.name != FIRST_STAGE]
    if not asking:
        raise InputError(f"{FIRST_STAGE} asks no model; have a stage follow it, as in '{FIRST_STAGE} % 20 >> first'")
    if len(asking) > 1 and (prompt is not None or options):
        raise InputError(
            f"--prompt and --option are for one stage, and --strategy has {len(asking)}; write them with their stage, "
            f"as in '{asking[0].name}(NAME=VALUE)'"
        )
    _check_used(engine, [_engine_of(term, engine) for term in asking])
    return Plan(
        tuple(
            PlannedStage(tuple(_planned(term, engine, prompt, options or []) for term in stage.terms), stage.keep)
            for stage in written
        )
    )


def _planned(term: Term, engine: Engine, prompt: str | None, options: list[str]) -> Planned:
    if term.name == FIRST_STAGE:
        if term.options:
            raise InputError(f"{FIRST_STAGE} has no options; leave out {', '.join(term.options)}")
        return Planned(term.name, None, engine, term.weight)
    beside = [*pairs(options), *(["prompt"] if prompt is not None else [])]
    if twice := [name for name in beside if name in term.options]:
        raise InputError(f"{twice[0]} is given in --strategy and beside it; leave out one")
    own = [f"{name}={value}" for name, value in term.options.items() if name not in (*_ENGINES, "prompt")]
    prompt = term.options.get("prompt", prompt)
    made, settled = _engine_of(term, engine).described(term.name, prompt, [*own, *options])
    return Planned(term.name, made, settled, term.weight)


def _engine_of(term: Term, engine: Engine) -> Engine:
    """The stage's own. What is said of another engine, or of another model, is not taken over."""
    model, adapter, backbone = (term.options.get(name) for name in _ENGINES)
    if backbone is not None:
        return replace(engine, model=model, adapter=adapter, backbone=backbone, backbone_options=None)
    if model is not None:
        return replace(engine, model=model, adapter=adapter)
    return engine if adapter is None else replace(engine, adapter=adapter)


def _check_used(engine: Engine, own: Sequence[Engine]) -> None:
    """Refuse an engine's flag that no stage takes."""
    nothing = Engine(None, None, "transformers", None, None, None)
    for name in ("model", "adapter", "backbone", "backbone_options"):
        value = getattr(engine, name)
        if value and value != getattr(nothing, name) and all(getattr(each, name) != value for each in own):
            flag = name.removesuffix("s").replace("_", "-")
            raise InputError(f"--{flag} is given, and every stage has an engine or a model of its own; leave it out")


def _loaded(asking: Sequence[tuple[Strategy, Engine]]) -> list[Backbone]:
    """A backbone for each. What is the same is loaded once, and so is what differs in its adapter only, where an engine
    changes that without loading; in int8 it is part of the weights."""
    for strategy, engine in asking:
        check_answers(engine.backbone, strategy.prompt.needs)
    there: list[tuple[Engine, Backbone]] = []
    found = []
    for strategy, engine in asking:
        changes = engine.backbone in LOCAL and engine.dtype != "int8"
        base = replace(engine, adapter=None) if changes else engine
        backbone = next((backbone for other, backbone in there if other == base), None)
        if backbone is None:
            # under an adapter, if any stage has one: vLLM makes room for them when it loads
            adapters = [each.adapter for _, each in asking if each.adapter and replace(each, adapter=None) == base]
            under = replace(base, adapter=adapters[0]) if changes and adapters else base
            backbone = under.backbone_for(strategy.prompt.needs)
            there.append((base, backbone))
        if changes and len(asking) > 1:
            backbone = cast("TransformersBackbone | VLLMBackbone", backbone).with_adapter(engine.adapter)
        found.append(backbone)
    return found
