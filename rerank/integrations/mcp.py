"""MCP: the ranker as a tool of a language model's host, over standard input and output. The command: `rerank mcp`.

The tool `rerank` takes a query and documents, and returns their order with scores, and how the model's answers could be
read. What is wrong with a call is its result, marked as an error, in words that a model can act on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import rerank
from rerank.errors import RerankError, UnknownNameError
from rerank.integrations.common import Document, Order, RankerArguments, explain_missing
from rerank.reranker import Ranker

try:
    import mcp_types as types
    from mcp.server.context import ServerRequestContext
    from mcp.server.lowlevel import Server
    from mcp.server.stdio import stdio_server
except ImportError as missing:
    explain_missing(missing, "the MCP server", "mcp", "mcp", "mcp_types")

_log = logging.getLogger(__name__)
_TOOL = "rerank"
_DESCRIPTION = (
    "Put documents in order of their relevance to a query, best first, by a language model that reads each of them. "
    "Use it to choose what to read or cite from search results. Returns the documents' indices, from 0, with scores: "
    "they compare within one call only. A document without text comes last and has the score null."
)
Outcome = Literal["empty", "shortened"]


class Limits(BaseModel):
    """What one call may have. A longer document is shortened, so that one does not fail the others; the rest is an
    error that names the limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    documents: int = Field(default=200, ge=1)
    document_chars: int = Field(default=20_000, ge=1)
    query_chars: int = Field(default=4_000, ge=1)
    call_chars: int = Field(default=1_000_000, ge=1, description="the query beside each document, after shortening")
    timeout_s: float = Field(default=300.0, gt=0, allow_inf_nan=False)


