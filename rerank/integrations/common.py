"""What the components share: the ranker that they are given, when it is loaded, and how it orders a list of documents.

Documents are named by their places for the ranker, so that ids need not be distinct. One without text is not ranked and
comes last. No documents, or none with text, ask no model, and load none.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    ValidationError,
    field_serializer,
    model_validator,
)

from rerank.adapters import NONE, shipped
from rerank.backbones import check_answers
from rerank.defaults import DEFAULT_BACKBONE, LOCAL, Asked, resolve, settle
from rerank.errors import BackboneError, InputError, RerankError, UnknownNameError
from rerank.reranker import OnError, Ranker, load
from rerank.types import Candidates, Outcomes, Passage, Query, Ranking, Usage

_log = logging.getLogger(__name__)
_loading = threading.Lock()  # a component may be asked by several threads before its ranker is there


@dataclass(frozen=True, slots=True)
class Document:
    """What is read of a framework's document: its text, and the score that the retriever gave it."""

    text: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A document's place in what was given. `score` is the ranker's; the given one where nothing was ranked; None for a
    document without text."""

    index: int
    score: float | None
    empty: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """All documents, best first, those without text last. `error` is there where the given order was kept."""

    lines: tuple[Line, ...]
    usage: Usage = Usage()
    outcomes: Outcomes = Outcomes()
    error: RerankError | None = None

    def noted(self, metadata: Mapping[str, object], line: Line) -> dict[str, object]:
        """The metadata with `notes`, without the error of a ranker before this one."""
        return {**{name: value for name, value in metadata.items() if name != "rerank_error"}, **self.notes(line)}

    def notes(self, line: Line) -> dict[str, str]:
        """For a document's metadata: how the answers behind its place could be read, or why it was not ranked."""
        notes = {"rerank_outcomes": "empty" if line.empty else str(self.outcomes)}
        return notes if self.error is None else {**notes, "rerank_error": str(self.error)}


@dataclass(frozen=True, slots=True)
class _Held:
    """A ranker that was loaded, and what it was loaded by. A pickle or a deep copy of it is None."""

    arguments: Mapping[str, object]
    ranker: Ranker

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()


def _nothing() -> None:
    return None


