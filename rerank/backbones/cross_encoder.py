"""Cross-encoders: models whose own head scores a query and a passage, through sentence-transformers.

A BERT or a decoder with a classification head of one label, or a language model under sentence-transformers'
`LogitScore` (Qwen3-Reranker, mxbai-rerank). The template, where there is one, is the model's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rerank.backbones.base import Prepared, by_length
from rerank.backbones.encoding import Encoder
from rerank.backbones.hardware import choose_device, choose_dtype, default_batch_tokens
from rerank.backbones.memory import within_memory
from rerank.calls import Answer, Call, Constraint, Dialogue, Kind, ScoreCall
from rerank.errors import BackboneError, CapabilityError, ContextError, InputError

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

Model = TypeVar("Model")
EXAMPLE = "cross-encoder/ms-marco-MiniLM-L6-v2"


@dataclass(frozen=True, slots=True)
class CrossEncoderBackbone:
    """A score is what the head gives before any activation: the logit of a classification head, the difference
    of two logits under `LogitScore`. It orders as the activated score does, and is no probability.

    `instruction` is put before the query, or is the system message where the model has a chat template.
    """

    model: CrossEncoder
    encoder: Encoder  # its `context` is the most tokens that a pair may take
    name: str
    batch_tokens: int | None = None
    instruction: str | None = None
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
    ) -> CrossEncoderBackbone:
        """`model` is a hub name or a directory; only safetensors are read, and no code of the model's is run.

        `max_length` lowers the most tokens that a pair may take, None is the model's own. `instruction` replaces the
        one that the model was saved with. `dtype` is as for other engines; the head of a classifier is computed in
        float32 whatever it is, since in bfloat16 passages tie.
        """
        if model is None:
            raise InputError(f"the cross-encoder backbone needs a model; a small one is model={EXAMPLE!r}")
        place = choose_device(device)
        scorer = _load(model, str(place), choose_dtype(dtype, place))
        _check(scorer, model)
        most = longest(scorer)
        if max_length is not None and not 1 <= max_length <= most:
            raise InputError(f"max_length is {max_length}; {model} takes from 1 to {most} tokens")
        scorer.max_seq_length = limit = max_length or most
        if instruction is None and scorer.default_prompt_name is not None:
            instruction = scorer.prompts[scorer.default_prompt_name]
        reader = Encoder(scorer.tokenizer, limit, model)
        return cls(scorer, reader, model, batch_tokens or default_batch_tokens(place), instruction or None)

    @property
    def control_tokens(self) -> frozenset[str]:
        return self.encoder.control_tokens

    def prepare(self, call: Call) -> Prepared:
        """The call comes back with its passage as it is shown, so cut where the pair would be too long."""
        dialogue, limit = pair_of(call, self.name), self.encoder.context
        query, passage = dialogue.query.text, dialogue.passages[0]
        with self.lock:
            whole = passage.full_text
            if dialogue.passage_tokens is not None:
                whole = self.encoder.cut(whole, dialogue.passage_tokens)
            shown, ids = whole, self._ids(query, whole)
            room = len(self.encoder.continuation(whole)) if len(ids) > limit else 0
            while len(ids) > limit:
                room -= len(ids) - limit
                if room < 1:
                    raise ContextError(
                        f"query {dialogue.query.query_id!r} leaves no room for a passage in the {limit} tokens of "
                        f"{self.name}; shorten the query"
                    )
                shown = self.encoder.cut(whole, room)
                ids = self._ids(query, shown)
        asked = ScoreCall(replace(dialogue, passages=(replace(passage, text=shown, title=""),)))
        return Prepared(asked, ids, len(ids), int(shown != whole))

    def _ids(self, query: str, passage: str) -> tuple[int, ...]:
        """The pair's tokens as the model will see them, template and special tokens included, however many."""
        options = {"text": {"truncation": False, "padding": False}}
        made = self.model.preprocess([(query, passage)], prompt=self.instruction, processing_kwargs=options)
        return tuple(made["input_ids"].reshape(-1).tolist())

    def group(self, items: Sequence[Prepared]) -> list[list[int]]:
        return by_length(items, self.batch_tokens)

    def close(self) -> None:
        """The weights go when the backbone does."""

    def answer(self, batch: Sequence[Prepared]) -> list[Answer]:
        return within_memory(
            batch,
            self._computed,
            lambda item: (
                f"{self.name} runs out of memory on a pair of {item.tokens} tokens; cut the passages "
                "(passage_tokens=...), or use a smaller dtype or model"
            ),
        )

    def _computed(self, batch: Sequence[Prepared]) -> list[Answer]:
        import torch

        shown = [item.call.dialogue for item in batch]
        with self.lock:
            scores = self.model.predict(
                [(dialogue.query.text, dialogue.passages[0].text) for dialogue in shown],
                prompt=self.instruction,
                batch_size=len(batch),
                show_progress_bar=False,
                activation_fn=torch.nn.Identity(),
            )
        return [
            Answer(score=score, prompt_tokens=item.tokens) for item, score in zip(batch, scores.tolist(), strict=True)
        ]


