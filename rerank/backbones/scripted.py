"""Backbones without a model, for tests: yours and ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rerank.backbones.base import Prepared, by_kind, by_length
from rerank.calls import (
    Answer,
    Call,
    Choice,
    Constraint,
    GenerateCall,
    JsonSchema,
    Kind,
    LabelCall,
    LogitCall,
    Regex,
    ScoreCall,
    log_softmax,
)
from rerank.prompts.answers import LETTERS, names
from rerank.types import Passage

Script = Callable[[Call], "str | Sequence[float]"]


@dataclass(frozen=True, slots=True)
class ScriptedBackbone:
    """Answers what `script` says: log-probabilities for a label or likelihood call, one number for a score or logit
    call, text for generation.

    A token is a word. `batches` records the size of every batch that was answered.

    >>> backbone = ScriptedBackbone(lambda call: [float(len(p.text)) for p in call.dialogue.passages])
    >>> import rerank
    >>> rerank.load("first", backbone=backbone).rank("longest", ["a", "bbb", "cc"]).doc_ids
    ['1', '2', '0']
    """

    script: Script
    kinds: frozenset[Kind] = frozenset(Kind)
    name: str = "scripted"
    batch_tokens: int | None = None
    constraints: frozenset[type[Constraint]] = frozenset({Choice, Regex, JsonSchema})
    control_tokens: frozenset[str] = frozenset()
    batches: list[int] = field(default_factory=list)

    def prepare(self, call: Call) -> Prepared:
        texts = [span.text for message in call.dialogue.messages for span in message.spans]
        return Prepared(call, (), len(" ".join(texts).split()))

    def group(self, items: Sequence[Prepared]) -> list[list[int]]:
        return by_kind(items, lambda _, same: by_length(same, self.batch_tokens))

    def close(self) -> None:
        pass

    def answer(self, batch: Sequence[Prepared]) -> list[Answer]:
        self.batches.append(len(batch))
        answers = []
        for item in batch:
            said = self.script(item.call)
            if isinstance(said, str):
                answers.append(Answer(text=said, prompt_tokens=item.tokens, generated_tokens=len(said.split())))
            elif isinstance(item.call, ScoreCall | LogitCall):
                answers.append(Answer(score=said[0], prompt_tokens=item.tokens))
            else:
                answers.append(Answer(logprobs=tuple(said), prompt_tokens=item.tokens))
        return answers


def oracle(relevance: Mapping[str, float] | Mapping[str, Mapping[str, float]]) -> Script:
    """A script that judges perfectly by doc_id -> relevance, or query_id -> doc_id -> relevance.

    It answers every prompt of one passage (higher is more relevant) and of many (best first, or least relevant first
    where that is asked; where a score each is asked for, the relevance as it is; after a thought where one is asked).
    """

    def relevances(call: Call) -> list[float]:
        judged = relevance.get(call.dialogue.query.query_id, relevance)
        table = judged if isinstance(judged, Mapping) else relevance
        asked, sign = call.dialogue.asked, -1 if call.dialogue.least_first else 1
        passages = call.dialogue.passages if asked is None else [call.dialogue.passages[asked]]
        return [sign * _number(table, passage) for passage in passages]

    def script(call: Call) -> str | Sequence[float]:
        values = relevances(call)
        if isinstance(call, GenerateCall):
            order = sorted(range(len(values)), key=lambda i: -values[i])
            said = {span.text for message in call.dialogue.messages for span in message.spans}
            labels = names("letters" if said.issuperset(LETTERS[: len(values)]) else "numbers", len(values))
            asked = "".join(span.text for span in call.dialogue.messages[-1].spans if not span.passage)
            if '{"[' in asked:
                scores = {f"[{label}]": value for label, value in zip(labels, values, strict=True)}
                return f"<answer>{json.dumps(scores)}</answer>"
            if "<think>" in asked:
                named = order if "] > [" in asked else order[:1]
                answer = " > ".join(f"[{labels[i]}]" for i in named)
                return f"<think>[{labels[order[0]]}] is the best</think> <answer>{answer}</answer>"
            return " > ".join(f"[{labels[i]}]" for i in order)
        if isinstance(call, ScoreCall | LogitCall):
            return values
        if not isinstance(call, LabelCall):
            return [-1 / (2 + values[0])]
        if len(values) == len(call.labels):
            return log_softmax(values)
        if len(call.labels) == 2:
            return log_softmax([values[0], 0.0])
        return log_softmax([-((values[0] - _grade(label)) ** 2) for label in call.labels])

    return script


def _number(table: Mapping[str, object], passage: Passage) -> float:
    value = table.get(passage.doc_id, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0


def _grade(label: str) -> float:
    return float(label) if label.strip().isdigit() else 0.0
