"""Runs the service until it is told to end: what it took is answered, what comes then is refused."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
from collections.abc import Callable
from types import FrameType

from rerank.errors import BackboneError, InputError
from rerank.server import logs
from rerank.server.app import create_app
from rerank.server.service import Service

try:
    import uvicorn
except ImportError as missing:
    raise BackboneError("the service needs uvicorn: pip install 'rerank-llm[serve]'") from missing

_LAST_S = 5  # for answers under way to leave, and for those that were given up to end
_QUEUE = 2048  # connections that wait to be accepted


def is_local(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound(host: str, port: int) -> socket.socket:
    """A socket, taken before models are loaded; nobody is let in yet. Port 0 is any that is free."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"cannot listen on {host!r}: {error}") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        raise InputError(f"cannot listen on {host} port {port}: {error.strerror}; give another --port") from error
    return made


class ServiceServer(uvicorn.Server):
    """The first signal, or `end`, has it drain and then end; a second one has it end at once."""

    def __init__(self, service: Service, on_start: Callable[[], None] | None = None, *, page: bool = True) -> None:
        config = uvicorn.Config(
            create_app(service, page=page),
            http="h11",  # the other one, taken where it happens to be installed, reads heads without an end into memory
            access_log=False,
            log_config=None,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=_LAST_S,
            backlog=_QUEUE,
        )
        super().__init__(config)
        self._service, self._on_start = service, on_start
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self._on_start is not None:
            self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In the main thread, wherever that is; `uvicorn` would end at once, and raise the signal again."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
        else:
            logs.event("ending", {"signal": signal.Signals(sig).name})
            self.end()

    def end(self) -> None:
        """From any thread."""
        self._service.drain()
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drained())

    async def _drained(self) -> None:
        if not await self._service.drained():
            logs.event("given up", {"after_s": self._service.limits.shutdown_s})
        self.should_exit = True
