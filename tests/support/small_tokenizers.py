"""Tokenizers of a few hundred tokens that join a bracket and the letter after it, each as a family of models does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rerank.prompts.answers import LETTERS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


def byte_level() -> PreTrainedTokenizerFast:
    """As Qwen, Llama 3 and GPT-4: a pattern joins a punctuation mark to the word after it. As for GPT-2, lines that
    end a text are one token, and not where a word follows."""
    from tokenizers import Regex, decoders, pre_tokenizers

    tokenizer = _bpe(pre_tokenizers.ByteLevel.alphabet(), "Ġ")
    pattern = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s+(?!\S)|\s|[^\s\p{L}\p{N}]+")
    joining = pre_tokenizers.Split(pattern, "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([joining, plain])
    tokenizer.decoder = decoders.ByteLevel()
    return _dressed(tokenizer)


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2: a space is a part of the word after it, and a text by itself begins with one."""
    from tokenizers import decoders, pre_tokenizers

    tokenizer = _bpe(["\n", "▁", *map(chr, range(33, 127))], "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return _dressed(tokenizer)


def _bpe(alphabet: Iterable[str], space: str) -> Tokenizer:
    """Every letter is a token, with a space before it another, with a bracket a third; Yes and No are too."""
    from tokenizers import Tokenizer, models

    newline = "Ċ" if space == "Ġ" else "\n"
    merges = [(newline, newline), ("Y", "e"), ("Ye", "s"), ("N", "o"), (space, "Yes"), (space, "No")]
    merges += [(before, letter) for letter in LETTERS for before in ("[", space)]
    tokens = [*sorted(alphabet), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.add_special_tokens(["<|im_end|>"])
    return tokenizer


def _dressed(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>\n{% endfor %}assistant\n"
    return fast
