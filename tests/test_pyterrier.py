"""The PyTerrier component in real pipelines and experiments. Terrier itself, which comes as a jar from Maven, is not
here: the first stage is a run of the library's own BM25, as `pt.Transformer.from_df` takes any run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
import pytest
from service import FLEAS, QUERY, word_ranker

import rerank
from rerank.backbones import ScriptedBackbone
from rerank.calls import Call
from rerank.data.bm25 import BM25
from rerank.errors import InputError
from rerank.integrations.pyterrier import RerankTransformer
from rerank.types import Passage, Query

TOPICS = pd.DataFrame([["q1", QUERY], ["q2", "a cat on monday"]], columns=["qid", "query"])
QRELS = pd.DataFrame([["q1", "d2", 1], ["q2", "d3", 1]], columns=["qid", "docno", "label"])


def bm25() -> pt.Transformer:
    passages = [Passage(text, f"d{i}") for i, text in enumerate(FLEAS)]
    run = BM25(passages).search([Query(row.query, row.qid) for row in TOPICS.itertuples()])
    rows = [
        {"qid": qid, "docno": docno, "score": score, "rank": rank, "text": FLEAS[int(docno[1:])], "page": docno[1:]}
        for qid, found in run.items()
        for rank, (docno, score) in enumerate(found.items())
    ]
    return pt.Transformer.from_df(pd.DataFrame(rows))


def results(*texts: object, query: str = QUERY, qid: str = "q1") -> pd.DataFrame:
    rows = [[qid, query, f"d{i}", text, 10.0 - i, i] for i, text in enumerate(texts or FLEAS)]
    return pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score", "rank"])


def of(frame: pd.DataFrame, qid: str) -> list[str]:
    return list(frame[frame["qid"] == qid].sort_values("rank")["docno"])


def test_in_a_pipeline() -> None:
    pipeline = bm25() % 3 >> RerankTransformer(word_ranker())
    first, found = bm25()(TOPICS), pipeline(TOPICS)
    assert list(found.columns) == list(first.columns)
    for qid in TOPICS["qid"]:
        before = first[(first["qid"] == qid) & (first["rank"] < 3)]
        query = TOPICS.set_index("qid").loc[qid, "query"]
        expected = word_ranker().rank(query, [{"id": row.docno, "text": row.text} for row in before.itertuples()])
        mine = found[found["qid"] == qid]
        assert list(mine["docno"]) == expected.doc_ids
        assert list(mine["score"]) == [hit.score for hit in expected]
        assert list(mine["rank"]) == list(range(len(expected)))
        assert list(mine["page"]) == [docno[1:] for docno in mine["docno"]]
    assert of((pipeline % 1)(TOPICS), "q1") == of(found, "q1")[:1]
    assert list(pipeline.search(QUERY, "q1")["docno"]) == of(found, "q1")


def test_all_queries_are_one_batch() -> None:
    batches = []
    ranker = rerank.load(
        "pointwise", prompt="pointwise-yes-no", backbone=word_ranker().backbone, on_progress=batches.append
    )  # type: ignore[attr-defined]
    (bm25() >> RerankTransformer(ranker))(TOPICS)
    assert [progress.batches for progress in batches][-1] == 1


def test_in_an_experiment() -> None:
    """By ir_measures, beside the first stage and a sum with it."""
    mine = bm25() >> RerankTransformer(word_ranker())
    table = pt.Experiment([bm25(), mine, bm25() + mine], TOPICS, QRELS, ["recip_rank"], names=["a", "b", "c"])
    expected = word_ranker().rank(TOPICS["query"][1], FLEAS).doc_ids
    assert table["recip_rank"][1] == (1 + 1 / (expected.index("3") + 1)) / 2


def test_it_is_inspected_without_a_model() -> None:
    made = RerankTransformer(model="no-such-model", adapter="none", text_field="body")
    assert pt.inspect.transformer_inputs(made) == [["qid", "docno", "query", "body"]]
    columns = ["qid", "query", "docno", "body", "score", "rank"]
    assert pt.inspect.transformer_outputs(made, columns) == columns
    assert pt.inspect.transformer_outputs(made, columns[:4]) == columns
    with pytest.raises(pt.validate.InputValidationError, match="body"):
        made(results())


def test_what_was_given_stays_as_it_was() -> None:
    given = results()
    RerankTransformer(word_ranker())(given)
    pd.testing.assert_frame_equal(given, results())


def test_rows_that_are_none_empty_or_equal() -> None:
    transformer = RerankTransformer(word_ranker())
    assert len(transformer(results().head(0))) == 0
    found = transformer(
        pd.concat([results("", "a cat", None, "long"), results("a cat")]).assign(query="cat", rank=range(5))
    )
    assert list(found["docno"]) == ["d1", "d0", "d3", "d0", "d2"]
    assert list(found["score"]) == [1.0, 1.0, 0.0, -1.0, -2.0]
    assert list(found["rank"]) == [0, 1, 2, 3, 4]


def test_rows_of_a_query_need_not_be_together() -> None:
    mixed = pd.concat([results(), results(query="a cat", qid="q2")]).sort_values("docno", kind="stable")
    found = RerankTransformer(word_ranker())(mixed)
    assert of(found, "q1") == ["d2", "d1", "d0", "d3"]
    assert of(found, "q2")[0] == "d3"
    assert list(found["qid"]) == ["q1"] * 4 + ["q2"] * 4


def test_the_given_order_is_the_ranks_or_the_scores_and_not_that_of_the_rows() -> None:
    """As the operators of PyTerrier give ranks anew, and leave the rows where they are."""
    rows = results("c", "a", "b").assign(score=[1.0, 3.0, 2.0])
    ranked = pt.model.add_ranks(rows.copy())
    assert list(ranked["text"]) == ["c", "a", "b"]
    for given in (ranked, rows.drop(columns="rank")):
        seen: list[list[str]] = []

        def script(call: Call, seen: list[list[str]] = seen) -> str:
            seen.append([passage.text for passage in call.dialogue.passages])
            return "[1] > [2] > [3]"

        transformer = RerankTransformer(rerank.load("listwise", backbone=ScriptedBackbone(script)))
        assert list(transformer(given)["text"]) == ["a", "b", "c"]
        assert seen == [["a", "b", "c"]]


def test_a_query_that_cannot_be_asked() -> None:
    frame = pd.concat([results("a", "b", query=" "), results(query=QUERY, qid="q2")])
    with pytest.raises(InputError, match="is empty"):
        RerankTransformer(word_ranker())(frame)
    found = RerankTransformer(word_ranker(), on_error="keep")(frame)
    assert of(found, "q1") == ["d0", "d1"]
    assert of(found, "q2") == ["d2", "d1", "d0", "d3"]


def test_its_name_is_how_it_is_made() -> None:
    made = RerankTransformer("first", text_field="body", options={"window": 10}, on_error="keep")
    assert repr(made) == "RerankTransformer('first', text_field='body', options={'window': 10}, on_error='keep')"
    assert repr(eval(repr(made))) == repr(made)
    assert repr(made % 3) == f"({made!r} >> RankCutoff(3))"
    other = pt.inspect.transformer_apply_attributes(made, ranker="pointwise", arguments={})
    assert repr(other) == "RerankTransformer('pointwise', text_field='body')"


@pytest.mark.parametrize(("arguments", "text"), [({"ranker": "frst"}, "mean 'first'"), ({"top": 3}, "argument 'top'")])
def test_wrong_arguments_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        RerankTransformer(**arguments)


def test_by_a_model_that_is_named(tiny_model: Path) -> None:
    named = {"model": str(tiny_model), "device": "cpu", "dtype": "float32", "prompt": "pointwise-yes-no"}
    found = RerankTransformer(**named)(results())  # type: ignore[arg-type]
    expected = rerank.load("pointwise", **named).rank(QUERY, FLEAS)  # type: ignore[arg-type]
    assert [docno[1:] for docno in found["docno"]] == expected.doc_ids


@pytest.mark.model
def test_by_the_embedded_model() -> None:
    transformer = RerankTransformer()
    found = (bm25() >> transformer % 2)(TOPICS.head(1))
    first = [FLEAS[int(docno[1:])] for docno in of(bm25()(TOPICS), "q1")]
    expected = transformer._given.loaded().rank(QUERY, first)
    assert list(found["text"]) == [hit.passage.text for hit in expected.top(2)]
