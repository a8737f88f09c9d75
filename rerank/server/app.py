"""The routes."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import rerank
from rerank.server import browser, logs
from rerank.server.bodies import (
    ApiVersion,
    EmbeddingsForm,
    EmbeddingsResult,
    JinaUsage,
    Meta,
    ModelCard,
    ModelList,
    Notes,
    RankerUsage,
    RerankAnswer,
    RerankForm,
    Result,
    ResultNotes,
    Samples,
    Status,
    Tokens,
)
from rerank.server.failures import ErrorBody, Failure, Json, Kind
from rerank.server.reading import parsed, read_body
from rerank.server.served import Served
from rerank.server.service import Line, Order, Ranked, Service

T = TypeVar("T")

_ABOUT = """Rerankers over HTTP. `/v1/rerank` and `/v2/rerank` are Cohere's and Jina's, `/rerank` is that of
text-embeddings-inference; what is ours beside theirs is under the key `rerank`."""
_ROUTES = frozenset(
    {"/v1/rerank", "/v2/rerank", "/rerank", "/v1/models", "/v1/samples", "/health", "/ready", "/metrics"}
) | set(browser.FILES)
_QUIET = frozenset({"/health", "/ready", "/metrics"})  # are asked every few seconds, and logged when they fail
_LARGE = 2**16  # bytes
_WRONG = {
    400: "The body is no JSON.",
    401: "There is no valid API key.",
    404: "No such model is served.",
    408: "The body did not arrive in time.",
    413: "The body, the query or the documents are too large.",
    422: "The body is no such request, or the query cannot be asked.",
    429: "The client has too many requests open. See Retry-After.",
    500: "A bug.",
    503: "The service or its queue is full, it shuts down, or the ranking took too long. See Retry-After.",
}


def _errors(*statuses: int) -> dict[int | str, dict[str, object]]:
    return {status: {"model": ErrorBody, "description": _WRONG[status]} for status in statuses}


def _content(form: type[BaseModel]) -> dict[str, object]:
    """The routes read bodies themselves, within limits, so that their schema is told here."""
    schema = {"$ref": f"#/components/schemas/{form.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def create_app(service: Service, *, page: bool = True) -> FastAPI:
    """`page` has the one for people at `/`, and its samples."""
    app = FastAPI(title="rerank", version=rerank.__version__, description=_ABOUT, docs_url=None, redoc_url=None)
    _add_rankings(app, service)
    _add_states(app, service)
    if page:
        _add_page(app, service)
    _add_errors(app)
    _describe(app, service)
    app.add_middleware(_Watch, service=service)
    return app


def _add_rankings(app: FastAPI, service: Service) -> None:
    failing = _errors(400, 401, 404, 408, 413, 422, 429, 500, 503)

    async def reranked(http: Request, version: str) -> Response:
        client = _client(service, http)
        with service.admitted(client):
            body = await read_body(http, service.limits)
            order, form = await _aside(body, lambda: _read_rerank(service, body, client, http))
            ranked = await service.rank(order, lambda: _left(http))
            return Json(_rerank_answer(order, form, ranked, version).model_dump(exclude_unset=True))

    @app.post("/v1/rerank", response_model=RerankAnswer, responses=failing, openapi_extra=_content(RerankForm))
    async def rerank_v1(http: Request) -> Response:
        """As Cohere's v1 and Jina's."""
        return await reranked(http, "1")

    @app.post("/v2/rerank", response_model=RerankAnswer, responses=failing, openapi_extra=_content(RerankForm))
    async def rerank_v2(http: Request) -> Response:
        """As Cohere's v2."""
        return await reranked(http, "2")

    @app.post(
        "/rerank", response_model=list[EmbeddingsResult], responses=failing, openapi_extra=_content(EmbeddingsForm)
    )
    async def rerank_texts(http: Request) -> Response:
        """As that of text-embeddings-inference, by the first ranker of /v1/models."""
        client = _client(service, http)
        with service.admitted(client):
            body = await read_body(http, service.limits)
            order, form = await _aside(body, lambda: _read_embeddings(service, body, client, http))
            ranked = await service.rank(order, lambda: _left(http))
            return Json([each.model_dump(exclude_unset=True) for each in _embeddings_answer(order, form, ranked)])


