"""A backbone that is asked call by call and answers from a script, when the test lets it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from rerank.backbones import Prepared, ScriptedBackbone
from rerank.backbones.scripted import Script
from rerank.calls import Answer, Call, Constraint, Kind


class Latch:
    """An event that a loop waits for and any thread sets; for one loop after another."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def wait(self) -> None:
        event = asyncio.Event()
        self._waiting.append((asyncio.get_running_loop(), event))
        if not self._set:
            await event.wait()

    def set(self) -> None:
        self._set = True
        for loop, event in self._waiting:
            loop.call_soon_threadsafe(event.set)


async def at_once(call: Call) -> None:
    pass


@dataclass
class AsyncScripted:
    """Awaits `gate` before it answers a call; what it raises is the call's failure.

    `asked` holds the calls in the order in which they were asked, `most` the largest number in flight, and
    `cancelled` those that were given up.
    """

    script: Script
    concurrency: int = 64
    gate: Callable[[Call], Awaitable[None]] = at_once
    asked: list[Call] = field(default_factory=list)
    cancelled: list[Call] = field(default_factory=list)
    flying: int = 0
    most: int = 0
    name: str = "scripted"
    kinds: frozenset[Kind] = frozenset(Kind)
    constraints: frozenset[type[Constraint]] = frozenset()
    control_tokens: frozenset[str] = frozenset()

    def prepare(self, call: Call) -> Prepared:
        return ScriptedBackbone(self.script).prepare(call)

    def close(self) -> None:
        pass

    async def ask(self, item: Prepared) -> Answer:
        self.asked.append(item.call)
        self.flying += 1
        self.most = max(self.most, self.flying)
        completed = False
        try:
            await self.gate(item.call)
            completed = True
        except Exception:
            completed = True
            raise
        finally:
            self.flying -= 1
            if not completed:
                self.cancelled.append(item.call)
        return ScriptedBackbone(self.script).answer([item])[0]
