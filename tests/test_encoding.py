"""Labels and answers after a prompt, for tokenizers that join them to its last character."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from small_tokenizers import byte_level, sentencepiece

from rerank.backbones.encoding import Encoder
from rerank.errors import LabelError


@pytest.mark.parametrize(
    ("tail", "labels"),
    [
        ("assistant\n[", ("A", "B", "T")),  # "[A" is one token, and the prompt ends in "["
        ("assistant\n", ("Yes", "No")),
        ("assistant\n\n", ("Yes", "No")),  # the two lines are one token where nothing follows
        ("Passage", (" A", " B")),
    ],
)
def test_a_label_is_what_comes_after_the_prompts_own_tokens(tail: str, labels: tuple[str, ...]) -> None:
    tokenizer = byte_level()
    found = Encoder(tokenizer, 512, "m").label_ids(tail, labels)
    before = tokenizer.encode(tail, add_special_tokens=False)
    assert [tokenizer.decode([*before, token]) for token in found] == [tail + label for label in labels]
    assert [tokenizer.decode([token]) for token in found] == list(labels)


@pytest.mark.parametrize(
    ("make", "tail", "label"),
    [
        (sentencepiece, "assistant\n[", "A"),  # by itself it is "▁A", which would be "[ A"
        (byte_level, "Passage ", "A"),  # a model knows " A" as one token; an "A" after a lone space it has never seen
        (sentencepiece, "Passage ", "A"),
    ],
)
def test_a_label_that_melts_into_the_prompt_is_refused(make: Callable[[], Any], tail: str, label: str) -> None:
    encoder = Encoder(make(), 512, "m")
    with pytest.raises(LabelError, match="is not one token of its own"):
        encoder.label_ids(tail, (label,))
    with pytest.raises(LabelError, match="does not begin with a token of its own"):
        encoder.written(tail, [(label, 1), ("]", 0)])


@pytest.mark.parametrize(
    ("tail", "opened", "tokens", "marks"),
    [
        ("assistant\n[", "", ["B", "]", " ", ">", " ", "[A", "]"], (1, 0, 0, 0, 0, 2, 0)),
        ("assistant\n\n", "[", ["[B", "]", " ", ">", " ", "[A", "]"], (1, 0, 0, 0, 0, 2, 0)),
    ],
)
def test_what_is_written_after_the_prompts_own_tokens(
    tail: str, opened: str, tokens: list[str], marks: tuple[int, ...]
) -> None:
    tokenizer = byte_level()
    encoder = Encoder(tokenizer, 512, "m")
    found = encoder.written(tail, [(opened, 0), ("B", 1), ("]", 0), (" > [", 0), ("A", 2), ("]", 0)])
    assert ([tokenizer.decode([token]) for token in found[0]], found[1]) == (tokens, marks)
    if not opened:
        assert found[0][:1] == encoder.label_ids(tail, ("B",))  # what is written first is what is scored
