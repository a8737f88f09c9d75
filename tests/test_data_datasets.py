"""Collections with a corpus: BEIR folders, the SciFact sample, BM25, ir_datasets."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from math import log
from pathlib import Path

import pytest

from rerank.data import BM25, load_dataset, read_beir
from rerank.data.samples import make_scifact
from rerank.errors import InputError, UnknownNameError
from rerank.eval import evaluate
from rerank.types import Passage, Query

SHARED = Path(__file__).parents[2] / "shared" / "data"

DOCS = {"a": ("Fleas", "live long"), "b": ("", "lice live"), "c": ("Cats", "sleep")}
QUERIES = {"1": "fleas", "2": "cat sleeping", "3": "unjudged fleas"}
QRELS = {"1": {"a": 1}, "2": {"c": 1}}


@pytest.fixture
def beir(tmp_path):
    docs = ({"_id": doc_id, "title": title, "text": text} for doc_id, (title, text) in DOCS.items())
    queries = ({"_id": query_id, "text": text} for query_id, text in QUERIES.items())
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    (tmp_path / "qrels").mkdir()
    lines = (f"{query_id}\t{doc_id}\t1\n" for query_id, docs in QRELS.items() for doc_id in docs)
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n3\ta\t1\n")
    return tmp_path


def found(candidates):
    return {each.query.query_id: [passage.doc_id for passage in each.passages] for each in candidates}


def test_a_beir_folder_ranks_the_queries_that_the_split_judges(beir):
    for spec, judged in ((f"{beir}", ["1", "2"]), (f"{beir}:dev", ["3"]), (f"{beir}/dev", ["3"])):
        dataset = load_dataset(spec)
        assert (dataset.name, list(dataset.queries)) == (spec, judged)
    dataset = read_beir(beir)
    assert dataset.corpus["b"] == Passage("lice live", "b")
    assert found(dataset.candidates()) == {"1": ["a"], "2": ["c"]}
    assert found(dataset.candidates(1, queries=[Query("live", "x"), Query("lice", "y")])) == {
        "x": ["b"],  # as often as in a, in a shorter document
        "y": ["b"],
    }
    with pytest.raises(UnknownNameError, match="'tset'; did you mean 'test'"):
        load_dataset(f"{beir}:tset")


def test_a_first_stage_in_the_folder_is_used(beir):
    (beir / "bm25.test.trec").write_text("1 Q0 c 1 1.0 t\n1 Q0 b 2 2.0 t\n1 Q0 a 3 1.0 t\n2 Q0 a 1 1 t\n")
    candidates = list(read_beir(beir).candidates(2))
    assert found(candidates) == {"1": ["b", "c"], "2": ["a"]}  # by score, ties as they stand
    assert [passage.score for passage in candidates[0].passages] == [2.0, 1.0]
    assert found(read_beir(beir).candidates(run={"2": {"b": 1.0, "c": 2.0}})) == {"2": ["c", "b"]}


def test_queries_without_candidates_are_skipped_with_one_warning(beir, caplog):
    with caplog.at_level(logging.WARNING):
        assert found(read_beir(beir).candidates(run={"2": {"b": 1.0}, "1": {}})) == {"2": ["b"]}
    [record] = caplog.records
    assert "skipped 1 of 2 queries" in record.getMessage()


def test_what_does_not_fit_together_is_an_error(beir):
    dataset = read_beir(beir)
    with pytest.raises(InputError, match="share no query id: for example 'q1' there and '1' here"):
        dataset.candidates(run={"q1": {"a": 1.0}})
    with pytest.raises(InputError, match="document 'zz' for query '1' is not in"):
        list(dataset.candidates(run={"1": {"zz": 1.0}}))
    with pytest.raises(InputError, match="all 3 documents of query '1' one score"):
        list(dataset.candidates(2, run={"1": dict.fromkeys("abc", 0.0)}))
    with pytest.raises(InputError, match="same id"):
        dataset.candidates(queries=[Query("a"), Query("b")])
    with pytest.raises(InputError, match="depth is 0"):
        dataset.candidates(0)
    (beir / "qrels" / "test.tsv").write_text("9\ta\t1\n")
    with pytest.raises(InputError, match=r"judgments of .* share no query id: for example '9'"):
        read_beir(beir)
    (beir / "corpus.jsonl").write_text('{"_id": "a", "text": ""}\n{"_id": "a", "text": ""}\n')
    with pytest.raises(InputError, match=r"corpus\.jsonl, line 2: a second document with the id 'a'"):
        read_beir(beir, "dev")


def test_what_is_known_can_be_read(beir):
    dataset = load_dataset(str(beir))
    found = dataset.known("1", ["c", "elsewhere", "a", "c"])
    assert [p.doc_id for p in found.passages] == ["c", "a"] and found.query == dataset.queries["1"]
    assert dataset.known("1", ["elsewhere"]) is None
    assert dataset.known("elsewhere", ["a"]) is None


def test_bm25_scores_by_the_formula():
    """Lucene's form: idf * tf / (tf + k1 * (1 - b + b * length / mean length))."""
    corpus = {doc_id: Passage(text, doc_id, title) for doc_id, (title, text) in DOCS.items()}
    k1, b, mean_length = 1.2, 0.75, (3 + 2 + 2) / 3
    run = BM25(corpus, k1=k1, b=b).search([Query("living", "q")])
    idf = log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    score = {n: idf * 1 / (1 + k1 * (1 - b + b * n / mean_length)) for n in (2, 3)}
    assert run == {"q": pytest.approx({"b": score[2], "a": score[3]}, rel=1e-6)}
    assert list(run["q"]) == ["b", "a"]


