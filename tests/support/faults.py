"""What a server can get wrong, by name: each makes a reply of the right one, or None to drop the connection."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

Json = dict[str, Any]


@dataclass
class Reply:
    """`body` is JSON, or bytes to send as they are. `cut` sends only so much of it, `drip` a byte at a time, and
    `hang` nothing, ever. Without `length` it ends where the connection does."""

    body: object
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    drip: bool = False
    hang: bool = False
    length: bool = True


PAGE, ERROR = b"<html>upstream is down</html>", {"error": {"message": "the engine is dead", "code": 500}}

FAULTS: dict[str, Callable[[Json], Reply | None]] = {
    # no answer, or none of the form
    "html": lambda right: Reply(PAGE),
    "malformed": lambda right: Reply(b'{"choices": [{"index": 0, "te'),
    "list": lambda right: Reply(b"[1, 2]"),
    "deep": lambda right: Reply(b"[" * 100_000),
    "error-200": lambda right: Reply(ERROR),
    "no-choices": lambda right: Reply({"choices": []}),
    "two-choices": lambda right: Reply({**right, "choices": right["choices"] * 2}),
    "nothing": lambda right: Reply({}),
    "giant": lambda right: Reply(b" " * (33 * 2**20)),
    "endless": lambda right: Reply(b" " * (64 * 2**20), length=False),
    "other-count": lambda right: Reply({**right, "usage": {"prompt_tokens": 7, "completion_tokens": 1}}),
    # what may pass
    "busy": lambda right: Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "1"}),
    "busy-until": lambda right: Reply(b"", 503, {"Retry-After": in_seconds(2)}),
    "busy-nonsense": lambda right: Reply(b"", 429, {"Retry-After": "soon"}),
    "busy-for-ever": lambda right: Reply(b"", 429, {"Retry-After": "86400"}),
    "unwell": lambda right: Reply(ERROR, 500),
    "gateway": lambda right: Reply(PAGE, 502),
    "unavailable": lambda right: Reply(b"", 503),
    "late": lambda right: Reply(b"", 504),
    "drop": lambda right: None,
    "half": lambda right: Reply(right, cut=20),
    "drip": lambda right: Reply(right, drip=True),
    "hang": lambda right: Reply(b"", hang=True),
    # refusals
    "quota": lambda right: Reply({"error": {"message": "pay", "code": "insufficient_quota"}}, 429),
    "wrong": lambda right: Reply({"error": {"message": "temperature must be a fruit"}}, 400),
    "long": lambda right: Reply({"error": {"message": "This model's maximum context length is 9 tokens"}}, 400),
    "forbidden": lambda right: Reply({"error": {"message": "Incorrect API key provided: sk-secret"}}, 401),
    "moved": lambda right: Reply(b"", 307, {"Location": "http://127.0.0.1:1/v1"}),
    "teapot": lambda right: Reply(b"short and stout", 418),
}


def in_seconds(seconds: int) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def _poison(choice: Json, value: object) -> None:
    """Puts the value where the first log-probability stands, or the last of an echo."""
    logprobs = choice["logprobs"]
    if "content" in logprobs:
        logprobs["content"][0]["top_logprobs"][0]["logprob"] = value
    elif "top_logprobs" in logprobs:
        logprobs["top_logprobs"][0][next(iter(logprobs["top_logprobs"][0]))] = value
    else:
        logprobs["token_logprobs"][-1] = value


# what is changed in the one choice
CHANGES: dict[str, Callable[[Json], object]] = {
    "wrong-index": lambda choice: choice.update(index=1),
    "no-logprobs": lambda choice: choice.pop("logprobs"),
    "null-logprobs": lambda choice: choice.update(logprobs=None),
    "empty-logprobs": lambda choice: choice.update(logprobs={"tokens": [], "token_logprobs": [], "content": []}),
    "no-text": lambda choice: choice.update(text=None, message={"content": None}),
    "number": lambda choice: choice.update(text=3, message={"content": 3}),
    "filtered": lambda choice: choice.update(finish_reason="content_filter"),
    "cut-off": lambda choice: choice.update(finish_reason="length"),
    "positive": lambda choice: _poison(choice, 3.2),
    "nan": lambda choice: _poison(choice, math.nan),
    "words": lambda choice: _poison(choice, "-1.5"),
    "other-tokens": lambda choice: choice["logprobs"]["tokens"].reverse(),
    "other-labels": lambda choice: choice["logprobs"]["top_logprobs"][0].popitem(),
}


def _changed(change: Callable[[Json], object]) -> Callable[[Json], Reply]:
    def fault(right: Json) -> Reply:
        change(right["choices"][0])
        return Reply(right)

    return fault


FAULTS |= {name: _changed(change) for name, change in CHANGES.items()}
