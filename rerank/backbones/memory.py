"""What an engine does when a batch does not fit in the device's memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from rerank.errors import BackboneError

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger(__name__)


def within_memory(batch: Sequence[T], compute: Callable[[Sequence[T]], list[R]], advice: Callable[[T], str]) -> list[R]:
    """What `compute` makes of the batch, or of its halves where memory runs out.

    Raises BackboneError where a single item does not fit; `advice` says which one it is, and what would help.
    """
    import torch

    try:
        return compute(batch)
    except torch.OutOfMemoryError as error:
        if len(batch) == 1:
            raise BackboneError(advice(batch[0])) from error
    # after the handler, whose error holds on to what was computed so far
    torch.cuda.empty_cache()
    half = len(batch) // 2
    _log.warning("out of memory on a batch of %d; trying halves", len(batch))
    return within_memory(batch[:half], compute, advice) + within_memory(batch[half:], compute, advice)
