"""What should be written in answer to a list, thought and all, made from its labels: the cold start before answers are
rewarded (DeepSeek-R1's term), or all there is to learn.

The thought is a template, for want of a teacher's. `verdicts`, one on each passage, `[1] no, [2] yes, [3] partly.`, has
what is hard, to judge a passage, come word by word, and the answer only repeats it; `order`, the passages best first,
`[2] > [3] > [1]`, asks at once for what a FIRST adapter knows already.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from rerank.errors import PromptError
from rerank.prompts import Prompt
from rerank.prompts.answers import Permutation, ReasonedIdentifier, Scores

WRITERS: Mapping[str, tuple[str, ...]] = MappingProxyType(  # strategies that only write, and what answers their prompts
    {
        "full-ranking": ("permutation",),
        "rank-r1": ("reasoned-identifier",),
        "listwise": ("permutation",),
        "groupwise": ("scores",),
        "elimination": ("permutation",),
    }
)


def asked_for(prompt: Prompt) -> int | None:
    """How many passages a training prompt asks for: the one to be left out, where it can say so, else all."""
    return 1 if prompt.asks_bottom else None


def target(prompt: Prompt, labels: Sequence[float], thought: str) -> str:
    """The whole answer that the labels make right, but for what the prompt begins it with. Of equal labels the passage
    shown first comes first. `thought` is a name in THOUGHTS; a prompt without one leaves it out.

    >>> from rerank.prompts import load_prompt
    >>> target(load_prompt("setwise-reasoning"), [0, 2, 1], "verdicts")
    '<think>[1] no, [2] yes, [3] partly.</think> <answer>[2]</answer>'
    """
    names, answer = prompt.names(len(labels)), prompt.answer
    said = THOUGHTS[thought](names, labels) if prompt.reasons else ""
    worst_first = prompt.least_first
    order = sorted(range(len(labels)), key=lambda i: labels[i] if worst_first else -labels[i])
    match answer:
        case ReasonedIdentifier():
            text = f"<think>{said}</think> <answer>[{names[order[0]]}]</answer>"
        case Permutation():
            chain = _chain(names, order[: asked_for(prompt)])
            text = f"<think>{said}</think> <answer>{chain}</answer>" if said else chain
        case Scores():
            scores = scored(labels, answer.highest)
            given = json.dumps({f"[{name}]": score for name, score in zip(names, scores, strict=True)})
            text = (f"<reason>{said}</reason>" if said else "") + f"<answer>{given}</answer>"
        case _:
            raise PromptError(f"prompt {prompt.name!r} has no text written")
    if not text.startswith(prompt.begun):
        raise PromptError(f"prompt {prompt.name!r} begins the answer with {prompt.begun!r}, and training with {text!r}")
    return text[len(prompt.begun) :]


def scored(labels: Sequence[float], highest: int) -> list[int]:
    """Labels as whole scores: the list's highest label is `highest`, its lowest, if it is above 0, is above 0 too.

    >>> scored([0, 1, 3], 10), scored([-2.0, 0.0], 10)
    ([0, 3, 10], [0, 10])
    """
    low = min(0.0, *labels)
    span = max(labels) - low
    return [round(highest * (label - low) / span) if span else 0 for label in labels]


def _verdicts(names: Sequence[str], labels: Sequence[float]) -> str:
    """yes for what has the highest label, no for the lowest, partly between."""
    words = ["yes" if label == max(labels) else "no" if label == min(labels) else "partly" for label in labels]
    return ", ".join(f"[{name}] {word}" for name, word in zip(names, words, strict=True)) + "."


def _order(names: Sequence[str], labels: Sequence[float]) -> str:
    return _chain(names, sorted(range(len(labels)), key=lambda i: -labels[i]))


def _chain(names: Sequence[str], order: Sequence[int]) -> str:
    return " > ".join(f"[{names[i]}]" for i in order)


THOUGHTS: Mapping[str, Callable[[Sequence[str], Sequence[float]], str]] = MappingProxyType(
    {"order": _order, "verdicts": _verdicts}
)
