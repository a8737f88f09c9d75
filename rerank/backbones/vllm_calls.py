"""What a call is for vLLM, and what its output says: log-probabilities, text, grammars."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rerank.backbones.base import Prepared
from rerank.calls import Answer, Choice, Constraint, GenerateCall, Regex, log_softmax
from rerank.errors import BackboneError, InputError

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from rerank.backbones.vllm_engine import VLLMEngine

# One grammar library for an engine's life: with vLLM's "auto" the first constrained call would choose for all.
# No whitespace in JSON: a small model can write it without end.
GRAMMARS = {"backend": "xgrammar", "disable_any_whitespace": True}


def labels(engine: VLLMEngine, batch: Sequence[Prepared], adapter: str | None) -> list[Answer]:
    """vLLM's log-probabilities are of the whole vocabulary; they are normalised over the labels here."""
    params = [_params(logprob_token_ids=list(item.targets)) for item in batch]
    outputs = engine.ask([item.token_ids for item in batch], params, adapter)
    answers = []
    for item, output in zip(batch, outputs, strict=True):
        answers.append(Answer(log_softmax(_next(output, item.targets)), prompt_tokens=len(item.token_ids)))
    return answers


def likelihood(
    engine: VLLMEngine, batch: Sequence[Prepared], adapter: str | None, *, cached: bool = True
) -> list[Answer]:
    """All targets but the last are fed as part of the prompt; the last is only scored, as the next token.

    vLLM gives a prompt's log-probabilities from where it begins to compute, so what comes before the targets may be
    read from its cache. Where the cache holds targets too, the call is asked again without it.
    """
    if not engine.scores_prompts:
        return _likelihood_by_steps(engine, batch, adapter)
    params = []
    for item in batch:
        asked: dict[str, Any] = {"logprob_token_ids": [item.targets[-1]]}
        if len(item.targets) > 1:
            asked |= {"prompt_logprobs": 0, "skip_reading_prefix_cache": not cached, "flat_logprobs": True}
        params.append(_params(**asked))
    outputs = engine.ask([(*item.token_ids, *item.targets[:-1]) for item in batch], params, adapter)
    again = [i for i, item in enumerate(batch) if cached and _late(item, outputs[i])]
    redone = likelihood(engine, [batch[i] for i in again], adapter, cached=False) if again else []
    answers = dict(zip(again, redone, strict=True))
    for i in answers.keys() ^ range(len(batch)):
        item, output = batch[i], outputs[i]
        rows, n = output.prompt_logprobs or [], len(item.targets)
        found = [rows[at - n + 1][target].logprob for at, target in enumerate(item.targets[:-1])]
        answers[i] = _likely(item, [*found, *_next(output, item.targets[-1:])])
    return [answers[i] for i in range(len(batch))]


def _late(item: Prepared, output: RequestOutput) -> bool:
    """Whether vLLM began to compute when some of the targets were past."""
    return len(item.targets) > 1 and (output.num_cached_tokens or 0) >= len(item.token_ids)


def _likelihood_by_steps(engine: VLLMEngine, batch: Sequence[Prepared], adapter: str | None) -> list[Answer]:
    """A request for each target, after those before it; the cache holds most of what they share."""
    prompts = [(*item.token_ids, *item.targets[:i]) for item in batch for i in range(len(item.targets))]
    params = [_params(logprob_token_ids=[target]) for item in batch for target in item.targets]
    outputs = iter(engine.ask(prompts, params, adapter))
    return [_likely(item, [_next(next(outputs), [target])[0] for target in item.targets]) for item in batch]


def _likely(item: Prepared, logprobs: Sequence[float]) -> Answer:
    return Answer(tuple(logprobs), prompt_tokens=len(item.token_ids) + len(item.targets))


