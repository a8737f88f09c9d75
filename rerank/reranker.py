"""Rankers: one verb, and two operators to put them in a row.

    pipeline = rerank.load("pointwise") % 20 >> rerank.load("listwise")

`%` keeps the first k of a ranking; `>>` hands a ranking to the next stage. As in arithmetic `%` binds
tighter, so the line above is a cheap stage, a cutoff, and an expensive stage. What a cutoff drops is gone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal, Self

from rerank.backbones import load_backbone
from rerank.backbones.base import Backbone
from rerank.defaults import DEFAULT_BACKBONE, Asked, resolve, settle
from rerank.errors import InputError
from rerank.jobs import Progress
from rerank.prompts import Prompt
from rerank.scheduler import MAX_CALLS, Scheduler
from rerank.strategies.base import Strategy
from rerank.types import Candidates, Query, Ranking, as_candidates

Request = Candidates | tuple[str | Query, Iterable[object]]
OnError = Literal["raise", "keep"]


class Ranker(ABC):
    """Anything that orders the passages of a query."""

    def rank(self, query: str | Query, passages: Iterable[object]) -> Ranking:
        """The passages in order, best first.

        A passage is a string, a `Passage`, a mapping with `text` (and `id`, `title`, `score`), a LangChain
        document or a LlamaIndex node. Raises InputError for an empty query, no passages, or equal ids.
        """
        return next(iter(self.rank_many([as_candidates(query, passages)])))

    def rank_many(self, requests: Iterable[Request], *, on_error: OnError = "raise") -> Iterator[Ranking]:
        """Rankings in input order, lazily, batched across queries. `requests` may be endless.

        A query that cannot be asked (longer than the context, say) raises when its turn comes; with
        `on_error="keep"` its ranking has the given order and an `error`, and the others go on.
        """
        if on_error not in ("raise", "keep"):
            raise InputError(f"on_error is {on_error!r}; give 'raise' or 'keep'")
        for ranking in self._run(r if isinstance(r, Candidates) else as_candidates(*r) for r in requests):
            if ranking.error is not None and on_error == "raise":
                raise ranking.error
            yield ranking

    @abstractmethod
    def _run(self, requests: Iterable[Candidates]) -> Iterator[Ranking]:
        """Rankings in input order; a query's failure is its ranking's `error`."""

    def __mod__(self, k: int) -> Ranker:
        return Pipeline((self, Cutoff(k)))

    def __rshift__(self, other: Ranker) -> Ranker:
        if not isinstance(other, Ranker):
            return NotImplemented
        return Pipeline((*self._stages(), *other._stages()))

    def _stages(self) -> tuple[Ranker, ...]:
        return (self,)

    def close(self) -> None:
        """Gives back what its backbones hold: processes, connections, memory. It ranks nothing after that."""
        for stage in self._stages():
            if stage is not self:
                stage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Reranker(Ranker):
    """A strategy on a backbone. `strict` refuses passages that would be cut or neutralised. `max_calls` is how many
    calls are in flight before another query is begun."""

    def __init__(
        self,
        strategy: Strategy,
        backbone: Backbone,
        *,
        strict: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        max_calls: int = MAX_CALLS,
    ) -> None:
        self.strategy, self.backbone = strategy, backbone
        self._scheduler = Scheduler(strategy, backbone, strict=strict, on_progress=on_progress, max_calls=max_calls)

    def _run(self, requests: Iterable[Candidates]) -> Iterator[Ranking]:
        return self._scheduler.run(requests)

    def close(self) -> None:
        self.backbone.close()


class Cutoff(Ranker):
    """Keeps the first k passages, in the given order."""

    def __init__(self, k: int) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"a cutoff is {k!r}; give a whole number of at least 1")
        self.k = k

    def _run(self, requests: Iterable[Candidates]) -> Iterator[Ranking]:
        for request in requests:
            n = len(request)
            scores = [p.score if p.score is not None else float(n - i) for i, p in enumerate(request.passages)]
            yield Ranking.of(request, range(min(self.k, n)), scores)


class Pipeline(Ranker):
    """Stages in a row. Usage and outcomes add up; reasoning and the first error are kept."""

    def __init__(self, stages: tuple[Ranker, ...]) -> None:
        self.stages = stages

    def _stages(self) -> tuple[Ranker, ...]:
        return self.stages

    def _run(self, requests: Iterable[Candidates]) -> Iterator[Ranking]:
        first, *rest = self.stages
        stream = first._run(requests)
        for stage in rest:
            stream = _chain(stream, stage)
        return stream


def _chain(rankings: Iterator[Ranking], stage: Ranker) -> Iterator[Ranking]:
    """The stage over the rankings before it; they wait, in order, to have their costs added."""
    before: deque[Ranking] = deque()

    def requests() -> Iterator[Candidates]:
        for ranking in rankings:
            before.append(ranking)
            yield ranking.candidates()

    for after in stage._run(requests()):
        earlier = before.popleft()
        yield replace(
            after,
            usage=earlier.usage + after.usage,
            outcomes=earlier.outcomes + after.outcomes,
            reasoning=earlier.reasoning + after.reasoning,
            error=earlier.error or after.error,
        )


def load(
    strategy: str,
    *,
    model: str | None = None,
    adapter: str | None = None,
    prompt: str | Prompt | None = None,
    backbone: str | Backbone = DEFAULT_BACKBONE,
    device: str | None = None,
    dtype: str | None = None,
    backbone_options: Mapping[str, object] | None = None,
    strict: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    **options: object,
) -> Reranker:
    """A ranker by the name of its strategy, or of a released reranker (`rerank ls models`).

    `model` is a hub name or a directory; None is the embedded model. `adapter` is a LoRA adapter: one that ships, a
    directory or a hub name; None is the one that ships for the strategy on the embedded model, "none" is none. `prompt`
    is a name, `name@version` or a YAML file; None is the adapter's, else the strategy's own. `backbone` is
    an engine's name (`rerank ls backbones`), or a backbone to share with other rankers; `backbone_options` are
    what that engine can be told beside these. A released reranker brings its own prompt and
    engine where none is given. `strict` refuses passages that would be cut or neutralised. Further options are the
    strategy's (`rerank ls strategies`), and `instruction`, for a prompt that has one.
    """
    asked = resolve(Asked(strategy, model, backbone, backbone_options or {}))
    model = asked.model
    made, adapter = settle(
        asked.strategy, model=model, adapter=adapter, prompt=prompt, backbone=asked.backbone, options=options
    )
    engine = load_backbone(
        asked.backbone,
        needs=made.prompt.needs,
        model=model,
        adapter=adapter,
        device=device,
        dtype=dtype,
        options=asked.engine_options,
    )
    return Reranker(made, engine, strict=strict, on_progress=on_progress)