class Call(BaseModel):
    """The tool's arguments. An unknown one is refused: what is not done is not to be asked for in vain."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    query: str = Field(min_length=1, description="what the documents should answer")
    documents: list[str] = Field(min_length=1, description="the texts to put in order")
    # not strict: 3.0 is an integer in JSON
    top_n: Annotated[int, Field(ge=1, strict=False)] | None = Field(
        default=None, description="how many results; without it all"
    )
    return_documents: bool = Field(default=False, description="whether results have their texts")


class Result(BaseModel):
    """`outcomes` says what befell the document: it was `empty`, and not ranked, or `shortened`."""

    index: int = Field(description="the document's place in the call, from 0")
    score: float | None
    outcomes: list[Outcome]
    document: str | None = None


class Usage(BaseModel):
    calls: int
    prompt_tokens: int
    generated_tokens: int
    seconds: float


class Answer(BaseModel):
    """`outcomes` counts how the model's answers could be read: clean, repaired or failed, and the passages that were
    cut or neutralised."""

    results: list[Result]
    outcomes: dict[str, int]
    usage: Usage


class ToolFailure(Exception):
    """Its text is for the model that called."""


class Tool:
    """The tool over a ranker. `load` is called once, in a thread, as the server starts; calls wait till it is done."""

    def __init__(self, load: Callable[[], Ranker], limits: Limits | None = None) -> None:
        self._load, self.limits = load, limits or Limits()
        self._loading: asyncio.Task[RankerArguments] | None = None

    @asynccontextmanager
    async def running(self, _: Server[None]) -> AsyncIterator[None]:
        self._loading = asyncio.create_task(asyncio.to_thread(self._loaded))
        try:
            yield
        finally:
            await asyncio.wait([self._loading])  # a thread that loads cannot be interrupted
            self.close()

    def close(self) -> None:
        """Gives back what the ranker holds, if it is there."""
        if self._loading is not None and self._loading.done() and self._loading.exception() is None:
            self._loading.result().loaded().close()

    def _loaded(self) -> RankerArguments:
        try:
            return RankerArguments(ranker=self._load())
        except Exception:
            _log.exception("the ranker could not be loaded")
            raise

    @property
    def description(self) -> types.Tool:
        """With the limits in the schema, so that a model need not find them out."""
        schema = Call.model_json_schema()
        fields = schema["properties"]
        fields["query"]["maxLength"] = self.limits.query_chars
        fields["documents"]["maxItems"] = self.limits.documents
        fields["documents"]["description"] += f"; of each the first {self.limits.document_chars:,} characters are read"
        return types.Tool(
            name=_TOOL,
            title="Rerank documents",
            description=_DESCRIPTION,
            input_schema=schema,
            output_schema=Answer.model_json_schema(mode="serialization"),
            annotations=types.ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
        )

    async def call(self, name: str, arguments: object) -> Answer:
        """Raises ToolFailure for what the caller can mend or should know."""
        if name != _TOOL:
            raise ToolFailure(str(UnknownNameError("tool", name[:200], [_TOOL])))
        call = self._read(arguments)
        texts = [text[: self.limits.document_chars] for text in call.documents]
        self._check_sizes(call, texts)
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                order = await self._ordered(call.query, texts)
        except TimeoutError:
            raise ToolFailure(
                f"{len(texts)} documents took longer than {self.limits.timeout_s:g} s; send fewer, or shorter ones"
            ) from None
        except RerankError as error:
            raise ToolFailure(str(error)) from error
        return self._answer(call, texts, order)

    async def _ordered(self, query: str, texts: Sequence[str]) -> Order:
        if self._loading is None:
            raise RuntimeError("the server does not run")
        # the others wait for the loading too
        given = await asyncio.shield(self._loading)
        return await given.aordered(query, [Document(text) for text in texts])

    def _read(self, arguments: object) -> Call:
        try:
            return Call.model_validate(arguments)
        except ValidationError as error:
            first, *more = error.errors(include_url=False)
            where = ".".join(map(str, first["loc"])) or "arguments"
            message = f"{where}: {first['msg']}"
            if first["type"] == "extra_forbidden":
                message = str(UnknownNameError("argument", where[:200], Call.model_fields))
            raise ToolFailure(f"{message} (and {len(more)} more)" if more else message) from None

    def _check_sizes(self, call: Call, texts: Sequence[str]) -> None:
        limits = self.limits
        if len(texts) > limits.documents:
            raise ToolFailure(f"{len(texts)} documents, and {limits.documents} are the most; send fewer at a time")
        if len(call.query) > limits.query_chars:
            raise ToolFailure(
                f"the query has {len(call.query):,} characters, and {limits.query_chars:,} are the most; shorten it"
            )
        if (size := sum(map(len, texts)) + len(texts) * len(call.query)) > limits.call_chars:
            raise ToolFailure(
                f"the query beside each document makes {size:,} characters, and {limits.call_chars:,} are the most; "
                "send fewer documents, or shorter ones"
            )

    def _answer(self, call: Call, texts: Sequence[str], order: Order) -> Answer:
        results = []
        for line in order.lines[: call.top_n]:
            outcomes: list[Outcome] = ["shortened"] if len(texts[line.index]) < len(call.documents[line.index]) else []
            if line.empty:
                outcomes.append("empty")
            document = call.documents[line.index] if call.return_documents else None
            results.append(Result(index=line.index, score=line.score, outcomes=outcomes, document=document))
        usage = Usage.model_validate(asdict(order.usage))
        return Answer(results=results, outcomes=asdict(order.outcomes), usage=usage)


def make_server(tool: Tool) -> Server[None]:
    """For a transport of your own; `serve_stdio` is the usual one."""

    async def list_tools(
        context: ServerRequestContext[None], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[tool.description])

    async def call_tool(
        context: ServerRequestContext[None], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        try:
            answer = await tool.call(params.name, params.arguments or {})
        except ToolFailure as failure:
            return types.CallToolResult(content=[types.TextContent(type="text", text=str(failure))], is_error=True)
        text = answer.model_dump_json()
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=text)], structured_content=json.loads(text)
        )

    return Server(
        "rerank",
        version=rerank.__version__,
        instructions=_DESCRIPTION,
        lifespan=tool.running,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def serve_stdio(load: Callable[[], Ranker], limits: Limits | None = None) -> None:
    """Until standard input ends. What is printed meanwhile, by whatever library, goes to standard error: standard
    output is the protocol's."""

    async def serve() -> None:
        tool = Tool(load, limits)
        server = make_server(tool)
        _end_at_signals(tool)
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())

    asyncio.run(serve())


def _end_at_signals(tool: Tool) -> None:
    """At once: the thread that reads standard input cannot be interrupted, and would be waited for."""

    def end(number: int) -> None:
        tool.close()
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # on Windows
            asyncio.get_running_loop().add_signal_handler(number, end, number)
