"""Runs over shards in one process: cut, ranked, begun again, joined; and what is refused."""

from __future__ import annotations

import gc
import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from command import Cli, as_list, assert_error, lists
from sharded_case import Script, asked, rank, ranker, requests, work

from rerank import ScriptedBackbone
from rerank.data.shards import is_sharded, list_shards, read_shard, write_parquet, write_shards
from rerank.errors import CacheError, InputError, UnknownNameError
from rerank.reranker import Reranker
from rerank.runs import Journal, journal_path, resumable_run
from rerank.sharded import Step, Work, here, part_of, rank_shard, run_shards
from rerank.strategies import load_strategy
from rerank.types import Candidates, Passage, Query


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    write_shards(requests(), tmp_path / "shards", per_shard=4)
    return list_shards(tmp_path / "shards")


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


def plain(output: Path, asked: Iterator[Candidates], block: int = 2) -> bytes:
    journal = Journal(journal_path(output), {})
    resumable_run(ranker(Script(output.parent)), asked, output, tag="t", block=block, journal=journal)
    return output.read_bytes()


class Killed(BaseException):
    """As good as the end of the process."""


def part_way(n: int) -> Callable[[Work, Sequence[Path]], Iterator[Step]]:
    def executor(work: Work, shards: Sequence[Path]) -> Iterator[Step]:
        yield from islice(here(work, shards), n)
        raise Killed

    return executor


def test_the_ranker_is_closed_however_the_run_ends(shards: list[Path], script: Script, tmp_path: Path) -> None:
    closed: list[str] = []

    class Closing(ScriptedBackbone):
        def close(self) -> None:
            closed.append("closed")

    def load() -> Reranker:
        return Reranker(load_strategy("pointwise"), Closing(script))

    given = replace(work(tmp_path / "out.trec", script), load=load)
    run_shards(given, shards, tmp_path / "out.trec", here, lambda step: None)
    assert closed == ["closed"]
    again = replace(work(tmp_path / "b.trec", script), load=load)
    with pytest.raises(Killed):
        run_shards(again, shards, tmp_path / "b.trec", part_way(3), lambda step: None)
    gc.collect()
    assert closed == ["closed", "closed"]
    never = replace(work(tmp_path / "c.trec", script), load=load)
    with pytest.raises(InputError, match="no query to rank"):
        run_shards(never, [], tmp_path / "c.trec", here, lambda step: None)
    assert closed == ["closed", "closed"]  # what was not loaded is not


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "parquet"])
def test_shards_are_read_as_they_were_written(form: str, tmp_path: Path) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    given = [
        Candidates(Query('with "quotes"\n', "ü"), (Passage("a\u2028b", "d1", "title", 1.5), Passage("", "d2"))),
        *requests(5),
    ]
    assert write_shards(given, tmp_path / "shards", per_shard=2, form=form) == (3, 6, 17)
    found = list_shards(tmp_path / "shards")
    assert [path.name for path in found] == [f"00000{i}.{form}" for i in range(3)]
    assert [each for path in found for each in read_shard(path)] == given
    assert is_sharded(tmp_path / "shards")


def test_a_run_over_shards_is_the_run_over_all(shards: list[Path], script: Script, tmp_path: Path) -> None:
    steps = rank(tmp_path / "out.trec", shards, script, here)
    assert (tmp_path / "out.trec").read_bytes() == plain(tmp_path / "plain.trec", requests())
    assert [step.shard for step in steps if step.query_ids is not None] == [path.name for path in shards]
    ours, theirs = (json.loads((tmp_path / f"{name}.trec.json").read_text()) for name in ("out", "plain"))
    assert ours["usage"]["calls"] == 72
    for key in ("queries", "outcomes", "errors", "sha256", "tag", "versions"):
        assert ours[key] == theirs[key], key
    assert not (tmp_path / "out.trec.parts").exists()


def test_the_joined_run_is_compressed_as_its_name_says(shards: list[Path], script: Script, tmp_path: Path) -> None:
    rank(tmp_path / "out.trec", shards, script, here)
    rank(tmp_path / "out.trec.gz", shards, script, here)
    assert gzip.decompress((tmp_path / "out.trec.gz").read_bytes()) == (tmp_path / "out.trec").read_bytes()


