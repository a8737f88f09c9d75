"""Runs and judgments: what we write, trec_eval reads in our order."""

from __future__ import annotations

import gzip
import io
import lzma

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank.data import read_qrels, read_run, write_run
from rerank.errors import InputError
from rerank.types import Hit, Passage, Query, Ranking


def ranking(query_id: str, *docs: tuple[str, float]) -> Ranking:
    hits = (Hit(rank, score, Passage("text", doc_id)) for rank, (doc_id, score) in enumerate(docs, start=1))
    return Ranking(Query("text", query_id), tuple(hits))


def written(*rankings: Ranking) -> list[list[str]]:
    stream = io.StringIO()
    write_run(stream, rankings, tag="ours")
    return [line.split() for line in stream.getvalue().splitlines()]


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.lists(st.floats(-1e30, 1e30), max_size=30),
        st.lists(st.sampled_from([0.0, 1.0, 16.0, 1e7, 2310938.0, -1e7]), max_size=30),
        st.lists(st.floats(-1, 1), max_size=30).map(lambda scores: sorted(scores, reverse=True)),
    )
)
def test_trec_evals_order_is_ours(scores):
    docs = [f"d{number:02}" for number in range(len(scores))]  # ascending: a tie would turn them round
    lines = written(ranking("q", *zip(docs, scores, strict=True)))
    sort_key = [(np.float32(score), doc_id) for _, _, doc_id, _, score, _ in lines]
    assert [doc_id for _, doc_id in sorted(sort_key, reverse=True)] == docs
    assert [rank for _, _, _, rank, _, _ in lines] == [str(rank) for rank in range(1, len(docs) + 1)]


def test_a_score_stays_where_it_can_and_falls_by_a_millionth_where_it_cannot():
    lines = written(ranking("q", ("a", 2.5), ("b", 2.5), ("c", 3.0), ("d", 1.25)))
    assert [line[4] for line in lines] == ["2.500000", "2.499999", "2.499998", "1.250000"]
    assert lines[0] == ["q", "Q0", "a", "1", "2.500000", "ours"]


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_a_score_that_float32_lacks_is_refused(score):
    with pytest.raises(InputError, match=r"query 'q', doc 'a': the score .* not a finite float32"):
        written(ranking("q", ("a", score)))


def test_ids_that_would_break_the_columns_are_refused():
    with pytest.raises(InputError, match="doc id 'a b' cannot stand in a TREC run"):
        written(ranking("q", ("a b", 1.0)))
    with pytest.raises(InputError, match="query id ''"):
        written(ranking("", ("a", 1.0)))
    with pytest.raises(InputError, match="tag"):
        write_run(io.StringIO(), [], tag="my run")
    with pytest.raises(InputError, match="query 'q' is ranked twice"):
        written(ranking("q", ("a", 1.0)), ranking("q", ("a", 1.0)))


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_a_run_comes_back(tmp_path, suffix):
    path = tmp_path / f"run.trec{suffix}"
    write_run(path, [ranking("é", ("a", 2.0), ("b", 1.5)), ranking("2", ("b", 1.0))], tag="t")
    assert read_run(path) == {"é": {"a": 2.0, "b": 1.5}, "2": {"b": 1.0}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1 Q0 a 1 2.0 t\n\n1 Q0 a 2 1.0 t\n", "line 3: document 'a' .* twice"),
        ("1 Q0 a 1 2.0\n", "line 1: 5 columns; expected 'query_id Q0 doc_id rank score tag'"),
        ("1 Q0 a 1 nan t\n", "line 1: the score 'nan'"),
        ("1 Q0 a 1 high t\n", "line 1: the score 'high'"),
    ],
)
def test_a_broken_run_is_located(tmp_path, text, why):
    path = tmp_path / "run.trec"
    path.write_text(text)
    with pytest.raises(InputError, match=f"run.trec, {why}"):
        read_run(path)


@pytest.mark.parametrize(
    "text",
    [
        "1 0 a 2\n1 0 b -1\n2 0 a 0\n",
        "query-id\tcorpus-id\tscore\n1\ta\t2\n1\tb\t-1\n2\ta\t0\n",
        "1\ta\t2\r\n1\tb\t-1\r\n\r\n2\ta\t0",
    ],
)
def test_both_forms_of_qrels(tmp_path, text):
    for name, data in (
        ("qrels", text.encode()),
        ("qrels.gz", gzip.compress(text.encode())),
        ("qrels.xz", lzma.compress(text.encode())),
    ):
        (tmp_path / name).write_bytes(data)
        assert read_qrels(tmp_path / name) == {"1": {"a": 2, "b": -1}, "2": {"a": 0}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1 0 a 1\n1 0 b 1.5\n", "line 2: .*whole number"),
        ("1 0 a 1\n1 0 a 2\n", "line 2: document 'a' has another label"),
        ("1 a\n", "line 1: .*expected 'query_id 0 doc_id label'"),
    ],
)
def test_broken_qrels_are_located(tmp_path, text, why):
    path = tmp_path / "qrels"
    path.write_text(text)
    with pytest.raises(InputError, match=f"qrels, {why}"):
        read_qrels(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        read_run(tmp_path / "nowhere")
    for name, data in (
        ("cut.gz", gzip.compress(b"1 0 a 1")[:-9]),
        ("no.xz", b"text"),
        ("latin", b"1 0 \xe9 1"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name):
            read_qrels(tmp_path / name)
