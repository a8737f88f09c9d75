"""Rank-R1: think, then name the best of twenty passages (Zhuang et al., arXiv 2503.06034, 2025).

The algorithm is setwise heapsort, with a wider heap; the thought and its answer are the prompt's affair. ReasonRank
(Liu et al., arXiv 2508.07050, 2025) is `listwise` in the same way, with prompt `listwise-reasoning`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rerank.errors import PromptError
from rerank.prompts import Prompt, load_prompt
from rerank.strategies.setwise import Setwise


@dataclass(frozen=True, slots=True)
class RankR1(Setwise):
    """`Setwise` as the paper runs it: a heap with 19 children, so that a call shows 20 passages, and the best 10.

    The thoughts are in the ranking's `reasoning`, as they came, with the passages' ids. An answer whose thought was
    not closed, or that names no passage or several, has failed: the first stage's best of those shown counts as
    the best then, where the authors' code keeps the heap's node.
    """

    source: ClassVar[str] = "Rank-R1: Zhuang et al. 2025"
    prompt: Prompt = field(default_factory=lambda: load_prompt("setwise-reasoning"))
    children: int = 19

    def __post_init__(self) -> None:
        Setwise.__post_init__(self)  # a class with slots has no super() here
        if not self.prompt.reasons:
            raise PromptError(
                f"prompt {self.prompt.name!r} has no thought written, and strategy 'rank-r1' reads one; give the "
                "prompt to strategy 'setwise', or 'rank-r1' a prompt such as 'setwise-reasoning'"
            )
