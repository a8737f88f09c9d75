"""JSON over HTTP from a server that is slow, busy, restarted, or wrong: the right answer, or a typed error.

What may pass is tried again, with exponential back-off and jitter: refused, dropped and timed-out connections,
and the statuses 408, 429, 500, 502, 503, 504, whose Retry-After is honoured. Everything else that is not JSON with
status 200 is an error at once, with the server's words. The API key goes to this one server, which may not
redirect it elsewhere, and stands in no message.
"""

from __future__ import annotations

import asyncio
import json
import random
import weakref
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic_core import from_json

from rerank.backbones.loop import LoopThread
from rerank.errors import BackboneError, ContextError, InputError

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response
    from tenacity import RetryCallState

MAX_BYTES = 32 * 2**20  # of one response; a long prompt's log-probabilities take less than one
MAX_WAIT_S = 60.0  # before a retry, whatever Retry-After says
_CONNECT_S = 10.0
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_CONTEXT = ("context length", "context_length", "context size", "context window", "maximum model length")


class HttpError(BackboneError):
    """The server refused a request. `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Passing(Exception):
    """An attempt failed in a way that may pass; `wait_s` is what the server asked for."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class JsonServer:
    """One server and its connections, at most `concurrency`, kept alive between requests.

    `timeout_s` bounds one attempt, from connecting to the last byte; `deadline_s` a request with its `retries` and
    the waits between them. It has a loop of its own, so that it can be asked from any.
    """

    def __init__(
        self, url: str, api_key: str | None, *, concurrency: int, timeout_s: float, deadline_s: float, retries: int
    ) -> None:
        self.url, self._key = _checked_url(url), _checked_key(api_key)
        self._timeout_s, self._deadline_s, self._retries = timeout_s, deadline_s, retries
        self._slots = asyncio.Semaphore(concurrency)
        self._client = _client(self._key, concurrency)
        self._home = LoopThread("rerank-http", closing=self._client.aclose)
        self._finalizer = weakref.finalize(self, self._home.close)

    def __repr__(self) -> str:
        return f"JsonServer({self.url!r})"

    def close(self) -> None:
        """Gives up what is in flight, closes the connections and ends the loop."""
        self._finalizer()

    async def post(self, path: str, body: Mapping[str, object]) -> dict[str, object]:
        """The JSON object that answers. Raises ContextError where the prompt is too long for the model, HttpError
        for another refusal, BackboneError for what is no answer."""
        content = json.dumps(body, separators=(",", ":")).encode()
        try:
            future = self._home.submit(self._request("POST", path, content, self._retries))
        except RuntimeError:
            raise BackboneError(f"{self.url} was closed; load the backbone again") from None
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise BackboneError(f"{self.url} was closed while it was asked") from None

    def call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, object]:
        """The same for who sets up: it waits, and tries only twice more. `path` from a slash on; with `..` at
        its head it stands beside the base address."""
        content = None if body is None else json.dumps(body).encode()
        return self._home.call(self._request(method, path, content, min(2, self._retries)))

    async def _request(self, method: str, path: str, content: bytes | None, retries: int) -> dict[str, object]:
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, stop_before_delay

        address = f"{self.url}{path}" if path.startswith("/") else f"{self.url.rpartition('/')[0]}{path[2:]}"
        attempts = 0

        async def attempt() -> dict[str, object]:
            nonlocal attempts
            attempts += 1
            return await self._attempt(method, address, content)

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Passing),
            wait=_pause,
            stop=stop_after_attempt(retries + 1) | stop_before_delay(self._deadline_s),
            sleep=asyncio.sleep,
            reraise=True,
        )
        async with self._slots:
            try:
                async with asyncio.timeout(self._deadline_s):
                    return await retrying(attempt)
            except _Passing as error:
                tried = f" ({attempts} attempts)" if attempts > 1 else ""
                raise BackboneError(f"{address}: {error}{tried}") from None
            except TimeoutError:
                raise BackboneError(f"{address}: no answer within the deadline of {self._deadline_s:g} s") from None

    async def _attempt(self, method: str, address: str, content: bytes | None) -> dict[str, object]:
        from httpx2 import DecodingError, TransportError

        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream(method, address, content=content) as response,
            ):
                data = await _read(response, address)
        except TimeoutError:
            raise _Passing(f"no whole answer within {self._timeout_s:g} s") from None
        except TransportError as error:
            raise _Passing(self._brief(f"{type(error).__name__}: {error}".rstrip(": "))) from None
        except DecodingError as error:
            raise BackboneError(f"{address}: {error}") from None
        if response.status_code in _PASSING and b"insufficient_quota" not in data:
            raise _Passing(f"HTTP {response.status_code}: {self._said(data)}", _retry_after(response))
        if response.is_redirect:
            to = self._brief(response.headers.get("location", "nowhere"))
            raise HttpError(f"{address} redirects to {to}; give that as base_url", response.status_code)
        if response.status_code != 200:
            raise self._refusal(address, response.status_code, data)
        try:
            answer = from_json(data)
        except ValueError as error:
            raise BackboneError(f"{address} answered no JSON ({error}): {self._brief(_text(data))!r}") from None
        if not isinstance(answer, dict):
            raise BackboneError(f"{address} answered no JSON object: {self._brief(_text(data))!r}")
        if answer.get("error"):
            raise BackboneError(f"{address} answered with an error: {self._said(data)}")
        return answer

    def _refusal(self, address: str, status: int, data: bytes) -> BackboneError | ContextError:
        said = self._said(data)
        if status in (400, 413, 422) and any(words in said.lower() for words in _CONTEXT):
            return ContextError(f"the prompt is longer than the server's model takes: {said}")
        advice = {
            401: "; give api_key, or set OPENAI_API_KEY",
            404: "; base_url is what the official client takes, which ends in /v1 for most servers",
        }
        return HttpError(f"{address}: HTTP {status}: {said}{advice.get(status, '')}", status)

    def _said(self, data: bytes) -> str:
        """What an error body says, in a line, whatever its form."""
        try:
            body = from_json(data)
        except ValueError:
            return self._brief(_text(data)) or "no further word"
        for key in ("error", "message", "detail"):
            if isinstance(body, dict) and body.get(key):
                body = body[key]
        return self._brief(body if isinstance(body, str) else json.dumps(body))

    def _brief(self, text: str) -> str:
        line = " ".join(text.split())
        if self._key is not None:
            line = line.replace(self._key, "***")
        return line if len(line) <= 300 else line[:297] + "..."


