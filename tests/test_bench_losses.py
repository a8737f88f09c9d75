"""The comparison of losses on a toy: one run a loss and seed, on the same lists; what was done is not done again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import yaml
from command import Cli
from training import recipe, save_recipe, trained

import rerank
from rerank.bench import losses as bench
from rerank.data import load_dataset
from rerank.errors import InputError
from rerank.eval import evaluate
from rerank.losses import LOSSES
from rerank.training.trainer import Moment

QUERIES = 6
SMALL = {"lists": 16}


@pytest.fixture
def toy(tiny_model: Path, tmp_path: Path) -> Path:
    evaluation = {"dataset": "lists.jsonl", "queries": QUERIES, "measure": "RR"}
    return save_recipe(tmp_path, recipe(tiny_model, evaluation=evaluation, schedule=SMALL))


def measured(folder: Path, model: Path, adapter: Path | None) -> float:
    """As a user would."""
    ranker = rerank.load(
        "pointwise", model=str(model), adapter=str(adapter) if adapter is not None else None, device="cpu",
        dtype="float32",
    )  # fmt: skip
    dataset = load_dataset(str(folder / "lists.jsonl"))
    requests = list(dataset.candidates())[:QUERIES]
    assert dataset.qrels is not None
    judged = {each.query.query_id: dataset.qrels[each.query.query_id] for each in requests}
    return evaluate(list(ranker.rank_many(requests)), judged, ("RR",)).mean["RR"]


def test_the_command(cli: Cli, toy: Path, tmp_path: Path, tiny_model: Path) -> None:
    out = tmp_path / "losses"
    chosen = ["ranknet:sigma=5,factor=2", "softmax"]
    done = cli("bench", "losses", toy, "-l", chosen[0], "-l", chosen[1], "--seeds", 2, "-o", out)
    assert done.status == 0, done
    found = json.loads((out / "losses.json").read_text())
    assert (found["queries"], found["measure"], found["lists"], found["seeds"]) == (QUERIES, "RR", 16, [0, 1])
    assert found["untrained"] == pytest.approx(measured(tmp_path, tiny_model, None))
    rows = {row["loss"]: row for row in found["rows"]}
    assert set(rows) == set(chosen)
    assert [row["mean"] for row in found["rows"]] == sorted((row["mean"] for row in rows.values()), reverse=True)
    for text, row in rows.items():
        name = "softmax" if text == "softmax" else "ranknet-sigma=5-factor=2"
        adapters = [out / name / f"seed-{seed}" / "adapter" for seed in (0, 1)]
        assert row["values"] == pytest.approx([measured(tmp_path, tiny_model, adapter) for adapter in adapters])
        assert row["mean"] == pytest.approx(mean(row["values"]))
        assert row["deviation"] == pytest.approx(stdev(row["values"]))
        assert row["change"] == pytest.approx(row["mean"] - found["untrained"])
        assert row["seconds"] > 0
        assert f"{text} " in done.out
        assert f"| {text} | {row['mean']:.4f} |" in (out / "losses.md").read_text()
    assert len({row["tokens"] for row in rows.values()}) == 1  # the same lists
    assert (out / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_the_recipe_with_its_loss_and_seed(toy: Path, tmp_path: Path, tiny_model: Path) -> None:
    bench.compare(toy, tmp_path / "losses", ["ranknet:sigma=5"], seeds=1, lists=8)
    made = recipe(tiny_model, loss={"name": "ranknet", "sigma": 5}, schedule={"lists": 8})
    trained(tmp_path, made, "by-hand")
    curves = [
        [line["loss"] for line in map(json.loads, (folder / "curve.jsonl").read_text().splitlines()) if "loss" in line]
        for folder in (tmp_path / "losses" / "ranknet-sigma=5" / "seed-0", tmp_path / "by-hand")
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 1


def test_what_was_stopped_goes_on(toy: Path, tmp_path: Path) -> None:
    """Stopped in the second run; then only what is missing is trained."""
    out = tmp_path / "losses"
    begun: list[str] = []

    def watching(stop: str) -> Any:
        @contextmanager
        def watch(title: str) -> Iterator[Any]:
            def moment(seen: Moment) -> None:
                run = title.partition(": ")[2]
                if seen.step == 1 and run not in begun:  # a step is told of more than once
                    begun.append(run)
                    if stop in run:
                        raise KeyboardInterrupt

            yield moment

        return watch

    losses = ["softmax", "ranknet"]
    with pytest.raises(KeyboardInterrupt):
        bench.compare(toy, out, losses, seeds=1, watching=watching("ranknet"))
    assert begun == ["softmax, seed 0", "ranknet, seed 0"]
    begun.clear()
    first = bench.compare(toy, out, losses, seeds=1, watching=watching("nothing"))
    assert begun == ["ranknet, seed 0"]
    begun.clear()
    grown = bench.compare(toy, out, [*losses, "listnet"], seeds=2, watching=watching("nothing"))
    assert begun == ["listnet, seed 0", "softmax, seed 1", "ranknet, seed 1", "listnet, seed 1"]
    values = {row.loss: row.values for row in grown.rows}
    assert [values[row.loss][:1] for row in first.rows] == [row.values for row in first.rows]
    whole = bench.compare(toy, tmp_path / "whole", ["ranknet"], seeds=1)
    assert whole.rows[0].values == values["ranknet"][:1]
    with pytest.raises(InputError, match=r"another recipe \(they differ in schedule\); give another --out"):
        bench.compare(toy, out, losses, lists=24)


def test_figures_of_several_seeds() -> None:
    runs = [bench.Run(0.5, 100, 4.0), bench.Run(0.7, 110, None)]
    row = bench.row("ranknet", runs, 0.4)
    assert (row.mean, row.change, row.tokens, row.seconds) == pytest.approx((0.6, 0.2, 105, 4.0))
    assert row.deviation == pytest.approx((2 * 0.1**2 / (2 - 1)) ** 0.5)
    assert bench.row("ranknet", runs[:1], 0.4).deviation is None


def test_the_best_is_at_the_top_of_the_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    seen: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: seen.append(self))
    rows = [bench.row(name, [bench.Run(v, 1, 1.0), bench.Run(v, 1, 1.0)], 0.4) for name, v in (("a", 0.6), ("b", 0.5))]
    machine: Any = None
    bench.draw(bench.Comparison(machine, "toy", "x/lists.jsonl", 6, "RR", 8, (0, 1), 0.4, tuple(rows)), tmp_path / "p")
    (axes,) = seen[0].axes
    heights = {label.get_text(): axes.transData.transform((0.5, y))[1] for y, label in
               zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}  # fmt: skip
    assert heights["a"] > heights["b"]
    low, high = axes.get_xlim()
    assert low < 0.4 < 0.6 < high


@pytest.mark.parametrize(
    ("loss", "more", "told"),
    [
        ("rnknet", {}, "did you mean 'ranknet'?"),
        ("ranknet:sigm=5", {}, "did you mean 'sigma'?"),
        ("ranknet:sigma", {}, "'sigma' is not of the form option=value"),
        ("bce", {}, "lists.jsonl: bce wants labels from 0 to 1 and was given 0 to 2"),
        ("softmax", {"data": [{"dataset": "lists.jsonl", "labels": "teacher"}]}, "wants graded labels"),
        ("softmax", {"evaluation": None}, "has no evaluation"),
        ("softmax", {"strategy": "full-ranking", "loss": None}, "only writes"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(
    cli: Cli, toy: Path, tmp_path: Path, loss: str, more: dict[str, object], told: str
) -> None:
    lists = (tmp_path / "lists.jsonl").read_text()
    (tmp_path / "lists.jsonl").write_text(lists.replace('"label": 1', '"label": 2'))
    made = yaml.safe_load(toy.read_text()) | {"loss": "ranknet"} | more
    toy.write_text(yaml.safe_dump({key: value for key, value in made.items() if value is not None}))
    done = cli("bench", "losses", toy, "-l", "ranknet", "-l", loss, "-o", tmp_path / "losses")
    assert done.status == 2, done
    assert told in done.err.splitlines()[-1]  # what was read of the data may be told before it
    assert not (tmp_path / "losses").exists()


def test_the_default_losses_fit_grades(toy: Path) -> None:
    assert len(bench.LOSSES) >= 8
    for name in bench.LOSSES:
        assert LOSSES[name].labels in ("graded", "order", "teacher")
        made = bench.variant(bench.read_recipe(toy), name)
        assert made.loss is not None and made.loss.name == name
        assert made.evaluation is None
