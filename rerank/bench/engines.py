"""Who takes part: this library as a user gets it, and what one would use or write in its place.

Each is given the same slices on the same weights, dtype and threads, and returns a list of numbers for every prompt:
for `pointwise` the one log-odds of yes against no, for `first` the log-probabilities of the letters, normalised over
the letters. What its time holds:

- ours: all of `rank_many`: cleaning, rendering and tokenising, the model, and the rankings.
- the others: tokenising text that is already rendered and cut, the model, and reading off the scores.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from rerank.backbones import BACKBONES
from rerank.bench.work import WINDOW, Rendered, Slice, Task
from rerank.calls import log_softmax
from rerank.options import names
from rerank.reranker import load

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 32  # of the others' loops: sentence-transformers' default, and usual in the papers' code
Scores = list[list[float]]


@dataclass(frozen=True, slots=True)
class Setup:
    """`model` is as the user named it, `path` where its files are. `labels` are the tokens of yes and no."""

    model: str | None
    path: str
    device: str
    dtype: str
    passage_tokens: int | None
    labels: tuple[int, ...]


class Contender(Protocol):
    """An engine that is loaded."""

    def score(self, part: Slice) -> Scores: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Engine:
    """`missing` says why it cannot run here, None where it can."""

    load: Callable[[Setup], Contender]
    missing: Callable[[], str | None]
    tasks: frozenset[Task] = frozenset({"pointwise", "first"})


class Ours:
    """One of our backbones with some of its options, and both rankers on it."""

    def __init__(self, setup: Setup, *, backbone: str, dtype: str | None, options: Mapping[str, object]) -> None:
        takes = names(BACKBONES[backbone].loader(backbone))
        device = setup.device if "device" in takes else None
        pointwise = load(
            "pointwise",
            model=setup.model,
            backbone=backbone,
            device=device,
            dtype=dtype or setup.dtype,
            backbone_options=options,
            passage_tokens=setup.passage_tokens,
        )
        first = load("first", backbone=pointwise.backbone, window=WINDOW, passage_tokens=setup.passage_tokens)
        self._rankers = {"pointwise": pointwise, "first": first}

    def score(self, part: Slice) -> Scores:
        scores: Scores = []
        for request, ranking in zip(part.requests, self._rankers[part.task].rank_many(part.requests), strict=True):
            by_id = {hit.passage.doc_id: hit.score for hit in ranking}
            row = [by_id[passage.doc_id] for passage in request.passages]
            scores += [[score] for score in row] if part.task == "pointwise" else [row]
        return scores

    def close(self) -> None:
        self._rankers["pointwise"].close()


class PlainLoop:
    """transformers as the papers' code uses it: pairs in batches of 32 in the given order, padded, with the logits of
    every position; FIRST a window at a time, one token generated, its logits read."""

    def __init__(self, setup: Setup) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(setup.path, padding_side="left")
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(
            setup.path, dtype=getattr(torch, setup.dtype), use_safetensors=True
        )
        self._model: PreTrainedModel = model.to(setup.device).eval()

    def score(self, part: Slice) -> Scores:
        import torch

        with torch.no_grad():
            if part.task == "first":
                return [self._window(prompt) for prompt in part.prompts]
            batches = [part.prompts[i : i + BATCH] for i in range(0, len(part.prompts), BATCH)]
            return [row for batch in batches for row in self._pairs(batch)]

    def _pairs(self, prompts: Sequence[Rendered]) -> Scores:
        inputs = self._inputs([prompt.text for prompt in prompts])
        logits = self._model(**inputs).logits[:, -1, list(prompts[0].labels)].float()
        return [[score] for score in (logits[:, 0] - logits[:, 1]).tolist()]

    def _window(self, prompt: Rendered) -> list[float]:
        made = self._model.generate(
            **self._inputs([prompt.text]),
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found: list[float] = made.logits[0][0, list(prompt.labels)].float().log_softmax(-1).tolist()
        return found

    def _inputs(self, texts: list[str]) -> dict[str, object]:
        made = self._tokenizer(
            texts, padding=True, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False
        )
        return dict(made.to(self._model.device))

    def close(self) -> None:
        pass


class SentenceTransformers:
    """Its CrossEncoder over the same language model: `LogitScore` of the tokens of yes and no, its own sorting and
    batches of 32. Its chat template only puts the already rendered text through."""

    def __init__(self, setup: Setup) -> None:
        import torch
        from sentence_transformers import CrossEncoder
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.cross_encoder.modules import LogitScore

        language_model = Transformer(
            setup.path,
            transformer_task="text-generation",
            model_kwargs={"dtype": getattr(torch, setup.dtype), "use_safetensors": True},
            processor_kwargs={"chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"},
        )
        self._model = CrossEncoder(
            modules=[language_model, LogitScore(*setup.labels)], device=setup.device, activation_fn=torch.nn.Identity()
        )

    def score(self, part: Slice) -> Scores:
        pairs = [(prompt.text, "") for prompt in part.prompts]
        return [[score] for score in self._model.predict(pairs, batch_size=BATCH, show_progress_bar=False).tolist()]

    def close(self) -> None:
        pass


class VllmByHand:
    """vLLM's own class with its prefix cache: token ids in, the log-probabilities of the labels out."""

    def __init__(self, setup: Setup) -> None:
        for name in ("VLLM_LOGGING_LEVEL", "TORCH_CPP_LOG_LEVEL"):
            os.environ.setdefault(name, "ERROR")
        options: dict[str, object] = {"gpu_memory_utilization": 0.4}  # others share the device
        if setup.device == "cpu":
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
            options = {"block_size": 32}  # the default of 128 never caches a short prefix
        from vllm import LLM

        options |= {"enable_prefix_caching": True, "use_tqdm_on_load": False}
        self._llm = LLM(model=setup.path, dtype=setup.dtype, **options)
        self._tokenizer = self._llm.get_tokenizer()

    def score(self, part: Slice) -> Scores:
        from vllm import SamplingParams

        texts = [prompt.text for prompt in part.prompts]
        ids = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        params = [
            SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=list(prompt.labels), detokenize=False)
            for prompt in part.prompts
        ]
        done = self._llm.generate([{"prompt_token_ids": each} for each in ids], params, use_tqdm=False)
        scores = []
        for prompt, output in zip(part.prompts, done, strict=True):
            found = output.outputs[0].logprobs[0]  # token id -> its log-probability over the vocabulary
            row = [found[token].logprob for token in prompt.labels]
            scores.append([row[0] - row[1]] if part.task == "pointwise" else list(log_softmax(row)))
        return scores

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


