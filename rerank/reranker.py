"""Rankers: one verb, and two operators to put them in a row.

    cascade = rerank.load("pointwise") % 20 >> rerank.load("listwise")

`>>` hands a ranking to the next stage; of `a % k` only the first k go on. As in arithmetic `%` binds tighter, so the
line above is a cheap stage, a cut, and an expensive stage. What a cut leaves out is not lost: see `Cascade`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Literal, Self, cast

from rerank.backbones import load_backbone
from rerank.backbones.base import Backbone
from rerank.defaults import DEFAULT_BACKBONE, Asked, resolve, settle
from rerank.errors import CapabilityError, InputError
from rerank.jobs import Progress
from rerank.prompts import Prompt
from rerank.scheduler import MAX_CALLS, Scheduler
from rerank.strategies.base import Strategy
from rerank.types import Candidates, Query, Ranking, as_candidates

if TYPE_CHECKING:
    from rerank.merging import Merger

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

    async def arank(self, query: str | Query, passages: Iterable[object]) -> Ranking:
        """As `rank`, without holding up the event loop.

        Callers that wait together, as in `asyncio.gather`, share their batches. One that is cancelled frees its work:
        at once where it has not begun, or an engine is asked call by call; else between two batches of the engine.
        """
        ranking = (await self._merger.ask(self, as_candidates(query, passages))).ranking
        if ranking.error is not None:
            raise ranking.error
        return ranking

    @cached_property
    def _merger(self) -> Merger:
        from rerank.merging import Merger  # asyncio and threads, for those who need them

        return Merger()

    def rerankers(self) -> Iterator[Reranker]:
        """Those in it that ask a model, first stage first."""
        return iter(())

    def limited(self, passage_tokens: int) -> Ranker:
        """The same ranker, of which no stage reads more than so many tokens of a passage.

        Raises CapabilityError where a strategy has no option `passage_tokens`.
        """
        raise CapabilityError(f"a {type(self).__name__} cannot be told how many tokens of a passage to read")

    @abstractmethod
    def _run(self, requests: Iterable[Candidates]) -> Iterator[Ranking]:
        """Rankings in input order; a query's failure is its ranking's `error`."""

    def __mod__(self, k: int) -> Cascade:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"a cut is {k!r}; give a whole number of at least 1, as in 'ranker % 20'")
        *before, last = self._stages()
        return Cascade((*before, replace(last, keep=k if last.keep is None else min(k, last.keep))))

    def __rshift__(self, other: Ranker) -> Cascade:
        if not isinstance(other, Ranker):
            return NotImplemented
        return Cascade((*self._stages(), *other._stages()))

    def _stages(self) -> tuple[Stage, ...]:
        return (Stage(self),)

    def close(self) -> None:
        """Gives back what its backbones hold: processes, connections, memory. It ranks nothing after that."""
        return

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
        self._told = partial(Reranker, strict=strict, on_progress=on_progress, max_calls=max_calls)
        self._scheduler = Scheduler(strategy, backbone, strict=strict, on_progress=on_progress, max_calls=max_calls)

    def _run(self, requests: Iterable[Candidates]) -> Iterator[Ranking]:
        return self._scheduler.run(requests)

    def rerankers(self) -> Iterator[Reranker]:
        return iter((self,))

    def limited(self, passage_tokens: int) -> Reranker:
        own: object = self.strategy  # its class need be no dataclass
        if (
            not is_dataclass(own)
            or isinstance(own, type)
            or "passage_tokens" not in {each.name for each in fields(own)}
        ):
            raise CapabilityError(f"a {type(own).__name__} has no option passage_tokens")
        before: int | None = getattr(own, "passage_tokens", None)
        cut = passage_tokens if before is None else min(before, passage_tokens)
        return self._told(cast("Strategy", replace(own, passage_tokens=cut)), self.backbone)

    def close(self) -> None:
        self.backbone.close()


class FirstStage(Ranker):
    """What the passages came with, as a stage: to cut it, as in `FirstStage() % 20 >> ranker`, or to fuse it.

    By the passages' scores, higher first, ties in the given order. Where none has a score the given order stands, and
    scores are the reciprocal ranks 1 / r. A query of which only some passages have a score, or one that is no number,
    is an error.
    """

    def limited(self, passage_tokens: int) -> FirstStage:
        """Itself: it reads nothing."""
        return self

    def _run(self, requests: Iterable[Candidates]) -> Iterator[Ranking]:
        return map(self._ranking, requests)

    def _ranking(self, request: Candidates) -> Ranking:
        found = [passage.score for passage in request.passages]
        scores = [score for score in found if score is not None and math.isfinite(score)]
        if all(score is None for score in found):
            scores = [1 / rank for rank in range(1, len(found) + 1)]
        if len(scores) == len(found):
            order = sorted(range(len(scores)), key=lambda i: -scores[i])
            return Ranking.of(request, order, [scores[i] for i in order])
        bad = next(p for p in request.passages if p.score is None or not math.isfinite(p.score))
        error = InputError(
            f"query {request.query.query_id!r}: passage {bad.doc_id!r} has the first-stage score {bad.score}, and "
            "others have a number; give every passage its score, or none of them for their order alone"
        )
        places = range(len(found))
        return replace(Ranking.of(request, places, [1 / (place + 1) for place in places]), error=error)


@dataclass(frozen=True, slots=True)
class Stage:
    """A ranker, and how many of its ranking go on; None for all."""

    ranker: Ranker
    keep: int | None = None


class Cascade(Ranker):
    """Stages in a row. Each orders the best of the one before, down to its cut; all queries share a stage's batches.

    What cuts leave out follows what the later stages ordered, in the order of the stage that was cut, so that every
    passage comes back once; only a cut at the very end, with no stage after it, has the ranking end there. A cut holds
    for all stages after it: `a % 20 >> b >> c` has c order b's 20, and so has `a % 20 >> (b >> c)`.

    Scores descend. They are the last stage's where that one ordered; those behind are moved down as a whole, so that
    the first of them lies 1 below the last one before it, and keep their distances to one another. A stage sees the
    scores of the one before as the first stage's; the passages that come back are as they were given.

    Usage and outcomes add up, reasoning is kept, first stage first. A query that fails in a stage keeps the order that
    it had before that stage, goes on to no other, and has that stage's error.
    """

    def __init__(self, stages: tuple[Stage, ...]) -> None:
        self.stages = stages

    def _stages(self) -> tuple[Stage, ...]:
        return self.stages

    def _run(self, requests: Iterable[Candidates]) -> Iterator[Ranking]:
        *before, last = self.stages
        rankings = _in_a_row((*before, Stage(last.ranker)), requests)
        return rankings if last.keep is None else (ranking.top(last.keep) for ranking in rankings)

    def rerankers(self) -> Iterator[Reranker]:
        return chain.from_iterable(stage.ranker.rerankers() for stage in self.stages)

    def limited(self, passage_tokens: int) -> Cascade:
        return Cascade(tuple(replace(stage, ranker=stage.ranker.limited(passage_tokens)) for stage in self.stages))

    def close(self) -> None:
        for stage in self.stages:
            stage.ranker.close()


def _in_a_row(stages: Sequence[Stage], requests: Iterable[Candidates]) -> Iterator[Ranking]:
    first, *after = stages
    rankings = first.ranker._run(requests)
    return _followed(rankings, first.keep, after) if after else rankings


def _followed(rankings: Iterator[Ranking], keep: int | None, after: Sequence[Stage]) -> Iterator[Ranking]:
    """The stages after a cut, over the rankings before it; these wait, in order, for what was made of their heads."""
    waiting: deque[Ranking] = deque()
    broken: Exception | None = None

    def heads() -> Iterator[Candidates]:
        nonlocal broken
        try:
            for ranking in rankings:
                waiting.append(ranking)
                if ranking.error is None:
                    yield ranking.top(keep).candidates()
        except Exception as error:  # raised after the rankings of what came before it
            broken = error

    for ordered in _in_a_row(after, heads()):
        while waiting[0].error is not None:
            yield waiting.popleft()
        yield _joined(waiting.popleft(), keep, ordered)
    yield from waiting  # the last ones, if they failed
    if broken is not None:
        raise broken


def _joined(earlier: Ranking, keep: int | None, ordered: Ranking) -> Ranking:
    """What was ordered, then what the cut left out, with their costs."""
    given = {hit.passage.doc_id: hit.passage for hit in earlier}
    hits = [replace(hit, passage=given[hit.passage.doc_id]) for hit in ordered]
    if left := earlier.hits[keep:] if keep is not None else ():
        best, below = left[0].score, hits[-1].score - 1
        # equal scores may be infinite, and have no difference then
        hits += [replace(hit, score=below - (best - hit.score if hit.score < best else 0.0)) for hit in left]
    return Ranking(
        earlier.query,
        tuple(hits),
        earlier.usage + ordered.usage,
        earlier.outcomes + ordered.outcomes,
        earlier.reasoning + ordered.reasoning,
        ordered.error,
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
