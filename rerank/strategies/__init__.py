"""The paradigms by name. A new one is a file and a line here; one of another package is an entry point (`registry`)."""

from __future__ import annotations

from collections.abc import Mapping

from rerank.errors import UnknownNameError
from rerank.options import checked, names
from rerank.prompts import Prompt, load_prompt
from rerank.strategies.base import Steps, Strategy, Verdict, by_score
from rerank.strategies.elimination import Elimination
from rerank.strategies.full import FullRanking
from rerank.strategies.groupwise import Groupwise
from rerank.strategies.listwise import First, Listwise
from rerank.strategies.pairwise import Pairwise
from rerank.strategies.pointwise import Pointwise
from rerank.strategies.rank_r1 import RankR1
from rerank.strategies.registry import Registry
from rerank.strategies.setwise import Setwise
from rerank.strategies.tournament import Tournament

STRATEGIES: Mapping[str, type[Strategy]] = Registry(
    {
        "pointwise": Pointwise,
        "pairwise": Pairwise,
        "setwise": Setwise,
        "rank-r1": RankR1,
        "listwise": Listwise,
        "first": First,
        "full-ranking": FullRanking,
        "elimination": Elimination,
        "tournament": Tournament,
        "groupwise": Groupwise,
    }
)


def options_of(strategy: type[Strategy]) -> list[str]:
    """What can be set, beside the prompt."""
    return names(strategy, without={"prompt"})


def load_strategy(name: str, *, prompt: str | Prompt | None = None, **options: object) -> Strategy:
    """A strategy by name, with its prompt (by name, `name@version` or path) and its options."""
    if name not in STRATEGIES:
        raise UnknownNameError("strategy", name, STRATEGIES)
    make = STRATEGIES[name]
    options = checked(name, make, options, without={"prompt"})
    if prompt is not None:
        options["prompt"] = prompt if isinstance(prompt, Prompt) else load_prompt(prompt)
    return make(**options)


__all__ = [
    "STRATEGIES",
    "Elimination",
    "First",
    "FullRanking",
    "Groupwise",
    "Listwise",
    "Pairwise",
    "Pointwise",
    "RankR1",
    "Setwise",
    "Steps",
    "Strategy",
    "Tournament",
    "Verdict",
    "by_score",
    "load_strategy",
    "options_of",
]