@pytest.mark.parametrize("steps", range(1, 12, 2))
def test_what_was_done_is_not_done_again(steps: int, shards: list[Path], script: Script, tmp_path: Path) -> None:
    output = tmp_path / "out.trec"
    with pytest.raises(Killed):
        rank(output, shards, script, part_way(steps))
    assert not output.exists()
    before = asked(tmp_path)
    rank(output, shards, script, here)
    assert sorted(asked(tmp_path)) == sorted(f"q{i}" for i in range(24)), before
    assert output.read_bytes() == plain(tmp_path / "plain.trec", requests())


def test_the_depth_and_a_failing_query_are_as_in_one_process(tmp_path: Path, cli: Cli, model: list[str]) -> None:
    (tmp_path / "lists.jsonl").write_text(lists(3) + as_list("bad", "x", query="long " * 3000))
    write_shards((c for path in [tmp_path / "lists.jsonl"] for c in read_shard(path)), tmp_path / "shards", per_shard=2)
    for name in ("lists.jsonl", "shards"):
        done = cli("run", tmp_path / name, *model, "--depth", 2, "--block", 2, "-o", tmp_path / f"{name}.trec")
        assert done.status == 1, done.err
        assert "1 of 4 queries kept their given order" in done.err
    first, other = ((tmp_path / f"{name}.trec").read_bytes() for name in ("lists.jsonl", "shards"))
    assert first == other
    assert cli("run", tmp_path / "shards", *model, "--depth", 2, "--block", 2, "-o", tmp_path / "shards.trec").err == (
        f"{tmp_path / 'shards.trec'} is already there, made with these settings\n"
    )


def test_an_empty_shard_is_no_harm_and_empty_ones_alone_are_an_error(
    shards: list[Path], script: Script, tmp_path: Path
) -> None:
    empty = tmp_path / "shards" / "000001a.jsonl"
    empty.touch()
    rank(tmp_path / "out.trec", list_shards(tmp_path / "shards"), script, here)
    assert (tmp_path / "out.trec").read_bytes() == plain(tmp_path / "plain.trec", requests())
    with pytest.raises(InputError, match="no query to rank"):
        rank(tmp_path / "none.trec", [empty], script, here)
    assert not list(tmp_path.glob("none*"))


def test_a_query_in_two_shards_is_found_when_the_second_is_done(script: Script, tmp_path: Path) -> None:
    write_shards([*requests(2), *requests(1), *requests(9, first=5)], tmp_path / "shards", per_shard=2)
    with pytest.raises(InputError, match=re.escape("'q0' is in the shards 000000.jsonl and 000001.jsonl")):
        rank(tmp_path / "out.trec", list_shards(tmp_path / "shards"), script, here)
    assert len(asked(tmp_path)) == 4


def test_other_settings_shards_and_candidates_are_refused(shards: list[Path], script: Script, tmp_path: Path) -> None:
    output = tmp_path / "out.trec"
    with pytest.raises(Killed):
        rank(output, shards, script, part_way(7))
    with pytest.raises(CacheError, match="other settings \\(strategy: 'scripted' there, 'other' now\\)"):
        rank(output, shards, script, here, settings={"strategy": "other"})
    with pytest.raises(CacheError, match="other settings \\(shards: 6 there, 5 now"):
        rank(output, shards[:5], script, here)
    shards[0].write_text(shards[0].read_text().replace("question 1", "another"))
    with pytest.raises(InputError, match="was not made with these settings \\(candidates: "):
        rank(output, shards, script, here)
    (tmp_path / "out.trec.parts" / "manifest.json").write_text("{}")
    with pytest.raises(CacheError, match=r"manifest.json is damaged .* delete"):
        rank(output, shards, script, here)


