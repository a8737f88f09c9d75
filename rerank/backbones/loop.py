"""An event loop in a thread of its own, for code that is called without a loop, or from within another's."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

_CLOSING_S = 5.0  # how long `closing` may take


class LoopThread:
    """The loop runs from here to `close`, which cancels what is still running in it and waits for the thread.

    The thread is a daemon, so that a forgotten one cannot keep the interpreter from ending; what is open at
    exit is closed then. `closing` is awaited in the loop, last.
    """

    def __init__(self, name: str, closing: Callable[[], Awaitable[object]] | None = None) -> None:
        # with a factory of its own the runner leaves the caller's current loop alone
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.loop = self._runner.get_loop()
        self._stop, self._closing = asyncio.Event(), closing
        self._lock, self._closed = threading.RLock(), False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def closed(self) -> bool:
        return self._closed

    def submit(self, work: Coroutine[object, object, T]) -> Future[T]:
        """Starts it in the loop, from any thread. Raises RuntimeError once the loop is closed, or in a forked
        child, which has no thread to run it."""
        with self._lock:
            if not self._closed and self._thread.is_alive():
                return asyncio.run_coroutine_threadsafe(work, self.loop)
        work.close()
        raise RuntimeError(f"the loop {self._thread.name!r} is closed")

    def call(self, work: Coroutine[object, object, T]) -> T:
        """Its result; a caller that is interrupted cancels it."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        with self._lock:
            self._closed = True  # before the loop hears of it: what is cancelled there must not be followed by more
            if self._thread.is_alive():
                with suppress(RuntimeError):  # the loop has ended, and the thread is about to
                    self.loop.call_soon_threadsafe(self._stop.set)
        if threading.current_thread() is not self._thread:  # a garbage collection may run in any thread
            self._thread.join()
        atexit.unregister(self.close)

    def _run(self) -> None:
        with self._runner:
            self._runner.run(self._main())

    async def _main(self) -> None:
        await self._stop.wait()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._closing is not None:
            async with asyncio.timeout(_CLOSING_S):
                await self._closing()
