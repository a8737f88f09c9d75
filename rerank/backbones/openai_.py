"""A language model behind an OpenAI-compatible server: vLLM's, or another."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ValidationError

from rerank.backbones.base import Prepared, check_constraint
from rerank.backbones.encoding import Encoder
from rerank.backbones.http_ import HttpError, JsonServer
from rerank.backbones.openai_forms import Chat, Completions
from rerank.calls import Answer, Call, Constraint, GenerateCall, Kind
from rerank.errors import BackboneError, ContextError, InputError, UnknownNameError

_TOP = 20  # the most that vLLM by default, and OpenAI's chat, give for a position
_OFFICIAL = "https://api.openai.com/v1"
# Tokenizers differ on each of these, and a wrong one would be answered with nonsense, not with an error.
_PROBE = "<|x|> Query: naïve café, 12345 relevant passages?\n\n[A] > [B]  Yes/No 你好 \t»"

Api = Literal["auto", "completions", "chat"]
Dialect = Literal["auto", "vllm", "openai"]


class _Card(BaseModel):
    """What `/models` says of a model; all but its name only some servers do."""

    id: str
    owned_by: str | None = None
    parent: str | None = None  # of a LoRA adapter
    max_model_len: int | None = None


class _Cards(BaseModel):
    data: list[_Card]


@dataclass(frozen=True, slots=True)
class OpenAIBackbone:
    """One served model, asked in one form. `name` is what it is called in runs, adapter included."""

    name: str
    form: Completions | Chat
    server: JsonServer
    concurrency: int

    @classmethod
    def load(
        cls,
        model: str | None = None,
        *,
        adapter: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        tokenizer: str | None = None,
        api: Api = "auto",
        server: Dialect = "auto",
        context: int | None = None,
        max_top_logprobs: int | None = None,
        concurrency: int = 64,
        timeout_s: float = 60.0,
        deadline_s: float = 300.0,
        retries: int = 8,
    ) -> OpenAIBackbone:
        """`model` is a served name; None is the only one served. `adapter` is the name under which the server has a
        LoRA adapter of it (vLLM: `--lora-modules NAME=DIR`). `base_url` and `api_key` default to OPENAI_BASE_URL
        and OPENAI_API_KEY, as the official client's do.

        `tokenizer`, the model's own, is a directory or a hub name. With it prompts are rendered, cut to `context`
        (default: what the server says) and sent as token ids to `/completions`; without it as messages to
        `/chat/completions`. `api` demands one of the two. `server` is what it can be asked beyond the common: "auto"
        is "vllm" where its list of models says so. vLLM with a tokenizer gives the labels' own log-probabilities; from
        the others they must be found among the most probable tokens, of which the server gives at most
        `max_top_logprobs` (default: 20, which is vLLM's and OpenAI's bound).

        At most `concurrency` calls are in flight. `timeout_s` bounds one attempt at a call, `deadline_s` the call
        with its retries. Raises BackboneError where the server does not answer, UnknownNameError where it does
        not serve the name.
        """
        _check_numbers(
            concurrency=concurrency,
            max_top_logprobs=max_top_logprobs,
            timeout_s=timeout_s,
            deadline_s=deadline_s,
            context=context,
        )
        if retries < 0:
            raise InputError(f"retries is {retries}; give 0 or more")
        chat = tokenizer is None if api == "auto" else api == "chat"
        if chat and (tokenizer is not None or context is not None):
            raise InputError("with api=chat the server's own tokenizer is used; leave out tokenizer and context")
        if not chat and tokenizer is None:
            raise InputError(
                "api=completions sends token ids; give the model's tokenizer=..., a directory or a hub name"
            )
        there = JsonServer(
            base_url or os.environ.get("OPENAI_BASE_URL") or _OFFICIAL,
            os.environ.get("OPENAI_API_KEY") if api_key is None else api_key,
            concurrency=concurrency,
            timeout_s=timeout_s,
            deadline_s=deadline_s,
            retries=retries,
        )
        try:
            cards = _cards(there, needed=model is None or adapter is not None)
            base, served = _chosen(cards, model, adapter)
            vllm = _is_vllm(cards, served) if server == "auto" else server == "vllm"
            if vllm and cards and served not in cards:
                raise UnknownNameError("served model", served, cards)
            name = base if adapter is None else f"{base}+{adapter}"
            if vllm and not chat and max_top_logprobs is not None:
                raise InputError("vLLM gives each label that is asked for by its token; leave out max_top_logprobs")
            top = max_top_logprobs or _TOP
            form: Completions | Chat = Chat(served, vllm, top)
            if tokenizer is not None:
                limit = context or _limit(cards, base)
                encoder = _encoder(tokenizer, limit, name)
                form = Completions(served, vllm, encoder, top)
                if vllm:
                    _check_tokenizer(there, served, encoder, tokenizer)
            return cls(name, form, there, concurrency)
        except BaseException:
            there.close()
            raise

    @property
    def kinds(self) -> frozenset[Kind]:
        return self.form.kinds

    @property
    def constraints(self) -> frozenset[type[Constraint]]:
        return self.form.constraints

    @property
    def control_tokens(self) -> frozenset[str]:
        return self.form.control_tokens

    def prepare(self, call: Call) -> Prepared:
        if isinstance(call, GenerateCall):
            check_constraint(self, call)
        return self.form.prepare(call)

    async def ask(self, item: Prepared) -> Answer:
        """From any event loop. Raises BackboneError where the server gave no answer, ContextError where the prompt
        is too long for it."""
        query_id = item.call.dialogue.query.query_id
        try:
            return self.form.read(item, await self.server.post(self.form.path, self.form.body(item)))
        except ContextError as error:
            raise ContextError(f"query {query_id!r}: {error}") from None
        except BackboneError as error:
            raise BackboneError(f"query {query_id!r}, {self.name}: {error}") from None

    def close(self) -> None:
        self.server.close()


def _check_numbers(**given: float | None) -> None:
    for name, value in given.items():
        if value is not None and not value > 0:
            raise InputError(f"{name} is {value}; give a number above 0")


def _cards(there: JsonServer, *, needed: bool) -> dict[str, _Card]:
    """The models that are served, by name. A server without a list has none, unless one is needed."""
    try:
        return {card.id: card for card in _Cards.model_validate(there.call("GET", "/models")).data}
    except HttpError as error:
        if error.status not in (404, 405, 501) or needed:
            raise
    except ValidationError as error:
        raise BackboneError(f"{there.url}/models is no list of models: {error.errors()[0]['msg']}") from None
    return {}


def _chosen(cards: dict[str, _Card], model: str | None, adapter: str | None) -> tuple[str, str]:
    """The model's name, and the name to ask for, which is the adapter's where there is one."""
    if adapter is not None:
        if adapter not in cards:
            raise UnknownNameError("served adapter", adapter, cards)
        parent = cards[adapter].parent
        if model is not None and parent is not None and model != parent:
            raise InputError(f"the served adapter {adapter!r} is one of {parent!r}, not of {model!r}")
        model = model or parent
    if model is None:
        models = sorted(card.id for card in cards.values() if card.parent is None and card.id != adapter)
        if len(models) != 1:
            shown = ", ".join(models[:20]) + ", ..." * (len(models) > 20)
            raise InputError(f"the server has {len(models)} models; give one as model: {shown or 'none'}")
        model = models[0]
    return model, adapter or model


def _is_vllm(cards: dict[str, _Card], served: str) -> bool:
    """By the model's card; by the others where it has none, so that vLLM's own list can refuse the name."""
    shown = [cards[served]] if served in cards else list(cards.values())
    return any(card.owned_by == "vllm" for card in shown)


def _limit(cards: dict[str, _Card], model: str) -> int:
    limit = cards[model].max_model_len if model in cards else None
    if limit is None:
        raise InputError(f"the server does not say how many tokens {model!r} takes; give context=...")
    return limit


def _encoder(tokenizer: str, context: int, name: str) -> Encoder:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise BackboneError("tokenizer needs transformers: pip install 'rerank-llm[llm]'") from None
    try:
        return Encoder(AutoTokenizer.from_pretrained(tokenizer), context, name)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot load the tokenizer {tokenizer!r}: {' '.join(str(error).split())[:200]}") from error


def _check_tokenizer(there: JsonServer, served: str, encoder: Encoder, tokenizer: str) -> None:
    """vLLM says how it cuts a text into tokens; one that does not is believed."""
    body = {"model": served, "prompt": _PROBE, "add_special_tokens": False}
    try:
        found = there.call("POST", "../tokenize", body).get("tokens")
    except HttpError:
        return
    if found != list(encoder.continuation(_PROBE)):
        raise InputError(f"the tokenizer {tokenizer!r} is not that of the served model {served!r}")
