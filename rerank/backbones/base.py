"""What a backbone is: it prepares calls, and answers them in batches or one by one.

`prepare` turns a call into what the engine eats and says how long it is. A `BatchBackbone` then says which of
the prepared calls go together and answers a batch at a time, all of one kind, in its order. An `AsyncBackbone`
answers each call by itself, many at a time; what fails there fails one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rerank.calls import Answer, Call, Constraint, GenerateCall, Kind
from rerank.errors import CapabilityError

if TYPE_CHECKING:
    from typing_extensions import TypeIs


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call with its token ids. `tokens` is what it takes of a batch, `cut` the passages shortened, `targets`
    the token of each label, or the tokens of the continuation."""

    call: Call
    token_ids: tuple[int, ...]
    tokens: int
    cut: int = 0
    targets: tuple[int, ...] = ()


class _Common(Protocol):
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
    def constraints(self) -> frozenset[type[Constraint]]:
        """The kinds of constraint that it honours when it generates."""
        ...

    @property
    def control_tokens(self) -> frozenset[str]:
        """Texts that its tokenizer reads as control tokens; they are broken up in passages."""
        ...

    def prepare(self, call: Call) -> Prepared:
        """Raises ContextError or LabelError where this call cannot be asked."""
        ...

    def close(self) -> None:
        """Gives back what it holds: processes, connections, memory. It answers nothing after that."""
        ...


class BatchBackbone(_Common, Protocol):
    """An engine that computes in this process, a batch at a time."""

    def group(self, items: Sequence[Prepared]) -> list[list[int]]:
        """Which of these calls are answered together, by position; every one of them once."""
        ...

    def answer(self, batch: Sequence[Prepared]) -> list[Answer]: ...


class AsyncBackbone(_Common, Protocol):
    """An engine elsewhere, asked call by call. `concurrency` is the most calls that it takes at a time."""

    @property
    def concurrency(self) -> int: ...

    async def ask(self, item: Prepared) -> Answer:
        """Raises BackboneError where this call got no answer; the others go on."""
        ...


Backbone = BatchBackbone | AsyncBackbone


def is_async(backbone: Backbone) -> TypeIs[AsyncBackbone]:
    """Whether it is asked call by call."""
    return hasattr(backbone, "ask")


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    differing = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def by_kind(
    items: Sequence[Prepared], batches: Callable[[Kind, Sequence[Prepared]], list[list[int]]]
) -> list[list[int]]:
    """The batches of each kind of call by itself, as `batches` makes them."""
    places: dict[Kind, list[int]] = {}
    for i, item in enumerate(items):
        places.setdefault(item.call.kind, []).append(i)
    return [
        [same[i] for i in batch] for kind, same in places.items() for batch in batches(kind, [items[i] for i in same])
    ]


def by_length(items: Sequence[Prepared], budget: int | None) -> list[list[int]]:
    """Batches of at most `budget` tokens when padded to the longest, the longest calls first."""
    batches: list[list[int]] = []
    for i in sorted(range(len(items)), key=lambda i: -items[i].tokens):
        longest = items[batches[-1][0]].tokens if batches else 0
        if batches and (budget is None or longest * (len(batches[-1]) + 1) <= budget):
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def check_constraint(backbone: Backbone, call: GenerateCall) -> None:
    """Refuse a constraint that this backbone does not honour."""
    if call.constraint is not None and type(call.constraint) not in backbone.constraints:
        able = ", ".join(sorted(c.__name__ for c in backbone.constraints)) or "none"
        raise CapabilityError(
            f"{backbone.name!r} cannot constrain what it writes by {type(call.constraint).__name__}; it honours {able}"
        )
