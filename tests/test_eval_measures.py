"""The measures against trec_eval itself, through pytrec_eval."""

from __future__ import annotations

import json
from math import log2
from pathlib import Path

import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank.errors import InputError, UnknownNameError
from rerank.eval import Measure, evaluate
from rerank.types import Hit, Passage, Query, Ranking

SHARED = Path(__file__).parents[2] / "shared" / "data"

TREC_EVAL = {  # measure -> trec_eval's name, relevance level
    "nDCG": ("ndcg", 1),
    "nDCG@3": ("ndcg_cut_3", 1),
    "AP": ("map", 1),
    "AP(rel=2)": ("map", 2),
    "AP@3": ("map_cut_3", 1),
    "RR": ("recip_rank", 1),
    "RR(rel=2)": ("recip_rank", 2),
    "R@3": ("recall_3", 1),
    "R(rel=2)@3": ("recall_3", 2),
    "P@3": ("P_3", 1),
    "P(rel=2)@3": ("P_3", 2),
}

query_ids = st.sampled_from(["1", "2", "10"])
doc_ids = st.sampled_from(["a", "b", "B", "c1", "c10", "c2", "é", "中"])
scores = st.one_of(st.sampled_from([0.0, 1.0, -2.5]), st.floats(-4, 4), st.sampled_from([1.0, 1.0 + 1e-12]))
runs = st.dictionaries(query_ids, st.dictionaries(doc_ids, scores, min_size=1), min_size=1)
labels = st.dictionaries(doc_ids, st.integers(-2, 3)).map(
    lambda docs: {**docs, "never found": 0}  # trec_eval crashes or hangs where every label is negative
)
judgments = st.dictionaries(query_ids, labels, min_size=1)


def ranking(query_id: str, *docs: str) -> Ranking:
    hits = (Hit(rank, 0.0, Passage("text", doc_id)) for rank, doc_id in enumerate(docs, start=1))
    return Ranking(Query("text", query_id), tuple(hits))


