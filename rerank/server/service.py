"""Takes requests in, within its limits, has them ranked together, and ends when all that it took is answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rerank.errors import BusyError, CancelledError, CapabilityError, InputError, RerankError
from rerank.merging import Batch, Merged, Merger
from rerank.server import logs
from rerank.server.bodies import DocumentOutcome
from rerank.server.failures import Failure
from rerank.server.keys import Keys
from rerank.server.metrics import Metrics
from rerank.server.served import Catalogue, Served
from rerank.server.settings import Limits
from rerank.types import Candidates, Outcomes, Passage, Query, Usage

_LONGEST_WAIT_S = 60  # that a client is told to wait
Gone = Callable[[], Coroutine[object, object, None]]
_MEMORY = 0.3  # of the last batch in the rate that waiting times are told by


@dataclass(frozen=True, slots=True)
class Document:
    """What is read of a document, and what befell it on the way. An empty one is not ranked."""

    text: str
    outcomes: tuple[DocumentOutcome, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """A document's place in the request, its relevance in 0..1, and the ranker's score, None where it has none."""

    index: int
    relevance: float
    score: float | None


@dataclass(frozen=True, slots=True)
class Ranked:
    """All documents, best first, the empty ones last."""

    lines: tuple[Line, ...]
    usage: Usage = Usage()
    outcomes: Outcomes = Outcomes()
    reasoning: tuple[str, ...] = ()
    waited_s: float = 0.0
    batch_requests: int = 0


@dataclass(slots=True)
class Order:
    """One request, as the library sees it; what is told of it in the log gathers in `told`."""

    served: Served
    query: str
    documents: Sequence[Document]
    client: str
    request_id: str
    passage_tokens: int | None = None
    told: dict[str, object] = field(default_factory=dict)


class Service:
    """All its rankers share one `Merger`, and so one thread: they share one machine. `log_text` has queries and
    documents in the log."""

    def __init__(
        self,
        served: Sequence[Served],
        *,
        limits: Limits | None = None,
        keys: Keys | None = None,
        log_text: bool = False,
    ) -> None:
        self.limits, self.keys, self.log_text = limits or Limits(), keys or Keys(), log_text
        self.catalogue = Catalogue(served)
        self.draining = False
        self._open: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self._given_up = False
        # each of its request's own loop: an application may be asked in several, one after the other, as tests do
        self._endings: set[asyncio.Future[None]] = set()
        self._rate: float | None = None  # documents a second
        self._merger = Merger(
            batch_documents=self.limits.batch_documents,
            max_requests=self.limits.queue_requests,
            max_documents=self.limits.queue_documents,
            on_batch=self._batch_done,
        )
        self.metrics = Metrics(lambda: self._merger.waiting, self._open.total)

    def authenticated(self, authorization: str, address: str) -> str:
        """Who asks: the name of the key, or the address where no key is needed."""
        if not self.keys:
            return address
        if (name := self.keys.who(authorization)) is None:
            message = "a valid API key is needed; send it as 'Authorization: Bearer KEY'"
            raise Failure(401, "unauthorized", message, headers={"www-authenticate": "Bearer"})
        return name

    @contextlib.contextmanager
    def admitted(self, client: str) -> Iterator[None]:
        """While a request is open."""
        self._check_open(client)
        self._open[client] += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._open[client] -= 1
            self._open += Counter()  # forgets who has none open
            if not self._open:
                self._idle.set()

    def check_ready(self) -> None:
        """Raises Failure while it shuts down."""
        if self.draining:
            message = "the service is shutting down, and takes nothing new; ask again soon, or another one"
            raise Failure(503, "shutting_down", message, retry_after_s=5, headers={"connection": "close"})

    def _check_open(self, client: str) -> None:
        self.check_ready()
        if self._open.total() >= self.limits.requests:
            message = f"{self.limits.requests} requests are open, and no more may; ask again later"
            raise Failure(503, "busy", message, retry_after_s=self._wait_s())
        if self._open[client] >= self.limits.client_requests:
            message = f"you have {self.limits.client_requests} requests open, and no more may; wait for one to end"
            raise Failure(429, "too_many_requests", message, retry_after_s=self._wait_s())

    def read(self, served: Served, texts: Sequence[str | None]) -> list[Document]:
        """The documents' texts as the ranker will see them; None for a document that has none."""
        return [self._document(served, text or "") for text in texts]

    def _document(self, served: Served, text: str) -> Document:
        outcomes: list[DocumentOutcome] = []
        if len(text) > self.limits.document_chars:
            text = text[: self.limits.document_chars]
            outcomes.append("shortened")
        shown = served.neutralised(text)
        if shown != text:
            outcomes.append("neutralised")
        if not shown.strip():
            return Document("", (*outcomes, "empty"))
        return Document(text, tuple(outcomes))

    async def rank(self, order: Order, gone: Gone) -> Ranked:
        """Raises Failure. `gone` ends when the client leaves, and the work is freed then."""
        self._check_size(order)
        places = [place for place, document in enumerate(order.documents) if document.text]
        empty = tuple(Line(place, 0.0, None) for place, each in enumerate(order.documents) if not each.text)
        if not places:
            return Ranked(empty)
        request = Candidates(
            Query(order.query, order.request_id),
            tuple(Passage(order.documents[place].text, str(place)) for place in places),
        )
        merged = await self._merged(order, request, gone)
        ranking = merged.ranking
        relevance = order.served.relevance([hit.score for hit in ranking])
        lines = tuple(
            Line(int(hit.passage.doc_id), value, hit.score if math.isfinite(hit.score) else None)
            for hit, value in zip(ranking, relevance, strict=True)
        )
        self.metrics.ranked(order.served.name, len(request), ranking.usage, merged.waited_s)
        order.told |= {"waited_s": round(merged.waited_s, 4), "batch_requests": merged.batch}
        order.told |= {"calls": ranking.usage.calls, "prompt_tokens": ranking.usage.prompt_tokens}
        return Ranked(lines + empty, ranking.usage, ranking.outcomes, ranking.reasoning, merged.waited_s, merged.batch)

    def _check_size(self, order: Order) -> None:
        limits = self.limits
        if len(order.query) > limits.query_chars:
            message = f"the query has {len(order.query):,} characters, and may have {limits.query_chars:,}; shorten it"
            raise Failure(413, "too_large", message)
        if not order.served.neutralised(order.query).strip():
            raise Failure(422, "invalid", "query: it is empty; give it some text")
        total = sum(len(order.query) + len(document.text) for document in order.documents)
        if total > limits.request_chars:
            message = (
                f"the query beside each document comes to {total:,} characters, and may to {limits.request_chars:,}; "
                "send fewer or shorter documents"
            )
            raise Failure(413, "too_large", message)

    async def _merged(self, order: Order, request: Candidates, gone: Gone) -> Merged:
        ranker = self.catalogue.ranker(order.served, order.passage_tokens)
        asking = asyncio.ensure_future(self._merger.ask(ranker, request, order.client))
        leaving, ending = asyncio.ensure_future(gone()), self._ending()
        waiting: tuple[asyncio.Future[Any], ...] = (asking, leaving, ending)
        try:
            done, _ = await asyncio.wait(waiting, timeout=self.limits.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if asking in done:
                return self._checked(asking.result())
        except BusyError as error:
            raise Failure(503, "busy", f"{error}; ask again later", retry_after_s=self._wait_s()) from error
        except InputError as error:
            raise Failure(422, "invalid", str(error)) from error
        except CapabilityError as error:
            if order.passage_tokens is None:
                raise self._engine_failed(order, error) from error
            raise Failure(422, "invalid", f"{error}; leave max_tokens_per_doc out") from error
        except CancelledError:
            pass
        except RerankError as error:
            raise self._engine_failed(order, error) from error
        finally:
            self._endings.discard(ending)
            for task in waiting:
                task.cancel()
        await asyncio.sleep(0)  # the ranking's thread is told in the loop's next round; then the request may be closed
        if leaving in done:
            raise Failure(499, "client_gone", "the client left before its ranking was there")
        if ending in done:
            message = "the service had to end before the ranking was there; ask again soon, or another one"
            raise Failure(503, "shutting_down", message, retry_after_s=5)
        message = f"no ranking within {self.limits.timeout_s:g} s; send fewer documents, or ask again later"
        raise Failure(503, "timeout", message, retry_after_s=self._wait_s())

    def _ending(self) -> asyncio.Future[None]:
        """Is done when what is left is given up."""
        ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._given_up:
            ending.set_result(None)
        self._endings.add(ending)
        return ending

    def _engine_failed(self, order: Order, error: RerankError) -> Failure:
        logs.event("engine failed", {"request_id": order.request_id, "error": str(error)}, level=logging.ERROR)
        message = "the engine that computes the ranking failed; ask again later"
        return Failure(503, "engine", message, retry_after_s=self._wait_s())

    @staticmethod
    def _checked(merged: Merged) -> Merged:
        if merged.ranking.error is not None:
            raise merged.ranking.error
        return merged

    def _batch_done(self, batch: Batch) -> None:
        self.metrics.batch(batch)
        rate = batch.documents / max(batch.seconds, 1e-3)
        self._rate = rate if self._rate is None else _MEMORY * rate + (1 - _MEMORY) * self._rate

    def _wait_s(self) -> int:
        """How long the queue lasts, as far as is known."""
        seconds = self._merger.waiting[1] / self._rate if self._rate else 1.0
        return min(max(math.ceil(seconds), 1), _LONGEST_WAIT_S)

    def drain(self) -> None:
        """From now on nothing new is taken."""
        self.draining = True

    async def drained(self) -> bool:
        """Waits for what was taken, and refuses what is left of it after `shutdown_s`; whether nothing was."""
        try:
            async with asyncio.timeout(self.limits.shutdown_s):
                await self._idle.wait()
        except TimeoutError:
            self._given_up = True
            for ending in self._endings:
                if not ending.done():
                    ending.set_result(None)
            return False
        return True
