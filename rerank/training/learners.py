"""Who learns from clicks: they make labels for the ranker's loss, and may learn what position does beside it.

Shapes: scores, clicks, positions, mask `[B, n]`; positions are 1-based, 0 at the padding. `targets` is called for each
piece of a batch before the ranker's step, `update` once after it.
"""

from __future__ import annotations

from typing import Protocol, TypedDict

import torch
from torch import Tensor

from rerank.errors import InputError
from rerank.losses.unbiased import click_softmax, expected_relevance, inverse_propensities, inverse_relevance

CLIP = 100.0  # far above what the paper's curves call for; a guard against a score or a propensity that runs away


class State(TypedDict, total=False):
    """What a checkpoint keeps."""

    logits: Tensor
    optimizer: dict[str, object]
    propensities: Tensor


class Learner(Protocol):
    def targets(self, scores: Tensor, clicks: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """The labels of the ranker's loss; the scores are taken without gradient."""

    def update(self, scale: float) -> None:
        """A step, by all that `targets` has seen since the last one; `scale`, 0 to 1, is where the ranker's learning
        rate stands in its schedule, which is this one's too."""

    def curve(self) -> list[float] | None:
        """The propensities relative to the first position's, where there are any."""

    def state(self) -> State: ...

    def load(self, state: State) -> None: ...


class Naive:
    """A click is a label."""

    def targets(self, scores: Tensor, clicks: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return clicks

    def update(self, scale: float) -> None:
        pass

    def curve(self) -> list[float] | None:
        return None

    def state(self) -> State:
        return {}

    def load(self, state: State) -> None:
        pass


class InversePropensity(Naive):
    """A click weighs P(examined | 1)/P(examined | its position), which is given (Joachims et al., WSDM 2017)."""

    def __init__(self, propensities: tuple[float, ...], device: torch.device, clip: float | None = None) -> None:
        self._propensities = torch.tensor(propensities, device=device)
        self._clip = clip

    def targets(self, scores: Tensor, clicks: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        _require(positions, len(self._propensities))
        return clicks * inverse_propensities(self._propensities, positions, self._clip)

    def curve(self) -> list[float] | None:
        found: list[float] = (self._propensities / self._propensities[0]).tolist()
        return found


class DualLearning:
    """The dual learning algorithm (Ai et al., SIGIR 2018, algorithm 1): a logit for each position, learnt from clicks
    that are weighed by the ranker's relevance, while the ranker learns from clicks that are weighed by these.

    Both steps go by the weights before either. The optimiser is Adam, as a step has then one length whatever the scale
    of the clicks (the paper: SGD); it is made once. The logits are softmaxed over the positions that a list has.
    """

    def __init__(
        self, positions: int, device: torch.device, *, learning_rate: float = 0.03, clip: float = CLIP
    ) -> None:
        self.logits = torch.zeros(positions, device=device, requires_grad=True)
        self._optimizer = torch.optim.Adam([self.logits], lr=learning_rate)
        self._rate, self._clip, self._lists = learning_rate, clip, 0

    def targets(self, scores: Tensor, clicks: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        _require(positions, len(self.logits))
        weights = inverse_propensities(self.logits.detach().exp(), positions, self._clip)
        with torch.enable_grad(), torch.autocast(scores.device.type, enabled=False):
            own = self.logits[(positions - 1).clamp(min=0)]  # [B, n]
            labels = clicks * inverse_relevance(scores, mask, positions, self._clip)
            loss = click_softmax(own, labels, mask, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]  # adds to the gradient
        self._lists += len(clicks)
        return clicks * weights

    def update(self, scale: float) -> None:
        if self.logits.grad is None:
            return
        self.logits.grad /= self._lists
        self._optimizer.param_groups[0]["lr"] = self._rate * scale
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._lists = 0

    def curve(self) -> list[float]:
        found: list[float] = (self.logits.detach() - self.logits.detach()[0]).exp().tolist()
        return found

    def state(self) -> State:
        return {"logits": self.logits.detach().clone(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: State) -> None:
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self._optimizer.load_state_dict(state["optimizer"])


class RegressionEM:
    """Regression-EM (Wang et al., WSDM 2018): labels are the expected relevance under the present propensities.

    Where the paper goes over all sessions in each M-step, the propensities move here by `rate` towards the batch's
    mean of P(examined), as the ranker's weights do by its gradient; and the ranker has the expectation as its label
    where the paper draws from it.
    """

    def __init__(self, positions: int, device: torch.device, *, rate: float = 0.05) -> None:
        self.propensities = torch.full((positions,), 0.5, device=device)
        self._rate = rate
        self._seen = torch.zeros_like(self.propensities)
        self._shown = torch.zeros_like(self.propensities)

    def targets(self, scores: Tensor, clicks: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        _require(positions, len(self.propensities))
        places = (positions - 1).clamp(min=0)
        relevant, seen = expected_relevance(scores, clicks, self.propensities[places])
        self._seen.index_add_(0, places[mask], seen[mask])
        self._shown.index_add_(0, places[mask], torch.ones_like(seen[mask]))
        return relevant

    def update(self, scale: float) -> None:
        mean = self._seen / self._shown.clamp(min=1)
        moved = self.propensities + self._rate * scale * (mean - self.propensities)
        self.propensities = torch.where(self._shown > 0, moved, self.propensities)
        self._seen.zero_()
        self._shown.zero_()

    def curve(self) -> list[float]:
        found: list[float] = (self.propensities / self.propensities[0]).tolist()
        return found

    def state(self) -> State:
        return {"propensities": self.propensities.clone()}

    def load(self, state: State) -> None:
        self.propensities.copy_(state["propensities"])


def _require(positions: Tensor, known: int) -> None:
    if int(positions.max()) > known:
        raise InputError(f"a session has position {int(positions.max())}, and propensities end at {known}")