@settings(max_examples=300, deadline=None)
@given(runs, judgments, st.booleans())
def test_every_measure_is_trec_evals(run, qrels, judged_only):
    if not run.keys() & qrels.keys():
        with pytest.raises(InputError, match="share no query"):
            evaluate(run, qrels)
        return
    ours = evaluate(run, qrels, list(TREC_EVAL), judged_only=judged_only)
    for level in (1, 2):
        names = {name: theirs for name, (theirs, rel) in TREC_EVAL.items() if rel == level}
        families = {"ndcg", "ndcg_cut.3", "map", "map_cut.3", "recip_rank", "recall.3", "P.3"}
        evaluator = pytrec_eval.RelevanceEvaluator(
            qrels, families, relevance_level=level, judged_docs_only_flag=judged_only
        )
        theirs = evaluator.evaluate(run)
        for name, trec_name in names.items():
            expected = {query: theirs.get(query, {}).get(trec_name, 0.0) for query in qrels}
            assert ours.per_query[name] == pytest.approx(expected, abs=1e-6), name
            assert ours.mean[name] == pytest.approx(sum(expected.values()) / len(qrels), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(runs, judgments, st.integers(1, 4))
def test_a_reciprocal_rank_below_the_cutoff_is_zero(run, qrels, k):
    """trec_eval has no RR with a cutoff."""
    if run.keys() & qrels.keys():
        found = evaluate(run, qrels, ["RR", f"RR@{k}"]).per_query
        assert found[f"RR@{k}"] == {q: rr if rr >= 1 / k else 0 for q, rr in found["RR"].items()}


def test_ndcg_takes_the_label_as_gain():
    found = evaluate({"q": {"a": 3, "b": 2, "c": 1}}, {"q": {"a": 1, "c": 3, "missed": 2, "d": -1}})
    dcg = 1 / log2(2) + 3 / log2(4)
    ideal = 3 / log2(2) + 2 / log2(3) + 1 / log2(4)
    assert found.mean == {"nDCG@10": pytest.approx(dcg / ideal)}


def test_missing_and_hopeless_queries_count_as_zero_and_unjudged_ones_not_at_all():
    run = {"hit": {"a": 1.0}, "hopeless": {"a": 1.0}, "unjudged": {"a": 1.0}}
    qrels = {"hit": {"a": 1}, "hopeless": {"a": -1}, "missing": {"a": 1}}
    found = evaluate(run, qrels, ["P@1"])
    assert found.per_query == {"P@1": {"hit": 1.0, "hopeless": 0.0, "missing": 0.0}}
    assert found.mean == {"P@1": pytest.approx(1 / 3)}


def test_a_ranking_keeps_its_order_whatever_its_scores():
    qrels = {"q": {"b": 1}}
    assert evaluate([ranking("q", "a", "b", "z")], qrels, ["RR"]).mean == {"RR": 1 / 2}
    assert evaluate(iter([ranking("q", "b", "a", "z")]), qrels, ["RR"]).mean == {"RR": 1.0}
    assert evaluate([ranking("q")], qrels, ["RR"]).mean == {"RR": 0.0}
    with pytest.raises(InputError, match="two rankings of query 'q'"):
        evaluate([ranking("q", "a"), ranking("q", "b")], qrels)


def test_ids_and_lengths_do_not_matter():
    """Long ids, and a pool far larger than the ranking."""
    qrels = {"q": {f"{'x' * 300}{i}": 1 for i in range(500)}}
    assert evaluate([ranking("q", f"{'x' * 300}7", "y")], qrels, ["R@1000", "P@1000"]).mean == {
        "R@1000": 1 / 500,
        "P@1000": 1 / 1000,
    }


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("nDCG@10", "nDCG@10"),
        ("ndcg@5", "nDCG@5"),
        ("MRR@10", "RR@10"),
        ("MAP", "AP"),
        ("Recall@100", "R@100"),
        ("RR(rel=2)@10", "RR(rel=2)@10"),
        ("AP( rel = 3 )", "AP(rel=3)"),
    ],
)
def test_names(name, spelling):
    assert str(Measure.parse(name)) == spelling
    assert Measure.parse(spelling) == Measure.parse(name)
    assert list(evaluate({"q": {"a": 1}}, {"q": {"a": 1}}, [name]).mean) == [name]


@pytest.mark.parametrize("name", ["nDCG@", "NDGC@10", "", "RR(rel=)@10", "RR(rel=-1)", "P@10@10", "RR@1.5"])
def test_unknown_names(name):
    with pytest.raises(UnknownNameError, match="unknown measure"):
        evaluate({"q": {"a": 1}}, {"q": {"a": 1}}, [name])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("P", "needs a cutoff"),
        ("RR@0", "start at 1"),
        ("AP(rel=0)", "start at 1"),
        ("nDCG(rel=2)@10", "gains"),
    ],
)
def test_names_that_mean_nothing(name, why):
    with pytest.raises(InputError, match=why):
        Measure.parse(name)


def test_what_cannot_be_measured_is_an_error():
    with pytest.raises(InputError, match="the run has 'q1', the qrels have 'q2'"):
        evaluate({"q1": {"a": 1.0}}, {"q2": {"a": 1}})
    with pytest.raises(InputError, match="the run has none"):
        evaluate([], {"q2": {"a": 1}})
    with pytest.raises(InputError, match="not a number"):
        evaluate({"q": {"a": float("nan")}}, {"q": {"a": 1}})


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_dl19_bm25():
    requests = json.loads((SHARED / "trec-dl" / "dl19.bm25.json").read_text())
    rankings = [ranking(str(r["hits"][0]["qid"]), *(hit["docid"] for hit in r["hits"])) for r in requests]
    qrels: dict[str, dict[str, int]] = {}
    for line in (SHARED / "trec-dl" / "qrels.dl19-passage.txt").read_text().splitlines():
        query_id, _, doc_id, label = line.split()
        qrels.setdefault(query_id, {})[doc_id] = int(label)
    assert round(evaluate(rankings, qrels).mean["nDCG@10"], 4) == 0.5058
