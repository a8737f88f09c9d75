"""A small random language model with a real tokenizer and chat template, so that engine tests take seconds."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command import Cli, Done

from rerank.cli import main
from rerank.types import Candidates, Passage, Query

if TYPE_CHECKING:
    from browser import Seen
    from playwright.sync_api import Browser
    from service import Running

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the hub; a look-up there would only be slow
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"  # the servers of the tests are here
os.environ.pop("COLUMNS", None)  # xdist sets it, and every table would be folded

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tokenizer(folder: Path) -> int:
    """A byte-level BPE tokenizer; every character is a token at least. Returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=specials, initial_alphabet=alphabet)
    corpus = ["Query Passage Yes No relevance passages rank the most relevant first answer"] * 50
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=specials,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return len(fast)


def save_llama(folder: Path, *, seed: int = 0, context: int = 1024, hidden: int = 32, layers: int = 2) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = save_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,  # far from uniform, so that a wrong mask shows
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., Path]:
    return save_llama


@pytest.fixture
def make_candidates() -> Callable[..., Candidates]:
    """n passages d0, d1, …; their texts have different lengths."""

    def make(n: int, query_id: str = "q", query: str = "which is best") -> Candidates:
        texts = [f"passage number {i} " + "word " * (3 * i % 17) for i in range(n)]
        return Candidates(Query(query, query_id), tuple(Passage(t, f"d{i}") for i, t in enumerate(texts)))

    return make


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """The command in this process; its standard input is what `stdin` holds."""
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):  # so that the command has nothing to set, and to leave
        monkeypatch.setenv(name, "error")
    log = logging.getLogger("rerank")
    handlers, level = list(log.handlers), log.level

    def call(*args: object, stdin: str | bytes = b"") -> Done:
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "argv", ["rerank", *map(str, args)])
        # as in the C locale: what is not UTF-8 would be let through
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), "utf-8", "surrogateescape"))
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, out, err)

    yield call
    log.handlers[:] = handlers
    log.setLevel(level)


@pytest.fixture
def model(tiny_model: Path) -> list[str]:
    return ["--model", str(tiny_model), "--dtype", "float32", "--device", "cpu"]


CORPUS = {
    "d1": ("Fleas", "the flea lives for a hundred days"),
    "d2": ("", "a cat may carry a flea or two"),
    "d3": ("Bones", "vitamin D and the density of bones"),
    "d4": ("", "a bone density scan takes ten minutes"),
}
QUERIES = {"q1": "how long does a flea live", "q2": "bone density", "q3": "not judged"}


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    docs = [{"_id": i, "title": title, "text": text} for i, (title, text) in CORPUS.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    asked = [{"_id": i, "text": text} for i, text in QUERIES.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in asked))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td3\t2\nq2\td4\t1\n")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium. Not for the session: where it runs no test can run an event loop of its own."""
    from browser import chromium

    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def visited(browser: Browser, here: Running) -> Iterator[Seen]:
    """The page of the service `here`, which a module has as a fixture."""
    from browser import visit

    with visit(browser, here.url) as found:
        yield found


@pytest.fixture
def seen(visited: Seen) -> Iterator[Seen]:
    """The same, loaded anew."""
    from browser import is_loaded

    visited.fresh()
    is_loaded(visited.page)
    yield visited
    visited.check()
