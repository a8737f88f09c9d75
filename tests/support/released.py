"""Stand-ins for released rerankers: their architectures, with random weights, and tokenizers as theirs, small."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rerank.types import Passage

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


QUERY = "how long do fleas live?"
TEXTS = ["A flea lives for a year.", "Stocks fell on Monday", "Fleas? No days. " * 9, "yes."]
SYSTEM = "You are RankLLM, an intelligent assistant that can rank passages based on their relevancy to the query"
RANK = (
    "I will provide you with 2 passages, each indicated by {kind} identifier []. Rank the passages based on their "
    "relevance to the search query: how long do fleas live?.\n"
    "[{first}] A flea lives for a year.\n"
    "[{second}] Stocks fell on Monday\n"
    "Search Query: how long do fleas live?.\n"
    "Rank the 2 passages above based on their relevance to the search query. All the passages should be included and "
    "listed using identifiers, in descending order of relevance. The output format should be [] > [], e.g., "
    "[{second}] > [{first}], Answer concisely and directly and only respond with the ranking results, do not say any "
    "word or explain."
)
FORMS = {  # prompt: the whole text, as the model's card or its own code has it
    "qwen3-reranker": """<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: Given a web search query, retrieve relevant passages that answer the query
<Query>: how long do fleas live?
<Document>: A flea lives for a year.<|im_end|>
<|im_start|>assistant
<think>

</think>

""",  # noqa: E501
    "mxbai-rerank-v2": """<|im_start|>system
You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>
<|im_start|>user
query: how long do fleas live?
document: A flea lives for a year.
You are a search relevance expert who evaluates how well documents match search queries. For each query-document pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment (0 for not relevant, 1 for relevant).
Relevance:<|im_end|>
<|im_start|>assistant
""",  # noqa: E501
    "bge-reranker-v2-gemma": """A: how long do fleas live?
B: A flea lives for a year.
Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a prediction of either 'Yes' or 'No'.""",  # noqa: E501
    "monot5": "Query: how long do fleas live? Document: A flea lives for a year. Relevant:",
    "rank-zephyr": RANK.format(kind="a numerical", first=1, second=2),
    "first-mistral": RANK.format(kind="an alphabetical", first="A", second="B"),
}


def passages(*texts: str) -> list[Passage]:
    return [Passage(text, f"d{i}") for i, text in enumerate(texts)]
