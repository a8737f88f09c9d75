"""Tiny random bi-encoders that sentence-transformers itself saved and loads."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedModel, PreTrainedTokenizerFast

TEXT = "which is best passage number word query a the flea lives days of rank relevant answer find : title"
CONTEXT = 32
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def save_bert(folder: Path, kind: type[PreTrainedModel] = BertModel, *, seed: int = 0) -> Path:
    letters = [f"{mark}{c}" for c in "abcdeghilnprstuwy0123456789" for mark in ("", "##")]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *TEXT.split(), *letters]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), num_labels=1, max_position_embeddings=64, pad_token_id=0,
        initializer_range=0.5, **SMALL,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind(config).save_pretrained(folder)
    return folder


def save(folder: Path, *, normalize: bool = True, seed: int = 0, **options: object) -> Path:
    """As sentence-transformers saves a model, with a limit below what its positions hold, as all-MiniLM has."""
    inner = Transformer(str(save_bert(folder / "bert", seed=seed)), max_seq_length=CONTEXT)
    parts = [inner, Pooling(SMALL["hidden_size"]), *([Normalize()] if normalize else [])]
    SentenceTransformer(modules=parts, device="cpu", **options).save_pretrained(str(folder / "model"))  # type: ignore[arg-type]
    return folder / "model"
