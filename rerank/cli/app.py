"""The commands, each a file."""

from __future__ import annotations

from typing import Annotated

import typer

import rerank
from rerank.cli.demo import demo
from rerank.cli.evaluate import evaluate_runs
from rerank.cli.ls import ls
from rerank.cli.one import rank
from rerank.cli.run import run

app = typer.Typer(
    help="Put retrieved passages in the right order with a large language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"rerank {rerank.__version__}")
        raise typer.Exit


app.command()(demo)
app.command()(rank)
app.command()(run)
app.command("eval")(evaluate_runs)
app.command()(ls)
