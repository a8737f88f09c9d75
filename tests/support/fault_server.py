"""A real server on the loopback that speaks enough of the OpenAI API, as vLLM or as another, and misbehaves when told.

Its model is a rule: a passage says how relevant it is ("relevance 7"), and the answers follow from that. A prompt
that holds "fault:NAME" gets that fault every time, and one with "once:NAME" the first time only.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from faults import FAULTS, Json, Reply

from rerank.backbones.loop import LoopThread

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


async def at_once(prompt: str) -> None:
    pass


class FaultServer:
    """`tokenizer` is its model's; `gate` is awaited before each answer. What happened is in the fields."""

    def __init__(
        self,
        *,
        vllm: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
        gate: Callable[[str], Awaitable[None]] = at_once,
    ) -> None:
        self.vllm, self.tokenizer, self.gate = vllm, tokenizer, gate
        self.cards: list[Json] = [{"id": "judge", "object": "model", "owned_by": "vllm" if vllm else "me"}]
        if vllm:
            self.cards[0]["max_model_len"] = 1024
        self.requests: list[tuple[str, dict[str, str], Json]] = []
        self.times: dict[str, list[float]] = {}  # of the requests, by prompt
        self.connections = self.flying = self.most = self.gone = 0
        self._loop = LoopThread("fault-server", closing=self._close)
        self._server = self._loop.call(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    def close(self) -> None:
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection stays."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        path = head[0].split()[1]
        body: Json = json.loads(content) if content else {}
        self.requests.append((path, headers, body))
        self.flying += 1
        self.most = max(self.most, self.flying)
        try:
            reply = await self._watching(reader, self._reply(path, body))
        finally:
            self.flying -= 1
        if reply is None:
            return False
        data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        lines = [f"HTTP/1.1 {reply.status} Whatever"]
        lines += [f"Content-Length: {len(data)}"] if reply.length else ["Connection: close"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        for byte in data if reply.drip else b"":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.1)  # the shortest answer is some 200 bytes: never whole within a test's timeout
        writer.write(b"" if reply.drip else data[: reply.cut])
        await writer.drain()
        return reply.cut is None and reply.length

    async def _watching(self, reader: asyncio.StreamReader, work: Awaitable[Reply | None]) -> Reply | None:
        """The reply, unless the client leaves before it is there."""
        replying, leaving = asyncio.ensure_future(work), asyncio.ensure_future(reader.read(1))
        await asyncio.wait([replying, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not replying.done():
            self.gone += 1
            replying.cancel()
            return None
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        return replying.result()

    async def _reply(self, path: str, body: Json) -> Reply | None:
        if path == "/v1/models":
            return Reply({"object": "list", "data": self.cards})
        if path == "/tokenize" and self.vllm and self.tokenizer is not None:
            return Reply({"tokens": self.tokenizer.encode(body["prompt"], add_special_tokens=False)})
        if path not in ("/v1/completions", "/v1/chat/completions"):
            return Reply({"detail": "Not Found"}, 404)
        chat = path == "/v1/chat/completions"
        prompt = self._prompt(body, chat)
        times = self.times.setdefault(prompt, [])
        times.append(time.monotonic())
        await self.gate(prompt)
        right = self._chat(body, prompt) if chat else self._completion(body, prompt)
        told = re.search(r"(fault|once):([a-z0-9-]+)", prompt)
        if told is None or (told[1] == "once" and len(times) > 1):
            return Reply(right)
        reply = FAULTS[told[2]](right)
        if reply is not None and reply.hang:
            await asyncio.Event().wait()
        return reply

    def _prompt(self, body: Json, chat: bool) -> str:
        if chat:
            return "\n".join(m["content"] for m in body["messages"])
        assert self.tokenizer is not None
        return str(self.tokenizer.decode(body["prompt"]))

    def _chat(self, body: Json, prompt: str) -> Json:
        message: Json = {"role": "assistant", "content": self._text(body, prompt)}
        choice: Json = {"index": 0, "message": message, "finish_reason": "stop"}
        if body.get("logprobs"):
            top = [{"token": t, "logprob": v, "bytes": list(t.encode())} for t, v in self._top(prompt)]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top[: body["top_logprobs"]]}]}
        return {"choices": [choice], "usage": {"prompt_tokens": len(prompt.split()), "completion_tokens": 5}}

    def _completion(self, body: Json, prompt: str) -> Json:
        assert self.tokenizer is not None
        ids: list[int] = body["prompt"]
        choice: Json = {"index": 0, "text": self._text(body, prompt), "finish_reason": "stop"}
        top = dict(self._top(prompt))
        if body.get("echo"):
            scores = [None, *(echoed(i) for i in ids[1:])]
            choice["logprobs"] = {"tokens": [f"token_id:{i}" for i in ids], "token_logprobs": scores}
        elif "logprob_token_ids" in body and self.vllm:
            exact = {f"token_id:{i}": top.get(self.tokenizer.decode([i]), -30.0) for i in body["logprob_token_ids"]}
            choice["logprobs"] = {"tokens": ["token_id:1"], "token_logprobs": [-1.0], "top_logprobs": [exact]}
        elif "logprobs" in body:
            first = dict(list(top.items())[: body["logprobs"]])
            choice["logprobs"] = {"tokens": ["x"], "token_logprobs": [-1.0], "top_logprobs": [first]}
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 5}}

    def _text(self, body: Json, prompt: str) -> str:
        """The passages in the order of their relevance."""
        wanted = body.get("structured_outputs", {})
        if wanted is not None and "choice" in wanted:
            return str(wanted["choice"][-1])
        if (wanted is not None and "json" in wanted) or "response_format" in body:
            return '{"ok": true}'
        shown = sorted(relevances(prompt), key=lambda pair: -pair[1])
        return " > ".join(f"[{name}]" for name, _ in shown)

    def _top(self, prompt: str) -> list[tuple[str, float]]:
        """Yes with the logit of its relevance less 5; or each letter with its relevance; the most probable first."""
        pairs = relevances(prompt)
        if not pairs:
            logit = grade(prompt) - 5.0
            pairs = [("Yes", -math.log1p(math.exp(-logit))), ("No", -math.log1p(math.exp(logit)))]
        else:
            pairs = [(name, value - 12.0) for name, value in pairs]
        if "no-labels" in prompt:
            pairs = []
        fillers = [(f"filler{i}", -20.0 - i) for i in range(20)]
        return sorted(pairs + fillers, key=lambda pair: -pair[1])


def echoed(token: int) -> float:
    """The log-probability that the server's model gives a token of a prompt."""
    return -0.1 - token % 7


def grade(prompt: str) -> float:
    found = re.search(r"relevance (-?\d+)", prompt)
    return float(found[1]) if found else 0.0


def relevances(prompt: str) -> list[tuple[str, float]]:
    return [(name, float(value)) for name, value in re.findall(r"^\[(\w+)\] .*relevance (-?\d+)", prompt, re.MULTILINE)]