class RankerArguments(BaseModel):
    """The ranker of a component: by the arguments of `rerank.load`, loaded at its first use, or one that is ready.

    `ranker` is the name of a strategy or of a released reranker, with `options` for the strategy's own and the rest as
    in `rerank.load`; or a `Ranker`, which cannot be written into a file. `on_error="keep"` has a query that cannot be
    asked (empty, or longer than the context) keep its given order, with an error in the documents' metadata.
    """

    # a key may be among what is wrong
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    ranker: str | Ranker = "pointwise"
    model: str | None = None
    adapter: str | None = None
    prompt: str | None = None
    backbone: str = DEFAULT_BACKBONE
    backbone_options: dict[str, JsonValue] = Field(default_factory=dict)
    device: str | None = None
    dtype: str | None = None
    strict: bool = False
    options: dict[str, JsonValue] = Field(default_factory=dict)
    on_error: OnError = "raise"

    _held: _Held | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, given: object) -> object:
        """A misspelt name is told the nearest one."""
        for name in given if isinstance(given, dict) else ():
            if name not in cls.model_fields:
                raise UnknownNameError(
                    "argument", str(name), cls.model_fields, "(what is the strategy's own goes into options={...})"
                )
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Names and options, before anything is loaded."""
        if isinstance(self.ranker, Ranker):
            if given := sorted(self.model_fields_set & _LOADED_BY):
                raise InputError(f"{', '.join(given)} given beside a ready ranker; give one or the other")
            return self
        if secret := next((name for name in self.backbone_options if name.endswith("key")), None):
            raise InputError(
                f"backbone_options has {secret}, which would be in files and logs; leave it to the environment (as "
                "OPENAI_API_KEY), or give a ready ranker"
            )
        asked = resolve(Asked(self.ranker, self.model, self.backbone, self.backbone_options))
        if asked.backbone in LOCAL and _is_fetched(self.adapter):
            return self  # the prompt and the options that it was trained with are not here yet
        strategy, _ = settle(
            asked.strategy,
            model=asked.model,
            adapter=self.adapter,
            prompt=self.prompt,
            backbone=asked.backbone,
            options=self.options,
        )
        check_answers(str(asked.backbone), strategy.prompt.needs)
        return self

    @field_serializer("ranker")
    def _named(self, ranker: str | Ranker) -> str:
        return _name_of(ranker)

    def __getstate__(self) -> dict[object, object]:
        _name_of(self.ranker)  # LlamaIndex leaves out what cannot be pickled, and would go on with the default ranker
        state: dict[object, object] = super().__getstate__()
        return state

    @property
    def title(self) -> str:
        """The ranker in a word, for events and logs."""
        return self.ranker if isinstance(self.ranker, str) else type(self.ranker).__name__

    def told(self) -> dict[str, object]:
        """The arguments that are not the defaults, for a file. Raises InputError for a ready ranker."""
        told = self.model_dump(include={*_LOADED_BY, "on_error"}, exclude_defaults=True)
        return {"ranker": _name_of(self.ranker), **told}

    def loaded(self) -> Ranker:
        """The ranker; loaded where it is not there, or was asked for by other arguments."""
        with _loading:
            ranker = self.ranker if isinstance(self.ranker, Ranker) else self._load(self.ranker)
            _ = ranker._merger  # of several threads only one may make it
        return ranker

    def _load(self, name: str) -> Ranker:
        arguments = {"ranker": name, **self.model_dump(include=set(_LOADED_BY))}
        if self._held is None or self._held.arguments != arguments:
            ranker = load(
                name,
                model=self.model,
                adapter=self.adapter,
                prompt=self.prompt,
                backbone=self.backbone,
                device=self.device,
                dtype=self.dtype,
                backbone_options=self.backbone_options,
                strict=self.strict,
                **self.options,  # type: ignore[arg-type]  # the strategy's; another name was refused
            )
            self._held = _Held(arguments, ranker)
        return self._held.ranker

    def close(self) -> None:
        """Gives back what was loaded here; it is loaded again where it is needed. A ready ranker is its owner's."""
        with _loading:
            held, self._held = self._held, None
        if held is not None:
            held.ranker.close()

    def ordered(self, query: str, documents: Sequence[Document]) -> Order:
        """Threads that ask at the same time share their batches."""
        request = self._request(query, documents)
        if isinstance(request, Order):
            return request
        ranker = self.loaded()
        future = ranker._merger.submit(ranker, request)
        try:
            return self._order(future.result().ranking, documents)
        finally:
            future.cancel()  # no more is done for who was interrupted

    async def aordered(self, query: str, documents: Sequence[Document]) -> Order:
        """As `ordered`, without holding up the event loop. One that is cancelled frees its work."""
        request = self._request(query, documents)
        if isinstance(request, Order):
            return request
        ranker = await asyncio.to_thread(self.loaded)
        return self._order((await ranker._merger.ask(ranker, request)).ranking, documents)

    def ordered_many(self, asked: Iterable[tuple[str, Sequence[Document]]]) -> Iterator[Order]:
        """Of many queries, in their order, in one batch."""
        requests = [(self._request(query, documents), documents) for query, documents in asked]
        candidates = [request for request, _ in requests if isinstance(request, Candidates)]
        rankings = self.loaded().rank_many(candidates, on_error="keep") if candidates else iter(())
        for request, documents in requests:
            yield request if isinstance(request, Order) else self._order(next(rankings), documents)

    def _request(self, query: str, documents: Sequence[Document]) -> Candidates | Order:
        """What a ranker can be asked; or the order, where there is nothing to ask."""
        passages = tuple(
            Passage(document.text, str(i), score=document.score)
            for i, document in enumerate(documents)
            if document.text.strip()
        )
        if not passages:
            return Order(_empty(documents))
        try:
            return Candidates(Query(query), passages)
        except InputError as error:
            return self._kept(error, Outcomes(), Usage(), documents)

    def _order(self, ranking: Ranking, documents: Sequence[Document]) -> Order:
        if ranking.error is not None:
            return self._kept(ranking.error, ranking.outcomes, ranking.usage, documents)
        lines = (Line(int(hit.passage.doc_id), hit.score) for hit in ranking)
        return Order((*lines, *_empty(documents)), ranking.usage, ranking.outcomes)

    def _kept(self, error: RerankError, outcomes: Outcomes, usage: Usage, documents: Sequence[Document]) -> Order:
        if self.on_error == "raise":
            raise error
        _log.warning("%s: the given order is kept: %s", self.title, error)
        lines = (Line(i, document.score) for i, document in enumerate(documents) if document.text.strip())
        return Order((*lines, *_empty(documents)), usage, outcomes, error)


_LOADED_BY = frozenset(RankerArguments.model_fields) - {"ranker", "on_error"}


def arguments_of(ranker: str | Ranker, given: Mapping[str, object]) -> RankerArguments:
    """For a component that is no pydantic model. Raises InputError, in one line."""
    try:
        return RankerArguments.model_validate({"ranker": ranker, **given})
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), RerankError):
            raise cause from None
        raise InputError(f"{first['loc'][0]}: {first['msg']}; given was {first['input']!r}") from None


def _empty(documents: Sequence[Document]) -> tuple[Line, ...]:
    return tuple(Line(i, None, empty=True) for i, document in enumerate(documents) if not document.text.strip())


def _is_fetched(adapter: str | None) -> bool:
    """Whether it comes from the hub."""
    return adapter not in (None, NONE, *shipped()) and not Path(str(adapter)).expanduser().is_dir()


def _name_of(ranker: str | Ranker) -> str:
    if isinstance(ranker, Ranker):
        raise InputError(
            f"a ready {type(ranker).__name__} cannot be written into a file; name it by the arguments of rerank.load, "
            "as in ranker='first', model=..., options={'window': 10}"
        )
    return ranker


def explain_missing(error: ImportError, component: str, extra: str, *modules: str) -> NoReturn:
    """Raises BackboneError, which says what to install, where one of the framework's modules is missing."""
    module = (error.name or "").partition(".")[0]
    if module not in modules:
        raise error
    raise BackboneError(f"{component} needs {module}: pip install 'rerank-llm[{extra}]'") from error
