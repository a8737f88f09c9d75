"""Every error that the service answers with: one shape, under the names that Cohere's clients and those of
text-embeddings-inference look for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field
from starlette.responses import Response

Kind = Literal[
    "bad_body",
    "invalid",
    "unauthorized",
    "not_found",
    "method_not_allowed",
    "too_slow",
    "too_large",
    "too_many_requests",
    "busy",
    "shutting_down",
    "timeout",
    "client_gone",
    "engine",
    "internal",
]


class ErrorBody(BaseModel):
    """Why there is no ranking. `error` is the text of `message` again, which is where some clients look for it."""

    message: str = Field(description="what is wrong, and what to do")
    error: str
    error_type: Kind
    request_id: str = Field(description="names this request in the service's log")


class Failure(Exception):
    """`retry_after_s` is when it is worth asking again."""

    def __init__(
        self,
        status: int,
        kind: Kind,
        message: str,
        *,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(retry_after_s)

    def response(self, request_id: str) -> Response:
        body = ErrorBody(message=self.message, error=self.message, error_type=self.kind, request_id=request_id)
        return Json(body.model_dump(), self.status, self.headers)


class Json(Response):
    """In ASCII, so that a lone surrogate in a client's document comes back as it came, and fails nothing."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
