"""Click models against their closed forms, and the click log."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from command import Cli, assert_error

from rerank.clicks import (
    CASCADE,
    EXAMINATION,
    ClickModel,
    DependentClick,
    PositionBased,
    Session,
    Shown,
    attraction,
    read_log,
    simulate,
    write_log,
)
from rerank.errors import InputError

WANTED = np.array([0.1, 0.55, 1.0, 0.1, 0.3])
MODELS: dict[str, ClickModel] = {
    "position": PositionBased(),
    "steep": PositionBased(eta=2.0),
    "trust": PositionBased(trust=0.6),
    "cascade": CASCADE,
    "dependent": DependentClick((0.9, 0.2, 0.5)),
}


def test_attraction_is_the_papers() -> None:
    found = attraction([0, 1, 2, 3, 4], 4)
    assert found.tolist() == pytest.approx([0.1 + 0.9 * (2**y - 1) / 15 for y in range(5)])
    assert attraction([-2, 1], 1, noise=0).tolist() == [0, 1]
    for labels, highest, noise in (([3], 2, 0.1), ([0], 0, 0.1), ([1], 1, 1.0), ([1], 1, -0.1)):
        with pytest.raises(InputError):
            attraction(labels, highest, noise)


@pytest.mark.parametrize("name", MODELS)
def test_draws_have_the_marginals(name: str) -> None:
    model, n = MODELS[name], 100_000
    drawn = model.draw(np.broadcast_to(WANTED, (n, 5)), np.random.default_rng(1)).mean(0)
    expected = model.marginals(WANTED)
    error = np.sqrt(np.maximum(expected * (1 - expected), 1e-4) / n)
    assert np.all(np.abs(drawn - expected) < 4 * error), (drawn, expected)


def test_marginals_are_the_formulas() -> None:
    theta = np.array(EXAMINATION[:5])
    assert MODELS["position"].marginals(WANTED) == pytest.approx(theta * WANTED)
    assert MODELS["steep"].marginals(WANTED) == pytest.approx(theta**2 * WANTED)
    trusted = theta * [w + (1 - w) * 0.6 / k for k, w in enumerate(WANTED, start=1)]
    assert MODELS["trust"].marginals(WANTED) == pytest.approx(trusted)
    before = np.concatenate([[1.0], np.cumprod(1 - WANTED)[:-1]])  # nothing above was clicked
    assert CASCADE.marginals(WANTED) == pytest.approx(WANTED * before)


def test_dependent_clicks_by_enumeration() -> None:
    """Over what attracts and whether the user goes on after it."""
    wanted, goes_on = WANTED[:3], (0.9, 0.2, 0.5)
    expected = np.zeros(3)
    for attracted, on in product(product((0, 1), repeat=3), product((0, 1), repeat=3)):
        chance = np.prod([w if a else 1 - w for a, w in zip(attracted, wanted, strict=True)])
        chance *= np.prod([p if o else 1 - p for o, p in zip(on, goes_on, strict=True)])
        for place in range(3):
            expected[place] += chance * attracted[place]
            if attracted[place] and not on[place]:
                break
    assert DependentClick(goes_on).marginals(wanted) == pytest.approx(expected)


def test_a_model_drifts_evenly_and_only_position_has_a_curve() -> None:
    model = PositionBased(eta=1.0, drift=2.0)
    assert [model.at(p).eta for p in (0.0, 0.5, 1.0)] == [1.0, 1.5, 2.0]
    assert model.at(1.0).curve(10) == pytest.approx(np.array(EXAMINATION) ** 2)
    assert CASCADE.curve(3) is None and CASCADE.at(0.5) is CASCADE


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PositionBased((0.5, 0.0)),
        lambda: PositionBased(()),
        lambda: PositionBased(eta=-1.0),
        lambda: PositionBased(trust=1.5),
        lambda: PositionBased().curve(11),
        lambda: DependentClick((1.5,)),
        lambda: DependentClick(()),
    ],
)
def test_models_that_mean_nothing(wrong: object) -> None:
    with pytest.raises(InputError):
        wrong()  # type: ignore[operator]


RANKINGS = [Shown("a", ("x", "y", "z"), (0.0, 2.0, 1.0)), Shown("b", ("u",), (1.0,))]


def test_simulated_sessions_have_the_models_marginals() -> None:
    sessions = list(simulate(RANKINGS, PositionBased(), sessions=20_000, seed=3))
    of_a = [s.clicks for s in sessions if s.query_id == "a"]
    assert 9_700 < len(of_a) < 10_300
    assert all(s.doc_ids == RANKINGS[s.query_id == "b"].doc_ids and len(s.clicks) == len(s.doc_ids) for s in sessions)
    expected = PositionBased().marginals(attraction([0, 2, 1], 2))
    assert np.mean(of_a, axis=0) == pytest.approx(expected, abs=4 * 0.005)
    assert list(simulate(RANKINGS, PositionBased(), sessions=500, seed=3)) == sessions[:500]
    assert list(simulate(RANKINGS, PositionBased(), sessions=500, seed=4)) != sessions[:500]
    with pytest.raises(InputError):
        next(simulate([], CASCADE, sessions=1))


def test_a_short_log_drifts_too_and_evenly() -> None:
    """From a user who looks at all to one who looks at nothing but the first, whose first position is certain."""
    model = PositionBased((1.0, 0.01), eta=0.0, drift=4.0)
    for count in (1000, 5000):
        sessions = list(simulate([Shown("a", ("x", "y"), (1.0, 1.0))], model, sessions=count, noise=0.0))
        second = np.array([session.clicks[1] for session in sessions])
        assert np.all([session.clicks[0] for session in sessions])
        for tenth in range(10):
            etas = 4 * (np.arange(count)[tenth * count // 10 : (tenth + 1) * count // 10]) / (count - 1)
            expected = 0.01**etas
            error = np.sqrt((expected * (1 - expected)).sum()) + 1
            own = second[tenth * count // 10 : (tenth + 1) * count // 10]
            assert abs(own.sum() - expected.sum()) < 4 * error
        assert second[0] and not second[-count // 2 :].all()


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
def test_a_log_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    sessions = [
        *simulate(RANKINGS, CASCADE, sessions=5),
        Session("ü", ("d1", "d2"), (False, True), (11, 13)),
    ]
    clicks = write_log(tmp_path / name, sessions)
    assert list(read_log(tmp_path / name)) == sessions
    assert clicks == sum(sum(s.clicks) for s in sessions)
    assert [path.name for path in tmp_path.iterdir()] == [name]


GOOD = {"query_id": "q", "doc_ids": ["a", "b"], "clicks": [0, 1]}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ("[1]", "expected {"),
        ({"query_id": None}, "no text as 'query_id'"),
        ({"doc_ids": "a"}, "no list of ids as 'doc_ids'"),
        ({"doc_ids": []}, "no document was shown"),
        ({"doc_ids": ["a", "a"]}, "a document is shown twice"),
        ({"clicks": [0]}, "2 doc_ids and 1 clicks"),
        ({"clicks": [0, 2]}, "'clicks' is [0, 2]"),
        ({"clicks": ["0", "1"]}, "'clicks' is ['0', '1']"),
        ({"clicks": None}, "no list as 'clicks'"),
        ({"positions": [1]}, "2 doc_ids and 1 positions"),
        ({"positions": [0, 1]}, "'positions' is [0, 1]"),
        ({"positions": [2, 2]}, "they are 1-based, and distinct"),
        ({"position": [1, 2]}, "unknown keys ['position']"),
    ],
)
def test_a_bad_line_is_refused_with_its_place(tmp_path: Path, line: object, why: str) -> None:
    bad = line if isinstance(line, str) else json.dumps(GOOD | line)  # type: ignore[operator]
    (tmp_path / "log.jsonl").write_text(json.dumps(GOOD) + "\n\n" + bad + "\n")
    with pytest.raises(InputError) as caught:
        list(read_log(tmp_path / "log.jsonl"))
    assert f"{tmp_path / 'log.jsonl'}, line 3: " in str(caught.value) and why in str(caught.value)


def test_the_command_simulates_a_log(beir: Path, tmp_path: Path, cli: Cli) -> None:
    log = tmp_path / "log.jsonl"
    done = cli("data", "clicks", beir, "-o", log, "-n", "50", "-k", "3", "-O", "eta=0", "-O", "noise=0", "--seed", "5")
    assert done.status == 0, done.err
    sessions = list(read_log(log))
    clicks = sum(sum(s.clicks) for s in sessions)
    assert len(sessions) == 50 and done.err.endswith(f"log.jsonl: 50 sessions of 2 queries, {clicks} clicks\n")
    for session in sessions:  # everything is looked at and nothing clicked by mistake
        if session.query_id == "q2":
            assert dict(zip(session.doc_ids, session.clicks, strict=True))["d3"]
    assert_error(cli("data", "clicks", beir, "-o", log), "exists; delete it")
    again = [cli("data", "clicks", beir, "-o", tmp_path / f"{i}.jsonl", "-n", "9", "-O", "model=cascade") for i in "ab"]
    assert all(each.status == 0 for each in again)
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["-O", "etta=1"], "unknown key 'etta'; did you mean 'eta'?"),
        (["-O", "model=cascad"], "unknown model 'cascad'; did you mean 'cascade'?"),
        (["-O", "persistence=0.5"], "persistence is for model dependent-click"),
        (["-O", "examination=0.9"], "examination has 1"),
        (["-O", "noise=1"], "noise: "),
    ],
)
def test_wrong_users(beir: Path, tmp_path: Path, cli: Cli, options: list[str], why: str) -> None:
    assert_error(cli("data", "clicks", beir, "-o", tmp_path / "log.jsonl", *options), why)
    assert not (tmp_path / "log.jsonl").exists()
