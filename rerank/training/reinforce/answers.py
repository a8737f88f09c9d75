"""The answers of a training run and what they were worth: a table of JSON lines, and Markdown for people.

A row of `completions.jsonl` is an answer: the step that learned from it, the query, the passages shown with their
labels, the text, whether it was cut off, the reward with its parts, and the advantage (for Rank-GRPO one for each
rank, the thought's first).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

_SHOWN = 160  # characters of a passage


@dataclass(frozen=True, slots=True)
class Row:
    """`advantage` has one number, or one for each action."""

    step: int
    query_id: str
    query: str
    passages: tuple[tuple[str, float, str], ...]  # id, label, how it begins
    text: str
    truncated: bool
    reward: float
    parts: Mapping[str, float]
    advantage: tuple[float, ...]


class Table:
    """The file and its Markdown beside it. `cut` leaves out what a run that goes on will write again."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, rows: Iterable[Row]) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)

    def cut(self, step: int) -> None:
        kept = [row for row in self.rows() if row.step <= step]
        self.file.write_text("", encoding="utf-8")
        self.add(kept)

    def rows(self) -> list[Row]:
        """A last line that a kill cut off is left out."""
        if not self.file.is_file():
            return []
        found = []
        for line in self.file.read_text(encoding="utf-8").split("\n"):  # splitlines would cut at U+2028 in an answer
            try:
                told = json.loads(line)
            except ValueError:
                break
            passages = tuple((str(i), float(label), str(text)) for i, label, text in told.pop("passages"))
            found.append(Row(**{**told, "passages": passages, "advantage": tuple(told["advantage"])}))
        return found

    def tell(self) -> None:
        self.file.with_suffix(".md").write_text(markdown(self.rows()), encoding="utf-8")


def shown(doc_id: str, label: float, text: str) -> tuple[str, float, str]:
    """A passage as a row has it."""
    words = " ".join(text.split())
    return doc_id, label, words if len(words) <= _SHOWN else words[: _SHOWN - 1] + "…"


def markdown(rows: Sequence[Row]) -> str:
    """The parts of the reward over some twenty stretches of steps, and one prompt's answers of the first step, the
    middle one and the last."""
    if not rows:
        return "No answers yet.\n"
    names = ["reward", *rows[0].parts]
    steps = sorted({row.step for row in rows})
    lines = [f"| steps | {' | '.join(names)} | cut off |", "|---|" + "---|" * (len(names) + 1)]
    size = -(-len(steps) // 20)
    for first in range(0, len(steps), size):
        part = set(steps[first : first + size])
        own = [row for row in rows if row.step in part]
        values = [_mean([row.reward if name == "reward" else row.parts[name] for row in own]) for name in names]
        cells = [*(f"{value:.3f}" for value in values), f"{_mean([float(row.truncated) for row in own]):.2f}"]
        lines.append(f"| {min(part)}–{max(part)} | {' | '.join(cells)} |")
    for step in dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1])):
        own = [row for row in rows if row.step == step]
        _, group = next(groupby(own, key=lambda row: (row.query_id, row.passages)))
        lines += ["", *_group(step, list(group))]
    return "\n".join(lines) + "\n"


def _group(step: int, group: Sequence[Row]) -> list[str]:
    head = group[0]
    lines = [f"## Step {step}: {' '.join(head.query.split())}", ""]
    lines += [f"{n}. ({label:g}) {text}" for n, (_, label, text) in enumerate(head.passages, start=1)]
    for row in group:
        advantage = ", ".join(f"{value:+.2f}" for value in row.advantage)
        told = ", ".join(f"{name} {value:.2f}" for name, value in row.parts.items())
        cut = ", cut off" if row.truncated else ""
        lines += ["", f"Reward {row.reward:.2f} ({told}), advantage {advantage}{cut}:", ""]
        lines += [f"    {line}" for line in row.text.splitlines() or [""]]
    return lines


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
