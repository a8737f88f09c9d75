"""What all prompts begin with is read once before generation, and nothing that is written changes."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rerank.backbones import weights as module
from rerank.backbones.transformers_ import TransformersBackbone


@pytest.fixture(scope="module")
def weights(tiny_model: Path) -> module.Weights:
    return TransformersBackbone.load(str(tiny_model), device="cpu", dtype="float32").weights


def prompts(head: int, lengths: list[int]) -> list[tuple[int, ...]]:
    draw = random.Random(head)
    beginning = [draw.randrange(3, 250) for _ in range(head)]
    return [(*beginning, *(draw.randrange(3, 250) for _ in range(length))) for length in lengths]


@pytest.mark.parametrize(
    ("head", "lengths", "read_once"),
    [(100, [5, 17, 1], True), (100, [0, 4], True), (70, [9], False), (10, [9, 9], False), (64, [400, 3], False)],
)
def test_the_same_is_written(
    weights: module.Weights,
    head: int,
    lengths: list[int],
    read_once: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sequences = prompts(head, lengths)
    limits, stops = [6] * len(sequences), [()] * len(sequences)
    fed: list[int] = []
    forward = weights.model.forward

    @functools.wraps(forward)  # generation reads the signature, to know what the model takes
    def counted(*args: Tensor, **options: Tensor) -> object:
        fed.append(int((args[0] if args else options["input_ids"]).numel()))
        return forward(*args, **options)

    with torch.inference_mode():
        weights.packs = weights.probe(sequences[0])
        monkeypatch.setattr(weights.model, "forward", counted)
        found = weights.generate(sequences, limits, stops)
        read = sum(fed)
        monkeypatch.setattr(module, "_HEAD", 10**9)
        fed.clear()
        assert weights.generate(sequences, limits, stops) == found
    assert (read < sum(fed)) == read_once


def test_a_model_with_a_window_reads_all(
    tiny_model: Path, weights: module.Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "packs", False)
    assert weights._shared_head(prompts(100, [5, 6])) == []
