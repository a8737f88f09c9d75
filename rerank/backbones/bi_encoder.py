"""Bi-encoders: query and passage are embedded apart, through sentence-transformers, and their embeddings compared.

The default is the embedded all-MiniLM-L6-v2. A text is embedded once in a batch, and what was embedded is kept from
batch to batch, since many queries share their passages.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from rerank.backbones.base import Prepared, by_length
from rerank.backbones.cross_encoder import load_sentence_model, longest, pair_of
from rerank.backbones.embedded import EMBEDDED_BI_ENCODER, MINILM, resolve
from rerank.backbones.encoding import Encoder
from rerank.backbones.hardware import choose_device, choose_dtype, default_batch_tokens
from rerank.backbones.memory import within_memory
from rerank.calls import Answer, Call, Constraint, Kind, ScoreCall
from rerank.data.dense import Role
from rerank.errors import BackboneError, CapabilityError, ContextError, InputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor


class Embeddings:
    """The embeddings used last, of at most so many bytes together with their texts."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._kept: OrderedDict[tuple[Role, str], Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, role: Role, text: str) -> Tensor | None:
        if (role, text) not in self._kept:
            return None
        self._kept.move_to_end((role, text))
        return self._kept[role, text]

    def put(self, role: Role, text: str, embedding: Tensor) -> None:
        self._kept[role, text] = embedding
        self.size += _bytes(text, embedding)
        while self.size > self.limit:
            (_, oldest), dropped = self._kept.popitem(last=False)
            self.size -= _bytes(oldest, dropped)


def _bytes(text: str, embedding: Tensor) -> int:
    return sys.getsizeof(text) + embedding.numel() * embedding.element_size()