def _add_states(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", response_model=ModelList, responses=_errors(401, 500))
    async def models(http: Request) -> Response:
        """What is served; the first is asked where none is named."""
        _client(service, http)
        cards = [
            ModelCard(id=each.name, aliases=[*each.aliases], strategy=each.title, scores=each.score_map)
            for each in service.catalogue.served
        ]
        return Json(ModelList(data=cards).model_dump())

    @app.get("/health", response_model=Status, responses=_errors(500))
    async def health() -> Response:
        """That it runs."""
        return Json(Status().model_dump())

    @app.get("/ready", response_model=Status, responses=_errors(500, 503))
    async def ready() -> Response:
        """That it takes requests."""
        service.check_ready()
        return Json(Status().model_dump())

    plain: dict[int | str, dict[str, object]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", response_class=Response, responses=plain | _errors(401, 500))
    async def metrics(http: Request) -> Response:
        """For Prometheus."""
        _client(service, http)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI, service: Service) -> None:
    for path, (name, media_type) in browser.FILES.items():
        app.add_route(path, browser.asset(name, media_type), include_in_schema=False)
    reading = asyncio.Lock()  # once is enough

    @app.get("/v1/samples", response_model=Samples, responses=_errors(401, 500))
    async def samples(http: Request) -> Response:
        """Queries with passages to try a ranker on, which come with the package."""
        _client(service, http)
        async with reading:
            found = await asyncio.to_thread(browser.samples)
        return Json(Samples(data=found).model_dump())


def _client(service: Service, http: Request) -> str:
    address = http.client.host if http.client is not None else ""
    client = service.authenticated(http.headers.get("authorization", ""), address)
    http.state.told["client"] = client
    return client


async def _left(http: Request) -> None:
    """Ends when the client leaves, the body being there."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _aside(body: bytes, read: Callable[[], T]) -> T:
    """A large body is read in a thread, for it would hold up the others."""
    return read() if len(body) < _LARGE else await asyncio.to_thread(read)


def _read_rerank(service: Service, body: bytes, client: str, http: Request) -> tuple[Order, RerankForm]:
    form = parsed(RerankForm, body, service.limits)
    served = service.catalogue.find(form.model)
    fields = [*dict.fromkeys(form.rank_fields or ["text"])]
    texts = [each if isinstance(each, str) else _text(each, fields) for each in form.documents]
    return _order(service, served, form.query, texts, client, http, form.max_tokens_per_doc), form


def _read_embeddings(service: Service, body: bytes, client: str, http: Request) -> tuple[Order, EmbeddingsForm]:
    form = parsed(EmbeddingsForm, body, service.limits)
    return _order(service, service.catalogue.find(None), form.query, form.texts, client, http), form


def _text(document: Mapping[str, object], fields: Sequence[str]) -> str | None:
    """The fields that are there, a line each; what is no text as JSON. None where there is none of them."""
    found = [document[name] for name in fields if document.get(name) is not None]
    texts = (each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in found)
    return "\n".join(texts) if found else None


def _order(
    service: Service,
    served: Served,
    query: str,
    texts: Sequence[str | None],
    client: str,
    http: Request,
    passage_tokens: int | None = None,
) -> Order:
    told: dict[str, object] = http.state.told
    told |= {"model": served.name, "documents": len(texts), "query_chars": len(query)}
    if service.log_text:
        told |= {"query": query, "texts": [*texts]}
    documents = service.read(served, texts)
    return Order(served, query, documents, client, http.state.request_id, passage_tokens, told)


def _rerank_answer(order: Order, form: RerankForm, ranked: Ranked, version: str) -> RerankAnswer:
    usage = ranked.usage
    return RerankAnswer(
        id=order.request_id,
        model=order.served.name,
        results=[_result(order, form, line) for line in ranked.lines[: form.top_n]],
        meta=Meta(
            api_version=ApiVersion(version=version),
            tokens=Tokens(input_tokens=usage.prompt_tokens, output_tokens=usage.generated_tokens),
        ),
        usage=JinaUsage(total_tokens=usage.prompt_tokens + usage.generated_tokens, prompt_tokens=usage.prompt_tokens),
        rerank=Notes(
            strategy=order.served.title,
            scores=order.served.score_map,
            usage=RankerUsage(**asdict(usage)),
            outcomes=asdict(ranked.outcomes),
            reasoning=[*ranked.reasoning],
            waited_s=ranked.waited_s,
            batch_requests=ranked.batch_requests,
        ),
    )


def _result(order: Order, form: RerankForm, line: Line) -> Result:
    notes = ResultNotes(score=line.score, outcomes=[*order.documents[line.index].outcomes])
    result = Result(index=line.index, relevance_score=line.relevance, rerank=notes)
    if not form.return_documents:
        return result
    given = form.documents[line.index]
    return result.model_copy(update={"document": {"text": given} if isinstance(given, str) else given})


def _embeddings_answer(order: Order, form: EmbeddingsForm, ranked: Ranked) -> list[EmbeddingsResult]:
    shortened = [place for place, each in enumerate(order.documents) if "shortened" in each.outcomes]
    if form.truncate is False and (shortened or ranked.outcomes.cut):
        which = f"text {shortened[0]}" if shortened else "a text"
        raise Failure(413, "too_large", f"{which} is longer than can be read, and truncate is false; leave it out")
    found = []
    # an empty text was not ranked: its score is as low as the lowest of those that were
    least = min((line.score for line in ranked.lines if line.score is not None), default=0.0)
    for line in ranked.lines:
        score = (least if line.score is None else line.score) if form.raw_scores else line.relevance
        own = EmbeddingsResult(index=line.index, score=score)
        found.append(own.model_copy(update={"text": form.texts[line.index]}) if form.return_text else own)
    return found


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Failure)
    async def failed(http: Request, error: Failure) -> Response:
        http.state.told["error_type"] = error.kind
        return error.response(http.state.request_id)

    @app.exception_handler(HTTPException)
    async def refused(http: Request, error: HTTPException) -> Response:
        kind: Kind = "method_not_allowed" if error.status_code == 405 else "not_found"
        what = f"{http.method} {http.url.path[:200]}: {str(error.detail).lower()}; /openapi.json says what there is"
        failure = Failure(error.status_code, kind, what, headers=error.headers)
        return await failed(http, failure)


def _describe(app: FastAPI, service: Service) -> None:
    """The schemas of the bodies that routes read themselves, and the keys."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        schema = made()
        _, forms = models_json_schema(
            [(RerankForm, "validation"), (EmbeddingsForm, "validation")], ref_template="#/components/schemas/{model}"
        )
        parts = schema.setdefault("components", {})
        parts.setdefault("schemas", {}).update(forms["$defs"])
        if service.keys:
            parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


class _Watch:
    """Around all else: a request's id, its line in the log, its count, and the answer to a bug."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.perf_counter(), 0
        request_id, told = uuid.uuid4().hex, dict[str, object]()
        scope.setdefault("state", {}).update(request_id=request_id, told=told)

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception as error:
            fields = {"request_id": request_id, "error": type(error).__name__}
            logs.event("bug", fields, level=logging.ERROR, trace=True)
            if not status:
                message = f"this is a bug of the service; its log has more under {request_id}"
                await Failure(500, "internal", message).response(request_id)(scope, receive, sent)
        finally:
            seconds = time.perf_counter() - started
            path = scope["path"].removeprefix(scope.get("root_path", ""))  # where it is a part of another application
            route = path if path in _ROUTES else "other"
            self._service.metrics.answered(route, status, seconds)
            line = {"request_id": request_id, "route": route, "status": status, "seconds": round(seconds, 4)}
            if route not in _QUIET or status >= 400:
                logs.event("request", line | told)
