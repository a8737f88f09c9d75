"""The vLLM backbone on the embedded model: it says what the transformers backbone says, and keeps to constraints."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import math
import re
import signal
import types
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; it has an environment of its own: make vllm", allow_module_level=True)

import psutil
import torch
from scipy.stats import spearmanr
from vllm_case import TEXTS, apart, ask, calls_of, dialogue, save_adapter

import rerank
from rerank.backbones.embedded import EMBEDDED
from rerank.backbones.transformers_ import TransformersBackbone
from rerank.backbones.vllm_ import VLLMBackbone
from rerank.calls import (
    Call,
    Choice,
    Constraint,
    GenerateCall,
    JsonSchema,
    LabelCall,
    LikelihoodCall,
    Regex,
)
from rerank.data import load_dataset
from rerank.errors import AdapterError, BackboneError, CapabilityError, InputError, LabelError
from rerank.prompts import load_prompt
from rerank.types import Candidates

pytestmark = [pytest.mark.vllm, pytest.mark.model]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_adapter(tmp_path_factory.mktemp("adapter")))


@pytest.fixture(scope="module")
def backbone(adapter: str) -> Iterator[VLLMBackbone]:
    """One engine for all of this file, seen without its adapter. The last test closes it."""
    loaded = VLLMBackbone.load(
        adapter=adapter,
        max_lora_rank=8,
        dtype="bfloat16",
        max_model_len=4096,
        batch_tokens=2048,
        kv_cache_gib=1,
        enforce_eager=True,
    )
    assert loaded.name == f"{EMBEDDED}+{adapter}"
    yield loaded.with_adapter(None)
    loaded.close()


@pytest.fixture(scope="module")
def reference() -> TransformersBackbone:
    loaded = TransformersBackbone.load(dtype="bfloat16", device="cpu")
    loaded.weights.encoder.context = 4096
    return loaded


@pytest.fixture(scope="module")
def requests() -> list[Candidates]:
    """BM25's first five passages for each of three claims."""
    candidates = list(load_dataset("sample:scifact").candidates())[:3]
    return [dataclasses.replace(c, passages=c.passages[:5]) for c in candidates]


def both(
    backbone: VLLMBackbone, reference: TransformersBackbone, adapter: str | None
) -> tuple[VLLMBackbone, TransformersBackbone]:
    return backbone.with_adapter(adapter), reference.with_adapter(adapter)


# Agreement with the transformers backbone, on the same prompts and the same weights


@pytest.mark.parametrize("tuned", [False, True], ids=["bare", "adapter"])
@pytest.mark.parametrize("name", ["pointwise-yes-no", "first-identifier"])
def test_labels_agree(
    backbone: VLLMBackbone,
    reference: TransformersBackbone,
    requests: list[Candidates],
    adapter: str,
    name: str,
    tuned: bool,
) -> None:
    ours, theirs = both(backbone, reference, adapter if tuned else None)
    calls = calls_of(name, requests)
    assert [ours.prepare(c).token_ids for c in calls] == [theirs.prepare(c).token_ids for c in calls]
    answers, expected = ask(ours, *calls), ask(theirs, *calls)
    distances = apart(answers, expected)
    assert max(distances) < 0.25 and median(distances) < 0.05
    assert all(sum(map(math.exp, a.logprobs)) == pytest.approx(1) for a in answers)
    assert [a.prompt_tokens for a in answers] == [a.prompt_tokens for a in expected]
    if name == "pointwise-yes-no":
        scores = [[load_prompt(name).score(answer)[0] for answer in each] for each in (answers, expected)]
        # in bfloat16 close scores change places: against its own float32 the other backbone has 0.985
        assert spearmanr(*scores).statistic >= 0.97


def test_adapters_change_the_answers(
    backbone: VLLMBackbone, requests: list[Candidates], adapter: str, tmp_path: Path
) -> None:
    calls = calls_of("pointwise-yes-no", requests[:1])[:3]
    bare = ask(backbone, *calls)
    tuned = backbone.with_adapter(adapter)
    assert median(apart(bare, ask(tuned, *calls))) > 0.2
    assert max(apart(bare, ask(tuned.with_adapter(None), *calls))) < 0.02  # switched back, cache and all
    other = backbone.with_adapter(str(save_adapter(tmp_path, rank=4)))
    assert median(apart(ask(tuned, *calls), ask(other, *calls))) > 0.2
    assert max(apart(ask(tuned, *calls), ask(backbone.with_adapter(adapter), *calls))) < 0.02
    assert (tuned.name, backbone.name) == (f"{EMBEDDED}+{adapter}", EMBEDDED)


