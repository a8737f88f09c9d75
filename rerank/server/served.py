"""The rankers that are served, by the names that clients ask for."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

from rerank.errors import CapabilityError, InputError
from rerank.prompts.neutralise import control_token_pattern, neutralise
from rerank.reranker import Ranker
from rerank.server.failures import Failure
from rerank.server.scores import ScoreMap, mapped, usual

_KEPT = 64  # rankers with a limit on tokens; they hold nothing, but a client may ask for any number


@dataclass(frozen=True)
class Served:
    """`strategy` is how it ranks, in words; `aliases` are further names; `scores` None is what goes with the ranker."""

    name: str
    ranker: Ranker
    strategy: str = ""
    aliases: tuple[str, ...] = ()
    scores: ScoreMap | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def title(self) -> str:
        return self.strategy or self.name

    @cached_property
    def score_map(self) -> ScoreMap:
        return self.scores or usual(self.ranker)

    def relevance(self, scores: Sequence[float]) -> list[float]:
        return mapped(self.score_map, scores)

    @cached_property
    def _control(self) -> re.Pattern[str]:
        tokens = [inner.backbone.control_tokens for inner in self.ranker.rerankers()]
        return control_token_pattern(frozenset().union(*tokens))

    @cached_property
    def _identifiers(self) -> tuple[str | None, ...]:
        return tuple({inner.strategy.prompt.identifiers for inner in self.ranker.rerankers()}) or (None,)

    def neutralised(self, text: str) -> str:
        """As the ranker's prompts show it."""
        for identifiers in self._identifiers:
            text = neutralise(text, self._control, identifiers)
        return text


class Catalogue:
    """The first is the default."""

    def __init__(self, served: Sequence[Served]) -> None:
        if not served:
            raise InputError("there is no ranker to serve; give at least one")
        self.served = tuple(served)
        self._by_name: dict[str, Served] = {}
        for each in served:
            for name in each.names:
                if self._by_name.setdefault(name, each) is not each:
                    raise InputError(f"two rankers would be served as {name!r}; give each names of its own")
        self._limited: OrderedDict[tuple[str, int], Ranker] = OrderedDict()

    def find(self, model: str | None) -> Served:
        if model is None:
            return self.served[0]
        if model not in self._by_name:
            near = get_close_matches(model[:200], self._by_name, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]!r}?" if near else f"served are {', '.join(map(repr, self._by_name))}"
            raise Failure(404, "not_found", f"model {model[:200]!r} is not served here; {advice}")
        return self._by_name[model]

    def ranker(self, served: Served, passage_tokens: int | None) -> Ranker:
        """The same one for the same limit, so that requests with it share batches."""
        if passage_tokens is None:
            return served.ranker
        key = (served.name, passage_tokens)
        if key not in self._limited:
            try:
                self._limited[key] = served.ranker.limited(passage_tokens)
            except CapabilityError as error:
                raise Failure(422, "invalid", f"{error}; leave max_tokens_per_doc out") from error
        self._limited.move_to_end(key)
        while len(self._limited) > _KEPT:
            self._limited.popitem(last=False)
        return self._limited[key]
