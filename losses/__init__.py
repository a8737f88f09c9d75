"""Ranking losses `loss(scores, labels, mask=None, *, ..., reduction="mean")`, pure functions of tensors `[..., n]`.

    loss = rerank.losses.load_loss("lambda_loss", k=10)
    loss(scores, labels, mask)

What scores, labels, mask and reduction are is written in rerank.losses.base. The table holds names only: torch is
loaded with the first function.
"""

if __name__ != "rerank.losses":
    raise ImportError("import this package as rerank.losses")

from rerank.losses.table import LOSSES, LabelKind, Loss, LossFunction, load_loss, options_of

__all__ = ["LOSSES", "LabelKind", "Loss", "LossFunction", "load_loss", "options_of"]


def __getattr__(name: str) -> LossFunction:
    if name not in LOSSES:
        raise AttributeError(f"module 'rerank.losses' has no attribute {name!r}")
    return LOSSES[name].function


def __dir__() -> list[str]:
    return sorted({*globals(), *LOSSES})
