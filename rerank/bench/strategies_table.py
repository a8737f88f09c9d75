"""The table of a comparison of strategies: its rows, as text and as Markdown, and its place in a page."""

from __future__ import annotations

from dataclasses import dataclass

from rerank.adapters import NONE
from rerank.bench.machine import Machine
from rerank.errors import InputError

GIVEN = "given order"
BEGIN, END = "<!-- rerank bench strategies: begin -->", "<!-- rerank bench strategies: end -->"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `calls`, tokens and `seconds` are means per query. `value` is the measure, None of a row
    that failed: `answers` says why then, and else how the answers were read."""

    strategy: str
    adapter: str
    prompt: str
    options: str
    queries: int
    depth: int
    value: float | None = None
    calls: float | None = None
    prompt_tokens: float | None = None
    generated_tokens: float | None = None
    seconds: float | None = None
    answers: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """`machine` is None where the computing is done behind a server."""

    name: str
    dataset: str
    measure: str
    model: str
    machine: Machine | None
    rows: tuple[Row, ...]

    @property
    def failed(self) -> int:
        return sum(row.value is None for row in self.rows)


def headers(found: Comparison) -> tuple[str, ...]:
    return (
        "strategy", "adapter", "prompt", "options", "queries x depth", found.measure,
        "calls", "prompt tokens", "generated", "seconds", "answers",
    )  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """As `headers` names them."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return (
        row.strategy,
        row.adapter or ("" if row.strategy == GIVEN else NONE),
        row.prompt,
        row.options,
        f"{row.queries} x {row.depth}",
        number(row.value, ".4f"),
        number(row.calls, ",.1f"),
        number(row.prompt_tokens, ",.0f"),
        number(row.generated_tokens, ",.0f"),
        number(row.seconds, ",.2f"),
        row.answers,
    )


def markdown(found: Comparison) -> str:
    names = headers(found)
    lines = [
        f"| {' | '.join(names)} |",
        f"|{'---|' * 4}{'---:|' * (len(names) - 5)}---|",
        *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells(row))} |" for row in found.rows),
        "",
        f"{told(found)}{f' {found.machine}' if found.machine is not None else ''}",
    ]
    return "\n".join(lines) + "\n"


def told(found: Comparison) -> str:
    """What the columns are."""
    return (
        f"{found.measure} on {found.dataset}, model {found.model}: the first judged queries and the first candidates "
        "of each, as many as 'queries x depth' says. Calls, tokens and seconds are means per query."
    )


def insert(page: str, table: str) -> str:
    """The page with the table between its two marks. Raises InputError where it lacks them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"the page has no place for the table; give it the lines {BEGIN} and {END}")
    return f"{before}{begin}\n{table}{end}{after}"
