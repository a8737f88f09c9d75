"""Training a language model on clicks: sessions, learners, checkpoints, mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import Cli, assert_error
from training import curve, losses, recipe, save_lists, save_recipe, trained

import rerank
from rerank.clicks import EXAMINATION, Session, write_log
from rerank.data import load_dataset
from rerank.errors import InputError
from rerank.eval import evaluate
from rerank.training import session as training_session
from rerank.training.click_parts import Clicks, Simulate
from rerank.training.feature_recipe import FeatureRecipe
from rerank.training.propensities import read_propensities
from rerank.training.recipe import Recipe
from rerank.training.sessions import Sessions, read_shown
from rerank.training.sources import Source
from rerank.training.train import train
from rerank.training.trainer import Moment

SEEN = {"simulate": {"noise": 0.05, "examination": [0.9, 0.6, 0.4, 0.2, 0.1]}}
DATA = [{"dataset": "lists.jsonl", "size": 5}]


def clicked(model: Path, strategy: str = "pointwise", **changes: Any) -> dict[str, object]:
    changes = {"loss": "click_softmax", "data": DATA, "clicks": {"learner": "dla", **SEEN}} | changes
    return recipe(model, strategy, **changes)


def pools_of(folder: Path, clicks: Clicks, **source: Any) -> list[Any]:
    save_lists(folder / "lists.jsonl", queries=6)
    return read_shown(clicks, Source(dataset="lists.jsonl", **source), folder)


def test_sessions_are_shuffled_and_positions_are_where_users_saw_them(tmp_path: Path) -> None:
    everything = {"noise": 0.0, "eta": 0.0}
    clicks = Clicks.model_validate({"learner": "naive", "simulate": everything})
    pools = pools_of(tmp_path, clicks, size=5)
    lists = Sessions(pools, clicks, seed=1, total=30)
    again = Sessions(pools, clicks, seed=1, total=300)
    orders = set()
    for i in range(30):
        item = lists[i]
        pool = next(pool for pool in pools if pool.query.query_id == item.query.query_id)
        assert sorted(item.positions) == [1, 2, 3, 4, 5]
        assert [pool.passages[at - 1] for at in item.positions] == list(item.passages)
        assert item.labels == tuple(float(p.doc_id.endswith("best")) for p in item.passages)  # all is looked at
        orders.add(item.positions)
        assert again[i] == item
    assert len(orders) > 20
    for start in range(0, 30, 6):  # every query once before one comes again
        assert len({lists[i].query.query_id for i in range(start, start + 6)}) == 6
    assert lists[-1] == lists[29]
    with pytest.raises(IndexError):
        lists[30]


def test_simulated_users_look_less_far_down(tmp_path: Path) -> None:
    clicks = Clicks.model_validate({"learner": "naive", **SEEN, "simulate": SEEN["simulate"] | {"noise": 0.9}})
    lists = Sessions(pools_of(tmp_path, clicks, size=5), clicks, seed=0, total=3000)
    at = torch.zeros(5)
    for i in range(3000):
        for click, position in zip(lists[i].labels, lists[i].positions, strict=True):
            at[position - 1] += click / 3000
    expected = torch.tensor(SEEN["simulate"]["examination"]) * 0.92  # one in five is relevant, the others click 0.9
    assert torch.allclose(at, expected, atol=0.04)
    curve = lists.curve(0.0)
    assert curve is not None and curve == pytest.approx([1, 0.6 / 0.9, 0.4 / 0.9, 0.2 / 0.9, 0.1 / 0.9])


def test_a_log_is_joined_with_its_dataset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = [
        Session("q0", ("0-1", "0-best", "0-2"), (False, True, False), (4, 2, 9)),
        Session("q0", ("0-1", "unknown"), (True, False)),
        Session("q99", ("0-1",), (True,)),
        Session("q1", ("1-0", "1-best"), (True, True)),
        Session("q2", ("2-best",), (False,)),
    ]
    write_log(tmp_path / "log.jsonl", log)
    clicks = Clicks(learner="dla", log="log.jsonl")
    with caplog.at_level("INFO", logger="rerank"):
        pools = pools_of(tmp_path, clicks, size=2)
    assert "1 with a document that the dataset has not" in caplog.text
    assert "1 of a query that the dataset has not" in caplog.text
    first, second, third = pools
    assert first.labels == (0, 1) and first.positions == (4, 2)  # as many as `size`
    assert second.labels == (1, 1) and third.labels == (0,)
    lists = Sessions(pools, clicks, seed=0, total=3)
    assert lists.longest == 4 and lists.curve(0.5) is None
    assert {item.query.query_id: sum(item.labels) for item in (lists[i] for i in range(3))} == {
        "q0": 1,
        "q1": 2,
        "q2": 0,
    }
    write_log(tmp_path / "log.jsonl", log[1:3])
    with pytest.raises(InputError, match="no session with a click is left"):
        read_shown(clicks, Source(dataset="lists.jsonl"), tmp_path)


def test_a_model_learns_from_clicks(tiny_model: Path, tmp_path: Path) -> None:
    result = trained(tmp_path, clicked(tiny_model, schedule={"lists": 160}))
    assert len(losses(tmp_path / "out")) == result.steps == 20
    dataset = load_dataset(str(tmp_path / "lists.jsonl"))
    ranker = rerank.load("pointwise", model=str(tiny_model), adapter=str(result.folder), device="cpu", dtype="float32")
    assert dataset.qrels is not None
    value = evaluate(list(ranker.rank_many(dataset.candidates())), dataset.qrels, ("RR",)).mean["RR"]
    assert value > 0.75  # what says good is relevant; chance is 0.46


def test_propensities_fall_with_the_position_in_one_prompt_with_all_passages(tiny_model: Path, tmp_path: Path) -> None:
    """Relative to the first position they are too high as long as the scores are not the logarithm of relevance;
    among the others they are as users look."""
    clicks = {"learner": "dla", "learning_rate": 0.1, "clip": 10, "simulate": SEEN["simulate"] | {"noise": 0.5}}
    trained(tmp_path, clicked(tiny_model, "first", clicks=clicks, schedule={"lists": 240, "learning_rate": 1e-3}))
    learnt = json.loads((tmp_path / "out" / "propensities.json").read_text())
    assert learnt[0] == 1 and learnt[1] > learnt[3] and learnt[4] < learnt[1] / 2  # 0.1/0.6 in truth


@pytest.mark.parametrize(
    ("strategy", "loss", "clicks"),
    [
        ("pointwise", "bce", {"learner": "regression-em", "rate": 0.2}),
        ("score-head", "click_softmax", {"learner": "ipw", "propensities": EXAMINATION[:5]}),
        ("setwise", "ranknet", {"learner": "naive"}),
    ],
)
def test_every_learner_trains(tiny_model: Path, tmp_path: Path, strategy: str, loss: str, clicks: Any) -> None:
    made = clicked(tiny_model, strategy, loss=loss, clicks={**clicks, **SEEN}, schedule={"lists": 48})
    result = trained(tmp_path, made)
    assert result.steps == 6 and result.folder.is_dir()
    drawn = (tmp_path / "out" / "propensities.png").exists()
    assert drawn == (clicks["learner"] != "naive")
    if drawn:
        learnt = json.loads((tmp_path / "out" / "propensities.json").read_text())
        given = [value / EXAMINATION[0] for value in EXAMINATION[:5]]
        assert (learnt == pytest.approx(given)) == (clicks["learner"] == "ipw") and learnt[4] < 1


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_with_its_propensities(tiny_model: Path, tmp_path: Path) -> None:
    made = clicked(tiny_model, schedule={"lists": 64, "batch": 8, "save_every": 2})
    trained(tmp_path, made, "whole")

    def watch(moment: Moment) -> None:
        if moment.step == 5:
            raise Stopped

    out = tmp_path / "stopped"
    with pytest.raises(Stopped):
        train(tmp_path / "toy.yaml", out, watch=watch)
    state = torch.load(out / "checkpoint-4" / "clicks.pt", weights_only=True)
    assert set(state) == {"logits", "optimizer"} and bool((state["logits"] != 0).any())
    with (out / "propensities.jsonl").open("a") as stream:  # of a step that is done again, and one that was cut off
        stream.write('{"step": 7, "learnt": [1, 1, 1, 1, 1]}\n{"step": 8, "le')
    train(tmp_path / "toy.yaml", out)
    assert losses(out) == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    one, other = (read_propensities(folder / "propensities.jsonl") for folder in (tmp_path / "whole", out))
    assert [line["step"] for line in one] == [line["step"] for line in other] == list(range(1, 9))
    for a, b in zip(one, other, strict=True):
        assert a["learnt"] == pytest.approx(b["learnt"], abs=1e-5)
    learnt = json.loads((out / "propensities.json").read_text())
    assert learnt == other[-1]["learnt"] and learnt[0] == 1 != learnt[4]
    assert [line["step"] for line in curve(out)] == list(range(1, 9))


def test_pieces_of_a_batch_do_not_change_the_propensities(tiny_model: Path, tmp_path: Path) -> None:
    for name, tokens in (("one", None), ("many", 64)):
        trained(tmp_path, clicked(tiny_model, schedule={"lists": 24, "batch_tokens": tokens}), name)
    one, many = (json.loads((tmp_path / name / "propensities.json").read_text()) for name in ("one", "many"))
    assert one == pytest.approx(many, rel=1e-3)


DLA = {"learner": "dla", "simulate": {}}
IPW = {"learner": "ipw", "simulate": {}}
MISTAKES: list[tuple[dict[str, object], str]] = [
    ({"clicks": DLA | {"simulate": {"etta": 1}}}, "unknown key 'clicks.simulate.etta'; did you mean 'eta'?"),
    ({"clicks": DLA | {"learnerr": 1}}, "unknown key 'clicks.learnerr'; did you mean 'learner'?"),
    ({"clicks": {"simulate": {}}}, "clicks.learner is missing"),
    ({"clicks": DLA, "loss": "softmax"}, "learner dla needs loss click_softmax, not softmax"),
    ({"strategy": "pairwise", "clicks": DLA}, "a score for each passage of a list, and pairwise gives none"),
    ({"strategy": "full-ranking", "loss": None, "clicks": DLA}, "and full-ranking gives none"),
    ({"strategy": "first", "write": {}, "clicks": DLA}, "write goes by labels, and clicks are none"),
    ({"curriculum": 0.5, "clicks": DLA}, "curriculum goes by labels"),
    ({"reference": {"beta": 0.1}, "clicks": DLA}, "reference compares what labels order"),
    ({"fsdp": "full_shard", "clicks": DLA}, "take fsdp and deepspeed out"),
    ({"clicks": DLA, "data": [DATA[0] | {"order": "first-stage"}]}, "order would be ignored with clicks: the first"),
    ({"clicks": DLA, "data": [DATA[0] | {"sample": "top", "weight": 2}]}, "sample, weight would be ignored"),
    ({"clicks": DLA, "data": [DATA[0] | {"size": 12}]}, "12 positions are shown and examination has 10"),
    ({"clicks": IPW | {"propensities": [1, 0.5]}}, "clicks.propensities has 2 positions, and 5 are shown"),
    ({"clicks": {"learner": "dla", "log": "no.jsonl"}}, "clicks.log: 'no.jsonl' is not there"),
    ({"clicks": {"learner": "dla", "log": "lists.jsonl"}, "data": [*DATA, *DATA]}, "clicks.log is of one dataset"),
    (
        {"clicks": {"learner": "dla", "log": "lists.jsonl"}, "data": [DATA[0] | {"limit": 3}]},
        "limit would be ignored with clicks: the log says what was shown",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "why"), MISTAKES, ids=[why[:50] for _, why in MISTAKES])
def test_mistakes(tmp_path: Path, tiny_model: Path, cli: Cli, changes: dict[str, Any], why: str) -> None:
    made = {key: value for key, value in (clicked(tiny_model) | changes).items() if value is not None}
    path = save_recipe(tmp_path, made)
    assert_error(cli("train", path, "--out", tmp_path / "out"), why)
    assert not (tmp_path / "out").exists()


def test_a_bad_line_and_several_processes_are_told(
    tmp_path: Path, tiny_model: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log.jsonl").write_text('{"query_id": "q0", "doc_ids": ["0-best"], "clicks": [7]}\n')
    path = save_recipe(tmp_path, clicked(tiny_model, clicks={"learner": "dla", "log": "log.jsonl"}))
    assert_error(cli("train", path, "--out", tmp_path / "out"), "log.jsonl, line 1: 'clicks' is [7]")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="clicks are learnt from in one process, and there are 2"):
        train(path, tmp_path / "other")


def test_given_propensities_go_as_far_as_the_log(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as far as `size`, which is the most that is taken of a session; and it is told before a model is loaded."""
    log = [Session(f"q{i}", (f"{i}-best", f"{i}-1"), (True, False)) for i in range(8)]
    write_log(tmp_path / "log.jsonl", log)
    clicks = {"log": "log.jsonl"}
    trained(tmp_path, clicked(tiny_model, clicks=clicks | {"learner": "dla"}, schedule={"lists": 8}), "dla")
    shutil.copy(tmp_path / "dla" / "propensities.json", tmp_path / "learnt.json")
    assert len(json.loads((tmp_path / "learnt.json").read_text())) == 2
    given = clicked(
        tiny_model, clicks=clicks | {"learner": "ipw", "propensities": "learnt.json"}, schedule={"lists": 8}
    )
    assert trained(tmp_path, given, "ipw").steps == 1
    write_log(tmp_path / "log.jsonl", [*log, Session("q9", ("9-best", "9-1"), (True, False), (11, 12))])
    monkeypatch.setattr(training_session.Session, "_load", lambda _: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match="propensities has 2 positions, and a session has position 12"):
        trained(tmp_path, given, "further")


@pytest.mark.parametrize("kind", ["losses", "training"])
def test_what_cannot_be_compared_is_told(tmp_path: Path, tiny_model: Path, cli: Cli, kind: str) -> None:
    path = save_recipe(tmp_path, clicked(tiny_model, evaluation={"dataset": "lists.jsonl"}))
    assert_error(cli("bench", kind, path), "take clicks out" if kind == "losses" else "clicks have a learner")


FOLDER = Path(__file__).parents[1] / "docs" / "clicks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_of_the_page_are_sound_and_named_there(path: Path) -> None:
    made = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (FeatureRecipe if made["strategy"] == "features" else Recipe).model_validate(made).name == path.stem
    assert f"clicks/{path.name}" in FOLDER.with_suffix(".md").read_text(encoding="utf-8")


def test_every_option_and_learner_is_on_the_page() -> None:
    page = FOLDER.with_suffix(".md").read_text(encoding="utf-8")
    for name in (*Clicks.model_fields, *Simulate.model_fields, "dla", "ipw", "regression-em", "naive"):
        assert f"`{name}`" in page or f"`{name}:`" in page, name