def generate(engine: VLLMEngine, batch: Sequence[Prepared], adapter: str | None) -> list[Answer]:
    calls = [item.call for item in batch if isinstance(item.call, GenerateCall)]
    params = [
        _params(
            max_tokens=call.max_tokens,
            stop=list(call.stop),
            detokenize=True,  # stops are looked for in the text
            structured_outputs=None if call.constraint is None else _grammar(call.constraint),
        )
        for call in calls
    ]
    outputs = engine.ask([item.token_ids for item in batch], params, adapter)
    answers = []
    for item, call, output in zip(batch, calls, outputs, strict=True):
        end = output.outputs[0]
        if end.finish_reason not in ("stop", "length"):
            raise BackboneError(f"vLLM broke off a call of {engine.name}: {end.finish_reason}")
        ids = list(end.token_ids)
        if end.finish_reason == "stop" and not isinstance(end.stop_reason, str):
            ids.pop()  # the model's end, which is no text
        text = engine.encoder.tokenizer.decode(ids, skip_special_tokens=True)
        stop = min((text.index(mark) for mark in call.stop if mark in text), default=None)
        answers.append(
            Answer(
                text=text[:stop],
                truncated=stop is None and end.finish_reason == "length",
                prompt_tokens=len(item.token_ids),
                generated_tokens=len(ids),
            )
        )
    return answers


@functools.lru_cache(maxsize=256)
def check_grammar(constraint: Constraint) -> None:
    """Raises InputError for what the grammar library cannot read: one call fails by it, not the whole batch."""
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

    try:
        validate_xgrammar_grammar(_params(structured_outputs=_grammar(constraint)))
    except (VLLMValidationError, ValueError) as error:
        said = re.sub(r"\[[\d:]+\] \S+\.cc:\d+: ", "", str(error))  # where in the library it was noticed
        raise InputError(f"vLLM cannot follow {constraint}: {' '.join(said.split())}") from error


def check_meaning(engine: VLLMEngine) -> None:
    """Another version might mean something else by a log-probability; every score would then be wrong in silence.

    Asked for by name, tokens must have what they have among the likeliest five: of the whole vocabulary, not of
    those asked for. So must a token of the prompt. Raises BackboneError.
    """
    ids = engine.encoder.continuation("The answer is")
    (output,) = engine.ask([ids], [_params(logprobs=5)], None)
    rows = output.outputs[0].logprobs
    top = {token: entry.logprob for token, entry in rows[0].items()} if rows else {}
    some = sorted(top, key=lambda token: -top[token])[1::2]  # not the likeliest, which would come unasked
    (named,) = engine.ask([ids], [_params(logprob_token_ids=some)], None)
    found = dict(zip(some, _next(named, some), strict=True))
    apart = max(abs(found[token] - top[token]) for token in some)
    if engine.scores_prompts:
        (output,) = engine.ask([(*ids, some[0])], [_params(prompt_logprobs=0)], None)
        apart = max(apart, abs((output.prompt_logprobs or [])[-1][some[0]].logprob - top[some[0]]))
    mass = math.fsum(map(math.exp, top.values()))
    if apart > 0.1 or mass > 1.001:
        raise BackboneError(
            "this version of vLLM does not give the model's own log-probabilities: asked for in two ways, a token's "
            f"is {apart:.3g} nats apart, and five tokens have a probability of {mass:.3g}; install one that "
            "rerank-llm[vllm] allows"
        )


def _params(*, max_tokens: int = 1, detokenize: bool = False, **options: Any) -> SamplingParams:
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=max_tokens, detokenize=detokenize, **options)


def _next(output: RequestOutput, tokens: Sequence[int]) -> list[float]:
    """The log-probabilities of these tokens as the first that is generated."""
    rows = output.outputs[0].logprobs
    if not rows:
        raise BackboneError("vLLM gave no log-probabilities")
    return [rows[0][token].logprob for token in tokens]


def _grammar(constraint: Constraint) -> StructuredOutputsParams:
    from vllm.sampling_params import StructuredOutputsParams

    if isinstance(constraint, Choice):
        return StructuredOutputsParams(choice=list(constraint.options))
    if isinstance(constraint, Regex):
        return StructuredOutputsParams(regex=constraint.pattern)
    return StructuredOutputsParams(json=constraint.schema)