def pair_of(call: Call, name: str) -> Dialogue:
    """The query and the one passage of a call for a score. Raises CapabilityError for a call or words in it that
    a model which is shown a bare pair cannot heed."""
    if not isinstance(call, ScoreCall):
        raise CapabilityError(f"{name} scores a query and a passage; it does not answer {call.kind!s} calls")
    dialogue = call.dialogue
    said = "".join(s.text for m in dialogue.messages for s in m.spans if not s.passage) + dialogue.prefix
    if said.strip() != dialogue.query.text.strip():  # it would be dropped without a word
        raise CapabilityError(
            f"{name} is shown the query and the passage as they are, so a prompt with other words has no "
            "effect; use pointwise-pair, and the option instruction for what the model should be told"
        )
    return dialogue


def _load(name: str, device: str, dtype: object) -> CrossEncoder:
    import torch
    from sentence_transformers import CrossEncoder

    # without an activation of ours the model's configuration names a callable, which is called
    return load_sentence_model("cross-encoder", CrossEncoder, name, device, dtype, activation_fn=torch.nn.Identity())


def load_sentence_model(
    kind: str, make: Callable[..., Model], name: str, device: str, dtype: object, **options: object
) -> Model:
    """A model of sentence-transformers by hub name or directory: safetensors only, and no code of the model's."""
    from safetensors import SafetensorError
    from transformers.utils import logging as hf_logging

    local = Path(name).is_dir()
    if local and not ((Path(name) / "config.json").is_file() or (Path(name) / "modules.json").is_file()):
        raise InputError(f"model directory {name!r} has no config.json and no modules.json")
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        return make(
            name,
            device=device,
            trust_remote_code=False,
            local_files_only=local,
            model_kwargs={"dtype": dtype, "use_safetensors": True},
            **options,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        where = "" if local else "no such directory, and the hub says: "
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"cannot load the {kind} {name!r}: {where}{reason}") from error
    finally:
        if bars:
            hf_logging.enable_progress_bar()


def longest(model: CrossEncoder | SentenceTransformer) -> int:
    """The most tokens that the model takes: its tokenizer's limit, and what its table of positions holds."""
    from torch.nn import Embedding

    limits = [model.max_seq_length]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, Embedding):
            # RoBERTa's positions begin after the padding's row, so that 514 rows hold 512 tokens
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min((n for n in limits if isinstance(n, int) and 0 < n < 10**9), default=4096)


def _check(model: CrossEncoder, name: str) -> None:
    """Refuses what would load and score, but not a pair's relevance; puts the head into float32."""
    from torch.nn import Linear

    advice = f"give a cross-encoder, as {EXAMPLE}"
    if model.num_labels != 1:
        raise CapabilityError(f"{name} gives {model.num_labels} labels for a pair, not one score; {advice}")
    task, inner = getattr(model[0], "transformer_task", None), model.transformers_model
    made_for = getattr(getattr(inner, "config", None), "architectures", None) or []
    if (
        task == "sequence-classification"
        and not any(str(one).endswith("ForSequenceClassification") for one in made_for)
        and not getattr(inner, "_hf_peft_config_loaded", False)  # an adapter may bring the head
    ):
        raise CapabilityError(
            f"{name} has no head that scores a pair ({', '.join(made_for) or 'no architecture named'}), so its scores "
            f"would be random; {advice}"
        )
    if task != "text-generation":
        for head in [part for part in model.modules() if isinstance(part, Linear) and part.out_features == 1][-1:]:
            head.float().register_forward_pre_hook(lambda _, given: (given[0].float(),))
    try:  # a template without the two roles, a tokenizer without padding: better said now than at the first query
        model.predict([("a", "b"), ("a", "b b b")], show_progress_bar=False)
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"{name} does not score pairs: {reason}; {advice}") from error
