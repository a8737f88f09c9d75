"""The comparison of strategies: resumable rows, samples with their given order, rows that fail, and the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import log2
from pathlib import Path

import pytest
import yaml
from command import Cli, as_list

from rerank.adapters import shipped_for
from rerank.backbones import ScriptedBackbone, oracle
from rerank.backbones.embedded import EMBEDDED
from rerank.bench import strategies as bench
from rerank.bench import strategies_table as table
from rerank.calls import Call
from rerank.data import read_run
from rerank.errors import InputError
from rerank.strategies import STRATEGIES

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
RELEVANCE = {f"d{i}": float(i % 4) for i in range(6)}  # best at place 4 of the given order
ROWS: list[dict[str, object]] = [
    {"strategy": "first", "adapter": "none"},
    {"strategy": "pairwise", "adapter": "none", "options": {"algorithm": "allpair"}, "queries": 2, "depth": 4},
    {"strategy": "pointwise", "adapter": "none", "queries": 2, "depth": 4},
]


class Loader:
    """Loads scripted backbones, and remembers what it was asked for."""

    def __init__(self, script: Callable[[Call], str | list[float]] | None = None) -> None:
        self.script = script or oracle(RELEVANCE)
        self.adapters: list[object] = []
        self.made: list[ScriptedBackbone] = []

    def __call__(self, name: str, *, adapter: str | None, **_: object) -> ScriptedBackbone:
        self.adapters.append(adapter)
        self.made.append(ScriptedBackbone(self.script))
        return self.made[-1]

    @property
    def calls(self) -> int:
        return sum(sum(one.batches) for one in self.made)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A spec over five queries, of which the second is not judged."""
    lists = "".join(as_list(f"q{i}", *(f"text {d}" for d in RELEVANCE), query=f"question {i}") for i in range(5))
    (tmp_path / "lists.jsonl").write_text(lists)
    labels = [f"q{i} 0 {d} {int(r)}\n" for i in (0, 2, 3, 4) for d, r in RELEVANCE.items()]
    (tmp_path / "qrels.txt").write_text("".join(labels))

    def make(rows: list[dict[str, object]] = ROWS, **more: object) -> Path:
        spec = {"name": "toy", "dataset": "lists.jsonl", "qrels": "qrels.txt", "rows": rows} | more
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
        return tmp_path / "spec.yaml"

    return make


def ndcg(labels: list[float], of: list[float]) -> float:
    """nDCG@10 of labels in this order, as the formula has it."""

    def dcg(values: list[float]) -> float:
        return sum(value / log2(place + 1) for place, value in enumerate(values[:10], start=1))

    return dcg(labels) / dcg(sorted(of, reverse=True))


def test_every_sample_has_its_given_order_and_its_rows(write: Callable[..., Path], tmp_path: Path) -> None:
    load = Loader()
    found = bench.compare(write(), tmp_path / "out", load=load)
    order = [(row.strategy, row.queries, row.depth) for row in found.rows]
    small = [("given order", 2, 4), ("pairwise", 2, 4), ("pointwise", 2, 4)]
    assert order == [("given order", 4, 100), ("first", 4, 100), *small]
    given, first, given_of_four, pairwise, pointwise = found.rows
    labels = list(RELEVANCE.values())
    assert given.value == pytest.approx(ndcg(labels, labels))
    assert given_of_four.value == pytest.approx(ndcg(labels[:4], labels))  # judged passages below it count
    assert first.value == pytest.approx(1.0)
    assert pairwise.value == pointwise.value == pytest.approx(ndcg(sorted(labels[:4], reverse=True), labels))
    assert (first.calls, pairwise.calls, pointwise.calls) == (1, 4 * 3, 4)
    assert pairwise.options == "algorithm=allpair"
    assert (given.calls, first.generated_tokens, pairwise.answers) == (None, 0, "24 clean")
    assert load.adapters == [None]  # one backbone for all that have the same adapter
    run = read_run(tmp_path / "out" / "pairwise-algorithm=allpair-pairwise@1-none-2x4.trec")
    assert {q: set(docs) for q, docs in run.items()} == {q: {"d0", "d1", "d2", "d3"} for q in ("q0", "q2")}
    card = json.loads((tmp_path / "out" / "pairwise-algorithm=allpair-pairwise@1-none-2x4.trec.json").read_text())
    assert pairwise.prompt_tokens == card["usage"]["prompt_tokens"] / 2 > 0
    assert (tmp_path / "out" / "strategies.md").read_text() == table.markdown(found)