def test_bm25_ties_keep_the_order_of_the_corpus_and_strangers_are_not_found():
    passages = [Passage("flea" if number % 2 else "louse", f"{number}") for number in range(60)]
    index = BM25(passages)
    odd = [str(number) for number in range(1, 60, 2)]
    for k in (7, 30, 100):
        assert list(index.search([Query("fleas")], k)["q"]) == odd[:k]
    assert index.search([Query("cat", "1"), Query("the", "2")]) == {"1": {}, "2": {}}


def test_bm25_does_not_start_jax_which_would_take_the_gpu(tmp_path):
    (tmp_path / "jax.py").write_text("print('jax is imported')")
    code = (
        "from rerank.data import BM25; from rerank.types import Passage, Query\n"
        "print(BM25([Passage('a fox', '1')]).search([Query('foxes')])); import jax"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    found, after = done.stdout.splitlines()
    assert found.startswith("{'q': {'1': ") and after == "jax is imported"


def test_bm25_without_stems_or_words():
    passages = [Passage("the fleas", "a"), Passage("a flea", "b")]
    assert list(BM25(passages, stemmer=None).search([Query("flea")])["q"]) == ["b"]
    assert list(BM25(passages, stopwords=None).search([Query("the")])["q"]) == ["a"]
    assert list(BM25(passages, stopwords=["fleas"]).search([Query("fleas the")])["q"]) == ["a"]
    with pytest.raises(UnknownNameError, match="unknown stemmer 'englsh'; did you mean 'english'"):
        BM25(passages, stemmer="englsh")
    for nothing in ({}, [Passage("the", "a")]):
        with pytest.raises(InputError, match="no word to index"):
            BM25(nothing)


def test_the_sample():
    start = time.perf_counter()
    dataset = load_dataset("sample:scifact")
    assert time.perf_counter() - start < 6
    assert len(dataset.queries) == len(dataset.qrels) == len(list(dataset.candidates())) == 300
    assert all(doc_id in dataset.corpus for docs in dataset.qrels.values() for doc_id in docs)
    mean = evaluate(dataset.first_stage, dataset.qrels, ["nDCG@10", "R@100"]).mean
    assert {name: round(value, 3) for name, value in mean.items()} == {"nDCG@10": 0.676, "R@100": 0.913}


def test_the_sample_is_made_the_same_each_time(beir, tmp_path):
    for out in ("one", "two"):
        make_scifact.make(beir, tmp_path / out, depth=1)
    files = [file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*.*")]
    assert len(files) == 4
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    assert sorted(read_beir(tmp_path / "one").corpus) == ["a", "c"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(
    # NFCorpus: .247 with documents that match nothing as padding to 100; we do not return those
    ("name", "ndcg", "recall"),
    [("scifact", 0.676, 0.913), ("nfcorpus", 0.318, 0.246)],
)
def test_bm25_on_beir(name, ndcg, recall):
    dataset = load_dataset(str(SHARED / "beir" / name))
    run = BM25(dataset.corpus).search(dataset.queries.values())
    mean = evaluate(run, dataset.qrels, ["nDCG@10", "R@100"]).mean
    assert [round(value, 3) for value in mean.values()] == [ndcg, recall]


def test_ir_datasets(tmp_path):
    import ir_datasets
    from ir_datasets.formats import TrecScoredDocs

    files = {
        "docs": "".join(f"{doc_id}\t{title} {text}\n" for doc_id, (title, text) in DOCS.items()),
        "queries": "".join(f"{query_id}\t{text}\n" for query_id, text in QUERIES.items()),
        "qrels": "1 0 a 1\n2 0 c 1\n",
        "scored": "1 Q0 c 1 1.0 t\n1 Q0 a 2 2.0 t\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    parts = ir_datasets.create_dataset(*(str(tmp_path / name) for name in ("docs", "queries", "qrels")))
    scored = TrecScoredDocs(ir_datasets.util.LocalDownload(tmp_path / "scored"))
    ir_datasets.registry.register("rerank-test", parts)
    ir_datasets.registry.register("rerank-test/scored", ir_datasets.Dataset(parts, scored))

    dataset = load_dataset("irds:rerank-test")
    assert dataset.qrels == QRELS
    assert dataset.queries["3"] == Query(QUERIES["3"], "3")
    assert dataset.corpus["c"] == Passage("Cats sleep", "c")
    assert len(dataset.corpus) == 3
    assert found(dataset.candidates()) == {"1": ["a"], "2": ["c"], "3": ["a"]}
    assert found(load_dataset("irds:rerank-test/scored").candidates()) == {"1": ["a", "c"]}
    with pytest.raises(InputError, match="document 'zz' for query '1' is not in irds:rerank-test"):
        list(dataset.candidates(run={"1": {"zz": 1.0}}))
    with pytest.raises(UnknownNameError, match="'rerank-tset'; did you mean 'rerank-test'"):
        load_dataset("irds:rerank-tset")


def test_the_import_is_light():
    heavy = "{'ranx', 'numba', 'bm25s', 'ir_datasets', 'torch', 'Stemmer', 'pandas'}"
    code = f"import sys, rerank.data, rerank.eval; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
