"""The losses by name, without their code: a recipe's names can be checked before torch is there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from rerank.errors import InputError, UnknownNameError
from rerank.options import checked, names

if TYPE_CHECKING:
    from torch import Generator, Tensor

    LossFunction = Callable[..., Tensor]
else:
    LossFunction = Callable

LabelKind = Literal["graded", "order", "teacher", "binary", "utility"]

_GIVEN = frozenset({"scores", "labels", "mask", "generator"})


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss and the labels it is meant for.

    "graded": relevance grades, 0 for not relevant; "binary": 0 to 1; "order": any numbers, of which only the order
    counts; "teacher": a teacher's scores, whose differences count; "utility": amounts.
    """

    name: str
    module: str
    labels: LabelKind
    about: str
    samples: bool = False  # takes a generator

    @property
    def function(self) -> LossFunction:
        found: LossFunction = getattr(importlib.import_module(f"rerank.losses.{self.module}"), self.name)
        return found


def _table(*losses: Loss) -> Mapping[str, Loss]:
    return MappingProxyType({loss.name: loss for loss in losses})


LOSSES = _table(
    Loss("ranknet", "pairs", "order", "logistic loss of every ordered pair"),
    Loss("weighted_ranknet", "pairs", "order", "RankNet with the top of the teacher's order weighing most (FIRST)"),
    Loss("pairwise_hinge", "pairs", "order", "hinge loss of every ordered pair (Ranking SVM)"),
    Loss("pairwise", "pairs", "graded", "any pair function times any weight of pairs"),
    Loss("lambda_rank", "pairs", "graded", "pairs weighed by the change of nDCG when they are exchanged"),
    Loss("lambda_loss", "pairs", "graded", "NDCG-Loss1, NDCG-Loss2 and NDCG-Loss2++"),
    Loss("lipo_lambda", "pairs", "graded", "LambdaRank's pairs for log-ratios of probabilities (LiPO-λ)"),
    Loss("pa_bce", "pairs", "utility", "pairs weighed by the logarithm of what they differ in profit"),
    Loss("listnet", "listwise", "teacher", "cross-entropy with the softmax of the labels"),
    Loss("softmax", "listwise", "graded", "cross-entropy with the labels' shares; InfoNCE with one positive"),
    Loss("click_softmax", "unbiased", "graded", "cross-entropy of clicks times their weights (DLA, IPW)"),
    Loss("poly1", "listwise", "graded", "softmax cross-entropy and its first polynomial term"),
    Loss("listmle", "listwise", "order", "Plackett–Luce likelihood of the labels' order"),
    Loss("p_listmle", "listwise", "order", "ListMLE with the first positions weighing most"),
    Loss("adr_mse", "approx", "order", "discounted distance of approximate ranks to the teacher's (Rank-DistiLLM)"),
    Loss("approx_ndcg", "approx", "graded", "1 − nDCG of approximate ranks"),
    Loss("approx_rr", "approx", "graded", "1 − RR of approximate ranks"),
    Loss("approx_ap", "approx", "graded", "1 − AP of approximate ranks"),
    Loss("approx_precision", "approx", "graded", "1 − P@k of approximate ranks"),
    Loss("gumbel_approx_ndcg", "approx", "graded", "ApproxNDCG in expectation over Gumbel noise", samples=True),
    Loss("pg_rank", "policy", "graded", "1 − any measure of rankings drawn by Plackett–Luce (PG-Rank)", samples=True),
    Loss("neural_sort", "neural", "order", "cross-entropy of a soft permutation matrix with the labels' order"),
    Loss("neural_ndcg", "neural", "graded", "1 − nDCG of the gains as a soft permutation sorts them"),
    Loss("bce", "pointwise", "binary", "binary cross-entropy of each item"),
    Loss("mse", "pointwise", "teacher", "squared distance of each score to its label"),
    Loss("ordinal", "pointwise", "graded", "a threshold between each two grades, every threshold counts"),
    Loss("margin_mse", "distillation", "teacher", "squared distance of each margin to the teacher's"),
    Loss("kl", "distillation", "teacher", "divergence from the teacher's softmax over the list"),
)


def options_of(name: str) -> list[str]:
    """What can be set of a loss; loads torch."""
    return names(_known(name).function, without=_GIVEN)


def load_loss(
    name: str, *, generator: Generator | None = None, **options: object
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A loss by name with its options set, names and values checked now and not at the first step.

    A loss that samples draws from `generator`, or else from torch's own; for the others there is none to give.
    """
    loss = _known(name)
    function = loss.function
    values = checked(name, function, options, without=_GIVEN)
    if generator is not None and not loss.samples:
        raise InputError(f"loss {name!r} does not sample; leave out its generator")
    _try(loss, values)
    if loss.samples:
        values["generator"] = generator
    return partial(function, **values)


def _known(name: str) -> Loss:
    if name not in LOSSES:
        raise UnknownNameError("loss", name, LOSSES)
    return LOSSES[name]


def _try(loss: Loss, options: Mapping[str, object]) -> None:
    """Computes a list of two, for only the function itself knows which values it can use."""
    import torch

    more = {"generator": torch.Generator()} if loss.samples else {}
    loss.function(torch.zeros(2), torch.tensor([1.0, 0.0]), **options, **more)