def test_a_damaged_part_is_found(shards: list[Path], script: Script, tmp_path: Path) -> None:
    output = tmp_path / "out.trec"
    with pytest.raises(Killed):
        rank(output, shards, script, part_way(7))
    part = part_of(work(output, script), shards[0])
    part.write_bytes(part.read_bytes().replace(b"d1", b"d2"))
    with pytest.raises(CacheError, match=re.escape(f"{part} is damaged") + ".*delete it to rank this shard again"):
        rank(output, shards, script, here)
    part.unlink()
    rank(output, shards, script, here)
    assert output.read_bytes() == plain(tmp_path / "plain.trec", requests())


def test_a_line_that_is_wrong_is_named(shards: list[Path], script: Script, tmp_path: Path) -> None:
    with shards[1].open("a") as file:
        file.write('{"query": 1}\n')
    with pytest.raises(InputError, match=r"000001.jsonl, line 5"):
        rank(tmp_path / "out.trec", shards, script, here)
    with pytest.raises(InputError, match=r"there is no .*gone.jsonl on .*every machine"):
        list(rank_shard(work(tmp_path / "out.trec", script), tmp_path / "gone.jsonl", lambda: ranker(script)))


def test_parquet_of_another_form_is_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    pq = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"query_id": ["q"], "query": ["a"]}), path)
    with pytest.raises(InputError, match=r"no column 'candidates'.*the columns are \['query_id', 'query'\]"):
        list(read_shard(path))
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="cannot use the file"):
        list(read_shard(path))
    write_parquet(path, [*requests(2), replace(next(requests(1)), query=Query("x", "two words"))])
    assert [each.query.query_id for each in read_shard(path)] == ["q0", "q1", "two words"]
    with pytest.raises(InputError, match=r"a.parquet: the id 'two words' cannot stand in a TREC run"):
        rank(tmp_path / "out.trec", [path], Script(tmp_path), here)


def test_what_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown form of shards 'parket'; did you mean 'parquet'"):
        write_shards(requests(), tmp_path / "a", form="parket")
    with pytest.raises(InputError, match="no query"):
        write_shards([], tmp_path / "a")
    with pytest.raises(InputError, match="exists"):
        write_shards(requests(), tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="has no shard"):
        list_shards(tmp_path)
    with pytest.raises(InputError, match="there is no"):
        list_shards(tmp_path / "gone")


def test_flags_of_another_engine_and_wrong_ones(cli: Cli, tmp_path: Path, beir: Path) -> None:
    write_shards(requests(2), tmp_path / "shards")
    out = tmp_path / "o"
    assert_error(cli("run", beir, "-o", out, "--workers", 2), "--workers is for --engine ray")
    assert_error(cli("run", beir, "-o", out, "--ray-address", "auto"), "--ray-address is for --engine ray")
    assert_error(cli("run", beir, "-o", out, "--engine", "rai"), "unknown engine 'rai'; did you mean 'ray'?")
    assert_error(cli("run", tmp_path / "shards"), "give --output")
    assert_error(cli("run", tmp_path / "shards", "-o", out, "--run", out), "leave out --run")
    (tmp_path / "o.journal").touch()
    assert_error(cli("run", tmp_path / "shards", "-o", out), "begun here and without shards")
    (tmp_path / "o.journal").unlink()
    (tmp_path / "o.parts").mkdir()
    assert_error(cli("run", beir, "-o", out), "o.parts is of a run that was begun")


def test_the_command_cuts_a_dataset(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "lists.jsonl").write_text(lists(7))
    done = cli("data", "shards", tmp_path / "lists.jsonl", "-o", tmp_path / "cut", "--per-shard", 3, "--depth", 2)
    assert done == (0, "", f"{tmp_path / 'cut'}: 3 shards, 7 queries, 14 passages\n")
    assert [len(list(read_shard(path))) for path in list_shards(tmp_path / "cut")] == [3, 3, 1]
    again = cli("data", "shards", tmp_path / "lists.jsonl", "-o", tmp_path / "cut")
    assert_error(again, "exists; delete it or give another folder")
    back = cli("data", "shards", tmp_path / "cut", "-o", tmp_path / "one", "--limit", 5)
    assert back.err == f"{tmp_path / 'one'}: 1 shard, 5 queries, 10 passages\n"