@pytest.mark.parametrize("tuned", [False, True], ids=["bare", "adapter"])
def test_likelihoods_agree(
    backbone: VLLMBackbone, reference: TransformersBackbone, requests: list[Candidates], adapter: str, tuned: bool
) -> None:
    ours, theirs = both(backbone, reference, adapter if tuned else None)
    calls: list[Call] = [
        LikelihoodCall(dialogue(text), c) for text in TEXTS for c in (" one", " how long do fleas live?")
    ]
    calls += calls_of("pointwise-query-likelihood", requests[:1])[:3]
    answers, expected = ask(ours, *calls), ask(theirs, *calls)
    distances = apart(answers, expected)
    assert max(distances) < 0.5 and median(distances) < 0.1  # the other rounds a whole vocabulary to bfloat16
    for ours_, theirs_ in zip(answers, expected, strict=True):
        assert fmean(ours_.logprobs) == pytest.approx(fmean(theirs_.logprobs), abs=0.25)
    assert [a.prompt_tokens for a in answers] == [a.prompt_tokens for a in expected]
    # again, when the cache holds all of it
    assert max(apart(answers, ask(ours, *calls))) < 0.02


def test_generation_agrees(backbone: VLLMBackbone, reference: TransformersBackbone) -> None:
    """Up to the first near tie; these prompts have none early."""
    (free,) = ask(reference, GenerateCall(dialogue("Count from one to ten in digits."), 24))
    stop = free.text[5:8]
    calls = [
        GenerateCall(dialogue("Count from one to ten in digits."), limit, marks)
        for limit, marks in [(6, ()), (24, (stop,)), (24, ("nowhere", stop[0])), (3, (free.text[0],))]
    ]
    answers, expected = ask(backbone, *calls), ask(reference, *calls)
    assert [a.text for a in answers] == [a.text for a in expected]
    assert [a.truncated for a in answers] == [a.truncated for a in expected] == [True, False, False, False]
    assert answers[0].generated_tokens == 6
    (ended,) = ask(backbone, GenerateCall(dialogue("Say hello."), 20, constraint=Choice(("hello there",))))
    assert (ended.text, ended.truncated, ended.generated_tokens) == (
        "hello there",
        False,
        2,
    )  # the end is no token of it


# Constraints


@pytest.mark.parametrize(
    ("constraint", "form"),
    [
        (Choice(("perfectly relevant", "irrelevant")), "perfectly relevant|irrelevant"),
        (Regex(r"\[[1-3]\]( > \[[1-3]\]){2}"), r"\[[1-3]\]( > \[[1-3]\]){2}"),
        (Regex(r"[一-三]{4}"), r"[一-三]{4}"),
    ],
)
def test_what_is_written_keeps_to_its_form(backbone: VLLMBackbone, constraint: Constraint, form: str) -> None:
    answers = ask(backbone, *(GenerateCall(dialogue(text), 32, constraint=constraint) for text in TEXTS))
    assert all(re.fullmatch(form, answer.text) for answer in answers)
    assert not any(answer.truncated for answer in answers)


def test_json_of_a_schema(backbone: VLLMBackbone) -> None:
    properties = {"relevant": {"type": "boolean"}, "score": {"type": "integer", "minimum": 0, "maximum": 3}}
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    call = GenerateCall(dialogue(TEXTS[0]), 40, constraint=JsonSchema(json.dumps(schema)))
    (answer,) = ask(backbone, call)
    read = json.loads(answer.text)
    assert [*read] == ["relevant", "score"] and isinstance(read["relevant"], bool) and read["score"] in range(4)


def test_a_constrained_listwise_prompt_is_always_read(backbone: VLLMBackbone, requests: list[Candidates]) -> None:
    ranker = rerank.load("listwise", prompt="listwise-permutation-constrained", backbone=backbone, passage_tokens=60)
    outcomes = [ranking.outcomes for ranking in ranker.rank_many(requests[:3])]
    assert sum(o.failed for o in outcomes) == 0
    assert sum(o.clean + o.repaired for o in outcomes) >= 3


@pytest.mark.parametrize(
    "constraint", [Regex("[a"), Regex("(yes"), JsonSchema("{"), JsonSchema('{"type": "nonsense"}')]
)
def test_a_constraint_that_cannot_be_read(backbone: VLLMBackbone, constraint: Constraint) -> None:
    with pytest.raises(InputError, match="vLLM cannot follow"):
        backbone.prepare(GenerateCall(dialogue("x"), 8, constraint=constraint))


def test_what_it_cannot_be_asked(backbone: VLLMBackbone) -> None:
    with pytest.raises(LabelError, match="200 labels in one call; vLLM answers at most 128"):
        backbone.prepare(LabelCall(dialogue("x"), tuple(map(str, range(200)))))
    with pytest.raises(CapabilityError, match="needs a backbone that answers score calls"):
        rerank.load("pointwise", prompt="pointwise-pair", backbone=backbone)


# How it works


