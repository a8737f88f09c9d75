"""Labels from a ranker of windows: the whole order of a list, where one slide of the windows gives only its head.

"Sliding Windows Are Not the End" (Liu et al., ACL 2025, arXiv 2412.14574), section on label construction. For labels
of any other ranker `rerank run` is all that is needed: its run is a teacher as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rerank.errors import InputError
from rerank.prompts import Prompt
from rerank.strategies.base import Steps, Verdict
from rerank.strategies.listwise import Listwise
from rerank.types import Candidates, Outcomes


@dataclass(frozen=True, slots=True)
class MultiPass:
    """Slides the windows of `inner` over the list again and again, each time over what is not fixed yet.

    One slide carries the window - step best passages to the head, where they are fixed: with windows of 20, 10
    apart, pass t goes over positions 10 (t - 1) … n and fixes ten, and 9 passes order 100 passages. The last pass is
    the one in which all that is left fits into one window. The paper has these windows; the rule is the same for any.
    """

    inner: Listwise

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Listwise):
            raise InputError(f"{type(self.inner).__name__} has no windows to slide; give listwise or first")
        if self.inner.step == self.inner.window:
            raise InputError(
                f"window {self.inner.window} and step {self.inner.step} carry nothing forward; give a smaller step"
            )

    @property
    def prompt(self) -> Prompt:
        return self.inner.prompt

    def calls(self, n: int) -> int:
        return sum(self.inner.calls(n - fixed) for fixed in self.passes(n))

    def passes(self, n: int) -> Iterator[int]:
        """How many passages are fixed when each pass begins.

        >>> from rerank.strategies import First
        >>> list(MultiPass(First()).passes(100))
        [0, 10, 20, 30, 40, 50, 60, 70, 80]
        """
        inner = self.inner
        return iter(range(0, max(1, n - inner.step), inner.window - inner.step))

    def rank(self, candidates: Candidates) -> Steps:
        n = len(candidates)
        order, outcomes, thoughts = list(range(n)), Outcomes(), tuple[str, ...]()
        for fixed in self.passes(n):
            left = order[fixed:]
            verdict = yield from self.inner.rank(
                replace(candidates, passages=tuple(candidates.passages[i] for i in left))
            )
            order[fixed:] = [left[position] for position in verdict.order]
            outcomes += verdict.outcomes
            thoughts += verdict.reasoning
        return Verdict(tuple(order), None, outcomes, thoughts)
