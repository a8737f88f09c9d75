"""The journal of a run: what is committed stays, what is not is done again, and nothing is mixed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from rerank.backbones.scripted import ScriptedBackbone, oracle
from rerank.data import read_run
from rerank.errors import CacheError, InputError, RerankError
from rerank.reranker import Ranker, Reranker
from rerank.runs import (
    Journal,
    card_path,
    fingerprint,
    is_complete,
    journal_path,
    only_process,
    resumable_run,
    run_card,
    together,
)
from rerank.strategies import load_strategy
from rerank.types import Candidates, Passage, Query, Ranking

SETTINGS = {"depth": 3, "options": {"window": 20}, "tag": "t"}
RELEVANCE = {"a": 1.0, "b": 3.0, "c": 2.0}


def requests(n: int = 5) -> list[Candidates]:
    return [Candidates(Query(f"question {i}", f"q{i}"), tuple(Passage(d, d) for d in RELEVANCE)) for i in range(n)]


def ranker() -> Reranker:
    return Reranker(load_strategy("pointwise"), ScriptedBackbone(oracle(RELEVANCE)))


class Killed(BaseException):
    """No Exception, so that nothing but the test catches it: as good as the end of the process."""


def dies_after(n: int, of: list[Candidates]) -> Iterator[Candidates]:
    yield from of[:n]
    raise Killed


def rank_into(output: Path, asked: Iterator[Candidates] | list[Candidates], block: int = 2) -> Journal:
    journal = Journal(journal_path(output), SETTINGS)
    resumable_run(ranker(), asked, output, tag="t", block=block, journal=journal)
    return journal


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.trec"


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """What an uninterrupted run writes."""
    rank_into(tmp_path / "whole.trec", requests())
    return (tmp_path / "whole.trec").read_bytes()


@pytest.fixture
def journal(output: Path) -> Path:
    """The journal of a run that died after two of its three blocks."""
    with pytest.raises(Killed):
        rank_into(output, dies_after(4, requests()))
    assert not output.exists()
    return journal_path(output)


@pytest.mark.parametrize("ending", ["gz", "xz"])
def test_a_run_is_compressed_as_its_name_says(output: Path, whole: bytes, ending: str) -> None:
    packed = output.with_name(f"out.trec.{ending}")
    rank_into(packed, requests())
    assert read_run(packed) == read_run(output.with_name("whole.trec")) and packed.read_bytes() != whole


def test_a_run_leaves_itself_and_its_card(output: Path) -> None:
    journal = rank_into(output, requests())
    assert {path.name for path in output.parent.iterdir()} == {"out.trec", "out.trec.json"}
    run = read_run(output)
    assert list(run) == [f"q{i}" for i in range(5)]
    assert all(list(docs) == ["b", "c", "a"] for docs in run.values())
    card = json.loads(card_path(output).read_text())
    assert card["settings"] == SETTINGS
    assert card["tag"] == "t"
    assert (card["queries"], card["usage"]["calls"], card["outcomes"]["clean"]) == (5, 15, 15)
    assert card["errors"] == []
    assert {"python", "rerank-llm"} <= card["versions"].keys()
    digests = [fingerprint(request) for request in requests()]
    assert card["candidates"] == together(digests) == together(reversed(digests))
    assert journal.totals.usage.prompt_tokens == card["usage"]["prompt_tokens"] > 0
    assert is_complete(output, SETTINGS)


def test_a_run_that_died_goes_on(output: Path, journal: Path, whole: bytes) -> None:
    asked: list[str] = []

    class Watched(Ranker):
        def _run(self, requests: Iterator[Candidates]) -> Iterator[Ranking]:
            given = list(requests)
            asked.extend(request.query.query_id for request in given)
            return ranker().rank_many(given)

    opened = Journal(journal, SETTINGS)
    assert opened.totals.queries == 4
    totals = resumable_run(Watched(), requests(), output, tag="t", block=2, journal=opened)
    assert asked == ["q4"]
    assert (totals.queries, totals.usage.calls) == (5, 15)  # of both sittings
    assert output.read_bytes() == whole
    assert not journal.exists()


def lines_of(journal: Path) -> list[bytes]:
    return journal.read_bytes().splitlines(keepends=True)  # head, q0, q1, committed, q2, q3, committed


CUTS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "in the first line": lambda lines: [lines[0][:40]],
    "before the first line": lambda lines: [],
    "after the first line": lambda lines: lines[:1],
    "in a ranking": lambda lines: [*lines[:5], lines[5][:30]],
    "between rankings of a block": lambda lines: lines[:5],
    "before 'committed'": lambda lines: lines[:6],
    "in 'committed'": lambda lines: [*lines[:6], lines[6][:-1]],
    "before a second block": lambda lines: lines[:4],
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_journal_cut_anywhere_gives_the_same_run(cut: str, output: Path, journal: Path, whole: bytes) -> None:
    journal.write_bytes(b"".join(CUTS[cut](lines_of(journal))))
    rank_into(output, requests())
    assert output.read_bytes() == whole


def test_a_cut_at_every_byte_gives_the_same_run(output: Path, journal: Path, whole: bytes) -> None:
    raw = journal.read_bytes()
    for end in range(0, len(raw), 23):
        journal.write_bytes(raw[:end])
        rank_into(output, requests())
        assert output.read_bytes() == whole, end
        output.unlink()
        card_path(output).unlink()


DAMAGE: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "not JSON": lambda lines: [*lines[:2], b"\x00\x00\n", *lines[3:]],
    "a ranking lost": lambda lines: [*lines[:1], *lines[2:]],
    "a field lost": lambda lines: [*lines[:1], b'{"query_id": "q0"}\n', *lines[2:]],
    "no object": lambda lines: [*lines[:1], b"7\n", *lines[2:]],
    "another file": lambda lines: [b"q0 Q0 a 1 2.0 t\n"],
    "another file without an end": lambda lines: [b"some notes"],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_an_error_and_touches_nothing(damage: str, journal: Path) -> None:
    journal.write_bytes(b"".join(DAMAGE[damage](lines_of(journal))))
    before = journal.read_bytes()
    with pytest.raises(CacheError, match=re.escape(f"{journal} is damaged") + ".*delete it to run from the start"):
        Journal(journal, SETTINGS)
    assert journal.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"depth": 5}, "depth: 3 there, 5 now"),
        ({"options": {"window": 10}}, "options.window: 20 there, 10 now"),
        ({"new": True}, "new: None there, True now"),
    ],
)
def test_other_settings_are_named(change: dict[str, object], named: str, journal: Path) -> None:
    with pytest.raises(CacheError, match=re.escape(f"other settings ({named})")):
        Journal(journal, SETTINGS | change)


def test_other_settings_do_not_matter_where_nothing_was_committed(journal: Path) -> None:
    journal.write_bytes(lines_of(journal)[0])
    assert Journal(journal, SETTINGS | {"depth": 5}).done == []


@pytest.mark.parametrize(
    "changed",
    [
        Candidates(Query("another question", "q1"), requests()[1].passages),
        Candidates(requests()[1].query, requests()[1].passages[:2]),
        Candidates(requests()[1].query, requests()[1].passages[::-1]),
        Candidates(requests()[1].query, (Passage("other words", "a"), *requests()[1].passages[1:])),
    ],
    ids=["query", "fewer passages", "another order", "text"],
)
def test_other_queries_or_passages_are_refused(changed: Candidates, output: Path, journal: Path) -> None:
    asked = requests()
    asked[1] = changed
    with pytest.raises(CacheError, match="begun with other queries or passages \\(at query 'q1'\\)"):
        rank_into(output, asked)
    with pytest.raises(CacheError, match="begun with other queries"):
        rank_into(output, requests()[:3])


def test_the_given_order_and_the_reason_are_kept_where_a_query_fails(output: Path) -> None:
    class Fails(Ranker):
        def _run(self, requests: Iterator[Candidates]) -> Iterator[Ranking]:
            for request in requests:
                n = len(request)
                error = RerankError("too long") if request.query.query_id == "q1" else None
                ranking = Ranking.of(request, range(n), map(float, range(n, 0, -1)))
                yield Ranking(ranking.query, ranking.hits, error=error)

    journal = Journal(journal_path(output), SETTINGS)
    totals = resumable_run(Fails(), requests(), output, tag="t", block=2, journal=journal)
    assert totals.errors == ("q1: too long",)
    assert list(read_run(output)["q1"]) == ["a", "b", "c"]
    assert json.loads(card_path(output).read_text())["errors"] == ["q1: too long"]
    again = Journal(journal_path(output.with_name("b.trec")), SETTINGS)
    with pytest.raises(RerankError, match="too long"):
        resumable_run(Fails(), requests(), output, tag="t", block=2, journal=again, on_error="raise")


def test_no_query_is_an_error_and_leaves_nothing(output: Path) -> None:
    with pytest.raises(InputError, match="no query"):
        rank_into(output, [])
    assert list(output.parent.iterdir()) == []


def test_an_output_of_something_else_is_refused(output: Path) -> None:
    assert not is_complete(output, SETTINGS)
    output.write_text("precious")
    with pytest.raises(InputError, match="was not made with these settings \\(it has no card\\)"):
        is_complete(output, SETTINGS)
    output.unlink()
    rank_into(output, requests())
    with pytest.raises(InputError, match="was not made with these settings \\(depth: 3 there, 4 now\\)"):
        is_complete(output, SETTINGS | {"depth": 4})


@pytest.mark.parametrize("contents", ["[]", "{}", "not JSON", '{"settings": 3}'])
def test_a_file_in_the_place_of_the_card_is_not_overwritten(contents: str, output: Path) -> None:
    card_path(output).write_text(contents)
    with pytest.raises(InputError, match="would be overwritten and is no card"):
        is_complete(output, SETTINGS)


def test_one_process_writes_an_output(output: Path) -> None:
    lock = output.with_name("out.trec.lock")
    with FileLock(lock), pytest.raises(CacheError, match="another process is writing"), only_process(output):
        pytest.fail("two at once")
    with only_process(output):
        assert lock.exists()
    assert not lock.exists()


def test_an_output_must_be_a_file_in_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder of the output"), only_process(tmp_path / "no/out"):
        pytest.fail("no folder")
    with pytest.raises(InputError, match="is not a plain file"), only_process(tmp_path):
        pytest.fail("a folder")


def test_a_run_card_is_what_is_known(output: Path) -> None:
    output.write_text("a run of somebody else's")
    found = run_card(output)
    assert (found.told, found.cost) == (None, None)
    assert found.sha256 == hashlib.sha256(output.read_bytes()).hexdigest()
    for broken in ("{", "[]", '{"queries": 3}', '{"queries": 0, "usage": {}}'):
        card_path(output).write_text(broken)
        with pytest.raises(CacheError, match="is no card of a run"):
            run_card(output)
    card_path(output).write_text('{"queries": 3, "usage": {"calls": 6}}')
    cost = run_card(output).cost
    assert cost is not None and cost.per_query("calls") == 6 / 3
