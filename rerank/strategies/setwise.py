"""Setwise: which of a few passages is the most relevant one? (Zhuang et al., SIGIR 2024).

One question does the work of `children` comparisons. What is asked, by labels or by text, and how many passages
a call can name is the prompt's affair.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from rerank.errors import InputError
from rerank.prompts import Prompt, load_prompt
from rerank.prompts.read import Order
from rerank.strategies.base import (
    Asking,
    Steps,
    Verdict,
    as_read,
    check_passage_tokens,
    check_prompt,
    check_stable,
    with_budget,
)
from rerank.strategies.sorting import bubble_questions, bubble_top, heap_questions, heap_top
from rerank.types import Candidates


@dataclass(frozen=True, slots=True)
class Setwise:
    """The best `k` by `algorithm`: a heap whose nodes have `children`, or k passes of a window of `children` + 1 from
    the tail.

    2 children and k = 10 are the paper's; with more children there are fewer calls: 100 passages take at most
    151 with 2 and 25 with 19. With `votes` above 1 every question is asked that often, its passages shuffled each
    time by `seed`, and the majority counts; of equals, and where nothing could be read, the one that stood first.
    `passage_tokens` cuts every passage to that many tokens, `reason_tokens` bounds each thought of a prompt that has
    thoughts written (`setwise-reasoning`).

    With `stop_when_stable`, a number of passages, bubblesort is done after a pass that left so many at the head as they
    were. With 2 children or more that is a guess: a window puts its best at the head, and not the others in order.
    """

    source: ClassVar[str] = "Zhuang et al., SIGIR 2024"
    formula: ClassVar[str] = (
        "heapsort votes (n/(c-1) + k (log_c(n) + 1)) at most, c the children; "
        "bubblesort votes sum(ceil((n-t)/c), t=1..k)"
    )
    prompt: Prompt = field(default_factory=lambda: load_prompt("setwise"))
    algorithm: Literal["heapsort", "bubblesort"] = "heapsort"
    children: int = 2
    k: int = 10
    votes: int = 1
    seed: int = 0
    passage_tokens: int | None = None
    reason_tokens: int | None = None
    stop_when_stable: int | None = None

    def __post_init__(self) -> None:
        check_prompt("setwise", self.prompt, "many", best_will_do=True)
        check_passage_tokens(self.passage_tokens)
        object.__setattr__(self, "prompt", with_budget(self.prompt, self.reason_tokens))
        for name in ("children", "k", "votes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give at least 1")
        check_stable(
            self.stop_when_stable,
            None if self.algorithm == "bubblesort" else f"{self.algorithm} makes no passes; give algorithm=bubblesort",
        )
        if self.votes == 1 and self.seed != 0:
            raise InputError(
                f"seed is {self.seed}, but nothing is shuffled; leave seed out, or give votes of 2 or more"
            )
        most = self.prompt.max_passages
        if most is not None and self.children + 1 > most:
            raise InputError(
                f"children is {self.children}: with their parent more than the {most} passages that prompt "
                f"{self.prompt.name!r} can name; give at most {most - 1}"
            )

    def calls(self, n: int) -> int:
        if self.algorithm == "heapsort":
            return self.votes * len(heap_questions(n, self.k, self.children))
        return self.votes * len(bubble_questions(n, self.k, self.children + 1))

    def rank(self, candidates: Candidates) -> Steps:
        n, heard, shuffler = len(candidates), list[Order](), random.Random(self.seed)
        known: dict[tuple[int, ...], int] = {}  # a window that comes again is not asked again

        def best(shown: Sequence[int]) -> Asking[int]:
            if (key := tuple(shown)) in known:
                return known[key]
            shuffled = [shuffler.sample(shown, len(shown)) for _ in range(self.votes)] if self.votes > 1 else [shown]
            sets = [[candidates.passages[i] for i in order] for order in shuffled]
            answers = yield [self.prompt.ask(candidates.query, passages, self.passage_tokens) for passages in sets]
            read = [
                self.prompt.order(answer, len(shown), passages=passages)
                for answer, passages in zip(answers, sets, strict=True)
            ]
            heard.extend(read)
            named = Counter(
                order[ranked.positions[0]]
                for order, ranked in zip(shuffled, read, strict=True)
                if not ranked.outcomes.failed
            )
            known[key] = max(shown, key=lambda i: named[i])  # the first of equals
            return known[key]

        if self.algorithm == "heapsort":
            order = yield from heap_top(n, self.k, self.children, best)
        else:
            order = yield from bubble_top(n, self.k, self.children + 1, best, self.stop_when_stable)
        return as_read(Verdict(tuple(order)), heard)
