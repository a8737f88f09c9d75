"""`rerank rank`: one query, some passages, the order."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from rerank.cli import options as opt
from rerank.errors import InputError
from rerank.types import Ranking, as_candidates


def rank(
    query: Annotated[str, typer.Argument(help="The query.")],
    passages: Annotated[str, typer.Argument(help="A text file with a passage a line, or - for standard input.")] = "-",
    strategy: opt.StrategyName = "first",
    model: opt.Model = None,
    adapter: opt.Adapter = None,
    prompt: opt.PromptName = None,
    option: opt.StrategyOptions = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    strict: opt.Strict = False,
    top: Annotated[int | None, typer.Option("--top", "-k", help="Show only the best k.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON line for each passage.")] = False,
) -> None:
    """Rank the lines of a file for one query."""
    request = as_candidates(query, _lines(passages))
    ranker = opt.load_ranker(
        strategy,
        model=model,
        adapter=adapter,
        prompt=prompt,
        options=option,
        device=device,
        dtype=dtype,
        strict=strict,
    )
    (ranking,) = ranker.rank_many([request])
    shown = ranking.top(top) if top is not None else ranking
    if as_json:
        for hit in shown:
            record = {"rank": hit.rank, "score": hit.score, "line": int(hit.passage.doc_id) + 1}
            typer.echo(json.dumps({**record, "text": hit.passage.text}, ensure_ascii=False))
    else:
        opt.screen.print(_table(shown))
        opt.notes.print(summary(ranking), style="dim")


def summary(ranking: Ranking) -> str:
    usage = ranking.usage
    return (
        f"{usage.calls} calls, {usage.prompt_tokens:,} prompt and {usage.generated_tokens:,} generated tokens, "
        f"{usage.seconds:.1f} s; answers: {ranking.outcomes}"
    )


def _table(ranking: Ranking) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("rank", "score", "line"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("passage", overflow="fold")
    for hit in ranking:
        table.add_row(str(hit.rank), f"{hit.score:.3f}", str(int(hit.passage.doc_id) + 1), Text(hit.passage.text))
    return table


def _lines(name: str) -> list[dict[str, str]]:
    """The filled lines, each with its place in the file as its id."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read passages from {name!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"passages in {name!r} are not UTF-8 text") from error
    return [{"id": str(i), "text": line} for i, line in enumerate(text.splitlines()) if line.strip()]
