"""Synthetic feature vectors: relevance is a smooth function of them and noise, as in learning to rank's data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml

from rerank.data import Features, write_features, write_run
from rerank.training.network import Network, rankings


def made(queries: int, *, docs: int = 10, seed: int = 0) -> Features:
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(queries, docs, 5))
    wanted = values[..., 0] + 0.7 * values[..., 1] - 0.5 * values[..., 2] + 0.4 * generator.normal(size=(queries, docs))
    labels = np.searchsorted([0.3, 0.9, 1.5, 2.2], wanted)
    return Features(
        tuple(f"q{seed}.{i}" for i in range(queries)),
        np.arange(0, queries * docs + 1, docs),
        values.reshape(-1, 5).astype(np.float32),
        labels.ravel().astype(np.float32),
        tuple(f"d{i}" for _ in range(queries) for i in range(docs)),
    )


def save_vectors(folder: Path, *, queries: int = 300) -> None:
    """train.svm, valid.svm and logged.trec, a poor linear ranking of the former."""
    train = made(queries, seed=1)
    write_features(folder / "train.svm", train)
    write_features(folder / "valid.svm", made(100, seed=2))
    poor = Network(5, (), "none")
    write_run(folder / "logged.trec", rankings(train, poor.scores(poor.normalised(train))))


def save_kinds(folder: Path, *, queries: int = 400) -> None:
    """train.svm, valid.svm and logged.trec of documents of six kinds, told by one feature each, so that a linear ranker
    can have every kind's P(relevant) exactly. The logging ranker prefers the wrong kinds."""
    generator = np.random.default_rng(7)
    for name, count in (("train", queries), ("valid", 100)):
        kinds = generator.integers(0, 6, (count, 10))
        labels = generator.binomial(4, np.array([0.05, 0.2, 0.35, 0.5, 0.65, 0.8])[kinds])
        features = Features(
            tuple(f"{name}{i}" for i in range(count)),
            np.arange(0, count * 10 + 1, 10),
            np.eye(6, dtype=np.float32)[kinds].reshape(-1, 6),
            labels.ravel().astype(np.float32),
            tuple(f"d{i}" for _ in range(count) for i in range(10)),
        )
        write_features(folder / f"{name}.svm", features)
        if name == "train":
            liked = np.array([1.0, 3.0, 2.0, 5.0, 0.0, 1.5])[kinds] + generator.gumbel(size=kinds.shape)
            write_run(folder / "logged.trec", rankings(features, torch.from_numpy(liked.ravel())))


def save_recipe(folder: Path, name: str = "toy", **changes: object) -> Path:
    """`changes` take the place of whole keys, of `schedule` of single ones; None takes one out."""
    schedule = {"lists": 640, "batch": 32} | changes.pop("schedule", {})  # type: ignore[operator]
    recipe = {
        "name": name,
        "strategy": "features",
        "loss": "click_softmax",
        "data": {"train": "train.svm", "run": "logged.trec"},
        "schedule": schedule,
    } | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in recipe.items() if value is not None}))
    return path
