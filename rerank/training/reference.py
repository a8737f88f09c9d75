"""The model as it was when training began, without a second model, and how the trained one orders what it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rerank.losses.base import differences, divided, ordered_pairs
from rerank.training.forward import Run
from rerank.training.objectives import Asked

if TYPE_CHECKING:
    from transformers.utils import ModelOutput


class Beginning(nn.Module):
    """A model with its trained parameters as they are now, whatever becomes of them. It gives no gradient.

    Only the parameters that are trained are copied: an adapter's. A new adapter changes nothing, so that what it
    begins with is the adapter switched off; of one that is gone on with it is that adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = (model,)  # not a part of this one, which would be saved and moved with it
        self._kept: Mapping[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad
        }

    def forward(self, **inputs: object) -> ModelOutput:
        (model,) = self._model
        training = model.training
        model.eval()  # no dropout and no noise: at the first step there is nothing to tell the two apart
        try:
            with torch.no_grad():
                output: ModelOutput = torch.func.functional_call(model, dict(self._kept), (), inputs)
        finally:
            model.train(training)
        return output


@dataclass(frozen=True, slots=True)
class Reference:
    """What log-probabilities are compared with, and how: `beta`, and whether a text's is the mean over its tokens."""

    model: Beginning
    beta: float
    mean: bool = False

    def logits(self, sequences: Sequence[Asked], run: Run) -> list[Tensor]:
        return replace(run, model=self.model, noise=None).logits(sequences)


def ranking_accuracy(
    scores: Tensor, labels: Tensor, mask: Tensor, before: Tensor | None, *, beta: float
) -> tuple[Tensor, Tensor]:
    """The share `[Q]` of the pairs with ψ_i > ψ_j to which the policy gives π_θ(y_i|x) > π_θ(y_j|x), and their number.

    Chen et al., "Preference Learning Algorithms Do Not Learn Preference Rankings", NeurIPS 2024; a tie is half right.
    The log-probabilities are those of the reference + scores/β.
    """
    assert before is not None
    return _right(differences(before + scores / beta), ordered_pairs(labels, mask))


def idealised_accuracy(
    scores: Tensor, labels: Tensor, mask: Tensor, before: Tensor | None, *, beta: float
) -> tuple[Tensor, Tensor]:
    """The same of the policy that minimises the DPO loss: π*(y_i)/π*(y_j) = π_ref(y_i)/π_ref(y_j)·(α/(1 − α))^(1/β).

    α is the share of raters who prefer y_i. Labels tell no shares: ours is Bradley–Terry's,
    log α/(1 − α) = ψ_i − ψ_j. Were all raters of one mind, it would be 1.
    """
    assert before is not None
    return _right(differences(before) + differences(labels) / beta, ordered_pairs(labels, mask))


def _right(margins: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    right = torch.where(pairs, 0.5 + 0.5 * margins.sign(), 0.0).sum((-2, -1))
    count = pairs.sum((-2, -1)).to(right)
    return divided(right, count), count