@dataclass(frozen=True, slots=True)
class BiEncoderBackbone:
    """A score is the similarity that the model was saved with, of the two embeddings: for nearly all, and where none
    is named, their cosine. `prompts` are the words that the model wants before a query and before a passage.

    An answer's `prompt_tokens` are the passage's, also where its embedding was still there.
    """

    model: SentenceTransformer
    encoder: Encoder  # its `context` is the most tokens that a text may take
    name: str
    embeddings: Embeddings
    batch_tokens: int | None = None
    prompts: tuple[str, str] = ("", "")
    kinds: frozenset[Kind] = frozenset({Kind.SCORE})
    constraints: frozenset[type[Constraint]] = frozenset()
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    @classmethod
    def load(
        cls,
        model: str | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        batch_tokens: int | None = None,
        max_length: int | None = None,
        instruction: str | None = None,
        cache_mb: int = 512,
    ) -> BiEncoderBackbone:
        """`model` is a hub name or a directory, None is the embedded model; only safetensors are read, and no code of
        the model's is run.

        `dtype` is float32 on a CPU and as for other engines elsewhere. `max_length` lowers the most tokens that a text
        may take, None is the model's own (256 for the embedded one). `instruction` replaces the words that the model
        was saved with for queries. `cache_mb` bounds what is kept of embeddings.
        """
        if cache_mb < 0:
            raise InputError(f"cache_mb is {cache_mb}; give 0 to keep no embedding, or how many MB of them to keep")
        name = model or EMBEDDED_BI_ENCODER
        place = choose_device(device)
        if dtype is None and place.type == "cpu":
            dtype = "float32"  # these models are small, and bfloat16 moves a cosine by as much as passages differ
        embedder = _load(
            str(resolve(recipe=MINILM)) if model is None else model, str(place), choose_dtype(dtype, place)
        )
        _check(embedder, name)
        most = longest(embedder)
        if max_length is not None and not 1 <= max_length <= most:
            raise InputError(f"max_length is {max_length}; {name} takes from 1 to {most} tokens")
        embedder.max_seq_length = limit = max_length or most
        query = _prompt(embedder, "query") if instruction is None else instruction
        reader = Encoder(embedder.tokenizer, limit, name)
        return cls(
            embedder,
            reader,
            name,
            Embeddings(cache_mb * 1_000_000),
            batch_tokens or default_batch_tokens(place),
            (query, _prompt(embedder, "document", "passage", "corpus")),
        )

    @property
    def control_tokens(self) -> frozenset[str]:
        return self.encoder.control_tokens

    @property
    def identity(self) -> str:
        """Names all that an embedding depends on but its text: the weights themselves, what is done with them, the
        words before a text and where it is cut."""
        import torch

        digest = hashlib.sha256(json.dumps([str(self.model), self.prompts, self.encoder.context]).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def similarity(self) -> str:
        """What the model was saved with, cosine where it names none."""
        return str(self.model.similarity_fn_name or "cosine")

    def prepare(self, call: Call) -> Prepared:
        """The call comes back with its passage as it is embedded, so cut where it would be too long."""
        dialogue, limit = pair_of(call, self.name), self.encoder.context
        query, passage = dialogue.query, dialogue.passages[0]
        with self.lock:
            if (length := len(self._ids("query", query.text))) > limit:
                raise ContextError(
                    f"query {query.query_id!r} takes {length} tokens of the {limit} of {self.name}; shorten the query"
                )
            whole = passage.full_text
            if dialogue.passage_tokens is not None:
                whole = self.encoder.cut(whole, dialogue.passage_tokens)
            shown, ids = whole, self._ids("document", whole)
            room = len(self.encoder.continuation(whole)) if len(ids) > limit else 0
            while len(ids) > limit:
                room -= len(ids) - limit
                if room < 1:
                    raise ContextError(f"{self.name} has no room for a passage in {limit} tokens; raise max_length")
                shown = self.encoder.cut(whole, room)
                ids = self._ids("document", shown)
        asked = ScoreCall(replace(dialogue, passages=(replace(passage, text=shown, title=""),)))
        return Prepared(asked, ids, len(ids), int(shown != whole))

    def _ids(self, role: Role, text: str) -> tuple[int, ...]:
        """The text's tokens as the model will see them, its prompt and special tokens included, however many."""
        return tuple(self.encoder.tokenizer.encode(self._prompt(role) + text))

    def _prompt(self, role: Role) -> str:
        return self.prompts[0 if role == "query" else 1]

    def group(self, items: Sequence[Prepared]) -> list[list[int]]:
        return by_length(items, self.batch_tokens)

    def close(self) -> None:
        """The weights go when the backbone does."""

    def answer(self, batch: Sequence[Prepared]) -> list[Answer]:
        queries = self.embed("query", [item.call.dialogue.query.text for item in batch])
        passages = self.embed("document", [item.call.dialogue.passages[0].text for item in batch])
        scores = self.model.similarity_pairwise(queries, passages).tolist()
        return [Answer(score=score, prompt_tokens=item.tokens) for item, score in zip(batch, scores, strict=True)]

    def embed(self, role: Role, texts: Sequence[str]) -> Tensor:
        """A float32 row for each text, on the CPU. A text is cut to the model's length; equal ones are embedded once,
        and those that are still there not at all."""
        import torch

        with self.lock:
            found: dict[str, Tensor] = {}
            for text in dict.fromkeys(texts):
                if (kept := self.embeddings.get(role, text)) is not None:
                    found[text] = kept
            new = [text for text in dict.fromkeys(texts) if text not in found]
            for text, row in zip(new, self._embed(role, new) if new else (), strict=True):
                found[text] = row.clone()  # a view would keep the whole batch alive
                self.embeddings.put(role, text, found[text])
        return torch.stack([found[text] for text in texts])

    def _embed(self, role: Role, texts: list[str]) -> list[Tensor]:
        return within_memory(
            texts,
            partial(self._embedded, role),
            lambda _: f"{self.name} runs out of memory on one text; lower max_length, or use a smaller dtype or model",
        )

    def _embedded(self, role: Role, texts: Sequence[str]) -> list[Tensor]:
        import torch

        encode = self.model.encode_query if role == "query" else self.model.encode_document
        options = {"convert_to_tensor": True, "show_progress_bar": False}
        rows = encode(list(texts), prompt=self._prompt(role), batch_size=len(texts), **options)
        return list(torch.as_tensor(rows).float().cpu())


def _prompt(model: SentenceTransformer, *names: str) -> str:
    """The words that the model was saved with for one of these uses, else for all."""
    names += (model.default_prompt_name,) if model.default_prompt_name else ()
    return next((model.prompts[name] for name in names if model.prompts.get(name)), "")


def _load(name: str, device: str, dtype: object) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    return load_sentence_model("bi-encoder", SentenceTransformer, name, device, dtype)


def _check(model: SentenceTransformer, name: str) -> None:
    """Refuses what would load and embed, but was never trained to."""
    made_for = getattr(getattr(model.transformers_model, "config", None), "architectures", None) or []
    if any(str(one).endswith("ForSequenceClassification") for one in made_for):
        raise CapabilityError(
            f"{name} classifies ({', '.join(made_for)}) and was not trained to embed, so its scores would say nothing; "
            f"give a bi-encoder, as {EMBEDDED_BI_ENCODER}, or use the cross-encoder backbone"
        )
    try:  # a tokenizer without padding, a template: better said now than at the first query
        model.encode(["a", "b b b"], show_progress_bar=False)
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"{name} does not embed texts: {reason}") from error
