"""What a suite reads, what it refuses, and the catalogue and suites that are committed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from command import Cli, as_list, assert_error
from suites import Asked, run, two_lists, write

from rerank.bench.cells import Task, read_task
from rerank.bench.suite import Suite, Trial, read_suite
from rerank.data import catalogue, list_samples
from rerank.data.catalogue import Entry
from rerank.measure import Measure
from rerank.strategies import load_strategy

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"


@pytest.fixture
def collections(tmp_path: Path) -> Path:
    return two_lists(tmp_path)


def task(folder: Path, number: int = 0, **more: object) -> Task:
    suite, trials = read_suite(write(folder, **more))
    return read_task(trials[number], suite.seed)


def test_a_sample_is_drawn_by_its_seed(collections: Path) -> None:
    drawn = [tuple(task(collections, queries=3, seed=seed).judged) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1 and {len(each) for each in drawn} == {3}
    assert task(collections, queries=3).whole is False and task(collections, queries=8).whole is True
    assert list(task(collections, queries=5).judged) == sorted(task(collections, queries=5).judged)


def test_candidates_come_from_the_run_that_is_named(collections: Path) -> None:
    (collections / "given.trec").write_text("".join(f"q{q} Q0 d{d} 1 {d}.5 x\n" for q in (0, 1) for d in (2, 4)))
    own = [{"dataset": "one.jsonl", "name": "one", "qrels": "qrels.txt", "run": "given.trec", "queries": 8}]
    found = task(collections, datasets=own)
    assert [[p.doc_id for p in each.passages] for each in found.requests] == [["d4", "d2"]] * 2
    assert found.first_stage == "given.trec"
    assert len(found.judged) == 8  # a query without candidates counts as 0, as everywhere
    named = task(collections, datasets=[{**own[0], "first_stage": "splade"}])
    assert named.first_stage == "splade"


def test_bm25_is_searched_where_it_is_asked_for(beir: Path) -> None:
    (beir / "bm25.test.trec").write_text("q1 Q0 d4 1 1.0 x\nq2 Q0 d1 1 1.0 x\n")
    given, searched = (task(beir, datasets=[{"dataset": ".", "name": "own", **more}]) for more in ({}, {"run": "bm25"}))
    assert [each.passages[0].doc_id for each in given.requests] == ["d4", "d1"]
    assert [each.passages[0].doc_id for each in searched.requests] == ["d1", "d3"]
    assert (given.first_stage, searched.first_stage) == ("its own", "bm25s")


@pytest.mark.parametrize(
    ("leave_out", "left"), [("query", ["d1", "d2"]), ("negative", ["q0", "d2"]), (None, ["q0", "d1"])]
)
def test_what_may_not_be_a_candidate_is_left_out_before_the_cut(
    tmp_path: Path, leave_out: str | None, left: list[str]
) -> None:
    (tmp_path / "one.jsonl").write_text(as_list("q0", "the query", "bad", "good", ids=["q0", "d1", "d2"]))
    (tmp_path / "qrels.txt").write_text("q0 0 d1 -100\nq0 0 d2 1\n")
    entry = Entry(about="-", queries=1, measures=("nDCG@10",), licence="-", leave_out=leave_out)
    trial = Trial("one", str(tmp_path / "one.jsonl"), 2, ("nDCG@10",), qrels=str(tmp_path / "qrels.txt"), entry=entry)
    (request,) = read_task(trial, 0).requests
    assert [passage.doc_id for passage in request.passages] == left


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dataset": []}, "unknown key 'dataset'; did you mean 'datasets'?"),
        ({"datasets": []}, "datasets"),
        ({"datasets": [{"dataset": "one.jsonl", "quereis": 3}]}, "did you mean 'queries'?"),
        ({"datasets": ["beir/scifakt"]}, "unknown dataset 'beir/scifakt'; did you mean 'beir/scifact'?"),
        ({"datasets": ["sample:scifat"]}, "did you mean 'scifact'?"),
        ({"datasets": ["irds:beir/scifact/tset"]}, "did you mean 'beir/scifact/test'?"),
        ({"datasets": ["on.jsonl"]}, "one.jsonl'?"),
        ({"datasets": [{"dataset": "one.jsonl", "qrels": "qrel.txt"}]}, "qrels.txt'?"),
        ({"datasets": [{"dataset": "one.jsonl", "run": "nowhere/x.trec"}]}, "neither is its folder"),
        ({"datasets": ["noveleval"]}, "then give its 'path'"),
        ({"datasets": [{"dataset": "bright", "path": "one.jsonl"}]}, "bright is 12 datasets"),
        ({"datasets": ["one.jsonl", "one.jsonl"]}, "give one a 'name'"),
        ({"rankers": ["pointwice"]}, "unknown strategy 'pointwice'; did you mean 'pointwise'?"),
        ({"rankers": ["pointwise % 5 >> frist"]}, "did you mean 'first'?"),
        ({"rankers": [{"strategy": "first", "options": {"windw": 4}}]}, "did you mean 'window'?"),
        ({"rankers": [{"strategy": "first", "prices": {"prompt": 1, "generatd": 1}}]}, "did you mean 'generated'?"),
        ({"rankers": [{"strategy": "first", "prices": {"prompt": 1}}]}, "prices.generated is missing"),
        ({"rankers": [{"strategy": "first", "prompt": "first-identifer"}]}, "first-identifier"),
        ({"rankers": [{"strategy": "first", "backbone": "vlm"}]}, "did you mean 'vllm'?"),
        ({"rankers": ["first-stage"]}, "first-stage"),
        ({"rankers": ["first", "first"]}, "give one a 'name'"),
        ({"baseline": "pointwize"}, "did you mean 'pointwise'?"),
        ({"measures": ["nDCG10"]}, "unknown measure 'nDCG10'"),
        ({"test": "tt"}, "unknown test 'tt'"),
        ({"test": "tukey", "correction": "holm"}, "takes no correction"),
        ({"queries": 0}, "queries"),
        ({"level": 95}, "level"),
    ],
)  # fmt: skip
def test_wrong_input_is_a_line_before_anything_is_read(
    cli: Cli, collections: Path, change: dict[str, object], told: str
) -> None:
    done = cli("bench", write(collections, **change), "--cache", collections / "cache", "-o", collections / "out")
    assert_error(done, told)
    assert not (collections / "out").exists()


def test_what_is_no_suite_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text("[1, 2")
    assert_error(cli("bench", tmp_path / "suite.yaml"), "is not YAML")
    assert_error(cli("bench", tmp_path / "siute.yaml"), "did you mean")
    (tmp_path / "suite.yaml").write_text("- 1\n")
    assert_error(cli("bench", tmp_path / "suite.yaml"), "must be a mapping")
    assert_error(cli("bench", "engins"), "No such command")


def test_an_id_of_ir_datasets_is_known_by_the_catalogue_too(collections: Path) -> None:
    names = ["irds:beir/quora/test", "beir/fiqa/dev", "bright", "dl22"]
    _, trials = read_suite(write(collections, datasets=names))
    quora, fiqa, *bright, dl22 = trials
    assert (quora.leave_out, quora.run, fiqa.entry) == ("query", "bm25", None)
    assert (fiqa.spec, fiqa.depth, fiqa.measures) == ("irds:beir/fiqa/dev", 100, ("nDCG@10",))
    assert len(bright) == 12 and dl22.spec == "irds:msmarco-passage-v2/trec-dl-2022/judged"
    assert dl22.measures[1] == "RR(rel=2)@100"


def test_a_key_is_not_recorded(collections: Path) -> None:
    engine = {"backbone": "openai", "backbone_options": {"base_url": "http://localhost:1/v1", "api_key": "hidden"}}
    path = write(collections, rankers=[{"strategy": "pointwise", "model": "m", **engine}])
    run(path, Asked().contestant("a"))
    text = (collections / "out" / "results.json").read_text()
    assert "localhost" in text and "hidden" not in text


def test_the_catalogue_names_what_there_is() -> None:
    import ir_datasets

    known = catalogue()
    assert len(known.datasets) == 5 + 17 + 12 + 12 + 1  # CQADupStack is twelve, and the eighteenth of BEIR
    assert len(known.groups["beir"]) == 18 and len(known.names("bright")) == 12
    for name in known.groups:
        assert set(known.names(name)) <= set(known.datasets)
    for name, entry in known.datasets.items():
        assert (entry.irds in ir_datasets.registry) if entry.irds else entry.get, name
        for measure in entry.measures:
            assert str(Measure.parse(measure)) == measure
        for part in (*entry.published, *entry.first_stages.values()):
            assert part.source in known.sources, name
        figures = [f.value for f in entry.first_stages.values()] + [
            v for p in entry.published for v in p.values.values()
        ]
        assert all(0 < value < 1 for value in figures), name


def test_one_dataset_of_the_catalogue_is_told_of(cli: Cli) -> None:
    done = cli("ls", "datasets", "dl19")
    assert "msmarco-passage/trec-dl-2019/judged" in done.out and "RankZephyr-7B 0.7365" in done.out
    assert_error(cli("ls", "datasets", "dl99"), "unknown dataset of the catalogue")


def test_the_committed_suites_are_in_order() -> None:
    suite, trials = read_suite(DOCS / "tiny.yaml")
    assert {trial.spec for trial in trials} <= {f"sample:{name}" for name in list_samples()}
    committed = Suite.model_validate(yaml.safe_load((DOCS / "suite.yaml").read_text(encoding="utf-8")))
    assert [part.dataset for part in committed.datasets] == ["dl19", "beir/scifact", "beir/nfcorpus"]
    assert all(part.dataset in catalogue() for part in committed.datasets)
    for part in (*committed.rankers, *suite.rankers):
        load_strategy(part.strategy, prompt=part.prompt, **part.options)
