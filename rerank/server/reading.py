"""A request's body: read up to its limit, and no further; as JSON that is safe to hand on."""

from __future__ import annotations

import asyncio
import json
import math
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from rerank.server.failures import Failure
from rerank.server.settings import Limits

DEPTH = 32  # of nested JSON; deeper than any document that somebody means
_PATIENCE = 8  # times the limit that a body may be read and thrown away, so that its sender can hear why
Form = TypeVar("Form", bound=BaseModel)


async def read_body(request: Request, limits: Limits) -> bytes:
    """Raises Failure where it is too large, before it is in memory, or too slow."""
    declared = request.headers.get("content-length", "")
    too_large = declared.isdecimal() and int(declared[:20]) > limits.body_bytes
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            async for part in request.stream():
                size += len(part)
                if too_large := too_large or size > limits.body_bytes:
                    parts.clear()
                    if size > _PATIENCE * limits.body_bytes:
                        break
                else:
                    parts.append(part)
    except TimeoutError:
        if not too_large:
            message = f"the body did not arrive within {limits.body_timeout_s:g} s; send it faster, or in parts"
            raise Failure(408, "too_slow", message, headers={"connection": "close"}) from None
    except ClientDisconnect:
        raise Failure(499, "client_gone", "the client left before its body was there") from None
    if too_large:
        message = f"the body is larger than {limits.body_bytes:,} bytes; send fewer documents at a time"
        raise Failure(413, "too_large", message, headers={"connection": "close"})
    return b"".join(parts)


def parsed(form: type[Form], body: bytes, limits: Limits) -> Form:
    """Raises Failure: 400 for what is no JSON, 413 for too many documents, 422 for what is no such request."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refused)
        _check_count(value, limits)  # first, for errors of a million that are wrong would take gigabytes
        value = _clean(value, DEPTH)
    except UnicodeDecodeError as error:
        raise _bad(f"the body is not UTF-8: byte {error.start} is wrong") from None
    except RecursionError:
        raise _bad(f"the body nests deeper than {DEPTH} levels") from None
    except ValueError as error:  # also a number of thousands of digits
        raise _bad(f"the body is no usable JSON: {str(error)[:200]}") from None
    _check_names(form, value)
    try:
        return form.model_validate(value)
    except ValidationError as error:
        raise Failure(422, "invalid", _told(error)) from None


def _check_count(value: object, limits: Limits) -> None:
    for name in ("documents", "texts"):
        given = value.get(name) if isinstance(value, dict) else None
        if isinstance(given, list) and len(given) > limits.documents:
            message = f"{len(given):,} documents are more than {limits.documents:,}; send fewer"
            raise Failure(413, "too_large", message)


def _check_names(form: type[BaseModel], value: object) -> None:
    """Of these too."""
    unknown = [name for name in value if name not in form.model_fields] if isinstance(value, dict) else []
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        known = ", ".join(form.model_fields)
        raise Failure(422, "invalid", f"{unknown[0][:200]!r} is unknown; known are {known}{more}")


def _bad(message: str) -> Failure:
    return Failure(400, "bad_body", message)


def _refused(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _clean(value: object, depth: int) -> object:
    """Without lone surrogates, which no UTF-8 can hold; a number that is none in JSON is refused."""
    if depth < 0:
        raise ValueError(f"it nests deeper than {DEPTH} levels")
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_clean(each, depth - 1) for each in value]
    if isinstance(value, dict):
        return {str(_clean(name, depth)): _clean(each, depth - 1) for name, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _told(error: ValidationError) -> str:
    """The first thing that is wrong, and how many there are."""
    first, *more = error.errors(include_url=False, include_input=False, include_context=False)
    where = ".".join(str(part) for part in first["loc"])[:200]
    message = f"{where}: {first['msg']}" if where else first["msg"]
    return f"{message} (and {len(more)} more)" if more else message
