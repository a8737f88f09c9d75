"""Feature vectors: the file, the network, and training it on judgments and on clicks."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from command import Cli
from safetensors.torch import load_file
from training import Stopped, curve, losses, stop_at
from vectors import made, save_kinds, save_recipe, save_vectors

from rerank.clicks import EXAMINATION, Session, write_log
from rerank.data import Features, read_features, read_run, write_features
from rerank.errors import InputError
from rerank.training.click_parts import Clicks
from rerank.training.feature_recipe import FeatureData
from rerank.training.features import TrainedNetwork, train_features
from rerank.training.impressions import read_impressions
from rerank.training.network import Network, measured, rankings

MSLR = "2 qid:10 1:0.5 2:0 3:-12\n0 qid:10 1:1e-3 3:4 #docid = G1-2 inc = 1\n\n# all\n1 qid:2 2:7 # D9\n"
SIMULATE: dict[str, object] = {"simulate": {}}


def same(one: Features, other: Features) -> bool:
    if (one.query_ids, one.doc_ids) != (other.query_ids, other.doc_ids):
        return False
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("values", "labels", "starts"))


def test_a_file_as_letor_has_it(tmp_path: Path) -> None:
    (tmp_path / "x.svm").write_text(MSLR)
    found = read_features(tmp_path / "x.svm")
    assert found.query_ids == ("10", "2") and found.starts.tolist() == [0, 2, 3]
    assert found.doc_ids == ("0", "G1-2", "D9") and found.labels.tolist() == [2, 0, 1]
    expected = np.array([[0.5, 0, -12], [1e-3, 0, 4], [0, 7, 0]], np.float32)
    assert np.array_equal(found.values, expected)
    assert np.array_equal(read_features(tmp_path / "x.svm", 4).values[:, :3], expected)
    some = found.select([1])
    assert some.query_ids == ("2",) and some.values.tolist() == [[0, 7, 0]] and some.starts.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["x.svm", "x.svm.gz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    rounded = made(20)
    rounded = Features(rounded.query_ids, rounded.starts, np.round(rounded.values, 3), rounded.labels, rounded.doc_ids)
    write_features(tmp_path / name, rounded)
    assert same(read_features(tmp_path / name), rounded)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1 1:2\n", "line 1: '1 1:2'; expected 'label qid:ID"),
        ("x qid:1 1:2\n", "line 1: 'x qid:1 1:2' has something that is no number"),
        ("1 qid:1 1:2\n1 qid:1 1:y\n", "line 2: '1 qid:1 1:y' has something that is no number"),
        ("1 qid:1 1:nan\n", "line 1: '1 qid:1 1:nan' has a number that is not finite"),
        ("1 qid:1 0:2 1:1\n", "line 1: the feature 1; they are numbered from 1"),
        ("1 qid:1 1:2\n1 qid:2 1:2\n0 qid:1 1:1\n", "line 3: query '1' comes again after another one"),
        ("1 qid:1 1:2 # a\n1 qid:1 1:2 # a\n", "line 2: document 'a' of query '1' comes twice"),
        ("", "no features in its first lines"),
        ("1 qid:1\n", "no features in its first lines"),
    ],
)
def test_bad_lines_are_refused_with_their_place(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "x.svm").write_text(text)
    with pytest.raises(InputError) as caught:
        read_features(tmp_path / "x.svm")
    assert why in str(caught.value)


def test_a_feature_that_comes_late_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.svm").write_text(
        "1 qid:1 1:2\n" * 1 + "".join(f"0 qid:{i} 1:1\n" for i in range(2, 1100)) + "1 qid:z 2:1\n"
    )
    with pytest.raises(InputError, match="the feature 2; they are numbered from 1 to 1 here"):
        read_features(tmp_path / "x.svm")
    assert read_features(tmp_path / "x.svm", 2).values.shape == (1100, 2)


@pytest.mark.parametrize("normalise", ["query", "standard", "none"])
def test_normalisation_and_the_folder(tmp_path: Path, normalise: str) -> None:
    data = made(6)
    data.values[:, 4] = 3.0  # says nothing
    network = Network(5, (4,), normalise, seed=3)  # type: ignore[arg-type]
    network.fit(data)
    values = network.normalised(data)
    if normalise == "query":
        own = values[data.rows(2)]
        assert own[:, :4].amin(0).tolist() == [0] * 4 and own[:, :4].amax(0).tolist() == [1] * 4
        assert bool((values[:, 4] == 0).all())
    elif normalise == "standard":
        assert torch.allclose(values.mean(0)[:4], torch.zeros(4), atol=1e-5)
        assert torch.allclose(values.std(0, correction=0)[:4], torch.ones(4), atol=1e-5)
        assert bool((values[:, 4] == 0).all())
    else:
        assert torch.equal(values, torch.from_numpy(data.values))
    network.save(tmp_path / "network")
    loaded = Network.load(tmp_path / "network")
    assert torch.equal(loaded.scores(loaded.normalised(data)), network.scores(values))
    with pytest.raises(InputError, match="the file has 4 features, and the network 5"):
        loaded.normalised(Features(("q",), np.array([0, 1]), np.zeros((1, 4), np.float32), np.zeros(1), ("d",)))
    with pytest.raises(InputError, match="holds no network"):
        Network.load(tmp_path)


def test_rankings_and_their_measure() -> None:
    data = made(3)
    (first, *_) = found = list(rankings(data, torch.from_numpy(data.labels)))
    assert [ranking.query.query_id for ranking in found] == list(data.query_ids)
    labels = [data.labels[data.doc_ids.index(hit.passage.doc_id)] for hit in first]
    assert labels == sorted(labels, reverse=True)
    assert measured(data, torch.from_numpy(data.labels), "nDCG@10") == pytest.approx(1.0)
    assert measured(data, -torch.from_numpy(data.labels), "nDCG@10") < 0.8


def test_what_is_shown_is_the_head_of_the_run(tmp_path: Path) -> None:
    data = Features(
        ("a", "b", "c", "d"), np.array([0, 3, 6, 8, 9]), np.zeros((9, 1), np.float32),
        np.array([0, 1, 2, 1, 1, 0, 1, 0, 1], np.float32), ("x", "y", "z", "x", "y", "z", "x", "y", "x"),
    )  # fmt: skip
    run = "a Q0 z 1 3 t\na Q0 x 2 2 t\na Q0 y 3 1 t\nb Q0 x 1 3 t\nb Q0 y 2 2 t\nb Q0 z 3 1 t\nd Q0 x 1 1 t\n"
    (tmp_path / "run.trec").write_text(run)
    options = {"batch": 1, "steps": 9, "seed": 0}
    part = FeatureData(train="x.svm", run="run.trec", size=2)
    lists = read_impressions(data, part, None, tmp_path, **options)  # b shows one label only, c is not in the run
    batch = lists[0]
    assert batch.rows.tolist() == [[2, 0]] and batch.labels.tolist() == [[2, 0]]
    assert batch.positions.tolist() == [[1, 2]] and lists.longest == 2
    (tmp_path / "short.trec").write_text("a Q0 z 1 3 t\na Q0 x 2 2 t\nb Q0 z 1 3 t\n")  # not all documents of a
    short = read_impressions(data, FeatureData(train="x.svm", run="short.trec"), None, tmp_path, **options)
    assert short[0].rows.tolist() == [[2, 0]] and short[0].positions.tolist() == [[1, 2]]
    alone = read_impressions(data, FeatureData(train="x.svm", size=None), None, tmp_path, **options)
    seen = {tuple(alone[i].rows[0][alone[i].mask[0]].tolist()) for i in range(3)}
    assert seen == {(0, 1, 2), (3, 4, 5), (6, 7)}  # each once before one comes again
    log = [
        Session("b", ("z", "x"), (True, False), (3, 1)),
        Session("a", ("x",), (False,)),
        Session("e", ("x",), (True,)),
        Session("a", ("w",), (True,)),
    ]
    write_log(tmp_path / "log.jsonl", log)
    clicks = Clicks(learner="naive", log="log.jsonl")
    logged = read_impressions(data, FeatureData(train="x.svm"), clicks, tmp_path, **options | {"batch": 2})
    batch = logged[0]
    at = batch.rows[:, 0].tolist().index(5)
    assert batch.rows[at].tolist() == [5, 3] and batch.labels[at].tolist() == [1, 0]
    assert batch.positions[at].tolist() == [3, 1]
    assert batch.mask[1 - at].tolist() == [True, False] and batch.positions[1 - at].tolist() == [1, 0]


def test_simulated_clicks_are_of_the_users_and_of_the_step(tmp_path: Path) -> None:
    data = made(64)
    clicks = Clicks.model_validate({"learner": "dla", "simulate": {"noise": 0}})
    options = {"batch": 64, "steps": 300, "seed": 0}
    lists = read_impressions(data, FeatureData(train="x.svm"), clicks, tmp_path, **options)
    batches = [lists[i] for i in range(300)]
    assert all(np.array_equal(lists[i].labels, batches[i].labels) for i in (7, 3))
    clicked = np.concatenate([b.labels for b in batches])
    relevance = (2 ** data.labels[np.concatenate([b.rows for b in batches])] - 1) / 15
    assert clicked.mean(0) == pytest.approx(relevance.mean(0) * EXAMINATION, abs=4 * 0.0025)
    assert set(np.unique(clicked)) == {0, 1}


def trained(folder: Path, name: str, **changes: object) -> TrainedNetwork:
    return train_features(save_recipe(folder, name, **changes), folder / name)


def test_dla_recovers_the_examination_and_ranks_as_from_judgments(tmp_path: Path) -> None:
    """The claim of the paper, small. Naive clicks stay below."""
    save_kinds(tmp_path)
    options: dict[str, object] = {
        "schedule": {"lists": 500 * 256, "batch": 256, "learning_rate": 0.02, "decay": "cosine"},
        "network": {"hidden": [], "normalise": "none"},
        "evaluation": {"dataset": "valid.svm", "every": 500},
    }
    full = trained(tmp_path, "full", loss="softmax", **options)
    found = {
        name: trained(tmp_path, name, clicks={"learner": name, **SIMULATE}, **options) for name in ("dla", "naive")
    }
    assert full.measure and found["dla"].measure and found["naive"].measure
    assert found["dla"].measure > 0.97 * full.measure > found["naive"].measure
    learnt = np.array(json.loads((tmp_path / "dla" / "propensities.json").read_text()))
    truth = np.array(EXAMINATION)
    assert np.abs(learnt - truth / truth[0]).mean() < 0.03
    picture = matplotlib.image.imread(tmp_path / "dla" / "propensities.png")
    assert picture.shape[:2] == (540, 1200)
    assert not (tmp_path / "naive" / "propensities.json").exists()


@pytest.mark.parametrize(
    ("learner", "more", "loss"),
    [
        ("ipw", {"propensities": "given.json", "clip": 10}, "click_softmax"),
        ("regression-em", {"rate": 0.1}, "bce"),
        ("naive", {}, "ranknet"),
    ],
)
def test_every_learner_learns(tmp_path: Path, learner: str, more: dict[str, object], loss: str) -> None:
    save_vectors(tmp_path)
    (tmp_path / "given.json").write_text(json.dumps(EXAMINATION))
    result = trained(
        tmp_path, "one", loss=loss, clicks={"learner": learner, **SIMULATE, **more},
        schedule={"lists": 6400, "learning_rate": 1e-2, "decay": "cosine"},
        network={"hidden": [8], "normalise": "query"},
    )  # fmt: skip
    valid = read_features(tmp_path / "valid.svm")
    network = Network.load(result.folder)
    begun = Network(5, (8,), "query", seed=0)
    value, before = (measured(valid, n.scores(n.normalised(valid)), "nDCG@10") for n in (network, begun))
    assert value > max(before + 0.05, 0.85)


KILLED = """
import os, signal, sys
from rerank.training.features import train_features
kill = lambda m: os.kill(os.getpid(), signal.SIGKILL) if m.step == 13 else None
train_features(sys.argv[1], sys.argv[2], watch=kill)
"""


def test_a_killed_run_goes_on_to_the_same_network(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_vectors(tmp_path)
    changes: dict[str, object] = {
        "clicks": {"learner": "dla", "simulate": {"drift": 2.0}},
        "evaluation": {"dataset": "valid.svm", "every": 5},
        "schedule": {"decay": "cosine", "weight_decay": 0.1},
    }
    whole = trained(tmp_path, "toy", **changes)
    command = [sys.executable, "-c", KILLED, tmp_path / "toy.yaml", tmp_path / "killed"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with caplog.at_level(logging.INFO, logger="rerank"):
        again = train_features(tmp_path / "toy.yaml", tmp_path / "killed")
    assert "going on from checkpoint-10" in caplog.text
    one, other = (
        load_file(folder / "network" / "network.safetensors") for folder in (tmp_path / "toy", tmp_path / "killed")
    )
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    assert losses(tmp_path / "killed") == pytest.approx(losses(tmp_path / "toy"), abs=1e-6)
    assert [line["step"] for line in curve(tmp_path / "killed")] == [line["step"] for line in curve(tmp_path / "toy")]
    lines = [
        [json.loads(line) for line in (tmp_path / n / "propensities.jsonl").read_text().splitlines()]
        for n in ("toy", "killed")
    ]
    assert len(lines[0]) == len(lines[1]) == 20
    for a, b in zip(*lines, strict=True):
        assert a["learnt"] == pytest.approx(b["learnt"], abs=1e-5) and a["true"] == b["true"]
    assert again.measure == pytest.approx(whole.measure) and not math.isnan(again.loss)
    assert train_features(tmp_path / "toy.yaml", tmp_path / "killed") == again
    with pytest.raises(InputError, match="another recipe"):
        train_features(save_recipe(tmp_path, "toy", seed=3), tmp_path / "killed")


@pytest.mark.parametrize("loss", [{"name": "pg_rank", "samples": 4}, "gumbel_approx_ndcg"], ids=str)
def test_a_loss_that_samples_draws_by_the_seed_and_the_step(tmp_path: Path, loss: object) -> None:
    save_vectors(tmp_path, queries=60)
    changes: dict[str, object] = {"loss": loss, "schedule": {"save_every": 5}}
    trained(tmp_path, "toy", **changes)
    with pytest.raises(Stopped):
        train_features(tmp_path / "toy.yaml", tmp_path / "stopped", watch=stop_at(8))
    train_features(tmp_path / "toy.yaml", tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "toy")
    one, other = (
        load_file(folder / "network" / "network.safetensors") for folder in (tmp_path / "toy", tmp_path / "stopped")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_best_network_is_kept_and_patience_ends(tmp_path: Path) -> None:
    save_vectors(tmp_path)
    evaluation = {"dataset": "valid.svm", "every": 1, "patience": 4}
    result = trained(
        tmp_path, "toy", loss="softmax", evaluation=evaluation, schedule={"lists": 32 * 200, "learning_rate": 0.5}
    )
    values = [line["measure"] for line in curve(tmp_path / "toy") if "measure" in line]
    assert result.steps == len(values) == values.index(max(values)) + 5 < 200
    valid, network = read_features(tmp_path / "valid.svm"), Network.load(result.folder)
    assert measured(valid, network.scores(network.normalised(valid)), "nDCG@10") == pytest.approx(max(values))
    assert result.measure == max(values)


def test_the_commands(tmp_path: Path, cli: Cli, beir: Path) -> None:
    """Vectors of text, a logging ranker of few labels, its run, a log of clicks, training on it, a run."""
    done = cli("data", "features", beir, "-o", tmp_path / "x.svm", "--no-embeddings")
    assert done.status == 0, done.err
    data = read_features(tmp_path / "x.svm")
    assert data.query_ids == ("q1", "q2") and "both-bm25" in done.err and "cosine" not in done.err
    assert data.labels[data.doc_ids.index("d3")] == 2
    save_vectors(tmp_path, queries=60)
    recipe = save_recipe(
        tmp_path,
        "weak",
        loss="ranknet",
        data={"train": "train.svm", "share": 0.1, "size": None},
        network={"hidden": []},
    )
    done = cli("train", recipe, "-o", tmp_path / "weak")
    assert done.status == 0, done.err
    assert done.out.startswith("20 steps, loss ") and done.out.splitlines()[0].endswith(" lists/s")
    assert done.err == "train.svm: 6 of 6 queries; dropped: 0 that order nothing, 0 not in the run\n"
    run = tmp_path / "weak.trec"
    assert cli("data", "score", tmp_path / "weak" / "network", tmp_path / "train.svm", "-o", run).status == 0
    assert len(read_run(run)) == 60
    done = cli("data", "clicks", tmp_path / "train.svm", "--run", run, "-n", 400, "-o", tmp_path / "log.jsonl")
    assert done.status == 0 and "400 sessions of 60 queries" in done.err
    clicks = {"learner": "dla", "log": "log.jsonl"}
    recipe = save_recipe(tmp_path, "dla", data={"train": "train.svm"}, clicks=clicks)
    assert cli("train", recipe, "--check").out == f"{recipe}: a sound recipe: dla, features\n"
    done = cli("train", recipe, "-o", tmp_path / "dla")
    assert done.status == 0, done.err
    assert len(json.loads((tmp_path / "dla" / "propensities.json").read_text())) == 10
    printed = cli("data", "score", tmp_path / "dla" / "network", tmp_path / "valid.svm")
    assert printed.status == 0 and len(printed.out.splitlines()) == 1000
