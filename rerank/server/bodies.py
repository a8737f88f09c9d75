"""What clients send and get, as Cohere, Jina and text-embeddings-inference have it. What is ours beside theirs is under
the key `rerank`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from rerank.server.scores import ScoreMap

DocumentOutcome = Literal["empty", "shortened", "neutralised"]


def _whole(value: object) -> object:
    """3.0 is an integer in JSON Schema."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, Field(ge=1, le=1_000_000), BeforeValidator(_whole)]


class _Sent(BaseModel):
    """An unknown field is refused: what is not done is not to be asked for in vain."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RerankForm(_Sent):
    """Cohere's v1 and v2, and Jina's."""

    model: str | None = Field(default=None, description="one of /v1/models; without it the first of them")
    query: str = Field(min_length=1)
    documents: list[str | dict[str, JsonValue]] = Field(
        min_length=1, description="texts, or objects with a `text`, or with the fields that `rank_fields` names"
    )
    top_n: Count | None = Field(default=None, description="how many results; without it all")
    return_documents: bool | None = Field(default=None, description="whether results have their documents")
    rank_fields: list[str] | None = Field(
        default=None, min_length=1, max_length=64, description="what is read of an object, in order, each once"
    )
    max_tokens_per_doc: Count | None = Field(default=None, description="the rest of a document is not read")
    max_chunks_per_doc: Count | None = Field(
        default=None, description="a document is one chunk here, so every maximum is kept"
    )


class EmbeddingsForm(_Sent):
    """text-embeddings-inference's."""

    query: str = Field(min_length=1)
    texts: list[str] = Field(min_length=1)
    raw_scores: bool = Field(default=False, description="the ranker's own scores, not mapped into 0..1")
    return_text: bool = False
    truncate: bool | None = Field(
        default=None, description="false: a text that would be cut is an error; without it texts are cut to fit"
    )
    truncation_direction: Literal["right", "Right"] = Field(default="right", description="texts lose their ends only")


class ResultNotes(BaseModel):
    """`score` is the ranker's own, null for a document that was not ranked; `outcomes` says what befell it."""

    score: float | None
    outcomes: list[DocumentOutcome]


class Result(BaseModel):
    index: int = Field(description="the document's place in the request, from 0")
    relevance_score: float = Field(ge=0, le=1)
    document: dict[str, JsonValue] | None = None
    rerank: ResultNotes


class Tokens(BaseModel):
    input_tokens: int
    output_tokens: int


class ApiVersion(BaseModel):
    version: str


class Meta(BaseModel):
    api_version: ApiVersion
    tokens: Tokens


class JinaUsage(BaseModel):
    total_tokens: int
    prompt_tokens: int


class RankerUsage(BaseModel):
    """`seconds` is this request's share of its batches' time."""

    calls: int
    prompt_tokens: int
    generated_tokens: int
    seconds: float


class Notes(BaseModel):
    """`outcomes` counts how the model's answers could be read, and the passages that were `cut` or `neutralised`."""

    strategy: str
    scores: ScoreMap
    usage: RankerUsage
    outcomes: dict[str, int]
    reasoning: list[str]
    waited_s: float
    batch_requests: int


class RerankAnswer(BaseModel):
    id: str
    model: str
    results: list[Result]
    meta: Meta
    usage: JinaUsage
    rerank: Notes


class EmbeddingsResult(BaseModel):
    index: int
    score: float
    text: str | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    owned_by: Literal["rerank"] = "rerank"
    aliases: list[str]
    strategy: str
    scores: ScoreMap


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class SampleDocument(BaseModel):
    docid: str
    title: str
    text: str
    label: int = Field(description="how relevant it was judged; 0 where it was not")


class SampleList(BaseModel):
    """As a line of the lists that `rerank run` reads."""

    qid: str
    query: str
    docs: list[SampleDocument]


class Sample(BaseModel):
    id: str
    licence: str = Field(description="sources, licences and what was changed, in Markdown")
    lists: list[SampleList]


class Samples(BaseModel):
    object: Literal["list"] = "list"
    data: list[Sample]


class Status(BaseModel):
    status: Literal["ok"] = "ok"
