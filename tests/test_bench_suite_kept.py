"""What a suite keeps: nothing known is asked again, and nothing else is taken for known."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from suites import DOCUMENTS, QUERIES, RELEVANCE, Asked, run, two_lists, write

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.bench.cache import Kept, identity_of, key_of
from rerank.bench.suite import FIRST_STAGE
from rerank.calls import Call
from rerank.errors import CacheError, InputError
from rerank.types import Candidates, Passage, Query

STOP = frozenset({"<stop>"})


@pytest.fixture
def collections(tmp_path: Path) -> Path:
    return two_lists(tmp_path)


def test_nothing_known_is_asked_again_in_any_suite(collections: Path) -> None:
    first, again, other = Asked(), Asked(), Asked()
    before = run(write(collections), first.contestant("a"))
    assert len(first.queries) == 2 * QUERIES * DOCUMENTS
    after = run(write(collections), again.contestant("a"))
    assert (again.queries, again.loads) == ([], 0)
    assert after.comparisons == before.comparisons
    assert after.cost("a") == before.cost("a")  # what it took when it was ranked
    # another suite, folder and name, over a part of the same queries
    part = [{"dataset": "two.jsonl", "name": "mine", "qrels": "qrels.txt", "queries": 3}]
    found = run(write(collections, name="other", datasets=part), other.contestant("b"), out="elsewhere")
    assert other.queries == [] and [cell.known for cell in found.cells] == [0, 3]


def test_a_change_is_asked_anew(collections: Path) -> None:
    run(write(collections), Asked().contestant("a"))
    for options in ({"prompt": "pointwise-yes-no"}, {"passage_tokens": 7}):
        changed = Asked()
        run(write(collections), changed.contestant("a", **options))
        assert len(changed.queries) == 2 * QUERIES * DOCUMENTS, options
    shallow = Asked()
    run(write(collections, depth=3), shallow.contestant("a"))
    assert len(shallow.queries) == 2 * QUERIES * 3


def adapter(folder: Path, weights: bytes) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return str(folder)


def test_an_identity_is_of_content_and_not_of_names(tmp_path: Path) -> None:
    one, same, other = (adapter(tmp_path / n, w) for n, w in (("a", b"1"), ("b", b"1"), ("c", b"2")))
    base = {
        "strategy": "pointwise", "options": {"passage_tokens": 9}, "prompt": "p@1#aa", "model": None, "adapter": one,
        "backbone": "transformers", "backbone_options": [], "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    identity = identity_of(base)
    assert identity == identity_of({**base, "adapter": same})
    assert identity == identity_of({**base, "model": "HuggingFaceTB/SmolLM2-135M-Instruct"})  # what None stands for
    changes = (
        {"adapter": other}, {"adapter": None}, {"prompt": "p@1#bb"}, {"options": {"passage_tokens": 8}},
        {"model": one}, {"dtype": "bfloat16"}, {"strategy": "first"}, {"backbone_options": ["batch_tokens=9"]},
    )  # fmt: skip
    for change in changes:
        assert identity_of({**base, **change}) != identity, change
    staged = {"strategy": "x", "stages": [{**base, "keep": 5}]}
    assert identity_of(staged) != identity_of({"strategy": "x", "stages": [{**base, "adapter": other, "keep": 5}]})


def test_an_identity_is_of_this_librarys_code(tmp_path: Path) -> None:
    """Two copies of it that differ in one line of one strategy."""
    home = Path(rerank.__file__).parent
    skipped = shutil.ignore_patterns("__pycache__", "*.safetensors", "samples")
    shutil.copytree(home, tmp_path / "one" / "rerank", ignore=skipped)
    shutil.copytree(tmp_path / "one", tmp_path / "same")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    with (tmp_path / "other" / "rerank" / "eval" / "measures.py").open("a") as file:
        file.write("# mended\n")

    def identity(name: str) -> str:
        code = "from rerank.bench.cache import identity_of; print(identity_of({'strategy': 'x'}))"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / name)}
        asked = [sys.executable, "-c", code]
        return subprocess.run(asked, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    one = identity("one")
    assert one == identity("same") != identity("other")


def test_a_key_is_of_the_query_and_its_candidates() -> None:
    request = Candidates(Query("what", "q"), (Passage("text", "d", score=1.0), Passage("more", "e", score=0.5)))
    key = key_of("x", request)
    first, second = request.passages
    for other in (
        replace(request, query=Query("why", "q")),
        replace(request, passages=(replace(first, text="other"), second)),
        replace(request, passages=(second, first)),
        replace(request, passages=(first,)),
        replace(request, passages=(replace(first, score=0.9), second)),
    ):
        assert key_of("x", other) != key
    assert key_of("y", request) != key == key_of("x", replace(request))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_bench_suite import RELEVANCE, Asked, run
from rerank.backbones import oracle
asked = 0
def dies(call):
    global asked
    asked += 1
    if asked > {calls}:
        os.kill(os.getpid(), signal.SIGKILL)
    return oracle(RELEVANCE)(call)
run(Path({suite!r}), Asked(dies).contestant("a"))
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL there")
def test_what_was_killed_goes_on_by_query(collections: Path) -> None:
    path, rest = write(collections, block=1), Asked()
    tests = Path(__file__).parent
    calls = (QUERIES + 3) * DOCUMENTS + 2  # in the midst of the second dataset's fourth query
    code = KILLED.format(path=[str(tests), str(tests / "support")], suite=str(path), calls=calls)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = run(path, rest.contestant("a"))
    assert rest.queries == [f"q{q}" for q in range(3, QUERIES) for _ in range(DOCUMENTS)]
    assert [cell.known for cell in resumed.cells if cell.ranker == "a"] == [QUERIES, 3]
    whole = run(path, Asked().contestant("a"), out="whole", cache="fresh")
    assert resumed.comparisons == whole.comparisons
    for name in ("one", "two"):
        ours, theirs = (collections / out / name / "a.trec" for out in ("out", "whole"))
        assert ours.read_bytes() == theirs.read_bytes()


def raises(error: Exception) -> Callable[[Call], str | Sequence[float]]:
    """A script that cannot answer the sixth query of the first collection."""

    def script(call: Call) -> str | Sequence[float]:
        if call.dialogue.query.text == "one question 5":
            raise error
        return oracle(RELEVANCE)(call)

    return script


def test_a_cell_that_crashes_holds_up_no_other(collections: Path) -> None:
    broken, fine = Asked(raises(RuntimeError("device lost"))), Asked()
    found = run(write(collections, block=2), broken.contestant("breaks"), fine.contestant("fine", passage_tokens=50))
    assert found.failures == ["breaks on one: RuntimeError: device lost"]
    assert broken.loads == 2  # what broke is not asked again
    one, two = found.columns
    assert set(one.evaluations) == {FIRST_STAGE, "fine"} and set(two.evaluations) == {FIRST_STAGE, "fine", "breaks"}
    assert set(found.overall["borda"]) == {FIRST_STAGE, "fine"}  # those that have every dataset
    assert json.loads((collections / "out" / "results.json").read_text())["failures"] == found.failures
    mended = Asked()
    again = run(write(collections, block=2), mended.contestant("breaks"))
    assert again.failures == []
    assert mended.queries == [f"q{q}" for q in range(4, QUERIES) for _ in range(DOCUMENTS)]  # two blocks were kept


def test_an_engine_that_cannot_even_be_closed_holds_up_no_other(
    collections: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Dead(ScriptedBackbone):
        def close(self) -> None:
            raise OSError("the engine is gone")

    def load(show: object) -> rerank.Ranker:
        return rerank.load("pointwise", backbone=Dead(raises(RuntimeError("device lost"))))

    dead = replace(Asked().contestant("dead"), load=load)
    found = run(write(collections), dead, Asked().contestant("fine", passage_tokens=50))
    assert found.failures == ["dead on one: RuntimeError: device lost"]
    assert set(found.columns[1].evaluations) == {FIRST_STAGE, "dead", "fine"}
    assert "could not be closed: OSError: the engine is gone" in caplog.text


def test_files_appear_whole(collections: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there when a name appears is all of it, and on the disk."""
    appeared: dict[str, str] = {}
    synced: list[int] = []
    replaced, sync = os.replace, os.fsync

    def replace_(source: str | Path, target: str | Path) -> None:
        name = Path(target).name
        if name != "report.html":
            assert synced and synced[-1] == Path(source).stat().st_ino, name
        appeared[name] = Path(source).read_text()
        replaced(source, target)

    def fsync(number: int) -> None:
        synced.append(os.fstat(number).st_ino)
        sync(number)

    monkeypatch.setattr(os, "replace", replace_)
    monkeypatch.setattr(os, "fsync", fsync)
    run(write(collections), Asked().contestant("a"))
    assert {"results.json", "qrels.txt", "a.trec", "a.trec.json", "report.html"} <= set(appeared)
    assert set(json.loads(appeared["results.json"])) >= {"datasets", "overall"}
    assert len(appeared["qrels.txt"].splitlines()) == QUERIES * DOCUMENTS


