"""What several commands share: options, the ranker that they describe, and the two screens."""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rerank.adapters import digest
from rerank.backbones import Backbone, load_backbone
from rerank.calls import Kind
from rerank.defaults import Asked, resolve, settle
from rerank.errors import InputError, UnknownNameError
from rerank.jobs import Progress
from rerank.reranker import Reranker
from rerank.scheduler import MAX_CALLS
from rerank.strategies import STRATEGIES, Strategy, options_of

# What is printed is data: brackets and colons in it are no markup.
screen = Console(highlight=False, markup=False, emoji=False)
notes = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

StrategyName = Annotated[
    str,
    typer.Option("--strategy", "-s", metavar="NAME", help="See 'rerank ls strategies'; or a released model's name."),
]
CascadeText = Annotated[
    str,
    typer.Option(
        "--strategy",
        "-s",
        metavar="NAME",
        help="How to rank; see 'rerank ls strategies'. Or a cascade: 'pointwise % 20 >> first(window=10)'.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="NAME", help="A hub name or a directory; default: the embedded model."),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        "-a",
        metavar="NAME",
        help="A LoRA adapter: see 'rerank ls adapters', a directory or a hub name; 'none' for the bare model.",
    ),
]
PromptName = Annotated[
    str | None,
    typer.Option("--prompt", "-p", metavar="NAME", help="NAME, NAME@VERSION or a YAML file; see 'rerank ls prompts'."),
]
StrategyOptions = Annotated[
    list[str] | None,
    typer.Option("--option", "-O", metavar="NAME=VALUE", help="A strategy's option, as window=10; may be repeated."),
]
BackboneName = Annotated[
    str, typer.Option("--backbone", "-b", metavar="NAME", help="Who computes; see 'rerank ls backbones'.")
]
BackboneOptions = Annotated[
    list[str] | None,
    typer.Option("--backbone-option", "-B", metavar="NAME=VALUE", help="An engine's option; may be repeated."),
]
Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps; default: the best that is there.")
]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="bfloat16, float16, float32 or int8; default: what the device is fast at."),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse passages that would be cut to fit or hold control tokens.")
]


@dataclass(frozen=True, slots=True)
class Engine:
    """Who computes, as --model, --adapter and so on name it."""

    model: str | None
    adapter: str | None
    backbone: str
    backbone_options: list[str] | None
    device: str | None
    dtype: str | None

    def described(self, strategy: str, prompt: str | None, options: list[str] | None) -> tuple[Strategy, Engine]:
        """The strategy that --strategy, --prompt and --option describe, and the engine with what `resolve` and `settle`
        add; what they say of it is on stderr."""
        show_log()
        values = pairs(options)
        given = pairs(self.backbone_options)
        asked = resolve(Asked(strategy, self.model, self.backbone, given))
        strategy, model, backbone = asked.strategy, asked.model, str(asked.backbone)
        if strategy in STRATEGIES:
            known = [*options_of(STRATEGIES[strategy]), "instruction"]
            for option in values:
                if option not in known:  # before it can pass for another argument, as 'prompt' would
                    raise UnknownNameError(f"{strategy} option", option, known)
        made, adapter = settle(
            strategy, model=model, adapter=self.adapter, prompt=prompt, backbone=backbone, options=values
        )
        brought = [f"{name}={value}" for name, value in asked.engine_options.items() if name not in given]
        told = [*(self.backbone_options or []), *brought] or self.backbone_options
        return made, replace(self, model=model, adapter=adapter, backbone=backbone, backbone_options=told)

    @property
    def settings(self) -> dict[str, object]:
        """For a run's card. A key is nobody else's to read, and changes no score. An adapter that was trained anew is
        another one under the same name, so its weights are named too, where they are here."""
        options = [each for each in self.backbone_options or [] if not each.partition("=")[0].strip().endswith("key")]
        weights = None if self.adapter is None else digest(self.adapter)
        return {
            "model": self.model,
            "adapter": self.adapter,
            **({} if weights is None else {"adapter_sha256": weights}),
            "backbone": self.backbone,
            "backbone_options": options,
            "device": self.device,
            "dtype": self.dtype,
        }

    def load(
        self,
        strategy: Strategy,
        *,
        strict: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        max_calls: int = MAX_CALLS,
    ) -> Reranker:
        """The ranker."""
        backbone = self.backbone_for(strategy.prompt.needs)
        return Reranker(strategy, backbone, strict=strict, on_progress=on_progress, max_calls=max_calls)

    def backbone_for(self, needs: Kind) -> Backbone:
        """It is loaded, and says what it fetches and loads on stderr."""
        show_log()
        say(f"{self.backbone}: loading {self.model or 'its default model'}")
        return load_backbone(
            self.backbone,
            needs=needs,
            model=self.model,
            adapter=self.adapter,
            device=self.device,
            dtype=self.dtype,
            options=pairs(self.backbone_options),
        )


def pairs(options: list[str] | None) -> dict[str, object]:
    """`["window=10"]` as `{"window": "10"}`; the strategy converts the values."""
    found: dict[str, object] = {}
    for option in options or []:
        name, equals, value = option.partition("=")
        if not equals:
            raise InputError(f"option {option!r} is not of the form name=value")
        found[name.strip().replace("-", "_")] = None if value == "none" else value
    return found


def command_line() -> str:
    """What was typed, as one could type it again. A key is nobody else's to read."""
    shown = [re.sub(r"(?i)(key\s*=).*", r"\1...", each, flags=re.DOTALL) for each in sys.argv[1:]]
    return shlex.join(["rerank", *shown])


def say(text: str) -> None:
    """What is going on, for who sits in front of it; a log file is spared it."""
    if notes.is_terminal:
        notes.print(text, style="dim")


def bare_table(*columns: str) -> Table:
    """Without lines; what is too wide is folded."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def folds() -> bool:
    """Whether what is too wide for the terminal is folded: not in a pipe or a file."""
    return screen.is_terminal or "COLUMNS" in os.environ


def show(table: Table) -> None:
    """A table as wide as the terminal; in a pipe or a file as wide as it is, so that a row stays a line."""
    if folds():
        screen.print(table)
        return
    wide = Console(width=1_000_000, highlight=False, markup=False, emoji=False)
    with wide.capture() as captured:
        wide.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))


def standard_input(what: str) -> Iterator[str]:
    """The lines of standard input as they arrive, strictly as UTF-8, whatever the locale says."""
    stream = sys.stdin
    if stream is None:
        raise InputError(f"there is no standard input to read {what} from")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors="strict")
    if stream.isatty():
        say(f"reading {what} from the keyboard; Ctrl-D ends them")
    try:
        yield from stream
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text: {error.reason}") from error


class _Log(logging.Handler):
    """Through the console, which knows how to write above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        notes.print(self.format(record))


def show_log() -> None:
    """The library's own log on stderr, from 'info' up; of its model libraries only errors."""
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):  # are read when these are first imported
        os.environ.setdefault(name, "error")
    log = logging.getLogger("rerank")
    if not log.handlers:
        log.addHandler(_Log())
        log.setLevel(logging.INFO)


def words(options: Mapping[str, object]) -> list[str]:
    """`{window: 10}` as the command line has it, `["window=10"]`."""
    return [f"{name}={'none' if each is None else each}" for name, each in options.items()]
