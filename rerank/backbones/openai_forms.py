"""The two forms in which an OpenAI-compatible server is asked.

`Completions` renders the prompt here and sends its token ids, so that prompts are token by token those of the
other engines. `Chat` sends messages, for a server whose tokenizer is not at hand; its template does the rest.

vLLM is asked in its own words where the common ones cannot say it: `logprob_token_ids` for exactly the labels,
`echo` for a likelihood, `structured_outputs` for a constraint, `continue_final_message` for an answer prefix.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from rerank.backbones.base import Prepared
from rerank.backbones.encoding import Encoder
from rerank.backbones.openai_replies import (
    ChatChoice,
    CompletionChoice,
    CompletionLogprobs,
    Reply,
    check_readable,
    generated,
    label_answer,
    normalised,
    parsed,
    reported,
)
from rerank.calls import (
    Answer,
    Call,
    Choice,
    Constraint,
    Dialogue,
    GenerateCall,
    JsonSchema,
    Kind,
    LabelCall,
    LikelihoodCall,
    Regex,
)
from rerank.errors import BackboneError, CapabilityError, LabelError
from rerank.prompts.neutralise import COMMON_CONTROL_TOKENS

Fields = dict[str, object]

# A server may add its model's recommended sampling and penalties to what is not said.
_GREEDY: Mapping[str, object] = {"temperature": 0, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
_VLLM_GREEDY: Mapping[str, object] = {**_GREEDY, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
MAX_EXACT_LABELS = 128  # vLLM's bound on logprob_token_ids

# Beside what every backbone's passages are cleared of: the control tokens of model families whose markup is not
# of the form <|...|>. A tokenizer knows its own; without one these are what is known.
FAMILIES = COMMON_CONTROL_TOKENS | {
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]"),  # Mistral
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[THINK]", "[/THINK]", "[IMG]"),
    *("[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]"),  # EXAONE
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),  # Qwen, Hermes
    *("[gMASK]", "<sop>", "<role>", "</role>", "<start_of_image>", "<end_of_image>", "<mask>", "<sep>", "<cls>"),
}


@dataclass(frozen=True, slots=True)
class Completions:
    """`/completions` with token ids, of one tokenizer and one context."""

    model: str
    vllm: bool
    encoder: Encoder
    top: int
    path = "/completions"

    @property
    def kinds(self) -> frozenset[Kind]:
        """Only vLLM is known to score a prompt; the common `echo` with `logprobs` is refused or gone elsewhere."""
        return frozenset({Kind.LABELS, Kind.GENERATE} | ({Kind.LIKELIHOOD} if self.vllm else set()))

    @property
    def constraints(self) -> frozenset[type[Constraint]]:
        return frozenset({Choice, Regex, JsonSchema} if self.vllm else ())

    @property
    def control_tokens(self) -> frozenset[str]:
        return self.encoder.control_tokens

    def prepare(self, call: Call) -> Prepared:
        if isinstance(call, GenerateCall):
            check_readable(call)
            ids, _, cut = self.encoder.encode(call.dialogue, call.max_tokens)
            return Prepared(call, ids, len(ids) + call.max_tokens, cut)
        if isinstance(call, LikelihoodCall):
            targets = self.encoder.continuation(call.continuation)
            # vLLM wants room for a token to come, though none is asked for
            ids, _, cut = self.encoder.encode(call.dialogue, len(targets) + 1)
            return Prepared(call, ids, len(ids) + len(targets), cut, targets)
        if not isinstance(call, LabelCall):
            raise CapabilityError(f"{self.model} is asked for text; it has no head that scores a pair")
        _check_labels(call, MAX_EXACT_LABELS if self.vllm else self.top)
        ids, tail, cut = self.encoder.encode(call.dialogue, 1)
        return Prepared(call, ids, len(ids) + 1, cut, self.encoder.label_ids(tail, call.labels))

    def body(self, item: Prepared) -> Fields:
        call, ids = item.call, list(item.token_ids)
        common: Fields = {"model": self.model, **(_VLLM_GREEDY if self.vllm else _GREEDY)}
        if isinstance(call, GenerateCall):
            return {**common, "prompt": ids, "max_tokens": call.max_tokens, **_stop(call), **_structured(call)}
        if isinstance(call, LikelihoodCall):
            scored: Fields = {"prompt": ids + list(item.targets), "echo": True, "max_tokens": 0, "logprobs": 0}
            return {**common, **scored, "return_tokens_as_token_ids": True}
        if self.vllm:
            exact: Fields = {"logprobs": 1, "logprob_token_ids": list(item.targets), "return_tokens_as_token_ids": True}
            return {**common, "prompt": ids, "max_tokens": 1, **exact}
        return {**common, "prompt": ids, "max_tokens": 1, "logprobs": self.top}

    def read(self, item: Prepared, reply: Mapping[str, object]) -> Answer:
        call, found = item.call, parsed(Reply[CompletionChoice], reply)
        sent = len(item.token_ids) + (len(item.targets) if isinstance(call, LikelihoodCall) else 0)
        if found.prompt_tokens not in (0, sent):
            raise BackboneError(f"{sent} prompt tokens were sent and the server counts {found.prompt_tokens}")
        if isinstance(call, GenerateCall):
            return generated(call, found, sent)
        logprobs = found.choice.logprobs
        if logprobs is None:
            raise BackboneError("the server gave no log-probabilities (logprobs)")
        if isinstance(call, LikelihoodCall):
            return Answer(_echoed(item, logprobs), prompt_tokens=sent)
        assert isinstance(call, LabelCall)
        top = logprobs.top_logprobs[0] if logprobs.top_logprobs else None
        if not top:
            raise BackboneError("the server gave no log-probabilities (logprobs.top_logprobs[0])")
        if not self.vllm:
            return label_answer(call.labels, top, self.top, sent)
        named = {label: top.get(f"token_id:{token}") for label, token in zip(call.labels, item.targets, strict=True)}
        if absent := [label for label, value in named.items() if value is None]:
            raise BackboneError(
                f"the server gave no log-probability for {absent}, which logprob_token_ids asks of vLLM; for an "
                "older one, or another server, give server=openai"
            )
        return Answer(normalised(value for value in named.values() if value is not None), prompt_tokens=sent)


@dataclass(frozen=True, slots=True)
class Chat:
    """`/chat/completions` with messages. Passages are not cut, as nothing here counts tokens."""

    model: str
    vllm: bool
    top: int
    path = "/chat/completions"
    kinds = frozenset({Kind.LABELS, Kind.GENERATE})
    control_tokens = FAMILIES

    @property
    def constraints(self) -> frozenset[type[Constraint]]:
        return frozenset({Choice, Regex, JsonSchema} if self.vllm else {JsonSchema})

    def prepare(self, call: Call) -> Prepared:
        if isinstance(call, GenerateCall):
            check_readable(call)
        elif isinstance(call, LabelCall):
            _check_labels(call, self.top)
        else:
            raise CapabilityError(f"{self.model} answers no {call.kind!s} calls through chat")
        dialogue = call.dialogue
        if dialogue.pieces is not None:
            raise CapabilityError(
                "the prompt is the model's own form, and the server would put a chat template around it; give "
                "tokenizer=..., or a prompt for chats"
            )
        if dialogue.passage_tokens is not None:
            raise CapabilityError("passage_tokens needs the model's tokenizer to count them; give tokenizer=...")
        if dialogue.prefix and not self.vllm:
            raise CapabilityError(
                f"the prompt begins the answer with {dialogue.prefix!r}, which only vLLM's chat can be asked to go on "
                "from; give tokenizer=..., or a prompt without a prefix"
            )
        if dialogue.prefix != dialogue.prefix.rstrip():
            raise CapabilityError(
                f"the prompt begins the answer with {dialogue.prefix!r}, whose white space at the end a chat "
                "template may drop; give tokenizer=..., or another prefix"
            )
        words = sum(len(span.text.split()) for message in dialogue.messages for span in message.spans)
        return Prepared(call, (), words)

    def body(self, item: Prepared) -> Fields:
        call = item.call
        common: Fields = {
            "model": self.model,
            **(_VLLM_GREEDY if self.vllm else _GREEDY),
            **self._messages(call.dialogue),
        }
        if isinstance(call, GenerateCall):
            constraint = _structured(call) if self.vllm else _response_format(call)
            return {**common, "max_tokens": call.max_tokens, **_stop(call), **constraint}
        return {**common, "max_tokens": 1, "logprobs": True, "top_logprobs": self.top}

    def read(self, item: Prepared, reply: Mapping[str, object]) -> Answer:
        call, found = item.call, parsed(Reply[ChatChoice], reply)
        if isinstance(call, GenerateCall):
            return generated(call, found, found.prompt_tokens)
        assert isinstance(call, LabelCall)
        return label_answer(call.labels, reported(found.choice), self.top, found.prompt_tokens)

    def _messages(self, dialogue: Dialogue) -> Fields:
        messages = [
            {"role": message.role, "content": "".join(span.text for span in message.spans)}
            for message in dialogue.messages
        ]
        if not self.vllm:
            return {"messages": messages}
        thinks_not: Fields = {
            "chat_template_kwargs": {"enable_thinking": False}
        }  # as where the prompt is rendered here
        if not dialogue.prefix:
            return {"messages": messages, **thinks_not}
        begun = [*messages, {"role": "assistant", "content": dialogue.prefix}]
        return {"messages": begun, "add_generation_prompt": False, "continue_final_message": True, **thinks_not}


def _check_labels(call: LabelCall, most: int) -> None:
    if len(call.labels) > most:
        raise LabelError(
            f"{len(call.labels)} labels are asked for and the server gives at most {most} log-probabilities"
        )


def _stop(call: GenerateCall) -> Fields:
    return {"stop": list(call.stop)} if call.stop else {}


def _structured(call: GenerateCall) -> Fields:
    match call.constraint:
        case Choice(options):
            return {"structured_outputs": {"choice": list(options)}}
        case Regex(pattern):
            return {"structured_outputs": {"regex": pattern}}
        case JsonSchema(schema):
            return {"structured_outputs": {"json": json.loads(schema)}}
    return {}


def _response_format(call: GenerateCall) -> Fields:
    if not isinstance(call.constraint, JsonSchema):
        return {}
    schema: Fields = {"name": "answer", "strict": True, "schema": json.loads(call.constraint.schema)}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _echoed(item: Prepared, logprobs: CompletionLogprobs) -> tuple[float, ...]:
    """The log-probabilities of the continuation, which ends the prompt."""
    n = len(item.targets)
    tokens = [f"token_id:{token}" for token in (*item.token_ids, *item.targets)]
    if logprobs.tokens != tokens or len(logprobs.token_logprobs) != len(tokens):
        raise BackboneError(f"the server scored other tokens than the {len(tokens)} that were sent")
    values = logprobs.token_logprobs[len(tokens) - n :]
    found = [value for value in values if value is not None]
    if len(found) != n:
        raise BackboneError("the server gave no log-probability for a token of the continuation")
    return tuple(found)
