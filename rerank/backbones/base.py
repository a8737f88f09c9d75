"""What a backbone is: it prepares calls and answers them in batches.

`prepare` turns a call into what the engine eats and says how long it is; the scheduler then makes the
batches, and `answer` answers one batch, all of one kind, in its order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rerank.calls import Answer, Call, Kind


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call with its token ids. `tokens` is what it takes of a batch, `cut` the passages shortened, `targets`
    the token of each label, or the tokens of the continuation."""

    call: Call
    token_ids: tuple[int, ...]
    tokens: int
    cut: int = 0
    targets: tuple[int, ...] = ()


class Backbone(Protocol):
    """Who computes. Everything that it cannot do is refused before any work."""

    @property
    def name(self) -> str:
        """The model's identity, adapter included, as a run records it."""
        ...

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of call that it answers."""
        ...

    @property
    def control_tokens(self) -> frozenset[str]:
        """Texts that its tokenizer reads as control tokens; they are broken up in passages."""
        ...

    @property
    def batch_tokens(self) -> int | None:
        """The most tokens in a batch, padding included; None where the engine makes its own batches."""
        ...

    def prepare(self, call: Call) -> Prepared:
        """Raises ContextError or LabelError where this call cannot be asked."""
        ...

    def answer(self, batch: Sequence[Prepared]) -> list[Answer]: ...