def test_what_is_done_is_not_done_again(write: Callable[..., Path], tmp_path: Path) -> None:
    out, first, again = tmp_path / "out", Loader(), Loader()
    before = bench.compare(write(ROWS[:2]), out, load=first)
    assert bench.compare(write(ROWS[:2]), out, load=again) == before
    assert (again.adapters, again.calls) == ([], 0)
    grown = bench.compare(write(), out, load=again)
    assert again.calls == 2 * 4  # the new row's
    assert set(before.rows) < set(grown.rows)


def test_a_row_that_was_stopped_goes_on(write: Callable[..., Path], tmp_path: Path) -> None:
    whole = bench.compare(write([{"strategy": "first", "adapter": "none", "block": 1}]), tmp_path / "a", load=Loader())

    class Killed(BaseException):
        pass

    asked: list[str] = []

    def dies(call: Call) -> list[float]:
        asked.append(call.dialogue.query.query_id)
        if len(asked) == 3:
            raise Killed
        return list(oracle(RELEVANCE)(call))  # type: ignore[arg-type]

    with pytest.raises(Killed):
        bench.compare(tmp_path / "spec.yaml", tmp_path / "b", load=Loader(dies))
    rest = Loader()
    resumed = bench.compare(tmp_path / "spec.yaml", tmp_path / "b", load=rest)
    assert (asked, rest.calls) == (["q0", "q2", "q3"], 2)
    (run,) = (tmp_path / "a").glob("*.trec")
    assert (tmp_path / "b" / run.name).read_bytes() == run.read_bytes()
    assert [row.value for row in resumed.rows] == [row.value for row in whole.rows]


def test_a_row_that_fails_is_told_of_and_holds_up_no_other(write: Callable[..., Path], tmp_path: Path) -> None:
    def breaks(call: Call) -> list[float]:
        if len(call.dialogue.passages) == 2:
            raise RuntimeError("device | lost")
        return list(oracle(RELEVANCE)(call))  # type: ignore[arg-type]

    found = bench.compare(write(), tmp_path / "out", load=(load := Loader(breaks)))
    assert [row.value is None for row in found.rows] == [False, False, False, True, False]
    assert found.failed == 1
    assert found.rows[3].answers == "failed: RuntimeError: device | lost"
    assert "RuntimeError: device \\| lost |" in table.markdown(found)
    assert len(load.made) == 2  # what broke is not asked again
    mended = bench.compare(write(), tmp_path / "out", load=(again := Loader()))
    assert (mended.failed, again.calls) == (0, 2 * 4 * 3)


def test_a_run_of_something_else_is_a_row_that_fails(write: Callable[..., Path], tmp_path: Path) -> None:
    bench.compare(write(), tmp_path / "out", load=Loader())
    found = bench.compare(write(dtype="float32"), tmp_path / "out", load=(load := Loader()))
    assert (found.failed, load.calls) == (3, 0)
    assert "was not made with these settings (dtype: None there, 'float32' now)" in found.rows[1].answers


def test_queries_are_capped(write: Callable[..., Path], tmp_path: Path) -> None:
    found = bench.compare(write(), tmp_path / "out", queries=1, load=Loader())
    assert {(row.queries, row.depth) for row in found.rows} == {(1, 100), (1, 4)}


