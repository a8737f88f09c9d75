"""One query in flight: its strategy's generator, what it asks now, and what it has cost.

The drivers of `scheduler` and `continuous` move jobs on; what a job is, and how one fails, is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rerank.backbones.base import Backbone, Prepared
from rerank.calls import Answer
from rerank.errors import CancelledError, CapabilityError, ContextError, InputError, RerankError
from rerank.prompts.neutralise import control_token_pattern, neutralise
from rerank.strategies.base import Steps, Strategy, Verdict
from rerank.types import Candidates, Outcome, Outcomes, Passage, Query, Ranking, Usage


@dataclass(frozen=True, slots=True)
class Progress:
    """What has been done so far; handed to `on_progress` after every batch."""

    queries: int = 0
    batches: int = 0
    usage: Usage = Usage()


@dataclass(slots=True)
class Job:
    """`calls` waits for `answers`, position by position; `ranking` is there when all is done."""

    index: int
    request: Candidates
    steps: Steps
    calls: Sequence[Prepared] = ()
    usage: Usage = Usage()
    outcomes: Outcomes = Outcomes()
    ranking: Ranking | None = None
    answers: list[Answer | None] = field(default_factory=list)

    def take(self, position: int, answer: Answer, seconds: float) -> Usage:
        """Notes an answer and returns what it cost."""
        self.answers[position] = answer
        cost = Usage(1, answer.prompt_tokens, answer.generated_tokens, seconds)
        self.usage += cost
        self.outcomes += Outcomes(cut=self.calls[position].cut)
        return cost

    def fail(self, error: RerankError) -> None:
        """The query comes out in its given order, with this error."""
        self.calls, self.answers = (), []
        self.outcomes += Outcomes.of(Outcome.FAILED)
        self.ranking = replace(self._ranking(Verdict(tuple(range(len(self.request))))), error=error)

    def cancelled(self) -> CancelledError:
        """What it fails with where its caller left."""
        return CancelledError(f"query {self.request.query.query_id!r} was cancelled")

    def finish(self, verdict: Verdict) -> None:
        self.calls, self.answers = (), []
        self.ranking = self._ranking(verdict)

    def _ranking(self, verdict: Verdict) -> Ranking:
        n = len(self.request)
        if sorted(verdict.order) != list(range(n)):
            raise RuntimeError(f"the strategy returned {verdict.order}, which is not an order of {n} passages")
        scores = verdict.scores or tuple(float(n - place) for place in range(n))
        return replace(
            Ranking.of(self.request, verdict.order, scores),
            usage=self.usage,
            outcomes=self.outcomes + verdict.outcomes,
            reasoning=verdict.reasoning,
        )


class Workshop:
    """Starts and advances the jobs of one strategy on one backbone.

    `strict` refuses passages that would be cut or neutralised.
    """

    def __init__(self, strategy: Strategy, backbone: Backbone, *, strict: bool = False) -> None:
        needs = strategy.prompt.needs
        if needs not in backbone.kinds:
            able = ", ".join(sorted(backbone.kinds)) or "nothing"
            raise CapabilityError(
                f"prompt {strategy.prompt.name!r} needs a backbone that answers {needs!s} calls; "
                f"{backbone.name!r} answers {able}"
            )
        self._strategy, self._backbone, self._strict = strategy, backbone, strict
        self._control = control_token_pattern(backbone.control_tokens)

    def start(self, index: int, request: Candidates) -> Job:
        """A job with its first calls, or already done."""
        clean, count = self._clean(request)
        job = Job(index, request, self._strategy.rank(clean), outcomes=Outcomes(neutralised=count))
        if self._strict and count:
            changed = next(
                p.doc_id for p, q in zip(request.passages, clean.passages, strict=True) if p.full_text != q.full_text
            )
            job.fail(InputError(f"passage {changed!r} holds control characters, control tokens or identifiers"))
        else:
            self._send(job, None)
        return job

    def advance(self, job: Job) -> None:
        """Sends the strategy its answers, until it asks something or is done."""
        self._send(job, [answer for answer in job.answers if answer is not None])

    def _send(self, job: Job, answers: Sequence[Answer] | None) -> None:
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
            job.finish(stop.value)
        except RerankError as error:
            job.fail(error)

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
