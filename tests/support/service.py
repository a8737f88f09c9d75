"""A real service on the loopback, in a thread, with a scripted ranker; and rankers that a test holds up."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

import rerank
from rerank.backbones import ScriptedBackbone
from rerank.calls import Call
from rerank.reranker import Ranker
from rerank.server import Limits, Served, Service
from rerank.server.keys import Keys
from rerank.server.running import ServiceServer, bound

WAIT_S = 20  # for what must happen at once; only a test that fails waits
Json = dict[str, Any]
# a connection for each request, as of clients that know nothing of one another
HTTP = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0), timeout=WAIT_S)


def overlap(call: Call) -> list[float]:
    """How many of the query's words a passage has: the yes among yes and no."""
    words = set(call.dialogue.query.text.lower().split())
    return [float(len(words & set(call.dialogue.passages[0].text.lower().split()))), 0.0]


def word_ranker(script: Callable[[Call], list[float]] = overlap, **options: Any) -> Ranker:
    return rerank.load("pointwise", prompt="pointwise-yes-no", backbone=ScriptedBackbone(script, **options))


class Gate:
    """A script that waits in its first calls of a query that begins with 'held', until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.asked: list[str] = []

    def __call__(self, call: Call) -> list[float]:
        self.asked.append(call.dialogue.query.text)
        if call.dialogue.query.text.startswith("held"):
            self.reached.set()
            assert self.opened.wait(WAIT_S)
        return overlap(call)


def assert_refused(answer: httpx.Response, status: int, kind: str, text: str, retry: bool = False) -> None:
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert set(told) == {"message", "error", "error_type", "request_id"}
    assert (told["error_type"], told["error"]) == (kind, told["message"])
    assert text in told["message"]
    assert answer.headers["x-request-id"] == told["request_id"]
    assert ("retry-after" in answer.headers) == retry
    if retry:
        assert 1 <= int(answer.headers["retry-after"]) <= 60


def service(
    ranker: Ranker | None = None, *, keys: Keys | None = None, log_text: bool = False, **limits: Any
) -> Service:
    served = [Served("words", ranker or word_ranker(), "pointwise", ("rerank-v3.5",))]
    return Service(served, limits=Limits(**limits), keys=keys, log_text=log_text)


class Running:
    def __init__(self, service: Service) -> None:
        self.service = service
        self._socket: socket.socket = bound("127.0.0.1", 0)
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        started = threading.Event()
        self.server = ServiceServer(service, started.set)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()
        assert started.wait(WAIT_S)

    def end(self) -> None:
        self.server.end()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def ended(self) -> bool:
        self._thread.join(WAIT_S)
        return not self._thread.is_alive()


@contextmanager
def running(made: Service) -> Iterator[Running]:
    here = Running(made)
    try:
        yield here
    finally:
        if here.alive:
            here.end()
        assert here.ended


def until(what: str, here: Running, expected: float) -> None:
    """Waits for a number of /metrics."""
    end = time.monotonic() + WAIT_S
    while metric(here, what) != expected:
        assert time.monotonic() < end, f"{what} is {metric(here, what)}"
        time.sleep(0.01)


def metric(here: Running, name: str) -> float:
    lines = here.service.metrics.text().decode().splitlines()
    return float(next((line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")), "0"))


FLEAS = ["Stocks fell on Monday.", "a flea may live for a year", "how long do fleas live : a year", "a cat"]
QUERY = "how long do fleas live"


def body(query: str = QUERY, documents: Sequence[object] = FLEAS, **more: object) -> Json:
    return {"query": query, "documents": [*documents], **more}
