"""The MCP server as its clients see it: the real client, in this process and over the pipes of `rerank mcp`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import jsonschema
import pytest
from command import Cli, assert_error
from mcp import Client, StdioServerParameters
from service import FLEAS, QUERY, WAIT_S, Gate, word_ranker

import rerank
from rerank.errors import BackboneError
from rerank.integrations.mcp import Limits, Tool, make_server
from rerank.reranker import Ranker

ORDER = [2, 1, 0, 3]  # by the words that they have of QUERY
ME = {"name": "test", "version": "0"}
Work = Callable[[Client], Awaitable[None]]


def served(work: Work, load: Callable[[], Ranker] = word_ranker, **limits: Any) -> None:
    async def main() -> None:
        async with Client(make_server(Tool(load, Limits(**limits)))) as client:
            await work(client)

    asyncio.run(asyncio.wait_for(main(), WAIT_S))


def arguments(*documents: str, query: str = QUERY, **more: object) -> dict[str, object]:
    return {"query": query, "documents": list(documents or FLEAS), **more}


def test_the_tool_says_what_it_takes_and_gives() -> None:
    async def work(client: Client) -> None:
        (tool,) = (await client.list_tools()).tools
        assert tool.name == "rerank"
        fields = tool.input_schema["properties"]
        assert (fields["documents"]["maxItems"], fields["query"]["maxLength"]) == (3, 4000)
        assert "of each the first 20,000 characters are read" in fields["documents"]["description"]
        assert tool.input_schema["additionalProperties"] is False
        answer = await client.call_tool("rerank", arguments("a", "b", ""))
        jsonschema.validate(arguments("a", "b", ""), tool.input_schema)
        jsonschema.validate(answer.structured_content, tool.output_schema)

    served(work, documents=3)


def test_a_call_is_answered() -> None:
    async def work(client: Client) -> None:
        answer = await client.call_tool("rerank", arguments())
        found = answer.structured_content
        expected = word_ranker().rank(QUERY, FLEAS)
        assert not answer.is_error
        assert json.loads(answer.content[0].text) == found  # type: ignore[union-attr]
        assert [result["index"] for result in found["results"]] == ORDER
        assert [result["score"] for result in found["results"]] == [hit.score for hit in expected]
        assert found["results"][0] == {"index": 2, "score": 5.0, "outcomes": [], "document": None}
        assert found["outcomes"]["clean"] == found["usage"]["calls"] == len(FLEAS)
        two = (await client.call_tool("rerank", arguments(top_n=2.0, return_documents=True))).structured_content
        assert [result["document"] for result in two["results"]] == [FLEAS[2], FLEAS[1]]

    served(work)


def test_one_bad_document_does_not_fail_the_others() -> None:
    async def work(client: Client) -> None:
        given = arguments("", "a cat <|im_end|>", "dog " * 20, " \n", query="cat", return_documents=True)
        found = (await client.call_tool("rerank", given)).structured_content
        assert [(result["index"], result["outcomes"]) for result in found["results"]] == [
            (1, []),
            (2, ["shortened"]),
            (0, ["empty"]),
            (3, ["empty"]),
        ]
        assert [result["score"] for result in found["results"]] == [1.0, 0.0, None, None]
        assert found["results"][1]["document"] == "dog " * 20
        nothing = (await client.call_tool("rerank", arguments("", ""))).structured_content
        assert [result["index"] for result in nothing["results"]] == [0, 1]

    served(work, document_chars=30)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (arguments(query=""), "query: String should have at least 1 character"),
        (arguments(query="  "), "query 'q' is empty"),
        (arguments(query="x" * 51), "the query has 51 characters, and 50 are the most; shorten it"),
        ({"query": "x", "documents": []}, "documents: List should have at least 1 item"),
        ({"query": "x", "documents": [1]}, "documents.0: Input should be a valid string"),
        ({"query": "x", "documents": "a"}, "documents: Input should be a valid list"),
        ({}, "query: Field required (and 1 more)"),
        (arguments(*"abcdef"), "6 documents, and 5 are the most; send fewer at a time"),
        (arguments("x" * 90, "y" * 90), "makes 224 characters, and 200 are the most"),
        (arguments(top_n=0), "top_n: Input should be greater than or equal to 1"),
        (arguments(topn=1), "unknown argument 'topn'; did you mean 'top_n'?"),
    ],
)
def test_what_is_wrong_is_a_result_that_says_so(given: dict[str, object], text: str) -> None:
    async def work(client: Client) -> None:
        answer = await client.call_tool("rerank", given)
        assert answer.is_error
        assert text in answer.content[0].text  # type: ignore[union-attr]

    served(work, documents=5, query_chars=50, call_chars=200)


def test_an_unknown_tool_is_said() -> None:
    async def work(client: Client) -> None:
        answer = await client.call_tool("rerunk", arguments())
        assert answer.is_error
        assert answer.content[0].text == "unknown tool 'rerunk'; did you mean 'rerank'?"  # type: ignore[union-attr]

    served(work)


def test_a_ranker_that_cannot_be_loaded_is_told_at_each_call() -> None:
    loads = []

    def load() -> Ranker:
        loads.append(1)
        raise BackboneError("no model 'x' here")

    async def work(client: Client) -> None:
        for _ in range(2):
            answer = await client.call_tool("rerank", arguments())
            assert (answer.is_error, answer.content[0].text) == (True, "no model 'x' here")  # type: ignore[union-attr]

    served(work, load)
    assert len(loads) == 1


def test_calls_that_wait_together_share_batches_and_one_may_leave() -> None:
    gate = Gate()
    ranker = word_ranker(gate)

    async def work(client: Client) -> None:
        held = asyncio.create_task(client.call_tool("rerank", arguments("a", query="held")))
        assert await asyncio.to_thread(gate.reached.wait, WAIT_S)
        calls = [asyncio.create_task(client.call_tool("rerank", arguments(query=q))) for q in (QUERY, "left")]
        while ranker._merger.waiting[0] < 2:
            await asyncio.sleep(0)
        calls[1].cancel()
        while ranker._merger.waiting[0] > 1:
            await asyncio.sleep(0)
        gate.opened.set()
        assert not (await held).is_error
        assert [result["index"] for result in (await calls[0]).structured_content["results"]] == ORDER

    served(work, lambda: ranker)
    assert "left" not in gate.asked


def test_what_takes_too_long_is_given_up() -> None:
    gate = Gate()

    async def work(client: Client) -> None:
        answer = await client.call_tool("rerank", arguments(query="held"))
        assert answer.is_error
        assert "took longer than 0.2 s; send fewer" in answer.content[0].text  # type: ignore[union-attr]
        gate.opened.set()

    served(work, lambda: word_ranker(gate), timeout_s=0.2)


KEPT = ("PYTHON", "OMP", "MKL", "XDG", "HF", "RERANK_", "PIP_")


def over_pipes(work: Work, log: Path, *flags: str) -> None:
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "rerank", "mcp", *flags],
        env={name: value for name, value in os.environ.items() if name.startswith(KEPT)},
    )

    async def main() -> None:
        from mcp import stdio_client

        with log.open("w") as errors:
            async with Client(stdio_client(server, errlog=errors)) as client:
                await work(client)

    asyncio.run(asyncio.wait_for(main(), 300))


def test_the_command_speaks_over_pipes(tiny_model: Path, tmp_path: Path) -> None:
    """With a limit, and a cascade."""
    cascade = "pointwise(prompt=pointwise-yes-no) % 2 >> first(window=4, step=2)"

    async def work(client: Client) -> None:
        assert client.server_info is not None
        assert (client.server_info.name, client.server_info.version) == ("rerank", rerank.__version__)
        answer = await client.call_tool("rerank", arguments())
        assert sorted(result["index"] for result in answer.structured_content["results"]) == [0, 1, 2, 3]
        assert (await client.call_tool("rerank", arguments(*"abcde"))).is_error

    flags = ("--strategy", cascade, "--model", str(tiny_model), "--device", "cpu", "--dtype", "float32")
    over_pipes(work, tmp_path / "log", *flags, "--limit", "documents=4")


CHATTY = """
import os
from rerank import FirstStage
from rerank.integrations.mcp import serve_stdio

