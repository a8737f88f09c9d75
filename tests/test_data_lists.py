"""Candidate lists and queries: JSON lines, TSV, plain text, rank_llm's requests."""

from __future__ import annotations

import json
import logging
from itertools import islice

import pytest

from rerank.data import load_dataset, read_lists, read_queries, read_rank_llm, write_rank_llm
from rerank.errors import InputError, UnknownNameError
from rerank.types import Candidates, Hit, Passage, Query, Ranking

LINE = {
    "qid": 7,
    "query": "fleas",
    "docs": [
        {"docid": "a", "text": "one", "label": 2, "title": "T", "score": 3},
        {"docid": 5, "text": "two"},
    ],
}
CANDIDATES = Candidates(Query("fleas", "7"), (Passage("one", "a", "T", 3.0), Passage("two", "5")))


def test_a_list_and_its_labels():
    assert list(read_lists([json.dumps(LINE), "\n"])) == [(CANDIDATES, {"a": 2})]


def test_lists_are_read_as_they_arrive():
    def endless():
        number = 0
        while True:
            yield json.dumps(LINE | {"qid": (number := number + 1)}) + "\n"

    assert [c.query.query_id for c, _ in islice(read_lists(endless()), 3)] == ["1", "2", "3"]


def test_texts_come_from_the_corpus_where_the_line_has_none():
    line = json.dumps({"qid": "1", "query": "q", "docs": [{"docid": "a", "label": 0}]})
    [(candidates, labels)] = read_lists([line], corpus={"a": Passage("one", "a", "T")})
    assert (candidates.passages, labels) == ((Passage("one", "a", "T"),), {"a": 0})
    with pytest.raises(InputError, match="line 1: doc 'a' has no 'text' and no corpus was given"):
        list(read_lists([line]))
    with pytest.raises(InputError, match="line 1: doc 'a' has no 'text' and the corpus does not have it"):
        list(read_lists([line], corpus={}))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ("[]", "expected {"),
        (json.dumps(LINE | {"docs": "a"}), "no list as 'docs'"),
        (json.dumps({"qid": "1", "docs": []}), "no text as 'query'; the keys are"),
        (json.dumps(LINE | {"query": " "}), "empty"),
        (json.dumps(LINE | {"docs": LINE["docs"][:1] * 2}), "two passages with the id 'a'"),
        (json.dumps(LINE | {"docs": [{"docid": "a", "text": "", "label": 0.5}]}), "label 0.5"),
        (json.dumps(LINE | {"docs": [{"docid": "a", "text": "", "score": "x"}]}), "'score' is 'x'"),
    ],
)
def test_a_broken_line_is_located(line, why):
    with pytest.raises(InputError, match=f"stdin, line 3: .*{why}"):
        list(read_lists([json.dumps(LINE), "", line], "stdin"))


def test_empty_lists_are_skipped_with_one_warning(caplog):
    lines = [json.dumps(LINE | {"docs": []}), json.dumps(LINE), json.dumps(LINE | {"docs": []})]
    with caplog.at_level(logging.WARNING):
        assert len(list(read_lists(lines))) == 1
    assert [record.getMessage() for record in caplog.records] == ["input: skipped queries without docs: 2"]


@pytest.mark.parametrize(
    "lines",
    [
        ["1\tfleas\n", "\n", "2\tlice, fleas\n"],
        ['{"_id": 1, "text": "fleas"}', '{"qid": "2", "query": "lice, fleas"}'],
        ["fleas\r\n", "lice, fleas"],
    ],
)
def test_the_three_forms_of_queries(lines):
    assert list(read_queries(lines)) == [Query("fleas", "1"), Query("lice, fleas", "2")]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["1\tfleas", "lice"], "line 2: .*expected 'query_id<TAB>text'"),
        (["1\tfleas", "1\tlice"], "line 2: a second query with the id '1'"),
        (["1\tfleas", "2\t "], "line 2: query '2' is empty"),
        (['{"text": "fleas"}'], "line 1: no text as '_id' or 'qid'"),
    ],
)
def test_broken_queries_are_located(lines, why):
    with pytest.raises(InputError, match=f"input, {why}"):
        list(read_queries(lines))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".jsonl.xz"])
def test_rank_llm_comes_back(tmp_path, suffix):
    hits = (Hit(1, 3.0, CANDIDATES.passages[0]), Hit(2, 1.5, CANDIDATES.passages[1]))
    ranking = Ranking(CANDIDATES.query, hits)
    path = tmp_path / f"requests{suffix}"
    write_rank_llm(path, [ranking])
    assert list(read_rank_llm(path)) == [ranking.candidates()]
    assert list(load_dataset(str(path)).candidates()) == [ranking.candidates()]


def test_rank_llms_former_hits_keep_the_given_order(tmp_path):
    hits = [
        {"qid": 264014, "docid": "b", "rank": 1, "score": 1.0, "content": "two"},
        {"qid": 264014, "docid": "a", "rank": 2, "score": 3.0, "content": "one"},
    ]
    path = tmp_path / "requests.json"
    path.write_text(json.dumps([{"query": "fleas", "hits": hits}]))
    passages = (Passage("two", "b", score=1.0), Passage("one", "a", score=3.0))
    assert list(read_rank_llm(path)) == [Candidates(Query("fleas", "264014"), passages)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[", "not JSON"),
        ("{}", "expected a list of"),
        ('[{"query": "q"}]', "request 1: no list as 'hits'"),
        ('[{"query": "q", "candidates": []}]', "request 1: found 'q'; expected"),
    ],
)
def test_a_broken_request_is_located(tmp_path, text, why):
    path = tmp_path / "requests.json"
    path.write_text(text)
    with pytest.raises(InputError, match=f"requests.json(:|,) {why}"):
        list(read_rank_llm(path))


def test_lists_as_a_dataset(tmp_path):
    path = tmp_path / "lists.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE | {"qid": 8}) + "\n")
    dataset = load_dataset(str(path))
    assert dataset.qrels == {"7": {"a": 2}, "8": {"a": 2}}
    assert next(dataset.candidates(depth=1)) == Candidates(Query("fleas", "7"), CANDIDATES.passages[:1])
    assert [c.passages[0].doc_id for c in dataset.candidates(run={"8": {"a": 1.0, "5": 2.0}})] == ["5"]
    with pytest.raises(InputError, match="document 'z' for query '8' is not in"):
        list(dataset.candidates(run={"8": {"z": 1.0}}))
    with pytest.raises(InputError, match="has no corpus to search"):
        dataset.candidates(queries=[Query("lice")])
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE) + "\n")
    with pytest.raises(InputError, match="query '7' is there twice"):
        load_dataset(str(path))


def test_a_name_that_leads_nowhere(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown dataset 'scifact'; did you mean 'sample:scifact'"):
        load_dataset("scifact")
    with pytest.raises(UnknownNameError, match="unknown sample 'scifcat'; did you mean 'scifact'"):
        load_dataset("sample:scifcat")
    with pytest.raises(InputError, match=r"has no corpus\.jsonl"):
        load_dataset(str(tmp_path))
    with pytest.raises(InputError, match="is not there"):
        load_dataset(str(tmp_path / "lists.jsonl"))
