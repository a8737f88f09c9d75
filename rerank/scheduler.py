"""The scheduler: advances the strategies of many queries together and merges what they ask.

In waves: it collects the calls of every query in flight, makes full batches of them (by tokens, sorted by
length, so that little is padding), and sends each strategy its answers. A strategy whose calls follow one
another, such as a sliding window, thus shares each batch with the other queries' windows.
Rankings come out in input order, as soon as they can; input is drawn only as fast as there is room.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from rerank.backbones.base import Backbone, Prepared
from rerank.calls import Answer
from rerank.errors import CapabilityError, ContextError, InputError, RerankError
from rerank.prompts.neutralise import control_token_pattern, neutralise
from rerank.strategies.base import Steps, Strategy, Verdict
from rerank.types import Candidates, Outcome, Outcomes, Passage, Query, Ranking, Usage

MAX_QUERIES = 512  # in flight or waiting for an earlier query
MAX_CALLS = 4096  # in one wave; bounds memory where a query asks many calls at once


@dataclass(frozen=True, slots=True)
class Progress:
    """What has been done so far; handed to `on_progress` after every batch."""

    queries: int = 0
    batches: int = 0
    usage: Usage = Usage()


@dataclass(slots=True)
class _Job:
    """One query in flight: its generator, what it asks now, and what it has cost."""

    index: int
    request: Candidates
    steps: Steps
    calls: Sequence[Prepared] = ()
    usage: Usage = Usage()
    outcomes: Outcomes = Outcomes()
    ranking: Ranking | None = None
    answers: list[Answer | None] = field(default_factory=list)


class Scheduler:
    """Runs one strategy on one backbone. `strict` refuses passages that would be cut or neutralised."""

    def __init__(
        self,
        strategy: Strategy,
        backbone: Backbone,
        *,
        strict: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        needs = strategy.prompt.needs
        if needs not in backbone.kinds:
            able = ", ".join(sorted(backbone.kinds)) or "nothing"
            raise CapabilityError(
                f"prompt {strategy.prompt.name!r} needs a backbone that answers {needs!s} calls; "
                f"{backbone.name!r} answers {able}"
            )
        self._strategy, self._backbone, self._strict = strategy, backbone, strict
        self._on_progress = on_progress
        self._control = control_token_pattern(backbone.control_tokens)

    def run(self, requests: Iterable[Candidates]) -> Iterator[Ranking]:
        """The rankings, in input order.

        A query that cannot be asked comes out in its given order with `error` set; the others go on.
        An error of `requests` itself is raised after the rankings of what came before it.
        """
        source = enumerate(requests)
        jobs: list[_Job] = []
        done: dict[int, Ranking] = {}
        broken: Exception | None = None
        exhausted, following = False, 0
        progress = Progress()
        while True:
            while not exhausted and len(jobs) + len(done) < MAX_QUERIES and _asked(jobs) < MAX_CALLS:
                try:
                    index, request = next(source)
                except StopIteration:
                    exhausted = True
                except Exception as error:
                    exhausted, broken = True, error
                else:
                    jobs.append(self._start(index, request))
            for batch in self._batches(jobs):
                progress = self._answer(batch, progress)
            for job in jobs:
                if job.ranking is None:
                    self._advance(job, [answer for answer in job.answers if answer is not None])
            done |= {job.index: job.ranking for job in jobs if job.ranking is not None}
            jobs = [job for job in jobs if job.ranking is None]
            while following in done:
                following += 1
                progress = replace(progress, queries=following)
                yield done.pop(following - 1)
            if exhausted and not jobs:
                break
        if broken is not None:
            raise broken

    def _start(self, index: int, request: Candidates) -> _Job:
        clean, count = self._clean(request)
        job = _Job(index, request, self._strategy.rank(clean), outcomes=Outcomes(neutralised=count))
        if self._strict and count:
            changed = next(
                p.doc_id for p, q in zip(request.passages, clean.passages, strict=True) if p.full_text != q.full_text
            )
            self._fail(job, InputError(f"passage {changed!r} holds control characters, control tokens or identifiers"))
        else:
            self._advance(job, None)
        return job

    def _clean(self, request: Candidates) -> tuple[Candidates, int]:
        """The request with nothing in it that could speak for the prompt, and how many passages changed."""
        identifiers = self._strategy.prompt.identifiers
        passages = [
            Passage(neutralise(p.full_text, self._control, identifiers), p.doc_id, score=p.score)
            for p in request.passages
        ]
        count = sum(p.full_text != q.text for p, q in zip(request.passages, passages, strict=True))
        text = neutralise(request.query.text, self._control, identifiers)
        return Candidates(Query(text, request.query.query_id), tuple(passages)), count

    def _advance(self, job: _Job, answers: Sequence[Answer] | None) -> None:
        """Sends answers (None to start) until the strategy asks something or is done."""
        try:
            calls = next(job.steps) if answers is None else job.steps.send(answers)
            while not calls:
                calls = job.steps.send([])
            job.calls = [self._backbone.prepare(call) for call in calls]
            job.answers = [None] * len(job.calls)
            if self._strict and any(item.cut for item in job.calls):
                raise ContextError(
                    f"query {job.request.query.query_id!r}: a passage is longer than the context leaves room for"
                )
        except StopIteration as stop:
            job.ranking = _ranking(job, stop.value)
        except RerankError as error:
            self._fail(job, error)

    def _fail(self, job: _Job, error: RerankError) -> None:
        job.calls, job.answers = (), []
        job.outcomes += Outcomes.of(Outcome.FAILED)
        n = len(job.request)
        job.ranking = replace(_ranking(job, Verdict(tuple(range(n)))), error=error)

    def _batches(self, jobs: list[_Job]) -> list[list[tuple[_Job, int]]]:
        """Full batches over all jobs, each of one kind, the longest calls first."""
        places = [(job, position) for job in jobs for position in range(len(job.calls)) if job.ranking is None]
        places.sort(key=lambda place: (place[0].calls[place[1]].call.kind, -place[0].calls[place[1]].tokens))
        batches: list[list[tuple[_Job, int]]] = []
        budget = self._backbone.batch_tokens
        for place in places:
            item = place[0].calls[place[1]]
            if batches:
                first = batches[-1][0][0].calls[batches[-1][0][1]]  # the longest of its batch
                fits = budget is None or first.tokens * (len(batches[-1]) + 1) <= budget
                if first.call.kind == item.call.kind and fits:
                    batches[-1].append(place)
                    continue
            batches.append([place])
        return batches

    def _answer(self, batch: list[tuple[_Job, int]], progress: Progress) -> Progress:
        started = time.perf_counter()
        items = [job.calls[position] for job, position in batch]
        answers = self._backbone.answer(items)
        seconds = time.perf_counter() - started
        total = sum(item.tokens for item in items) or 1
        usage = progress.usage
        for (job, position), item, answer in zip(batch, items, answers, strict=True):
            job.answers[position] = answer
            cost = Usage(1, answer.prompt_tokens, answer.generated_tokens, seconds * item.tokens / total)
            job.usage += cost
            job.outcomes += Outcomes(cut=item.cut)
            usage += cost
        progress = replace(progress, batches=progress.batches + 1, usage=usage)
        if self._on_progress is not None:
            self._on_progress(progress)
        return progress


def _asked(jobs: list[_Job]) -> int:
    return sum(len(job.calls) for job in jobs)


def _ranking(job: _Job, verdict: Verdict) -> Ranking:
    n = len(job.request)
    if sorted(verdict.order) != list(range(n)):
        raise RuntimeError(f"the strategy returned {verdict.order}, which is not an order of {n} passages")
    scores = verdict.scores or tuple(float(n - place) for place in range(n))
    return replace(
        Ranking.of(job.request, verdict.order, scores),
        usage=job.usage,
        outcomes=job.outcomes + verdict.outcomes,
        reasoning=verdict.reasoning,
    )
