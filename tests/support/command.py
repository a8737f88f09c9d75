"""What the tests of the command share; the fixtures are in conftest.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rerank.data import read_run


class Done(NamedTuple):
    status: int
    out: str
    err: str


Cli = Callable[..., Done]


def as_list(query_id: str, *texts: str, query: str = "what is it", ids: list[str] | None = None) -> str:
    docs = [{"docid": i, "text": t} for i, t in zip(ids or [f"d{n}" for n in range(len(texts))], texts, strict=True)]
    return json.dumps({"qid": query_id, "query": query, "docs": docs}) + "\n"


def lists(n: int) -> str:
    return "".join(as_list(f"q{i}", f"one {i}", "two words " * (i % 3 + 1), "three") for i in range(n))


def run_of(text: str, folder: Path) -> dict[str, dict[str, float]]:
    """Parsed as a user's other tools would, after a round through a file."""
    (folder / "printed.trec").write_text(text)
    return read_run(folder / "printed.trec")


def assert_error(done: Done, text: str) -> None:
    assert done.status == 2, done
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("error: "), done.err
    assert text in done.err
