"""Stand-ins for released rerankers: their architectures, with random weights, and tokenizers as theirs, small."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Qwen's: what ends in a punctuation mark takes the line's end into the same token
QWEN_PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MISTRAL = (  # which knows no system turn
    "<s>{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('roles alternate') }}{% endif %}"
    "[INST] {{ m['content'] }}[/INST]{% endfor %}"
)
_TEXT = (
    "yes no Yes No 1 0 Query: query Document: document A: B: <Instruct>: user system assistant relevant passage year.\n"
    "fleas live. days?\n[A] > [B] > [C]"
)
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def save_byte_level(
    folder: Path, specials: Sequence[str], *, bos: str | None = None, template: str | None = None
) -> int:
    """As Qwen's, or with `bos` as one that begins every text with a token of its own. Returns its size."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=list(specials), initial_alphabet=alphabet)
    tokenizer.train_from_iterator([_TEXT] * 50, trainer)
    if bos is not None:
        first = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=first)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, pad_token=specials[0], additional_special_tokens=list(specials)
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return len(fast)


def save_t5_tokenizer(folder: Path) -> int:
    """T5's own class, on a vocabulary of letters and a few words."""
    from transformers import T5Tokenizer

    letters = sorted(set(string.printable) - set(string.whitespace))
    words = ["▁true", "▁false", "▁Query", "▁Document", "▁Relevant", "▁Yes", "▁No", *(f"▁{c}" for c in "ABCDEFG")]
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    tokenizer = T5Tokenizer(vocab=[*specials, *((c, -5.0) for c in letters), *((w, -3.0) for w in words)], extra_ids=4)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def save_model(folder: Path, name: str, vocabulary: int, **options: object) -> Path:
    """A random model of this architecture, as `Qwen3`, far from uniform, so that a wrong token shows."""
    import torch
    import transformers

    given = {"vocab_size": vocabulary, "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": 1, **options}
    if name == "T5":
        given |= {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "initializer_factor": 3.0}
        given |= {"decoder_start_token_id": 0}
        kind = transformers.T5ForConditionalGeneration
    else:
        given |= {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096}
        kind = getattr(transformers, f"{name}ForCausalLM")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(getattr(transformers, f"{name}Config")(**given)).save_pretrained(folder)
    return folder


def loaded(folder: Path, *, decoder_only: bool = True) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """By transformers alone, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    kind = AutoModelForCausalLM if decoder_only else AutoModelForSeq2SeqLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder, padding_side="left" if decoder_only else "right")
