"""`rerank rank`: one query, some passages, the order."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from rerank.cli import options as opt
from rerank.cli.cascade import plan
from rerank.data.files import read_lines
from rerank.types import Candidates, Outcomes, Passage, Query, Ranking, Usage

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # a terminal would obey what a passage says


def rank(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What was asked.")],
    passages: Annotated[
        str, typer.Argument(metavar="FILE", help="Text with a passage a line; '-' is standard input.")
    ] = "-",
    strategy: opt.CascadeText = "pointwise",
    model: opt.Model = None,
    adapter: opt.Adapter = None,
    prompt: opt.PromptName = None,
    option: opt.StrategyOptions = None,
    backbone: opt.BackboneName = "transformers",
    backbone_option: opt.BackboneOptions = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    strict: opt.Strict = False,
    top: Annotated[int | None, typer.Option("--top", "-k", metavar="N", min=1, help="Show only the best N.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON line for each passage.")] = False,
) -> None:
    """Rank the lines of a file for one query."""
    engine = opt.Engine(model, adapter, backbone, backbone_option, device, dtype)
    planned = plan(strategy, engine, prompt, option)
    request = Candidates(Query(query), tuple(_passages(passages)))
    ranker = planned.load(strict=strict)
    (ranking,) = ranker.rank_many([request])
    shown = ranking.top(top) if top is not None else ranking
    if as_json:
        for hit in shown:
            record = {"rank": hit.rank, "score": hit.score, "line": int(hit.passage.doc_id)}
            typer.echo(json.dumps({**record, "text": hit.passage.text}, ensure_ascii=False))
    else:
        opt.show(_table(shown))
        opt.notes.print(summary(ranking.usage, ranking.outcomes), style="dim")


def summary(usage: Usage, outcomes: Outcomes) -> str:
    """What it took, in a line."""
    return (
        f"{counted(usage.calls, 'call', 'calls')}, {usage.prompt_tokens:,} prompt and "
        f"{usage.generated_tokens:,} generated tokens, {usage.seconds:.1f} s; answers: {outcomes}"
    )


def counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _table(ranking: Ranking) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("rank", "score", "line"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("passage", overflow="fold")
    for hit in ranking:
        table.add_row(str(hit.rank), f"{hit.score:.3f}", hit.passage.doc_id, Text(_CONTROL.sub(" ", hit.passage.text)))
    return table


def _passages(name: str) -> list[Passage]:
    """The filled lines, each with its number in the file as its id."""
    lines: Iterable[str] = opt.standard_input("passages") if name == "-" else read_lines(name)
    return [Passage(line.rstrip("\r\n"), str(i)) for i, line in enumerate(lines, start=1) if line.strip()]
