"""Full ranking: all passages in one prompt (Liu et al., "Sliding Windows Are Not the End", ACL 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from rerank.calls import Answer, Call
from rerank.errors import InputError, PromptError
from rerank.prompts import Prompt, load_prompt
from rerank.prompts.read import Order
from rerank.strategies.listwise import Listwise
from rerank.types import Passage, Query


@dataclass(frozen=True, slots=True)
class FullRanking(Listwise):
    """`Listwise` with a window for 100 passages of 100 tokens each, as in the paper; more passages take more windows.

    `top` has only the best few identifiers written, a fraction of the time; the others follow as the first stage
    had them. The paper finds that a model must be trained for this: untrained, windows of 20 are better.
    """

    source: ClassVar[str] = "Liu et al., ACL 2025"
    formula: ClassVar[str] = "passes shuffles (1 + ceil(max(0, n - window) / step)): 1 up to window passages"
    prompt: Prompt = field(default_factory=lambda: load_prompt("full-ranking"))
    window: int = 100
    step: int = 50
    passage_tokens: int | None = 100
    top: int | None = None

    def __post_init__(self) -> None:
        Listwise.__post_init__(self)  # a class with slots has no super() here
        if self.top is not None and self.top < 1:
            raise InputError(f"top is {self.top}; give at least 1, or None for all")
        if self.top is not None and not self.prompt.asks_top:
            raise PromptError(f"prompt {self.prompt.name!r} asks for all passages; for a top it must say {{top}}")
        if self.top is not None and self.shuffles > 1:
            raise InputError(
                f"shuffles is {self.shuffles}: answers vote on the order of all passages, and top={self.top} has only "
                "some of it written; leave one of them out"
            )

    def _ask(self, query: Query, passages: Sequence[Passage]) -> Call:
        return self.prompt.ask(query, passages, self.passage_tokens, self.top)

    def _read(self, answer: Answer, passages: Sequence[Passage]) -> Order:
        return self.prompt.order(answer, len(passages), self.top, passages=passages)
