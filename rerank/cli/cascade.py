"""What --strategy says: one strategy, or a cascade of them, each with its own options where it needs them.

    pointwise(backbone=bi-encoder) % 50 >> pointwise % 20 >> first(window=10, step=5)

    cascade  = stage, { ">>", stage }
    stage    = name, [ "(", option, { ",", option }, ")" ], [ "%", number ]
    option   = name, "=", value        a value with a space, a comma or a bracket stands in quotes

A name is a strategy's, or `first-stage`, the order that the passages came in. An option is the strategy's, or `prompt`,
`model`, `adapter` or `backbone`, which stand for --prompt, --model and so on, for this stage alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING, cast

from rerank.backbones import Backbone, check_answers
from rerank.cli.options import Engine, pairs
from rerank.cli.progress import Summed
from rerank.defaults import LOCAL
from rerank.errors import InputError
from rerank.jobs import Progress
from rerank.reranker import Cascade, FirstStage, Ranker, Reranker, Stage
from rerank.scheduler import MAX_CALLS
from rerank.strategies import Strategy, options_of

if TYPE_CHECKING:
    from rerank.backbones.transformers_ import TransformersBackbone
    from rerank.backbones.vllm_ import VLLMBackbone

FIRST_STAGE = "first-stage"
_ENGINES = ("model", "adapter", "backbone")

_NAME = re.compile(r"[A-Za-z][\w-]*")
_STAGE = re.compile(r"[A-Za-z~./][\w~./-]*")  # a released reranker's name, or the path of its directory
_NUMBER = re.compile(r"\d+")
_VALUE = re.compile(r"""'[^']*'|"[^"]*"|[^\s,()'"]+""")


@dataclass(frozen=True, slots=True)
class Written:
    """A stage as it was written."""

    name: str
    options: dict[str, str]
    keep: int | None


def parse(text: str) -> tuple[Written, ...]:
    """The stages.

    >>> parse("pointwise%20 >> first(window=10, prompt='my prompt.yaml')")[1].options
    {'window': '10', 'prompt': 'my prompt.yaml'}
    """
    reader = _Reader(text)
    stages = [_stage(reader)]
    while reader.has(">>"):
        stages.append(_stage(reader))
    if reader.rest:
        raise reader.error("'>>', '%', '(' or the end")
    return tuple(stages)


def _stage(reader: _Reader) -> Written:
    name, options, keep = reader.take(_STAGE, "a strategy's name"), dict[str, str](), None
    if reader.has("("):
        _option(reader, options)
        while reader.has(","):
            _option(reader, options)
        if not reader.has(")"):
            raise reader.error("',' or ')'")
    if reader.has("%"):
        keep = int(reader.take(_NUMBER, "a number of passages"))
        if keep < 1:
            raise InputError(f"--strategy: {name} % {keep} leaves nothing; give at least 1")
    return Written(name, options, keep)


def _option(reader: _Reader, options: dict[str, str]) -> None:
    name = reader.take(_NAME, "an option's name").replace("-", "_")
    if not reader.has("="):
        raise reader.error(f"'=' after the option {name!r}")
    value = reader.take(_VALUE, f"a value for {name!r}")
    if name in options:
        raise InputError(f"--strategy gives a stage {name} twice; leave out one")
    options[name] = value[1:-1] if value[0] in ("'", '"') else value


class _Reader:
    def __init__(self, text: str) -> None:
        self._text, self.rest = text, text.strip()

    def has(self, mark: str) -> bool:
        """Whether this comes next; then it is read."""
        if not self.rest.startswith(mark):
            return False
        self.rest = self.rest[len(mark) :].lstrip()
        return True

    def take(self, pattern: re.Pattern[str], what: str) -> str:
        if (match := pattern.match(self.rest)) is None:
            raise self.error(what)
        self.rest = self.rest[match.end() :].lstrip()
        return match[0]

    def error(self, expected: str) -> InputError:
        where = f"at {self.rest!r}" if self.rest else "at the end"
        return InputError(
            f"--strategy {self._text!r}: {where} there should be {expected}; stages are written as in "
            "'pointwise % 20 >> first(window=10)'"
        )


