"""How a comparison is printed: as a table, Markdown, LaTeX or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import typer
from rich.table import Table

from rerank.cli.options import folds, notes, screen, show
from rerank.eval import Compared, Comparison, Cost, Prices, consensus, frontier, no_kemeny, stars
from rerank.eval.comparison import Consensus
from rerank.eval.efficiency import Axis

_ORDERS: Mapping[Consensus, tuple[str, str]] = {
    "mean": ("mean", ".4f"), "borda": ("Borda", ".2f"), "kemeny": ("Kemeny", ".0f"),
}  # fmt: skip


class Format(StrEnum):
    TABLE = "table"
    MARKDOWN = "markdown"
    LATEX = "latex"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Told:
    """What is printed of one dataset: `held` is judged@10 by run, `best` the ceiling; the frontier goes by `axis`."""

    found: Comparison
    held: Mapping[str, float]
    costs: Mapping[str, Cost | None]
    best: float
    prices: Prices | None
    axis: Axis

    @property
    def frontier(self) -> tuple[str, ...]:
        """Of the runs whose cost is known."""
        means = {row.name: row.mean for row in self.found.rows}
        known = {name: cost.per_query(self.axis, self.prices) for name, cost in self.costs.items() if cost is not None}
        return frontier({name: (cost, means[name]) for name, cost in known.items()})


def print_rows(told: Told, style: Format) -> None:
    PRINT[style](*_rows(told))


def print_overall(parts: Mapping[str, Told], style: Format) -> None:
    """Runs by datasets, and the three ways to put them in one order."""
    scores = scores_of(parts)
    orders = consensus(scores)
    marks = {name: {row.name: stars(row.p) for row in each.found.rows} for name, each in parts.items()}
    rows = [
        [
            run,
            *(f"{value:.4f}{marks[name][run]}" for name, value in own.items()),
            *(format(order[run], _ORDERS[way][1]) for way, order in orders.items()),
        ]
        for run, own in scores.items()
    ]
    PRINT[style](["run", *parts, *(_ORDERS[way][0] for way in orders)], rows)
    if missing := no_kemeny(len(scores)):
        notes.print(missing)


def scores_of(parts: Mapping[str, Told]) -> dict[str, dict[str, float]]:
    """`[run][dataset]`"""
    means = {name: {row.name: row.mean for row in each.found.rows} for name, each in parts.items()}
    return {run: {name: own[run] for name, own in means.items()} for run in next(iter(means.values()))}


def _rows(told: Told) -> tuple[list[str], list[list[str]]]:
    found = told.found
    header = ["run", found.measure, "difference", f"{found.level:.0%} interval", "p", "+/=/-", "judged@10"]
    asked = any(told.costs.values())
    if asked:
        header += ["calls", "tokens in", "out", "seconds"] + (["money"] if told.prices else []) + ["frontier"]
    rows, best = [], told.frontier
    for row in found.rows:
        line = [row.name, f"{row.mean:.4f}" + stars(row.p), *_against(row), f"{told.held[row.name]:.3f}"]
        if asked:
            line += _spent(told.costs[row.name], told.prices, row.name in best)
        rows.append(line)
    return header, rows


def _against(row: Compared) -> list[str]:
    if row.difference is None or row.interval is None or row.p is None:
        return ["", "", "", ""]
    low, high = row.interval
    return [
        f"{row.difference:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        f"{row.p:.4f}",
        f"{row.wins}/{row.ties}/{row.losses}",
    ]


def _spent(cost: Cost | None, prices: Prices | None, best: bool) -> list[str]:
    """Means per query."""
    if cost is None:
        return [""] * (6 if prices else 5)
    usage = cost.usage
    each = [usage.calls, usage.prompt_tokens, usage.generated_tokens]
    line = [*(f"{value / cost.queries:,.1f}" for value in each), f"{usage.seconds / cost.queries:.2f}"]
    return line + ([f"{cost.money(prices) / cost.queries:.6f}"] if prices else []) + ["yes" if best else "no"]


def _table(header: list[str], rows: list[list[str]]) -> None:
    """In a narrow terminal as several tables, each with the runs' names, rather than with cells cut."""
    for part in _parts([max(map(len, column)) for column in zip(header, *rows, strict=True)], screen.width):
        table = Table(box=None, header_style="bold", pad_edge=False)
        for i in part:
            table.add_column(header[i], justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
        for row in rows:
            table.add_row(*(row[i] for i in part))
        show(table)


def _parts(widths: list[int], room: int) -> list[list[int]]:
    """Which columns stand together, the first in all; a long one leaves at least half the room to the others. All stand
    together where nobody reads along: `show` does not fold in a pipe."""
    if not folds():
        return [list(range(len(widths)))]
    first, parts, used = min(widths[0], room // 2), [[0]], 0
    for i, width in enumerate(widths[1:], start=1):
        if used and first + used + width + 2 > room:
            parts.append([0])
            used = 0
        parts[-1].append(i)
        used += width + 2
    return parts


def _markdown(header: list[str], rows: list[list[str]]) -> None:
    for i, row in enumerate([header, *rows]):
        typer.echo("| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in row) + " |")
        if not i:
            typer.echo("|---" + "|---:" * (len(header) - 1) + "|")


def _latex(header: list[str], rows: list[list[str]]) -> None:
    """A booktabs table."""
    typer.echo("\\begin{tabular}{l" + "r" * (len(header) - 1) + "}\n\\toprule")
    for i, row in enumerate([header, *rows]):
        typer.echo(" & ".join(map(_escaped, row)) + " \\\\" + ("\n\\midrule" if i == 0 else ""))
    typer.echo("\\bottomrule\n\\end{tabular}")


def _escaped(text: str) -> str:
    special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    return "".join(special.get(c) or (f"\\{c}" if c in "&%$#_{}" else c) for c in text)


PRINT: Mapping[Format, Callable[[list[str], list[list[str]]], None]] = {
    Format.TABLE: _table, Format.MARKDOWN: _markdown, Format.LATEX: _latex,
}  # fmt: skip


def bounded(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """None for that of one query, which is infinite: JSON has no such number."""
    return interval if interval is not None and all(map(math.isfinite, interval)) else None


def record(told: Told) -> dict[str, object]:
    """For machines."""
    found, best = told.found, told.frontier

    def one(row: Compared) -> dict[str, object]:
        said: dict[str, object] = {"run": row.name, "mean": row.mean, "judged@10": told.held[row.name]}
        if row.difference is not None:
            said |= {"difference": row.difference, "interval": bounded(row.interval), "p": row.p}
            said |= {"wins": row.wins, "ties": row.ties, "losses": row.losses}
        if (cost := told.costs[row.name]) is not None:
            spent = {"calls": cost.usage.calls, "prompt_tokens": cost.usage.prompt_tokens}
            said["cost"] = spent | {"queries": cost.queries, "generated_tokens": cost.usage.generated_tokens}
            said["seconds"] = cost.usage.seconds
            if told.prices is not None:
                said["money"] = cost.money(told.prices)
            said["frontier"] = row.name in best
        return said | {"per_query": dict(found.per_query[row.name])}

    return {
        "measure": found.measure,
        "queries": found.queries,
        "test": found.test,
        "correction": found.correction,
        "ceiling": told.best,
        "frontier_cost": told.axis if any(told.costs.values()) else None,
        "runs": [one(row) for row in found.rows],
    }


def print_records(parts: Mapping[str | None, Told]) -> None:
    """One dataset without a name is its record; several are by name, with their orders."""
    if None in parts:
        typer.echo(json.dumps(record(parts[None]), allow_nan=False))
        return
    named = {str(name): each for name, each in parts.items()}
    records = {name: record(each) for name, each in named.items()}
    if missing := no_kemeny(len(scores_of(named))):
        notes.print(missing)
    typer.echo(json.dumps({"datasets": records, "consensus": consensus(scores_of(named))}, allow_nan=False))
