"""What the service takes, and no more; each limit by the name under which it is set."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from rerank.merging import BATCH_DOCUMENTS


class Limits(BaseModel):
    """Sizes are of one request. What is too large is refused with 413, who has too many requests open with 429, and
    what finds the service or its queue full, or takes too long, with 503. A document of more than `document_chars` is
    shortened, so that one does not fail the others."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    body_bytes: int = Field(default=10 * 2**20, ge=1)
    documents: int = Field(default=1000, ge=1)
    document_chars: int = Field(default=20_000, ge=1)
    query_chars: int = Field(default=4_000, ge=1)
    request_chars: int = Field(default=2_000_000, ge=1, description="the query beside each document, after shortening")
    requests: int = Field(default=512, ge=1, description="open at a time")
    client_requests: int = Field(default=128, ge=1, description="open at a time, of one key, or of one address")
    queue_requests: int = Field(default=512, ge=1)
    queue_documents: int = Field(default=10_000, ge=1)
    batch_documents: int = Field(default=BATCH_DOCUMENTS, ge=1, description="ranked together")
    timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False, description="from the body's end to the answer")
    body_timeout_s: float = Field(default=20.0, gt=0, allow_inf_nan=False, description="for the body to arrive")
    shutdown_s: float = Field(default=120.0, ge=0, allow_inf_nan=False, description="to finish what was taken")
