"""A small feed-forward ranker of feature vectors, and the folder that it is kept in.

`network.safetensors` has the weights and the normalisation, `network.json` what they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from rerank.data import Features
from rerank.errors import InputError
from rerank.eval import evaluate
from rerank.types import Hit, Passage, Query, Ranking

Normalise = Literal["query", "standard", "none"]
_AT_ONCE = 65_536  # documents scored together


class Network(nn.Module):
    """A score for each feature vector: `[..., F]` to `[...]`. Features come as `normalised` makes them."""

    shift: Tensor
    scale: Tensor

    def __init__(self, features: int, hidden: tuple[int, ...], normalise: Normalise, *, seed: int = 0) -> None:
        super().__init__()
        self.features, self.hidden, self.normalise = features, tuple(hidden), normalise
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        layers: list[nn.Module] = []
        width = features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for own in self.hidden:
                layers += [nn.Linear(width, own), nn.ELU()]
                width = own
            layers.append(nn.Linear(width, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, values: Tensor) -> Tensor:
        scores: Tensor = self.layers(values)[..., 0]
        return scores

    def fit(self, features: Features) -> None:
        """Takes the mean and the deviation of the training file; a feature that never changes becomes 0."""
        if self.normalise == "standard":
            values = torch.from_numpy(features.values)
            spread = values.std(0, correction=0)
            self.shift.copy_(values.mean(0))
            self.scale.copy_(torch.where(spread > 1e-9, 1 / spread.clamp(min=1e-9), 0.0))

    def normalised(self, features: Features) -> Tensor:
        """The features of all documents, float32 `[N, F]`."""
        if features.values.shape[1] != self.features:
            raise InputError(f"the file has {features.values.shape[1]} features, and the network {self.features}")
        values = torch.from_numpy(features.values.copy())
        if self.normalise == "none":
            return values
        if self.normalise == "standard":
            return values.sub_(self.shift).mul_(self.scale)
        for query in range(len(features.query_ids)):
            own = values[features.rows(query)]
            least = own.amin(0)
            spread = own.amax(0) - least
            own.sub_(least).div_(torch.where(spread > 0, spread, 1.0))
        return values

    @torch.no_grad()
    def scores(self, values: Tensor) -> Tensor:
        """The scores `[N]` of normalised features."""
        return torch.cat([self(part) for part in torch.split(values, _AT_ONCE)])

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        told = {"features": self.features, "hidden": self.hidden, "normalise": self.normalise}
        (folder / "network.json").write_text(json.dumps(told) + "\n", encoding="utf-8")
        save_file(
            {name: value.contiguous() for name, value in self.state_dict().items()}, folder / "network.safetensors"
        )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """A trained network. Raises InputError where there is none."""
        from safetensors.torch import load_file

        folder = Path(folder)
        if not (folder / "network.json").is_file():
            raise InputError(f"{folder} holds no network; a recipe of strategy features leaves one in network/")
        told = json.loads((folder / "network.json").read_text(encoding="utf-8"))
        network = cls(told["features"], tuple(told["hidden"]), told["normalise"])
        network.load_state_dict(load_file(folder / "network.safetensors"))
        return network


def rankings(features: Features, scores: Tensor) -> Iterator[Ranking]:
    """Each query's documents by descending score, ties as in the file."""
    for number, query_id in enumerate(features.query_ids):
        rows = features.rows(number)
        own = scores[rows]
        order = own.argsort(descending=True, stable=True).tolist()
        found = own.tolist()
        hits = (
            Hit(rank, found[i], Passage("", features.doc_ids[rows.start + i])) for rank, i in enumerate(order, start=1)
        )
        yield Ranking(Query(query_id, query_id), tuple(hits))


def measured(features: Features, scores: Tensor, measure: str) -> float:
    """The mean over the queries of a measure of the ranking by these scores."""
    labels = [
        {features.doc_ids[row]: int(features.labels[row]) for row in range(rows.start, rows.stop)}
        for rows in map(features.rows, range(len(features.query_ids)))
    ]
    judged = dict(zip(features.query_ids, labels, strict=True))
    return evaluate(list(rankings(features, scores)), judged, (measure,)).mean[measure]