def test_a_ranker_that_cannot_be_loaded_fails_its_cells(collections: Path) -> None:
    def load(show: object) -> rerank.Ranker:
        raise InputError("no such model")

    found = run(
        write(collections), replace(Asked().contestant("a"), load=load), Asked().contestant("b", passage_tokens=9)
    )
    assert found.failures == ["a on one: no such model", "a on two: no such model"]
    assert set(found.comparisons) == {"one", "two"}


def test_a_dataset_that_cannot_be_read_holds_up_no_other(collections: Path) -> None:
    (collections / "one.jsonl").write_text("{}\n")
    found = run(write(collections), Asked().contestant("a"))
    (failure,) = found.failures
    assert failure.startswith("one: ") and "line 1" in failure
    assert set(found.comparisons) == {"two"}


def test_a_query_that_cannot_be_asked_is_told_of_and_asked_again(collections: Path) -> None:
    lines = (collections / "one.jsonl").read_text().splitlines(keepends=True)
    (collections / "one.jsonl").write_text("".join([*lines[:5], lines[5].replace("text 3", "<stop>"), *lines[6:]]))

    def strict(show: object) -> rerank.Ranker:
        return rerank.load("pointwise", backbone=ScriptedBackbone(script, control_tokens=STOP), strict=True)

    asked: list[str] = []

    def script(call: Call) -> str | Sequence[float]:
        asked.append(call.dialogue.query.query_id)
        return oracle(RELEVANCE)(call)

    found = run(write(collections), replace(Asked().contestant("a"), load=strict))
    assert len(found.failures) == 1
    assert found.failures[0].startswith("a on one: 1 of 8 queries could not be asked and kept their order: q5: ")
    assert found.columns[0].evaluations["a"].per_query["nDCG@10"]["q5"] == pytest.approx(
        found.columns[0].evaluations[FIRST_STAGE].per_query["nDCG@10"]["q5"]
    )
    assert len(asked) == (2 * QUERIES - 1) * DOCUMENTS
    again = Asked()
    assert run(write(collections), again.contestant("a")).failures == []
    assert again.queries == ["q5"] * DOCUMENTS


def test_rankings_that_are_damaged_are_told_of(collections: Path) -> None:
    (collections / "cache").mkdir()
    (collections / "cache" / "rankings.sqlite").write_bytes(b"this is no database, and longer than its header would be")
    with pytest.raises(CacheError, match="delete it, or give another --cache"):
        run(write(collections), Asked().contestant("a"))


def test_a_ranking_that_is_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    (ranking,) = rerank.load("first", backbone=ScriptedBackbone(oracle({"d1": 1.0}))).rank_many(
        [Candidates(Query("what", "q"), (Passage("x", "d0"), Passage("y", "d1")))]
    )
    kept = Kept(tmp_path)
    kept.put("k", ranking, "here")
    found = Kept(tmp_path).get("k")  # of another process, say
    assert found is not None and kept.get("l") is None
    assert (found[0].doc_ids, found[0].usage, found[0].outcomes, found[1]) == (
        ["d1", "d0"], ranking.usage, ranking.outcomes, "here",
    )  # fmt: skip
