"""Dense retrieval: each document is a vector, each query is one, and the best documents are found by an exact search,
in numpy.

With a `folder` the documents' rows are kept, in shards of safetensors that are named by the SHA-256 of what embedded
them and of their texts. So the next index of the same documents reads them, one that was killed goes on after its last
whole shard, a corpus that has grown is embedded where it is new, and another model's rows are never taken for these.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from rerank.data.bm25 import best
from rerank.data.trec import Run
from rerank.errors import InputError
from rerank.types import Passage, Query

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

log = logging.getLogger(__name__)

SHARD = 1024  # documents that are embedded, and made durable, together
BATCH = 32
_SCORES = 2**26  # at most so many are held at once: 256 MB

Role = Literal["query", "document"]


class TextEncoder(Protocol):
    """What embeds, as `rerank.backbones.bi_encoder.BiEncoderBackbone` does. `identity` names all that a row depends
    on but its text; `similarity` is what the model was trained for, cosine or dot."""

    @property
    def identity(self) -> str: ...

    @property
    def similarity(self) -> str: ...

    def embed(self, role: Role, texts: Sequence[str]) -> ArrayLike: ...


class Dense:
    """An index of title and text. `on_progress` is told how many of how many documents are embedded.

    All rows are in memory, 4 bytes a dimension: 1.5 GB for a million documents of 384 dimensions.
    """

    def __init__(
        self,
        corpus: Mapping[str, Passage] | Iterable[Passage],
        encoder: TextEncoder,
        *,
        folder: str | Path | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if encoder.similarity not in ("cosine", "dot"):
            raise InputError(
                f"the model's similarity is {encoder.similarity}, and documents are searched by cosine or dot; "
                "give another model"
            )
        passages = corpus.values() if isinstance(corpus, Mapping) else list(corpus)
        if not passages:
            raise InputError("the corpus has no document to embed")
        self._encoder = encoder
        self._shards = None if folder is None else _Shards(Path(folder), encoder.identity)
        self._doc_ids: list[str] = []
        parts: list[NDArray[np.float32]] = []
        documents = iter(passages)
        while part := list(islice(documents, SHARD)):
            show = partial(_show, on_progress, len(self._doc_ids), len(passages))
            parts.append(self._rows_of(part, show))
            self._doc_ids += [passage.doc_id for passage in part]
        self._rows = self._comparable(np.concatenate(parts))

    def search(self, queries: Iterable[Query], k: int = 100) -> Run:
        """A run: each query's k nearest documents, ties in corpus order. A text that is longer than the model takes
        is cut to that."""
        queries = list(queries)
        block = max(1, _SCORES // len(self._doc_ids))
        run: Run = {}
        for at in range(0, len(queries), block):
            asked = queries[at : at + block]
            found = self.nearest(self.query_rows([query.text for query in asked]), k)
            run |= {query.query_id: scores for query, scores in zip(asked, found, strict=True)}
        return run

    def query_rows(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`[n, d]`: the queries' embeddings, of length 1 where documents are compared by cosine."""
        return self._comparable(embed_rows(self._encoder, "query", texts))

    def rows(self, doc_ids: Iterable[str]) -> NDArray[np.float32]:
        """`[n, d]`: the documents' embeddings, of length 1 where they are compared by cosine."""
        places = []
        for doc_id in doc_ids:
            if doc_id not in self._places:
                raise InputError(f"the index has no document {doc_id!r}; give ids of its corpus")
            places.append(self._places[doc_id])
        return self._rows[places]

    def nearest(self, rows: ArrayLike, k: int = 100) -> list[dict[str, float]]:
        """For each of `rows` `[n, d]` the k documents with the greatest inner product, ties in corpus order."""
        asked, everywhere = np.asarray(rows, np.float32), np.arange(len(self._doc_ids))
        if asked.ndim != 2 or asked.shape[1] != self._rows.shape[1]:
            raise InputError(f"rows are {list(asked.shape)}; give [n, {self._rows.shape[1]}]")
        return [
            {self._doc_ids[i]: float(scores[i]) for i in best(scores, k, everywhere)} for scores in asked @ self._rows.T
        ]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {doc_id: i for i, doc_id in enumerate(self._doc_ids)}

    def _rows_of(self, part: Sequence[Passage], on_embedded: Callable[[int], None]) -> NDArray[np.float32]:
        texts = [passage.full_text for passage in part]
        kept = None if self._shards is None else self._shards.read(texts)
        if kept is not None:
            on_embedded(len(part))
            return kept
        rows = embed_rows(self._encoder, "document", texts, on_embedded)
        if self._shards is not None:
            self._shards.write(texts, rows)
        return rows

    def _comparable(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return unit(rows) if self._encoder.similarity == "cosine" else rows


def embed_rows(
    encoder: TextEncoder, role: Role, texts: Sequence[str], on_embedded: Callable[[int], None] | None = None
) -> NDArray[np.float32]:
    """A row for each text, as the encoder gives it. Like lengths are embedded together, so that little is padding."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts: list[NDArray[np.float32]] = []
    for at in range(0, len(order), BATCH):
        batch = [texts[i] for i in order[at : at + BATCH]]
        parts.append(np.asarray(encoder.embed(role, batch), np.float32))
        if on_embedded is not None:
            on_embedded(at + len(batch))
    rows = np.concatenate(parts)
    if not np.isfinite(rows).all():
        raise InputError(f"the model gives {role} embeddings that are not finite; use another one, or dtype float32")
    found = np.empty_like(rows)
    found[order] = rows
    return found


def _show(on_progress: Callable[[int, int], None] | None, before: int, total: int, done: int) -> None:
    if on_progress is not None:
        on_progress(before + done, total)


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1, whose products are cosines; a row of zeros stays one."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled


class _Shards:
    """Rows on disk, each shard a file that is there whole or not at all."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder, self._identity = folder, identity
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, texts: Sequence[str]) -> NDArray[np.float32] | None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = self._path(texts)
        try:
            rows: NDArray[np.float32] = load_file(path)["rows"]
            if len(rows) == len(texts) and rows.dtype == np.float32:
                return rows
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError):
            pass
        log.warning("%s is damaged; its documents are embedded again", path)
        return None

    def write(self, texts: Sequence[str], rows: NDArray[np.float32]) -> None:
        from safetensors.numpy import save_file

        path = self._path(texts)
        partial = path.with_suffix(f".{os.getpid()}")
        save_file({"rows": np.ascontiguousarray(rows)}, partial)
        os.replace(partial, path)

    def _path(self, texts: Sequence[str]) -> Path:
        named = hashlib.sha256(json.dumps([self._identity, *texts]).encode())
        return self._folder / f"{named.hexdigest()}.safetensors"
