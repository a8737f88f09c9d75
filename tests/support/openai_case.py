"""A server on the loopback and a backbone that asks it, for the tests of the openai backbone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer

import rerank
from rerank.backbones.openai_ import OpenAIBackbone
from rerank.types import Candidates, Passage, Query

KEY = "sk-secret"
PROMPTS = {"pointwise": None, "first": None, "listwise": None, "likelihood": "pointwise-query-likelihood"}

Start = Callable[..., tuple[FaultServer, OpenAIBackbone]]


def starting(tiny_model: Path) -> Iterator[Start]:
    """Starts a server and a backbone that asks it: through chat, or with `ids` through completions. Both are closed
    in the end, and no thread of theirs stays."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    opened: list[Any] = []

    def start(*, ids: bool = False, vllm: bool = False, gate: Any = None, **options: Any) -> Any:
        server = FaultServer(vllm=vllm, tokenizer=tokenizer, **({"gate": gate} if gate else {}))
        opened.append(server)
        given = {"tokenizer": str(tiny_model), "context": 1024} if ids else {}
        patience = {"timeout_s": 1.5, "deadline_s": 12.0, "retries": 2}
        backbone = OpenAIBackbone.load(base_url=server.url, **{**given, **patience, **options})
        opened.append(backbone)
        return server, backbone

    with pytest.MonkeyPatch.context() as environment:  # no key or address of who runs the tests
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
            environment.delenv(name, raising=False)
        yield start
        for each in reversed(opened):
            each.close()
    assert [t.name for t in threading.enumerate() if t.name.startswith(("rerank", "fault"))] == []


def passages(*relevance: int) -> tuple[Passage, ...]:
    return tuple(Passage(f"some text of relevance {value}", f"d{value}") for value in relevance)


def requests(n: int, *relevance: int, note: str = "") -> list[Candidates]:
    return [Candidates(Query(f"query {i} {note}", f"q{i}"), passages(*relevance)) for i in range(n)]


def ranker(name: str, backbone: OpenAIBackbone) -> rerank.Reranker:
    return rerank.load("pointwise" if name == "likelihood" else name, prompt=PROMPTS[name], backbone=backbone)