@pytest.mark.parametrize(
    ("rows", "more", "told"),
    [
        ([{"strategy": "frist"}], {}, "row 1: unknown strategy 'frist'; did you mean 'first'?"),
        ([{"strategy": "first", "options": {"windw": 3}}], {}, "row 1: unknown first option 'windw'"),
        ([ROWS[0], {"strategy": "first", "prompt": "pairwise-yes"}], {}, "row 2: unknown prompt 'pairwise-yes'"),
        ([ROWS[0], ROWS[0]], {}, "two rows are the same run, first-first-identifier@1-none-4x100; leave one out"),
        ([{"strategy": "first", "quries": 3}], {}, "rows.0.quries: Extra inputs are not permitted"),
        ([], {}, "rows: Tuple should have at least 1 item"),
        (ROWS, {"measure": "nDGC@10"}, "unknown measure 'nDGC@10'"),
        (ROWS, {"qrels": None}, "has no judgments; name a file with 'qrels'"),
        (ROWS, {"backbone": "openia"}, "unknown backbone 'openia'"),
        (ROWS, {"backbone": "bi-encoder"}, "row 1: "),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    write: Callable[..., Path], tmp_path: Path, rows: list[dict[str, object]], more: dict[str, object], told: str
) -> None:
    load = Loader()
    with pytest.raises(InputError) as caught:
        bench.compare(write(rows, **more), tmp_path / "out", load=load)
    assert told in str(caught.value)
    assert load.adapters == []
    assert not (tmp_path / "out").exists()


def test_the_command_writes_the_table_and_the_page(
    cli: Cli, tiny_model: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Before\n\n<!-- rerank bench strategies: begin -->\nold\n")
    spec = write(ROWS[1:], model=str(tiny_model), dtype="float32", device="cpu")
    args = ["bench", "strategies", spec, "-o", tmp_path / "out", "--into", page]
    refused = cli(*args)
    assert (refused.status, (tmp_path / "out").exists()) == (2, False)
    assert "the page has no place for the table" in refused.err
    page.write_text(f"{page.read_text()}<!-- rerank bench strategies: end -->\n\nAfter.\n")
    status, out, err = cli(*args)
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines[-3:]] == ["given", "pairwise", "pointwise"]
    written = (tmp_path / "out" / "strategies.md").read_text()
    assert page.read_text() == f"# Before\n\n{table.BEGIN}\n{written}{table.END}\n\nAfter.\n"
    assert cli(*args).out == out
    assert page.read_text().count("| pairwise |") == 1
    (tmp_path / "out" / "pointwise-pointwise-yes-no@1-none-2x4.trec").write_text("precious\n")
    (tmp_path / "out" / "pointwise-pointwise-yes-no@1-none-2x4.trec.json").unlink()
    failed = cli(*args)
    assert failed.status == 1
    assert failed.err.endswith("1 row failed; the same command tries again\n")


SPEC = bench.read_spec(DOCS / "strategies.yaml")


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_measured(name: str) -> None:
    """A new strategy needs a row in docs/benchmarks/strategies.yaml; with an adapter that ships, one with and one
    without it."""
    adapters = {bench.plan(SPEC, entry).adapter for entry in SPEC.rows if entry.strategy == name}
    folder = shipped_for(name, EMBEDDED)
    assert adapters == ({None} if folder is None else {None, folder.name})


def test_the_page_and_its_spec_fit() -> None:
    page = (DOCS / "strategies.md").read_text(encoding="utf-8")
    assert table.insert(page, "") != page
    # what is dear is asked of fewer queries, and beside a cheap one
    for name, options in (("pairwise", {"algorithm": "allpair"}), ("groupwise", {})):
        (dear,) = [e for e in SPEC.rows if (e.strategy, e.options, e.prompt) == (name, options, None)]
        assert (dear.queries or 43) <= 10
        assert dear.depth == 20
    assert all(any(other.strategy == "pointwise" and (other.queries, other.depth) == (entry.queries, entry.depth)
                   for other in SPEC.rows) for entry in SPEC.rows)  # fmt: skip
