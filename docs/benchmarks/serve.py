"""What merging gives: requests by one client, one at a time, and by many clients at once for two minutes.

    python docs/benchmarks/serve.py --clients 64 --seconds 120
    python docs/benchmarks/serve.py --clients 64 --seconds 120 --corpus 40

Claims of the SciFact sample beside BM25's candidates, each a request of its own, to a service on the loopback with the
embedded pointwise ranker. With `--corpus N` every claim has passages drawn from the same N instead, as those who ask a
small collection have: then passages recur in a batch. The clients take the requests in turn, and from the first again;
those that are asked together are of different claims. Every answer is compared with the library's own. Throughput is in
pairs a second of the clock, and of this process's processor time, which counts on a machine that does other work as
well. Client and service share this process, and so its processor.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import httpx
import numpy as np

import rerank
from rerank.data import load_dataset
from rerank.server import Limits, Served, Service
from rerank.server.running import ServiceServer, bound

Request = dict[str, object]
NEAR = 0.1  # how far bfloat16 may take a logarithm in another batch; scores of two passages differ by 1 and more


def requests(number: int, passages: int, tokens: int, corpus: int | None) -> list[Request]:
    taken = list(itertools.islice(load_dataset("sample:scifact").candidates(passages), number))
    lists = [[passage.full_text for passage in each.passages] for each in taken]
    if corpus is not None:
        few, draw = list(dict.fromkeys(itertools.chain.from_iterable(lists)))[:corpus], random.Random(0)
        lists = [draw.sample(few, passages) for _ in lists]
    return [
        {"query": each.query.text, "documents": texts, "max_tokens_per_doc": tokens}
        for each, texts in zip(taken, lists, strict=True)
    ]


@dataclass(frozen=True)
class Answer:
    request: int
    scores: dict[int, float]  # by document
    seconds: float


@dataclass(frozen=True)
class Load:
    """Answers, and how long all took, by the clock and the processor."""

    answers: list[Answer]
    clock_s: float
    processor_s: float


async def asked(url: str, sent: list[Request], clients: int, seconds: float = 0) -> Load:
    """Each request once, or in turn until so many seconds are over."""
    answers: list[Answer] = []
    started, used = time.perf_counter(), time.process_time()

    def taken() -> Iterator[int]:
        for i in itertools.count():
            if time.perf_counter() - started >= seconds if seconds else i == len(sent):
                return
            yield i % len(sent)

    following = taken()

    async def client(http: httpx.AsyncClient) -> None:
        for i in following:
            began = time.perf_counter()
            answer = await http.post(f"{url}/v1/rerank", json=sent[i])
            answer.raise_for_status()
            scores = {result["index"]: result["rerank"]["score"] for result in answer.json()["results"]}
            answers.append(Answer(i, scores, time.perf_counter() - began))

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(timeout=None, limits=limits) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return Load(answers, time.perf_counter() - started, time.process_time() - used)


def apart(one: dict[int, float], other: dict[int, float]) -> float:
    return max(abs(one[i] - other[i]) for i in one) if one.keys() == other.keys() else math.inf


def report(name: str, found: Load, library: list[dict[int, float]]) -> tuple[float, float]:
    """Pairs a second, by the clock and by the processor's time."""
    pairs = sum(len(answer.scores) for answer in found.answers)
    p50, p99 = np.quantile([answer.seconds for answer in found.answers], [0.5, 0.99])
    clock, processor = pairs / found.clock_s, pairs / found.processor_s
    distances = [apart(answer.scores, library[answer.request]) for answer in found.answers]
    others = sum(distance > NEAR for distance in distances)
    print(
        f"{name}: {len(found.answers)} requests in {found.clock_s:.0f} s, p50 {p50:.2f} s, p99 {p99:.2f} s, "
        f"{clock:.2f} pairs/s, {processor:.2f} pairs/s of processor time; not the library's answer: {others} "
        f"(scores at most {max(distances):.3f} apart)",
        flush=True,
    )
    return clock, processor


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag, default in (
        ("clients", 64),
        ("seconds", 120),
        ("requests", 128),
        ("alone", 32),
        ("passages", 20),
        ("tokens", 24),
        ("batch", 256),
    ):
        parser.add_argument(f"--{flag}", type=int, default=default)
    parser.add_argument("--corpus", type=int)
    given = parser.parse_args()
    ranker = rerank.load("pointwise")
    sent = requests(given.requests, given.passages, given.tokens, given.corpus)
    asked_for = ((str(each["query"]), cast(list[str], each["documents"])) for each in sent)
    rankings = ranker.limited(given.tokens).rank_many(asked_for)
    library = [{int(hit.passage.doc_id): hit.score for hit in ranking} for ranking in rankings]
    limits = Limits(timeout_s=3600, client_requests=given.clients, batch_documents=given.batch)
    service = Service([Served("pointwise", ranker)], limits=limits)
    socket, started = bound("127.0.0.1", 0), threading.Event()
    server = ServiceServer(service, started.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    url = f"http://127.0.0.1:{socket.getsockname()[1]}"
    thread.start()
    started.wait()
    try:
        asyncio.run(asked(url, sent[:1], 1))  # the first is slower
        slow = report("one client", asyncio.run(asked(url, sent[: given.alone], 1)), library)
        many = asyncio.run(asked(url, sent, given.clients, given.seconds))
        fast = report(f"{given.clients} clients", many, library)
        print(f"ratio {fast[0] / slow[0]:.2f} by the clock, {fast[1] / slow[1]:.2f} by the processor's time")
    finally:
        server.end()
        thread.join()


if __name__ == "__main__":
    main()
