"""Pointwise: each passage is judged alone; n passages are n independent calls.

The prompt says what is asked: a yes or no (relevance generation), a grade (its expected value), or how
likely the query is given the passage (query likelihood, UPR). The prompt files name the papers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rerank.prompts import Prompt, load_prompt
from rerank.strategies.base import Steps, by_score, check_passage_tokens, check_prompt
from rerank.types import Candidates


@dataclass(frozen=True, slots=True)
class Pointwise:
    """Scores are log-odds (yes/no), an expected grade, a mean log-probability per query token, or a logit as it is.

    `passage_tokens` cuts every passage to that many tokens; None leaves what the context holds.
    """

    source: ClassVar[str] = "Liang et al. 2022; Zhuang et al., NAACL 2024; Sachan et al., EMNLP 2022"
    formula: ClassVar[str] = "n"
    prompt: Prompt = field(default_factory=lambda: load_prompt("pointwise-yes-no"))
    passage_tokens: int | None = None

    def __post_init__(self) -> None:
        check_prompt("pointwise", self.prompt, "one")
        check_passage_tokens(self.passage_tokens)

    def calls(self, n: int) -> int:
        return n

    def rank(self, candidates: Candidates) -> Steps:
        answers = yield [
            self.prompt.ask(candidates.query, [passage], self.passage_tokens) for passage in candidates.passages
        ]
        return by_score([self.prompt.score(answer) for answer in answers])
