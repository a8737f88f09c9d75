"""The commands, each a file."""

from __future__ import annotations

from typing import Annotated

import typer

import rerank
from rerank.cli import bench, data
from rerank.cli.compare import compare_runs
from rerank.cli.compress import compress
from rerank.cli.demo import demo
from rerank.cli.evaluate import evaluate_runs
from rerank.cli.ls import ls
from rerank.cli.mcp import mcp
from rerank.cli.one import rank
from rerank.cli.retrieve import retrieve
from rerank.cli.robust import robust
from rerank.cli.run import run
from rerank.cli.serve import serve
from rerank.cli.train import train

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Put retrieved passages in the right order with a large language model."""
    if version:
        typer.echo(f"rerank {rerank.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command()(demo)
app.command()(rank)
app.command()(retrieve)
app.command()(run)
app.command()(serve)
app.command()(mcp)
app.command()(train)
app.command()(compress)
app.command("eval")(evaluate_runs)
app.command("compare")(compare_runs)
app.command()(robust)
app.command()(ls)
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
