"""The page put together."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rerank.errors import InputError
from rerank.eval.comparison import Compared, ceiling, consensus, judged_at, no_kemeny, stars
from rerank.eval.efficiency import Axis, Cost, Prices
from rerank.eval.report import charts, words
from rerank.eval.report.details import TEXT_CHARS, details, values_of
from rerank.eval.report.origin import Row, rows
from rerank.eval.report.section import Section

if TYPE_CHECKING:
    from jinja2 import Environment

Orders = Mapping[str, Mapping[str, float]]  # by `mean`, `borda`, `kemeny`, then by the run's name


@dataclass(frozen=True, slots=True)
class Line:
    """A run's row in the table."""

    number: int
    row: Compared
    stars: str
    judged: float
    cost: Cost | None
    money: float | None
    whisker: charts.Whisker | None


@dataclass(frozen=True, slots=True)
class View:
    """What the template is given of a section."""

    section: Section
    findings: list[str]
    method: str
    lines: list[Line]
    zero: float
    ceiling: float
    priced: str | None
    scatters: list[charts.Scatter]
    plots: list[charts.CostPlot]
    movers: list[tuple[int, str, list[tuple[int, float]]]]
    queries: list[tuple[str, str | None, list[float]]]
    origins: list[Row]
    data: str


def write_report(
    path: str | Path,
    sections: Sequence[Section],
    *,
    title: str = "Rerankers compared",
    prices: Prices | None = None,
    axis: Axis = "tokens",
    movers: int = 5,
    depth: int = 10,
    command: str | None = None,
    overall: Orders | None = None,
) -> None:
    """Writes the page, whole or not at all. `axis` is the cost that the plot begins with, `movers` how many queries a
    run's movements are shown of, `depth` how many places of them, `command` what made the page. `overall` are the
    orders over all datasets where they are known; without it they are those of `consensus`."""
    text = render(
        sections,
        title=title,
        prices=prices,
        axis=axis,
        movers=movers,
        depth=depth,
        command=command,
        overall=overall,
    )
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"the folder of the report {str(path)!r} does not exist")
    partial = target.with_name(f"{target.name}.writing")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, target)


def render(
    sections: Sequence[Section],
    *,
    title: str = "Rerankers compared",
    prices: Prices | None = None,
    axis: Axis = "tokens",
    movers: int = 5,
    depth: int = 10,
    command: str | None = None,
    overall: Orders | None = None,
) -> str:
    """The page's text; see `write_report`."""
    if not sections:
        raise InputError("there is nothing to report; give at least one comparison")
    if depth < 1 or movers < 0:
        raise InputError(f"a report of {movers} movers, {depth} places deep; give 0 or more, and 1 or more")
    if axis == "money" and prices is None and not any(section.prices for section in sections):
        raise InputError("what a run cost in money needs prices: --price-in, --price-out")
    style, script = _asset("report.css"), _asset("report.js")
    page = _environment().get_template("report.html")
    return page.render(
        title=title,
        views=[_view(section, prices, movers, depth) for section in sections],
        overview=_overview(sections, overall),
        axis=axis,
        depth=depth,
        text_chars=TEXT_CHARS,
        command=command,
        versions={name: version(name) for name in ("rerank-llm", "ranx", "numpy", "scipy")},
        style=style,
        script=script,
        policy="; ".join(
            (
                "default-src 'none'",
                f"style-src {_hash(style)}",
                f"script-src {_hash(script)}",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
            )
        ),
    )


def _view(section: Section, prices: Prices | None, movers: int, depth: int) -> View:
    compared = section.comparison
    zero, whiskers = charts.whiskers(compared.rows)
    costs = {name: section.card(name).cost for name in section.names}
    priced = {name: section.prices.get(name, prices) for name in section.names}
    lines = [
        Line(
            number,
            row,
            stars(row.p),
            judged_at(section.runs[row.name], section.qrels, 10),
            cost := costs[row.name],
            _per_query(cost, "money", priced[row.name]),
            whiskers.get(row.name),
        )
        for number, row in enumerate(compared.rows, start=1)
    ]
    others = section.names[1:]
    values = values_of(section)
    place = {query_id: i for i, query_id in enumerate(values)}
    return View(
        section,
        words.findings(compared, section.lacking),
        words.method(compared),
        lines,
        zero,
        _ceiling(section),
        words.priced(prices, section.prices),
        [
            charts.scatter(i, name, [(each[0], each[i]) for each in values.values()])
            for i, name in enumerate(others, start=1)
        ],
        _plots(section, costs, priced),
        [
            (i, name, [(place[query_id], change) for query_id, change in compared.moved(name, movers)])
            for i, name in enumerate(others, start=1)
        ],
        [
            (query_id, section.texts[query_id].query.text if query_id in section.texts else None, each)
            for query_id, each in values.items()
        ],
        rows(section.card(name) for name in section.names),
        json.dumps(details(section, depth), ensure_ascii=False, separators=(",", ":")),
    )


def _ceiling(section: Section) -> float:
    """Over the queries that were compared."""
    measure, queries = section.comparison.measure, section.comparison.per_query[section.names[0]]
    judged = {query_id: section.qrels.get(query_id, {}) for query_id in queries}
    return ceiling(section.runs[section.names[0]], judged, measure).mean[measure]


def _plots(
    section: Section, costs: Mapping[str, Cost | None], priced: Mapping[str, Prices | None]
) -> list[charts.CostPlot]:
    """One for each axis that some run's cost is known on."""
    rows = section.comparison.rows
    found = [
        charts.cost_plot(
            axis, ((row.name, row.mean, _per_query(costs[row.name], axis, priced[row.name])) for row in rows)
        )
        for axis in get_args(Axis)
    ]
    return [plot for plot in found if plot is not None]


def _per_query(cost: Cost | None, axis: Axis, prices: Prices | None) -> float | None:
    return None if cost is None or (axis == "money" and prices is None) else cost.per_query(axis, prices)


@dataclass(frozen=True, slots=True)
class Overview:
    """Rankers by datasets. `orders` are the three ways to put them in one order; none where a run lacks a dataset, or
    the measures differ. A row has None where its run takes no part in an order. `note` says what is left out."""

    datasets: list[str]
    rows: list[tuple[str, list[tuple[float, str] | None], list[float | None]]]
    orders: list[str]
    note: str | None


def _overview(sections: Sequence[Section], overall: Orders | None) -> Overview | None:
    if len(sections) < 2:
        return None
    found = [{row.name: row for row in section.comparison.rows} for section in sections]
    names = list(dict.fromkeys(name for each in found for name in each))
    whole = all(name in each for name in names for each in found)
    datasets = [section.dataset for section in sections]
    orders: Orders = {} if overall is None else overall
    if overall is None and whole and len({section.comparison.measure for section in sections}) == 1:
        scores = {name: {str(i): each[name].mean for i, each in enumerate(found)} for name in names}
        orders = {str(key): value for key, value in consensus(scores).items()}
    cells = {
        name: [(each[name].mean, stars(each[name].p)) if name in each else None for each in found] for name in names
    }
    table = [(name, cells[name], [order.get(name) for order in orders.values()]) for name in names]
    note = no_kemeny(max(map(len, orders.values()))) if orders else None
    return Overview(datasets, table, list(orders), note)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    found = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.filters["script_data"] = _script_data
    return found


def _script_data(text: str) -> str:
    """JSON that cannot end the element that it stands in, nor begin a comment there."""
    from markupsafe import Markup

    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _asset(name: str) -> str:
    return files("rerank.eval.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
