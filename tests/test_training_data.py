"""Sources: what is read, and what is left out."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, pstdev

import pytest
import yaml
from pydantic import ValidationError

from rerank.data import Run, read_lists
from rerank.errors import InputError, UnknownNameError
from rerank.training.sources import Pool, Source, fused, normalised, read_pools


def line(query_id: str, labels: Sequence[int | None], query: str | None = None, **more: object) -> str:
    docs = [{"docid": f"{query_id}-{i}", "text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    return json.dumps({"qid": query_id, "query": query or f"about {query_id}", "docs": docs} | more) + "\n"


def save_run(path: Path, run: Run) -> str:
    rows = [f"{q} Q0 {d} 1 {score} t\n" for q, docs in run.items() for d, score in docs.items()]
    path.write_text("".join(rows))
    return path.name


def pools(folder: Path, **settings: object) -> list[Pool]:
    return read_pools(Source.model_validate({"dataset": "lists.jsonl"} | settings), folder)


def labelled(pool: Pool) -> dict[str, float]:
    return dict(zip([p.doc_id for p in pool.passages], pool.labels, strict=True))


# Sources


def test_lists_become_pools_and_the_log_counts_what_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lists.jsonl").write_text(
        line("a", [0, 2, 1]) + line("b", [1, 1]) + line("c", [None, None]) + line("d", [0, 1], "Was it A TEST?")
    )
    (tmp_path / "test.tsv").write_text("t1\twas it a  test\n")
    with caplog.at_level(logging.INFO, "rerank"):
        (found,) = pools(tmp_path, exclude="test.tsv")
    assert (found.query.query_id, labelled(found), found.ranked) == ("a", {"a-0": 0, "a-1": 2, "a-2": 1}, True)
    (said,) = [r.getMessage() for r in caplog.records]
    assert said.startswith("lists.jsonl: 1 of 4 queries; dropped: ")
    for count in ("1 excluded", "1 that order nothing", "1 without judgments"):
        assert count in said


@pytest.mark.parametrize("name", ["test.jsonl", "lists2.jsonl", "beir", "beir:test", "test.txt"])
def test_queries_are_left_out_by_their_words_whatever_names_them(name: str, tmp_path: Path, beir: Path) -> None:
    (tmp_path / "lists.jsonl").write_text(
        line("x", [0, 1], "Bone density?") + line("y", [0, 1], "how long does a flea live") + line("z", [0, 1])
    )
    asked = ["how long does a FLEA live", " bone  density"]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"_id": q, "text": q}) + "\n" for q in asked))
    (tmp_path / "test.txt").write_text("\n".join(asked))
    (tmp_path / "lists2.jsonl").write_text("".join(line(str(i), [0], q) for i, q in enumerate(asked)))
    assert [p.query.query_id for p in pools(tmp_path, exclude=[name])] == ["z"]


def test_words_alone_are_compared() -> None:
    assert normalised("  What's  THE\tﬁne? ") == normalised("what s the fine") == "what s the fine"
    assert normalised("a b") != normalised("ab")


def test_judgments_of_a_folder_with_bm25_or_a_run(tmp_path: Path, beir: Path) -> None:
    by_bm25 = pools(tmp_path, dataset="beir:test")
    assert [labelled(p) for p in by_bm25] == [{"d1": 1, "d2": 0}, {"d3": 2, "d4": 1}]
    run = save_run(tmp_path / "r.trec", {"q1": {"d2": 1.0, "d4": 3.0, "d1": 2.0}, "q2": {"d4": 2.0, "d3": 1.0}})
    first, second = pools(tmp_path, dataset="beir:test", run=run)
    assert by_bm25[0].ranked and first.ranked
    assert [p.doc_id for p in first.passages] == ["d4", "d1", "d2"]  # by score
    assert labelled(first) == {"d4": 0, "d1": 1, "d2": 0} and labelled(second) == {"d4": 1, "d3": 2}
    assert [p.doc_id for p in pools(tmp_path, dataset="beir:test", run=run, depth=2)[0].passages] == ["d4", "d1"]
    (dropped,) = pools(tmp_path, dataset="beir:test", run=run, unjudged="drop")  # q1 has one judged passage
    assert dropped.query.query_id == "q2"


def test_passages_of_a_corpus_are_shared(tmp_path: Path, beir: Path) -> None:
    run = save_run(tmp_path / "r.trec", {q: {"d1": 3.0, "d3": 2.0, "d4": 1.0} for q in ("q1", "q2")})
    first, second = pools(tmp_path, dataset="beir:test", run=run)
    assert all(a is b for a, b in zip(first.passages, second.passages, strict=True))


def test_texts_from_a_corpus(tmp_path: Path, beir: Path) -> None:
    docs = [{"docid": "d1", "label": 1}, {"docid": "d2", "label": 0}]
    (tmp_path / "lists.jsonl").write_text(json.dumps({"qid": 1, "query": "q", "docs": docs}) + "\n")
    for name in ("beir", "beir/corpus.jsonl"):
        (found,) = pools(tmp_path, corpus=name)
        assert [(p.title, p.text[:8]) for p in found.passages] == [("Fleas", "the flea"), ("", "a cat ma")]
    with pytest.raises(InputError, match="doc 'd1' has no 'text'"):
        pools(tmp_path)
    (tmp_path / "lists.jsonl").write_text(json.dumps({"qid": 1, "query": "bone flea", "docs": docs}) + "\n")
    (searched,) = pools(tmp_path, corpus="beir", run="bm25")
    assert labelled(searched) == {"d1": 1, "d2": 0, "d3": 0, "d4": 0}  # beyond what the list has
    (given,) = pools(tmp_path, corpus="beir", run=save_run(tmp_path / "r.trec", {"1": {"d4": 2.0, "d1": 1.0}}))
    assert labelled(given) == {"d4": 0, "d1": 1}


def test_a_limit_takes_always_the_same_queries_and_not_the_first(tmp_path: Path) -> None:
    (tmp_path / "lists.jsonl").write_text("".join(line(str(i), [0, 1]) for i in range(200)))
    few, more = (([p.query.query_id for p in pools(tmp_path, limit=n)]) for n in (20, 50))
    assert more[:20] == few and len(set(more)) == 50
    assert few != [str(i) for i in range(20)]


def test_spam_below_zero_is_not_relevant(tmp_path: Path, beir: Path) -> None:
    (beir / "qrels" / "train.tsv").write_text("q1 0 d1 1\nq1 0 d2 -2\n")
    run = save_run(tmp_path / "r.trec", {"q1": {"d1": 1.0, "d2": 2.0}})
    (found,) = pools(tmp_path, dataset="beir:train", run=run)
    assert labelled(found) == {"d2": 0, "d1": 1}


# Teachers

SCORES = {"a": 9.0, "b": 3.0, "c": 6.0}
OTHERS = {"a": 0.1, "b": 0.3, "d": 0.9}


def test_teachers_are_fused_as_the_mean_of_z_scores_over_what_all_scored() -> None:
    assert fused([SCORES]) == SCORES

    def z(scores: Run | dict[str, float], doc_id: str) -> float:
        shared = [float(scores[d]) for d in ("a", "b")]  # type: ignore[arg-type]
        return (float(scores[doc_id]) - mean(shared)) / pstdev(shared)  # type: ignore[arg-type]

    three = {"a": 1.0, "b": 5.0, "c": 0.0, "d": 0.0}
    expected = {d: (z(SCORES, d) + z(OTHERS, d) + z(three, d)) / 3 for d in ("a", "b")}
    assert fused([SCORES, OTHERS, three]) == pytest.approx(expected)
    assert fused([{"a": 1.0, "b": 2.0}, {"a": 7.1, "b": 7.1}]) == pytest.approx({"a": -0.5, "b": 0.5})
    assert fused([{"a": 1.0}, {"b": 1.0}]) == {}


def test_a_teacher_labels_the_dataset_s_own_candidates_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "lists.jsonl").write_text(line("a", [0, 2, 1]) + line("b", [0, 1]))
    run = save_run(tmp_path / "t.trec", {"a": {"a-2": 5.0, "a-0": -1.5}})
    (found,) = pools(tmp_path, teacher=run)
    assert [(p.doc_id, label) for p, label in zip(found.passages, found.labels, strict=True)] == [
        ("a-0", -1.5),
        ("a-2", 5.0),
    ]
    assert found.ranked
    (both,) = pools(tmp_path, teacher=[run], judgment_weight=10)
    assert labelled(both) == {"a-0": -1.5 + 10 * 0, "a-2": 5.0 + 10 * 1}


def test_thresholds_make_grades_of_a_teacher_s_scores(tmp_path: Path) -> None:
    (tmp_path / "lists.jsonl").write_text(line("a", [0, 2, 1, 1]))
    run = save_run(tmp_path / "t.trec", {"a": {"a-0": -1.5, "a-1": 0.5, "a-2": 1.99, "a-3": 9.0}})
    (found,) = pools(tmp_path, teacher=run, grades=[0.5, 2])
    assert labelled(found) == {"a-0": 0, "a-1": 1, "a-2": 1, "a-3": 2}
    (both,) = pools(tmp_path, teacher=run, grades=[0.5, 2], judgment_weight=1)  # 2 for a-1, 1 for a-2 and a-3
    assert labelled(both) == {"a-0": 0, "a-1": 2, "a-2": 2, "a-3": 2}
    with pytest.raises(InputError, match="that order nothing"):
        pools(tmp_path, teacher=run, grades=[-2])


def test_without_a_first_stage_the_candidates_are_the_teachers_and_in_no_order_to_show(
    tmp_path: Path, beir: Path
) -> None:
    one = save_run(tmp_path / "t.trec", {"q1": {"d1": 5.0, "d2": 4.0, "d3": 1.0}})
    two = save_run(tmp_path / "u.trec", {"q1": {"d1": 0.0, "d2": 4.0, "d4": 1.0}})
    (alone,) = pools(tmp_path, dataset="beir", teacher=one)
    (found,) = pools(tmp_path, dataset="beir", teacher=[one, two], depth=2, labels="teacher", judgment_weight=3)
    assert (labelled(alone), alone.ranked) == ({"d1": 5.0, "d2": 4.0, "d3": 1.0}, False)
    assert labelled(found) == pytest.approx({"d1": (1 - 1) / 2 + 3, "d2": (-1 + 1) / 2})
    for order in ("first-stage", "mixed"):
        with pytest.raises(InputError, match=f"order: {order} needs a first stage.*give its run, or run: bm25"):
            pools(tmp_path, dataset="beir", teacher=one, order=order)
    (by_bm25,) = pools(tmp_path, dataset="beir", teacher=one, order="first-stage", run="bm25")
    assert by_bm25.ranked and set(labelled(by_bm25)) == {"d1", "d2"}  # d3 has no word of the query


def test_scores_inside_the_lists_teach_only_when_asked(tmp_path: Path) -> None:
    docs = [{"docid": "a", "text": "t", "score": 2.5}, {"docid": "b", "text": "t", "score": 0.5}]
    docs += [{"docid": "c", "text": "t"}]
    (tmp_path / "lists.jsonl").write_text(json.dumps({"qid": 1, "query": "q", "docs": docs}) + "\n")
    with pytest.raises(InputError, match="has no judgments to train on; give a teacher's run, or labels: teacher"):
        pools(tmp_path)
    (found,) = pools(tmp_path, labels="teacher")
    assert labelled(found) == {"a": 2.5, "b": 0.5}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"dataset": "nope.jsonl"}, r"the dataset 'nope.jsonl' is not there .*relative to the recipe's folder"),
        ({"dataset": "beri:test"}, r"'beri' is not there .*; did you mean 'beir'\?"),
        ({"teacher": "list.jsonl"}, r"did you mean 'lists.jsonl'\?"),
        ({"dataset": "beir:trian"}, "unknown split of beir 'trian'; known: test"),
        ({"teacher": "nope.trec"}, "the file 'nope.trec' is not there"),
        ({"run": "nope.trec"}, "the file 'nope.trec' is not there"),
        ({"exclude": "nope"}, "the dataset 'nope' is not there"),
        ({"corpus": "nope"}, "the file 'nope' is not there"),
    ],
)
def test_what_is_not_there_is_found_before_anything_is_read(
    settings: dict[str, object], why: str, tmp_path: Path, beir: Path
) -> None:
    (tmp_path / "lists.jsonl").write_text("broken")
    with pytest.raises(InputError, match=why):
        Source.model_validate({"dataset": "lists.jsonl"} | settings).check(tmp_path)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"teacher": "other.trec"}, "the teacher other.trec and lists.jsonl share no query id"),
        ({"run": "bm25"}, "run: bm25 needs a corpus to search"),
        ({"exclude": "lists.jsonl"}, r"no query is left to train on \(dropped: 1 excluded\)"),
        ({"dataset": "plain.jsonl", "labels": "teacher", "judgment_weight": 1.0}, "take judgment_weight out"),
        ({"dataset": "beir", "corpus": "beir"}, "a corpus serves lists"),
    ],
)
def test_what_does_not_go_together_is_said(settings: dict[str, object], why: str, tmp_path: Path, beir: Path) -> None:
    (tmp_path / "lists.jsonl").write_text(line("a", [0, 1]))
    (tmp_path / "plain.jsonl").write_text(line("a", [None, None]))
    save_run(tmp_path / "other.trec", {"z": {"a-0": 1.0}})
    with pytest.raises(InputError, match=why):
        pools(tmp_path, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"labels": "judgments", "teacher": "t"},
        {"judgment_weight": 1.0},
        {"grades": [1]},
        {"teacher": "t", "grades": [1, 1]},
        {"teacher": "t", "grades": [2, 1]},
        {"teacher": "t", "grades": [float("inf")]},
        {"teacher": "t", "unjudged": "drop"},
        {"depth": 1},
        {"size": 1},
        {"weight": 0},
        {"wieght": 1},
    ],
)
def test_no_setting_is_ignored(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Source.model_validate({"dataset": "d"} | settings)


def test_a_named_sample_needs_no_path(tmp_path: Path) -> None:
    found = read_pools(Source(dataset="sample:scifact", limit=10), tmp_path)
    assert len(found) == 10 and all(len(p.passages) > 2 for p in found)
    with pytest.raises(UnknownNameError):
        read_pools(Source(dataset="sample:scifct"), tmp_path)


def test_what_the_docs_show_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[1] / "docs" / "training-data.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```(yaml|python|json)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))
    assert len([Source.model_validate(entry) for entry in yaml.safe_load(blocks["yaml"])["data"]]) == 3
    ((_, labels),) = read_lists([blocks["json"]])
    assert labels == {"a": 2}
    exec(compile(blocks["python"], "training-data.md", "exec"), {})
    assert "1.0" in capsys.readouterr().out
    keys = set(re.findall(r"`(\w+)`", text))
    assert set(Source.model_fields) - {"name"} <= keys, "every key is explained"
