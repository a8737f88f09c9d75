"""The values that everything else passes around. All are frozen; a new result is a new object.

Ranks are 1-based. Scores are comparable within one ranking only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from rerank.cancellation import Cancellation
from rerank.errors import InputError, RerankError


@dataclass(frozen=True, slots=True)
class Query:
    """What the user asked. `query_id` names it in runs and qrels; by its `cancellation` it is given up in flight."""

    text: str
    query_id: str = "q"
    cancellation: Cancellation | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError(f"query {self.query_id!r} is empty; give it some text")

    @property
    def cancelled(self) -> bool:
        return self.cancellation is not None and self.cancellation.cancelled


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrieved text. `score` is the first stage's; `source` is the object the caller gave, returned as it was."""

    text: str
    doc_id: str
    title: str = ""
    score: float | None = None
    source: object = field(default=None, compare=False, repr=False)

    @property
    def full_text(self) -> str:
        """Title and text on one line, as BEIR's baselines index and rerank them."""
        return f"{self.title} {self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class Candidates:
    """One query and the passages to order, in the first stage's order."""

    query: Query
    passages: tuple[Passage, ...]

    def __post_init__(self) -> None:
        where = f"query {self.query.query_id!r}"
        if not self.passages:
            raise InputError(f"{where} has no passages to rank; give at least one")
        seen: set[str] = set()
        for passage in self.passages:
            if passage.doc_id in seen:
                raise InputError(f"{where} has two passages with the id {passage.doc_id!r}; ids must be distinct")
            seen.add(passage.doc_id)

    def __len__(self) -> int:
        return len(self.passages)


class Outcome(StrEnum):
    """How an answer could be read."""

    CLEAN = "clean"
    REPAIRED = "repaired"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Counts over the answers behind one ranking or one run.

    `duplicate`, `foreign` and `missing` count identifiers that a repair dropped or added, `missing` also labels
    that the engine gave no log-probability for, so that an upper bound stands in for it;
    `cut` counts passages shortened to fit the context, `neutralised` passages whose text imitated
    an identifier or a control token.
    """

    clean: int = 0
    repaired: int = 0
    failed: int = 0
    duplicate: int = 0
    foreign: int = 0
    missing: int = 0
    cut: int = 0
    neutralised: int = 0

    def __add__(self, other: Outcomes) -> Outcomes:
        return Outcomes(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    @classmethod
    def of(cls, outcome: Outcome, *, duplicate: int = 0, foreign: int = 0, missing: int = 0) -> Outcomes:
        """The counts of one answer."""
        return cls(**{outcome.value: 1}, duplicate=duplicate, foreign=foreign, missing=missing)

    def __str__(self) -> str:
        parts = [f"{getattr(self, name)} {name}" for name in self.__slots__ if getattr(self, name)]
        return ", ".join(parts) or "none"


@dataclass(frozen=True, slots=True)
class Usage:
    """What answers cost. `seconds` is the query's share, by tokens, of the time of the batches it was in; where calls
    are answered one by one it is their own time, and adds up to more than the clock's."""

    calls: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Hit:
    """One line of a ranking."""

    rank: int
    score: float
    passage: Passage


@dataclass(frozen=True, slots=True)
class Ranking:
    """A query's passages in order, best first, and what it took.

    `error` is set when the query could not be asked at all: the given order is kept then.
    """

    query: Query
    hits: tuple[Hit, ...]
    usage: Usage = Usage()
    outcomes: Outcomes = Outcomes()
    reasoning: tuple[str, ...] = ()
    error: RerankError | None = None

    @classmethod
    def of(cls, request: Candidates, order: Iterable[int], scores: Iterable[float]) -> Ranking:
        """The ranking that shows the request's passages at these positions, with a score beside each."""
        pairs = enumerate(zip(order, scores, strict=False), start=1)
        return cls(request.query, tuple(Hit(rank, s, request.passages[i]) for rank, (i, s) in pairs))

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, index: int) -> Hit:
        return self.hits[index]

    @property
    def doc_ids(self) -> list[str]:
        return [hit.passage.doc_id for hit in self.hits]

    def top(self, k: int | None) -> Ranking:
        """The first k hits; None for all."""
        return replace(self, hits=self.hits[:k])

    def candidates(self) -> Candidates:
        """This ranking as the input of a next stage: its order and scores become the first stage's."""
        return Candidates(self.query, tuple(replace(hit.passage, score=hit.score) for hit in self.hits))


def as_passage(item: object, position: int) -> Passage:
    """A passage from what callers have: a string, a mapping, a LangChain document, a LlamaIndex node.

    Without an id of its own a passage is named by its position, from 0.
    """
    if isinstance(item, Passage):
        return item if item.source is not None else replace(item, source=item)
    if isinstance(item, str):
        return Passage(item, str(position), source=item)
    if isinstance(item, Mapping):
        return _from_mapping(item, position)
    score = getattr(item, "score", None)
    node = getattr(item, "node", item)  # LlamaIndex wraps its node with a score
    text = getattr(node, "page_content", None)
    get_content = getattr(node, "get_content", None)
    if text is None and callable(get_content):
        text = get_content()
    if not isinstance(text, str):
        raise InputError(
            f"passage {position} is a {type(item).__name__}; give a string, a Passage, a dict with 'text', "
            "a LangChain document or a LlamaIndex node"
        )
    doc_id = getattr(node, "node_id", None) or getattr(node, "id", None)
    return Passage(
        text,
        str(doc_id) if doc_id is not None else str(position),
        score=float(score) if isinstance(score, int | float) else None,
        source=item,
    )


def _from_mapping(item: Mapping[object, object], position: int) -> Passage:
    def first(*keys: str) -> object:
        return next((item[key] for key in keys if item.get(key) is not None), None)

    text = first("text", "content", "contents", "page_content", "passage")
    if not isinstance(text, str):
        raise InputError(f"passage {position} has no 'text'; its keys are {sorted(map(str, item))}")
    doc_id, score = first("doc_id", "docid", "_id", "id"), first("score")
    return Passage(
        text,
        str(doc_id) if doc_id is not None else str(position),
        title=str(first("title") or ""),
        score=float(score) if isinstance(score, int | float) else None,
        source=item,
    )


def as_candidates(query: str | Query, passages: Iterable[object]) -> Candidates:
    """A request from what callers have; see `as_passage`."""
    return Candidates(
        query if isinstance(query, Query) else Query(query),
        tuple(as_passage(item, position) for position, item in enumerate(passages)),
    )