@dataclass(frozen=True, slots=True)
class Planned:
    """A stage that is checked and not loaded. Without a strategy it is the first stage."""

    name: str
    strategy: Strategy | None
    engine: Engine
    keep: int | None

    @property
    def settings(self) -> dict[str, object]:
        if self.strategy is None:
            return {"strategy": self.name}
        options = {name: getattr(self.strategy, name) for name in options_of(type(self.strategy))}
        prompt = self.strategy.prompt.identity
        return {"strategy": self.name, "options": options, "prompt": prompt, **self.engine.settings}


@dataclass(frozen=True, slots=True)
class Plan:
    """A ranker that is checked and not loaded."""

    stages: tuple[Planned, ...]

    def calls(self, n: int) -> int:
        """What n passages cost at most."""
        total = 0
        for stage in self.stages:
            total += stage.strategy.calls(n) if stage.strategy is not None else 0
            n = n if stage.keep is None else min(n, stage.keep)
        return total

    @property
    def title(self) -> str:
        return " >> ".join(s.name if s.keep is None else f"{s.name} % {s.keep}" for s in self.stages)

    @property
    def tag(self) -> str:
        """For a run: no white space."""
        return "-".join(["rerank", *(part for part in self.title.split() if part not in ("%", ">>"))])

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
        asking = [(stage.strategy, stage.engine) for stage in self.stages if stage.strategy is not None]
        for strategy, engine in asking:
            check_answers(engine.backbone, strategy.prompt.needs)
        backbones = _loaded(asking)
        shows = [on_progress]
        if on_progress is not None and len(asking) > 1:
            shows = [*Summed(on_progress, len(asking)).shows]
        rankers = iter(
            Reranker(strategy, backbone, strict=strict, on_progress=show, max_calls=max_calls)
            for (strategy, _), backbone, show in zip(asking, backbones, cycle(shows), strict=False)
        )
        made = [Stage(FirstStage() if s.strategy is None else next(rankers), s.keep) for s in self.stages]
        return made[0].ranker if len(made) == 1 and made[0].keep is None else Cascade(tuple(made))


def plan(text: str, engine: Engine, prompt: str | None, options: list[str] | None) -> Plan:
    """What --strategy, --prompt and --option describe, checked; `engine` serves the stages that name none."""
    written = parse(text)
    asking = [stage for stage in written if stage.name != FIRST_STAGE]
    if not asking:
        raise InputError(f"{FIRST_STAGE} asks no model; have a stage follow it, as in '{FIRST_STAGE} % 20 >> first'")
    if len(asking) > 1 and (prompt is not None or options):
        raise InputError(
            f"--prompt and --option are for one stage, and --strategy has {len(asking)}; write them with their stage, "
            f"as in '{asking[0].name}(NAME=VALUE)'"
        )
    _check_used(engine, [_engine_of(stage, engine) for stage in asking])
    return Plan(tuple(_planned(stage, engine, prompt, options or []) for stage in written))


def _planned(stage: Written, engine: Engine, prompt: str | None, options: list[str]) -> Planned:
    if stage.name == FIRST_STAGE:
        if stage.options:
            raise InputError(f"{FIRST_STAGE} has no options; leave out {', '.join(stage.options)}")
        return Planned(stage.name, None, engine, stage.keep)
    beside = [*pairs(options), *(["prompt"] if prompt is not None else [])]
    if twice := [name for name in beside if name in stage.options]:
        raise InputError(f"{twice[0]} is given in --strategy and beside it; leave out one")
    own = [f"{name}={value}" for name, value in stage.options.items() if name not in (*_ENGINES, "prompt")]
    prompt = stage.options.get("prompt", prompt)
    made, settled = _engine_of(stage, engine).described(stage.name, prompt, [*own, *options])
    return Planned(stage.name, made, settled, stage.keep)


def _engine_of(stage: Written, engine: Engine) -> Engine:
    """The stage's own. What is said of another engine, or of another model, is not taken over."""
    model, adapter, backbone = (stage.options.get(name) for name in _ENGINES)
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
