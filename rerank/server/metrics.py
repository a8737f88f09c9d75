"""What Prometheus may ask for. Each service has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rerank.merging import Batch
from rerank.types import Usage

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """`waiting` gives the requests in the queue and their documents, `open` the requests that are open."""

    def __init__(self, waiting: Callable[[], tuple[int, int]], open: Callable[[], int]) -> None:
        self._registry = own = CollectorRegistry()
        self._requests = Counter("rerank_requests", "Requests answered.", ["route", "status"], registry=own)
        self._seconds = Histogram(
            "rerank_request_seconds", "From a request's head to its answer.", ["route"], buckets=_SECONDS, registry=own
        )
        self._documents = Counter("rerank_documents", "Documents ranked.", ["model"], registry=own)
        self._tokens = Counter("rerank_tokens", "Tokens read and written.", ["model", "kind"], registry=own)
        self._batch_requests = Histogram(
            "rerank_batch_requests", "Requests ranked together.", buckets=_SIZES, registry=own
        )
        self._batch_documents = Histogram(
            "rerank_batch_documents", "Documents ranked together.", buckets=_SIZES, registry=own
        )
        self._waited = Histogram("rerank_queue_seconds", "Time in the queue.", buckets=_SECONDS, registry=own)
        for name, what, value in (
            ("rerank_queue_requests", "Requests that wait.", lambda: waiting()[0]),
            ("rerank_queue_documents", "Their documents.", lambda: waiting()[1]),
            ("rerank_open_requests", "Requests that are open.", open),
        ):
            Gauge(name, what, registry=own).set_function(value)

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def ranked(self, model: str, documents: int, usage: Usage, waited_s: float) -> None:
        self._documents.labels(model).inc(documents)
        self._tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(model, "generated").inc(usage.generated_tokens)
        self._waited.observe(waited_s)

    def batch(self, batch: Batch) -> None:
        self._batch_requests.observe(batch.requests)
        self._batch_documents.observe(batch.documents)

    def text(self) -> bytes:
        return generate_latest(self._registry)