class Chatty(FirstStage):
    def _run(self, requests):
        print("printed", flush=True)
        os.system("echo shelled")
        return super()._run(requests)

    def close(self):
        os.write(2, b"closed")

serve_stdio(Chatty)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, None])
def test_nothing_but_the_protocol_is_on_standard_output(number: int | None) -> None:
    """Whatever is printed while it ranks; and a signal ends it while it waits, as the end of its input does."""
    asked = [
        {"method": "initialize", "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": ME}},
        {"method": "tools/call", "params": {"name": "rerank", "arguments": arguments()}},
    ]
    process = subprocess.Popen([sys.executable, "-c", CHATTY], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        answers = []
        for i, message in enumerate(asked):
            process.stdin.write(json.dumps({"jsonrpc": "2.0", "id": i, **message}) + "\n")
            process.stdin.flush()
            answers.append(json.loads(process.stdout.readline()))
            assert answers[-1]["id"] == i
        found = answers[1]["result"]["structuredContent"]["results"]
        assert [result["index"] for result in found] == [0, 1, 2, 3]
        if number is not None:
            process.send_signal(number)
        out, err = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
    assert (process.returncode, out) == (0 if number is None else 128 + number, "")
    assert err.split() == ["printed", "shelled", "closed"]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--strategy", "listwse"], "did you mean 'listwise'?"),
        (["--option", "window=3"], "unknown pointwise option 'window'"),
        (["--limit", "document=3"], "unknown limit 'document'; did you mean 'documents'?"),
        (["--limit", "documents=0"], "--limit documents: Input should be greater than or equal to 1"),
        (["--limit", "documents"], "name=value"),
    ],
)
def test_what_is_wrong_is_said_before_it_serves(cli: Cli, flags: list[str], text: str) -> None:
    assert_error(cli("mcp", *flags), text)
