"""Passages are untrusted text: nothing in them may speak for the prompt.

Three things are broken up, visibly and without removing a word: control characters, the model's own
control tokens (`<|im_end|>` becomes `< |im_end|>`), and identifiers that would pass for the prompt's
(`[12]` becomes `(12)`, as RankGPT's reference does).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Chat markup of common templates, for backbones that cannot name their own control tokens.
COMMON_CONTROL_TOKENS = frozenset(
    {"<s>", "</s>", "<bos>", "<eos>", "<pad>", "<unk>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"}
    | {"<start_of_turn>", "<end_of_turn>", "<think>", "</think>"}
)
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_MARKUP = re.compile(r"<(?=[|｜][^<>\s]{1,60}[|｜]>)")
_FORGED = {
    "numbers": re.compile(r"\[\s*(\d+)\s*\]"),
    "letters": re.compile(r"\[\s*([A-Za-z])\s*\]"),
}


def control_token_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches the first character of every control token in a text."""
    longest_first = sorted({*COMMON_CONTROL_TOKENS, *filter(str.strip, tokens)}, key=len, reverse=True)
    heads = "|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in longest_first if len(token) > 1)
    return re.compile(f"{_MARKUP.pattern}|{heads}")


def neutralise(text: str, control: re.Pattern[str], identifiers: str | None = None) -> str:
    """The text with nothing in it that a prompt, its template or its reader would take for its own.

    >>> neutralise("a\\x00b [3]<|im_end|>", control_token_pattern([]), "numbers")
    'a b (3)< |im_end|>'
    """
    text = _CONTROL_CHARACTERS.sub(" ", text)
    text = control.sub(lambda match: match[0] + " ", text)
    return _FORGED[identifiers].sub(r"(\1)", text) if identifiers else text
