"""Learners from clicks on feature vectors, over seeds: `python docs/benchmarks/clicks.py FOLDER`.

FOLDER has train.svm, valid.svm and test.svm; `--synthetic` makes them. A linear ranker of 1 % of the training queries'
labels makes the ranking that simulated users see, as in Ai et al., SIGIR 2018, section 5.1. Each learner is a recipe of
`rerank train` in FOLDER, trained once a seed; what is finished stays, so the script goes on where it was stopped.
Into FOLDER come clicks.md, a table, and clicks.png.
"""

from __future__ import annotations

import argparse
import json
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import yaml
from scipy.stats import t as student

from rerank.clicks import EXAMINATION
from rerank.data import Features, read_features, write_features, write_run
from rerank.training.features import train_features
from rerank.training.network import Network, measured, rankings

MEASURE = "nDCG@10"
LEARNERS = {
    "full": ("judgments", None, "softmax"),
    "naive": ("clicks as they are", {"learner": "naive"}, "click_softmax"),
    "ipw": ("IPW, propensities given", {"learner": "ipw"}, "click_softmax"),
    "dla": ("DLA", {"learner": "dla"}, "click_softmax"),
    "regression-em": ("regression-EM", {"learner": "regression-em"}, "bce"),
}


def synthetic(folder: Path) -> None:
    """1,000 queries of 30 documents, 20 features; five grades, most of them 0, from a function that is not linear, and
    noise."""
    weights = np.random.default_rng(99).normal(size=20) / sqrt(20)
    for name, queries, seed in (("train", 1000, 1), ("valid", 200, 2), ("test", 500, 3)):
        generator = np.random.default_rng(seed)
        values = generator.normal(size=(queries, 30, 20))
        wanted = values @ weights + 0.6 * np.tanh(values[..., 0] * values[..., 1])
        wanted += 0.6 * np.abs(values[..., 2]) + 0.5 * generator.normal(size=(queries, 30))
        labels = np.searchsorted(np.quantile(wanted, [0.6, 0.82, 0.93, 0.98]), wanted).ravel()
        made = Features(
            tuple(f"{seed}-{q}" for q in range(queries)),
            np.arange(0, 30 * queries + 1, 30),
            values.reshape(-1, 20).astype(np.float32),
            labels.astype(np.float32),
            tuple(str(d) for _ in range(queries) for d in range(30)),
        )
        write_features(folder / f"{name}.svm", made)


def train(folder: Path, name: str, recipe: dict[str, object]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "strategy": "features", **recipe}, sort_keys=False))
    return train_features(path, folder / "runs" / name).folder


def value(network: Path, features: Features) -> float:
    loaded = Network.load(network)
    return measured(features, loaded.scores(loaded.normalised(features)), MEASURE)


def log_rankings(folder: Path, test: Features) -> float:
    """The run that users see. Returns the logging ranker's own measure."""
    weak = train(folder, "logging", {
        "loss": "ranknet",
        "data": {"train": "train.svm", "share": 0.01, "size": None},
        "network": {"hidden": []},
        "schedule": {"lists": 3000, "batch": 10, "learning_rate": 0.01},
    })  # fmt: skip
    if not (folder / "logged.trec").exists():
        read, network = read_features(folder / "train.svm"), Network.load(weak)
        write_run(folder / "logged.trec", rankings(read, network.scores(network.normalised(read))))
    return value(weak, test)


def recipe(learner: str, seed: int, steps: int, looks: int, users: dict[str, object]) -> dict[str, object]:
    _, clicks, loss = LEARNERS[learner]
    made: dict[str, object] = {
        "seed": seed,
        "loss": loss,
        "data": {"train": "train.svm", "run": "logged.trec"},
        "schedule": {"lists": 256 * steps, "batch": 256, "learning_rate": 0.003, "decay": "cosine"},
        "evaluation": {"dataset": "valid.svm", "every": max(1, steps // looks)},
    }
    if clicks is not None:
        given = {"propensities": "given.json"} if learner == "ipw" else {}
        made["clicks"] = {**clicks, **given, "simulate": users}
    return made


def interval(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    wide = float(student.ppf(0.975, len(values) - 1))
    return f"{mean(values):.4f} ± {wide * stdev(values) / sqrt(len(values)):.4f}"


def error(run: Path, eta: float) -> float | None:
    """The mean absolute error of the learnt curve, relative to position 1."""
    if not (run / "propensities.json").exists():
        return None
    truth = np.array(EXAMINATION) ** eta
    return float(np.abs(np.array(json.loads((run / "propensities.json").read_text())) - truth / truth[0]).mean())


def draw(folder: Path, runs: dict[str, list[Path]], eta: float) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    truth = np.array(EXAMINATION) ** eta
    axes.plot(range(1, 11), truth / truth[0], color="#333333", ls="--", label="of the simulated users")
    for learner, colour in (("dla", "#c44e52"), ("regression-em", "#4c72b0")):
        curves = [json.loads((run / "propensities.json").read_text()) for run in runs.get(learner, [])]
        if curves:
            axes.plot(range(1, 11), np.mean(curves, axis=0), color=colour, marker="o", ms=4, label=LEARNERS[learner][0])
            axes.fill_between(range(1, 11), np.min(curves, axis=0), np.max(curves, axis=0), color=colour, alpha=0.2)
    axes.set_xlabel("position")
    axes.set_ylabel("propensity, relative to position 1")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "clicks.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--looks", type=int, default=3, help="at valid.svm, of which the best network is kept")
    parser.add_argument("--eta", type=float, default=1.0)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--learners", nargs="+", default=list(LEARNERS), choices=LEARNERS)
    told = parser.parse_args()
    folder: Path = told.folder
    folder.mkdir(parents=True, exist_ok=True)
    if told.synthetic and not (folder / "train.svm").exists():
        synthetic(folder)
    (folder / "given.json").write_text(json.dumps([p**told.eta for p in EXAMINATION]))
    test = read_features(folder / "test.svm")
    weak = log_rankings(folder, test)
    users = {"noise": told.noise, "eta": told.eta}
    runs: dict[str, list[Path]] = {learner: [] for learner in told.learners}
    values: dict[str, list[float]] = {learner: [] for learner in told.learners}
    for seed in range(told.seeds):
        for learner in told.learners:
            network = train(folder, f"{learner}-{seed}", recipe(learner, seed, told.steps, told.looks, users))
            runs[learner].append(network.parent)
            values[learner].append(value(network, test))
            print(seed, learner, f"{values[learner][-1]:.4f}", error(network.parent, told.eta), flush=True)
    lines = [f"| learner | test {MEASURE} | of judgments' | error of the curve |", "|---|---|---|---|"]
    full = values.get("full")
    for learner in told.learners:
        shares = [100 * a / b for a, b in zip(values[learner], full, strict=True)] if full else []
        share = f"{mean(shares):.1f} %" if shares else ""
        errors = [found for run in runs[learner] if (found := error(run, told.eta)) is not None]
        curve = interval(errors) if errors and learner != "ipw" else ""
        lines.append(f"| {LEARNERS[learner][0]} | {interval(values[learner])} | {share} | {curve} |")
    lines.append(f"| the logging ranker | {weak:.4f} | | |")
    (folder / "clicks.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    draw(folder, runs, told.eta)


if __name__ == "__main__":
    main()
