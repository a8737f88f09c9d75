"""Iterative elimination: leave out the least relevant passage, and again (IRanker; Feng et al., arXiv 2506.21638).

The reversed order of removal is the ranking. The calls of a query follow one another; those of different
queries run together. How the least relevant one is found, by labels or by text, is the prompt's affair; a prompt
that asks for the best first may do as well, and the last of its order is removed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rerank.errors import InputError
from rerank.prompts import Prompt, load_prompt
from rerank.prompts.read import Order
from rerank.strategies.base import Steps, Verdict, as_read, check_passage_tokens, check_prompt
from rerank.types import Candidates


@dataclass(frozen=True, slots=True)
class Elimination:
    """n passages take ⌈(n - 1) / drop⌉ calls, each of which removes the `drop` least relevant; 1 is the paper's.

    The paper shows all passages that remain. A call shows the last `window` of them in the first stage's order, so
    that the head is compared last, when no more than `window` remain. A perfect judge then orders the best
    window - drop of all; what is removed before is worse than those, but not always than what is removed later.

    Where an answer cannot be read, the last ones shown are removed. Scores are descending ranks. `passage_tokens` cuts
    every passage to that many tokens.
    """

    source: ClassVar[str] = "IRanker: Feng et al. 2025"
    formula: ClassVar[str] = "ceil((n-1) / drop)"
    prompt: Prompt = field(default_factory=lambda: load_prompt("elimination"))
    window: int = 20
    drop: int = 1
    passage_tokens: int | None = None

    def __post_init__(self) -> None:
        check_prompt("elimination", self.prompt, "many")
        check_passage_tokens(self.passage_tokens)
        if not 1 <= self.drop < self.window:
            raise InputError(f"window {self.window} and drop {self.drop}: give 1 <= drop < window, so that one stays")
        most = self.prompt.max_passages
        if most is not None and self.window > most:
            raise InputError(f"window {self.window}: prompt {self.prompt.name!r} can name {most} passages")

    def calls(self, n: int) -> int:
        return -(-(n - 1) // self.drop)

    def rank(self, candidates: Candidates) -> Steps:
        left, removed, heard = list(range(len(candidates))), list[int](), list[Order]()
        while len(left) > 1:
            shown = left[-self.window :]
            drop = min(self.drop, len(shown) - 1)
            bottom = drop if self.prompt.asks_bottom else None
            passages = [candidates.passages[i] for i in shown]
            (answer,) = yield [self.prompt.ask(candidates.query, passages, self.passage_tokens, bottom)]
            ranked = self.prompt.order(answer, len(shown), bottom, passages=passages)
            worst = [shown[position] for position in ranked.positions[-drop:]]
            removed = worst + removed
            left = [i for i in left if i not in worst]
            heard.append(ranked)
        return as_read(Verdict((*left, *removed)), heard)