def _client(key: str | None, concurrency: int) -> AsyncClient:
    from httpx2 import AsyncClient, Limits, Timeout

    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return AsyncClient(
        headers=headers,
        follow_redirects=False,  # a redirect could carry the prompts and the key to another server
        timeout=Timeout(None, connect=_CONNECT_S),  # the rest is bounded as a whole
        limits=Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
    )


async def _read(response: Response, address: str) -> bytes:
    parts: list[bytes] = []
    size = int(response.headers.get("content-length", 0))  # h11 has seen to it that it is a number
    if size <= MAX_BYTES:
        size = 0
        async for part in response.aiter_bytes():
            parts.append(part)
            size += len(part)
            if size > MAX_BYTES:
                break
    if size > MAX_BYTES:
        raise BackboneError(f"{address} answers more than {MAX_BYTES >> 20} MiB")
    return b"".join(parts)


def _text(data: bytes) -> str:
    return data[:2000].decode("utf-8", "replace")


def _pause(state: RetryCallState) -> float:
    """Seconds to the next attempt: 0.5, 1, 2, ... up to 30, less up to a half at random; or what the server asks."""
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.wait_s if isinstance(error, _Passing) else 0.0
    backoff = min(30.0, 0.5 * 2.0 ** (state.attempt_number - 1)) * random.uniform(0.5, 1.0)
    return max(backoff, min(asked, MAX_WAIT_S))


def _retry_after(response: Response) -> float:
    """Seconds, from the header's seconds or date; 0 where there is none that can be read."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound or any(not "!" <= c <= "~" for c in url):
        raise InputError(f"base_url is {url!r}; give one such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError("base_url has a user, a query or a fragment, which it must not; a key goes into api_key")
    return url.rstrip("/")


def _checked_key(key: str | None) -> str | None:
    key = (key or "").strip()
    if any(not "!" <= c <= "~" for c in key):
        raise InputError("api_key has characters that cannot stand in a header; is it the key?")
    return key or None