def _library_missing(*modules: str) -> str | None:
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"{', '.join(absent)} not installed" if absent else None


def _ours(backbone: str, *, dtype: str | None = None, **options: object) -> Engine:
    return Engine(
        partial(Ours, backbone=backbone, dtype=dtype, options=options),
        partial(_library_missing, *BACKBONES[backbone].requires),
    )


def _theirs(
    make: Callable[[Setup], Contender], *requires: str, tasks: Sequence[Task] = ("pointwise", "first")
) -> Engine:
    return Engine(make, partial(_library_missing, *requires), frozenset(tasks))


REFERENCE = "plain loop"  # whose scores the others' are compared with, and whose times

ENGINES: Mapping[str, Engine] = MappingProxyType(
    {
        # ours: a name, a backbone and the options of its `load`
        "rerank": _ours("transformers"),
        "rerank, no prefix reuse": _ours("transformers", prefix_reuse=False),
        "rerank, compiled": _ours("transformers", compile=True),
        "rerank, int8": _ours("transformers", dtype="int8"),
        "rerank over vllm": _ours("vllm"),
        # the others
        REFERENCE: _theirs(PlainLoop, "torch", "transformers"),
        "sentence-transformers": _theirs(SentenceTransformers, "sentence_transformers", tasks=["pointwise"]),
        "vllm by hand": _theirs(VllmByHand, "vllm"),
    }
)
