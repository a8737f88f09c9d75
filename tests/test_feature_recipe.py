"""What is wrong with a feature recipe is told before data is read, and what is wrong with the data before training."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Cli, assert_error
from vectors import save_recipe, save_vectors

from rerank.clicks import Session, write_log
from rerank.errors import InputError
from rerank.training.feature_recipe import read_feature_recipe
from rerank.training.features import train_features

DLA = {"learner": "dla", "simulate": {}}
MISTAKES: list[tuple[dict[str, object], str]] = [
    ({"losss": "softmax"}, "unknown key 'losss'; did you mean 'loss'?"),
    (
        {"clicks": {"learner": "dla", "simulate": {"etta": 1}}},
        "unknown key 'clicks.simulate.etta'; did you mean 'eta'?",
    ),
    ({"data": {"train": "train.svm", "runn": "x"}}, "unknown key 'data.runn'; did you mean 'run'?"),
    ({"schedule": {"neftune": 3}}, "unknown key 'schedule.neftune'"),
    ({"clicks": {"learner": "dlaa", "simulate": {}}}, "unknown clicks.learner 'dlaa'; did you mean 'dla'?"),
    ({"clicks": {"learner": "dla"}}, "give a log, or simulate, and not both"),
    ({"clicks": {"learner": "dla", "simulate": {}, "log": "x"}}, "give a log, or simulate, and not both"),
    ({"clicks": DLA | {"propensities": [1.0]}}, "propensities is for learner ipw"),
    ({"clicks": DLA | {"rate": 0.1}}, "rate is for learner regression-em"),
    ({"clicks": {"learner": "naive", "simulate": {}, "clip": 3}}, "clip is for learner dla and ipw"),
    ({"clicks": {"learner": "ipw", "simulate": {}}}, "learner ipw needs propensities"),
    ({"clicks": {"learner": "ipw", "simulate": {}, "propensities": [0.5, 0]}}, "give a number above 0"),
    ({"clicks": {"learner": "ipw", "simulate": {}, "propensities": [0.5]}}, "has 1 positions, and 10 are shown"),
    (
        {"clicks": {"learner": "ipw", "simulate": {}, "propensities": "no.json"}},
        "clicks.propensities: 'no.json' is not there",
    ),
    ({"clicks": {"learner": "ipw", "simulate": {}, "propensities": "bad.json"}}, "bad.json is not a list of numbers"),
    (
        {"clicks": {"learner": "dla", "log": "no.jsonl"}, "data": {"train": "train.svm"}},
        "clicks.log: 'no.jsonl' is not there",
    ),
    ({"clicks": {"learner": "dla", "log": "log.jsonl"}}, "take data.run and data.share out"),
    ({"clicks": {"learner": "dla", "simulate": {"model": "cascade", "eta": 2}}}, "eta is for model position"),
    (
        {"clicks": {"learner": "dla", "simulate": {"examination": []}}},
        "examination (): give each",
    ),
    ({"clicks": {"learner": "dla", "simulate": {"drift": float("inf")}}}, "clicks.simulate.drift: "),
    ({"clicks": {"learner": "dla", "simulate": {"persistence": [0.5]}}}, "persistence is for model dependent-click"),
    ({"clicks": DLA, "data": {"train": "train.svm", "size": 11}}, "11 positions are shown and examination has 10"),
    ({"clicks": DLA, "data": {"train": "train.svm", "size": None}}, "size: null shows users all there is"),
    ({"clicks": DLA, "loss": "softmax"}, "learner dla needs loss click_softmax, not softmax"),
    ({"clicks": {"learner": "regression-em", "simulate": {}}}, "learner regression-em needs loss bce"),
    ({"network": {"hidden": [0]}}, "hidden [0]: give widths of at least 1"),
    ({"evaluation": {"dataset": "no.svm"}}, "evaluation.dataset: 'no.svm' is not there"),
    ({"evaluation": {"dataset": "valid.svm", "every": 5}, "schedule": {"save_every": 3}}, "take save_every out"),
    ({"data": {"train": "no.svm"}}, "data.train: 'no.svm' is not there"),
    ({"loss": {"name": "softmax", "reduction": "sum"}}, "take reduction out"),
    ({"loss": {"name": "pg_rank", "generator": 1}}, "its random numbers come from the recipe's seed"),
    ({"loss": {"name": "ranknet", "sigmma": 2}}, "unknown ranknet option 'sigmma'"),
]


@pytest.mark.parametrize(("changes", "why"), MISTAKES, ids=[why[:50] for _, why in MISTAKES])
def test_mistakes_are_told_before_anything_is_read(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], why: str
) -> None:
    import rerank.training.features as module

    monkeypatch.setattr(module, "read_features", lambda *_: pytest.fail("data was read"))
    for name in ("train.svm", "valid.svm", "logged.trec", "log.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "bad.json").write_text("{}")
    path = save_recipe(tmp_path, **changes)  # type: ignore[arg-type]
    for more in ((), ("--check",)):
        assert_error(cli("train", path, "--out", tmp_path / "out", *more), why)
    assert not (tmp_path / "out").exists()


def test_what_is_no_position_is_told(tmp_path: Path) -> None:
    save_vectors(tmp_path, queries=3)
    write_log(tmp_path / "log.jsonl", [Session("q1.0", ("d0", "d1"), (True, False), (1, 1_700_000_000))])
    for learner, loss in (("dla", "click_softmax"), ("regression-em", "bce")):
        clicks = {"learner": learner, "log": "log.jsonl"}
        path = save_recipe(tmp_path, data={"train": "train.svm"}, clicks=clicks, loss=loss)
        with pytest.raises(InputError, match="a session has position 1700000000, and each position up to it"):
            train_features(path, tmp_path / learner)


def test_several_processes_do_not_write_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_vectors(tmp_path, queries=3)
    path = save_recipe(tmp_path, loss="softmax")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(InputError, match="a network is trained in one process, and there are 2"):
        train_features(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_grades_that_are_not_whole_cannot_be_measured(tmp_path: Path) -> None:
    """0.5 was counted as 0."""
    save_vectors(tmp_path, queries=3)
    (tmp_path / "valid.svm").write_text("1 qid:1 5:1 # a\n0.5 qid:1 5:2 # b\n")
    path = save_recipe(tmp_path, loss="softmax", evaluation={"dataset": "valid.svm"})
    with pytest.raises(InputError, match=r"valid.svm has the label 0.5, and nDCG@10 is of whole grades"):
        train_features(path, tmp_path / "out")


def test_clicks_of_another_file_are_told(tmp_path: Path) -> None:
    save_vectors(tmp_path, queries=3)
    write_log(tmp_path / "log.jsonl", [Session("other", ("d",), (True,))])
    path = save_recipe(tmp_path, data={"train": "train.svm"}, clicks={"learner": "dla", "log": "log.jsonl"})
    with pytest.raises(InputError, match=r"no session with a click is left to train on \(1 are not of the file\)"):
        train_features(path, tmp_path / "out")
    assert read_feature_recipe(path).steps == 20
