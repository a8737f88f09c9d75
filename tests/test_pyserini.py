"""Lucene through pyserini: it scores as our BM25 does, keeps its index, and feeds the other commands."""

from __future__ import annotations

import importlib.util
import json
from itertools import islice
from pathlib import Path

import pytest

if importlib.util.find_spec("pyserini") is None:
    pytest.skip("pyserini is not installed; it has an environment of its own: make pyserini", allow_module_level=True)

from command import Cli, assert_error

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.data import BM25, Lucene, load_dataset, read_rank_llm, read_run
from rerank.errors import InputError, UnknownNameError
from rerank.eval import ceiling, evaluate
from rerank.fusion import fuse_runs
from rerank.types import Passage, Query

pytestmark = pytest.mark.pyserini

NFCORPUS = Path(__file__).parents[2] / "shared" / "data" / "beir" / "nfcorpus"
TEXTS = ["flea cat", "flea flea dog", "bird", "cat", "cat", "flea cat dog bird fish"]
CORPUS = {f"d{i}": Passage(text, f"d{i}", "fish" if i == 3 else "") for i, text in enumerate(TEXTS)}
QUERIES = [Query("flea", "q1"), Query("cat AND (fish", "q2"), Query("the ☃", "q3"), Query('"zebra', "q4")]


def test_scores_are_those_of_bm25(tmp_path: Path) -> None:
    """On words that both stem alike; Anserini rounds to 4 digits, and parts what ties by document id."""
    found = Lucene.of(CORPUS, tmp_path, k1=1.1, b=0.3).search(QUERIES, 4)
    expected = BM25(CORPUS, k1=1.1, b=0.3).search(QUERIES, 4)
    assert list(found) == list(expected)
    for query_id, docs in expected.items():
        assert found[query_id] == pytest.approx(docs, abs=2e-4)
        assert list(found[query_id]) == list(docs)
    assert found["q3"] == found["q4"] == {}


def test_an_index_is_made_once_and_opened_by_its_folder(tmp_path: Path) -> None:
    shown: list[tuple[int, int]] = []
    first = Lucene.of(CORPUS, tmp_path, on_progress=lambda *done: shown.append(done)).search(QUERIES)
    assert shown == [(6, 6)]
    assert Lucene.of(CORPUS, tmp_path, on_progress=lambda *done: shown.append(done)).search(QUERIES) == first
    assert shown == [(6, 6)]
    (folder,) = tmp_path.iterdir()
    assert Lucene(folder).search(QUERIES) == first
    Lucene.of({"d": Passage("another", "d")}, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path} is no Lucene index"):
        Lucene(tmp_path)
    with pytest.raises(UnknownNameError, match=r"did you mean 'beir-v1.0.0-scifact.flat'"):
        Lucene("beir-v1.0.0-scifact.flt")
    with pytest.raises(InputError, match="has titles in a field of their own"):
        Lucene("beir-v1.0.0-scifact.multifield")
    with pytest.raises(InputError, match="no document to index"):
        Lucene.of({}, tmp_path)


def test_the_command_indexes_searches_and_hands_on(cli: Cli, beir: Path, tmp_path: Path, model: list[str]) -> None:
    candidates, kept = tmp_path / "c.jsonl", tmp_path / "kept"
    done = cli("retrieve", beir, "--by", "lucene", "--index", kept, "-o", candidates)
    assert done == (0, "", f"{candidates}: 2 queries\n")
    dataset = load_dataset(str(beir))
    expected = Lucene.of(dataset.corpus or {}, kept).search(dataset.queries.values())
    assert {c.query.query_id: [p.doc_id for p in c.passages] for c in read_rank_llm(candidates)} == {
        query_id: list(docs) for query_id, docs in expected.items()
    }
    (folder,) = kept.iterdir()
    printed = cli("retrieve", beir, "--by", f"lucene:{folder}")
    assert printed.out.split()[2::6] == [doc_id for docs in expected.values() for doc_id in docs]  # and nothing else
    ranked = tmp_path / "ranked.trec"
    assert cli("run", candidates, *model, "-o", ranked).status == 0
    assert {query_id: set(docs) for query_id, docs in read_run(ranked).items()} == {
        query_id: set(docs) for query_id, docs in expected.items()
    }
    hybrid = cli("retrieve", beir, "--by", "lucene", "--by", "bm25", "--index", kept)
    fused = fuse_runs(expected, BM25(dataset.corpus or {}).search(dataset.queries.values()))
    assert hybrid.out.split()[2::6] == [doc_id for docs in fused.values() for doc_id in docs]
    assert_error(cli("retrieve", beir, "--by", "lucene:nfcorpus.flat"), "unknown Lucene index 'nfcorpus.flat'")


@pytest.mark.skipif(not NFCORPUS.is_dir(), reason="needs ../shared/data")
def test_nfcorpus_is_indexed_searched_reranked_and_evaluated(cli: Cli, tmp_path: Path) -> None:
    """The published figures of the first stage; then two of its lists by a perfect ranker, which the ceiling bounds."""
    run, candidates = tmp_path / "lucene.trec", tmp_path / "lucene.jsonl"
    for output in (run, candidates):
        done = cli("retrieve", f"{NFCORPUS}:test", "--by", "lucene", "--index", tmp_path / "kept", "-o", output)
        assert done.status == 0, done
    asked = ("eval", run, "--dataset", f"{NFCORPUS}:test", "-m", "nDCG@10", "-m", "R@100", "--json")
    mean = json.loads(cli(*asked).out)["mean"]
    assert {name: round(value, 4) for name, value in mean.items()} == {"nDCG@10": 0.3218, "R@100": 0.2457}
    dataset = load_dataset(f"{NFCORPUS}:test")
    judged = dataset.qrels or {}
    two = list(islice((each for each in read_rank_llm(candidates) if each.query.query_id in judged), 2))
    labels = {each.query.query_id: judged[each.query.query_id] for each in two}
    perfect = oracle({query_id: {d: float(n) for d, n in docs.items()} for query_id, docs in labels.items()})
    ranked = list(rerank.load("pointwise", backbone=ScriptedBackbone(perfect)).rank_many(two))
    given = {q: docs for q, docs in read_run(run).items() if q in labels}
    found = evaluate(ranked, labels).per_query["nDCG@10"]
    assert found == pytest.approx(ceiling(given, labels, "nDCG@10").per_query["nDCG@10"])
    assert all(value >= evaluate(given, labels).per_query["nDCG@10"][q] for q, value in found.items())