def test_what_calls_share_is_computed_once(backbone: VLLMBackbone, requests: list[Candidates]) -> None:
    from vllm import SamplingParams

    items = [backbone.prepare(call) for call in calls_of("pointwise-yes-no", requests[2:3])]
    shared = sum(len(set(column)) == 1 for column in zip(*(item.token_ids for item in items), strict=False))
    order = backbone.group(items)[0]
    assert [items[i].token_ids for i in order] == sorted(item.token_ids for item in items)
    backbone.answer([items[i] for i in order])
    outputs = backbone.engine.ask([i.token_ids for i in items], [SamplingParams(max_tokens=1)] * len(items), None)
    assert shared > 32  # a block
    assert all((output.num_cached_tokens or 0) >= shared // 32 * 32 for output in outputs)


def test_options_reach_the_engine(backbone: VLLMBackbone) -> None:
    assert backbone.engine.llm is not None
    config = backbone.engine.llm.llm_engine.vllm_config
    assert backbone.engine.encoder.context == config.model_config.max_model_len == 4096
    assert config.scheduler_config.max_num_batched_tokens == 2048
    assert config.cache_config.kv_cache_memory_bytes == 2**30
    assert config.cache_config.block_size == 32  # by default, on a CPU
    assert config.model_config.enforce_eager and config.model_config.dtype == torch.bfloat16
    assert config.model_config.head_dtype == torch.float32  # by default


def test_under_a_running_event_loop(backbone: VLLMBackbone) -> None:
    async def main() -> list[str]:
        inside = rerank.load("pointwise", backbone=backbone).rank("how long do fleas live", TEXTS)
        thread = await asyncio.to_thread(rerank.load("first", backbone=backbone).rank, "fleas", TEXTS)
        return [*inside.doc_ids, *thread.doc_ids]

    assert sorted(asyncio.run(main())) == ["0", "0", "1", "1", "2", "2"]


def test_an_interrupted_call_leaves_nothing_behind(backbone: VLLMBackbone) -> None:
    (before,) = ask(backbone, LabelCall(dialogue(TEXTS[0]), ("Yes", "No")))

    def interrupt(_signal: int, _frame: types.FrameType | None) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(backbone, *(GenerateCall(dialogue(f"Tell a story of {i}."), 3000) for i in range(4)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    (after,) = ask(backbone, LabelCall(dialogue(TEXTS[0]), ("Yes", "No")))
    assert after.logprobs == pytest.approx(before.logprobs, abs=0.02)


# What does not fit


@pytest.mark.parametrize(
    "shape",
    [{"hidden_size": 288, "num_attention_heads": 9, "num_key_value_heads": 3}, {"num_hidden_layers": 2}],
    ids=["narrower", "shallower"],
)
def test_an_adapter_of_another_model_is_refused(backbone: VLLMBackbone, tmp_path: Path, shape: dict[str, int]) -> None:
    """vLLM takes both in silence, and applies what there is of them."""
    foreign = save_adapter(tmp_path, **shape)
    with pytest.raises(AdapterError, match="does not fit"):
        backbone.with_adapter(str(foreign))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_an_adapter_of_the_vocabulary_is_refused(backbone: VLLMBackbone, tmp_path: Path, module: str) -> None:
    """vLLM takes both; scores of the one, and of the bare model after it, are wrong, and the other does nothing."""
    with pytest.raises(AdapterError, match=f"changes .*{module}, which vLLM does not do"):
        backbone.with_adapter(str(save_adapter(tmp_path, modules=["q_proj", module])))


def test_adapters_that_are_refused(backbone: VLLMBackbone, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no adapter directory"):
        backbone.with_adapter(str(tmp_path / "nowhere"))
    wide = str(save_adapter(tmp_path / "wide", rank=16, modules=["q_proj"]))
    with pytest.raises(AdapterError, match="has rank 16, and the engine has room for 8; load it with max_lora_rank=16"):
        backbone.with_adapter(wide)
    with pytest.raises(AdapterError, match="has rank 16, and the engine has room for 8"):
        VLLMBackbone.load(adapter=wide, max_lora_rank=8)  # before anything is loaded
    with pytest.raises(InputError, match="max_lora_rank is 1000; vLLM takes adapters of rank 1 to"):
        VLLMBackbone.load(max_lora_rank=1000)
    elsewhere = json.loads((Path(wide) / "adapter_config.json").read_text())
    elsewhere |= {"base_model_name_or_path": "someone/Another-Model"}
    (Path(wide) / "adapter_config.json").write_text(json.dumps(elsewhere))
    with pytest.raises(AdapterError, match="was trained for 'someone/Another-Model'"):
        backbone.with_adapter(wide)
    with pytest.raises(AdapterError, match=r"vLLM cannot load adapter .* DoRA"):  # said by vLLM itself
        backbone.with_adapter(str(save_adapter(tmp_path / "dora", modules=["q_proj"], dora=True)))
    (answer,) = ask(backbone, LabelCall(dialogue(TEXTS[0]), ("Yes", "No")))  # the engine has taken no harm
    assert all(map(math.isfinite, answer.logprobs))


def test_a_closed_engine(backbone: VLLMBackbone) -> None:
    """The last test: it ends the engine of this file."""
    item = backbone.prepare(LabelCall(dialogue(TEXTS[0]), ("Yes", "No")))
    processes = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("VLLM")]
    assert processes
    ranker = rerank.load("pointwise", backbone=backbone)
    ranker.close()
    ranker.close()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive
    with pytest.raises(BackboneError, match="is closed; load it again"):
        backbone.answer([item])
    with pytest.raises(BackboneError, match="is closed; load it again"):
        backbone.with_adapter("anything")
