"""A list to compute losses of by hand, and how close is close."""

from __future__ import annotations

from math import exp

import pytest
import torch
from torch import Tensor

from rerank.losses import LOSSES

S = [0.3, -1.2, 0.8, 1.9, -0.4]
Y = [1.0, 3.0, 0.0, 0.0, 2.0]
RANK = {3: 1, 2: 2, 0: 3, 4: 4, 1: 5}  # item -> 1-based rank by S


def value(name: str, scores: list[float] = S, labels: list[float] = Y, **options: object) -> float:
    return LOSSES[name].function(tensor(scores), tensor(labels), **options).item()


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(number: float):
    return pytest.approx(number, rel=1e-9)


def softmax(values: list[float]) -> list[float]:
    return [exp(v) / sum(map(exp, values)) for v in values]
