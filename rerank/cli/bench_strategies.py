"""`rerank bench strategies`: what each strategy finds, asks and takes on one dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table as Screen

from rerank.cli import options as opt
from rerank.cli.one import counted
from rerank.cli.progress import watching
from rerank.errors import InputError

if TYPE_CHECKING:
    from rerank.bench.strategies_table import Comparison


def strategies(
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", help="A YAML file with a dataset and rows.", show_default=False)
    ],
    queries: Annotated[int | None, typer.Option(metavar="N", min=1, help="At most N queries in every row.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to; default: runs/ and NAME.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Put the table between the marks of this Markdown page too.")
    ] = None,
) -> None:
    """Run the strategies of a spec on its dataset, and measure each.

    Every row is a TREC run in the output folder. A row that is done is not done again, and one that was stopped goes
    on. One that fails is told of in the table and tried again the next time; the exit status is 1 then.
    """
    from rerank.bench import strategies as bench
    from rerank.bench.strategies_table import insert, markdown

    opt.show_log()
    folder = out or Path("runs") / bench.read_spec(spec).name
    page = None if into is None else _page(into)
    opt.say(f"comparing strategies in {folder}")
    found = bench.compare(spec, folder, queries=queries, watching=watching)
    if into is not None and page is not None:
        into.write_text(insert(page, markdown(found)), encoding="utf-8")
    _print(found)
    if found.failed:
        opt.notes.print(f"{counted(found.failed, 'row', 'rows')} failed; the same command tries again")
        raise typer.Exit(1)


def _page(into: Path) -> str:
    """Read before anything is run, so that a missing mark is not found hours later."""
    from rerank.bench.strategies_table import insert

    try:
        page = into.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read --into {into}: {error}") from error
    insert(page, "")
    return page


def _print(found: Comparison) -> None:
    from rerank.bench.strategies_table import cells, headers, told

    if found.machine is not None:
        opt.screen.print(str(found.machine), soft_wrap=True)
    opt.screen.print(told(found), soft_wrap=True)
    shown = Screen(box=None, header_style="bold", pad_edge=False)
    for place, name in enumerate(headers(found)):
        shown.add_column(name, justify="right" if 4 <= place <= 9 else "left", overflow="fold")
    for row in found.rows:
        shown.add_row(*cells(row))
    opt.show(shown)
