"""The openai backbone against a real vLLM server: its scores are those of transformers, and it may die meanwhile."""

from __future__ import annotations

import asyncio
import json
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import rerank
from rerank.backbones.embedded import resolve
from rerank.backbones.openai_ import OpenAIBackbone
from rerank.backbones.transformers_ import TransformersBackbone
from rerank.calls import (
    Answer,
    Call,
    Choice,
    Constraint,
    Dialogue,
    GenerateCall,
    JsonSchema,
    LabelCall,
    LikelihoodCall,
    Message,
    Regex,
    Span,
)
from rerank.data import load_dataset
from rerank.errors import BackboneError, ContextError, InputError, UnknownNameError
from rerank.jobs import Progress
from rerank.prompts import load_prompt
from rerank.types import Candidates, Passage, Query, Ranking

pytest.importorskip("vllm")
from vllm_server import VLLMServer

pytestmark = [pytest.mark.vllm, pytest.mark.model, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def model() -> Path:
    return resolve()


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        bare = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        shape = LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(bare, shape).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    """Its model recommends what a greedy answer must not have."""
    harmful = json.dumps({"temperature": 1.5, "repetition_penalty": 1.7, "top_k": 3})
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    running = VLLMServer(model, log, ["--override-generation-config", harmful])
    yield running
    running.kill()


@pytest.fixture
def lora_server(model: Path, adapter: Path, tmp_path: Path) -> Iterator[VLLMServer]:
    """Apart: with adapters vLLM 0.32 on a CPU dies of the first likelihood that it is asked."""
    more = ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"tuned={adapter}"]
    running = VLLMServer(model, tmp_path / "log.txt", more)
    yield running
    running.kill()


@pytest.fixture(scope="module")
def there(server: VLLMServer, model: Path) -> Iterator[OpenAIBackbone]:
    backbone = OpenAIBackbone.load(base_url=server.url, tokenizer=str(model))
    yield backbone
    backbone.close()


@pytest.fixture(scope="module")
def chat(server: VLLMServer) -> Iterator[OpenAIBackbone]:
    backbone = OpenAIBackbone.load(base_url=server.url)
    yield backbone
    backbone.close()


@pytest.fixture(scope="module")
def here(model: Path) -> TransformersBackbone:
    return TransformersBackbone.load(str(model), device="cpu", dtype="bfloat16")


@pytest.fixture(scope="module")
def lists() -> list[Candidates]:
    return list(load_dataset("sample:scifact").candidates(20))


def calls(lists: Sequence[Candidates], prompt: str, n: int, shown: int) -> list[Call]:
    """About n, over different queries."""
    made = load_prompt(prompt)
    each = [
        made.ask(c.query, c.passages[start : start + shown], passage_tokens=80)
        for start in (0, 1, 2, 3)
        for c in lists
        if len(c) >= start + shown
    ]
    assert len(each) >= n
    return each[:n]


def asked(backbone: OpenAIBackbone, calls: Sequence[Call]) -> list[Answer]:
    async def main() -> list[Answer]:
        return await asyncio.gather(*(backbone.ask(backbone.prepare(call)) for call in calls))

    return asyncio.run(main())


def answered(backbone: TransformersBackbone, calls: Sequence[Call]) -> list[Answer]:
    items = [backbone.prepare(call) for call in calls]
    found: dict[int, Answer] = {}
    for batch in backbone.group(items):
        found |= zip(batch, backbone.answer([items[i] for i in batch]), strict=True)
    return [found[i] for i in range(len(items))]


def differences(one: Sequence[Answer], other: Sequence[Answer]) -> list[float]:
    """Of log-probabilities, in nats."""
    return [abs(x - y) for a, b in zip(one, other, strict=True) for x, y in zip(a.logprobs, b.logprobs, strict=True)]


def close(what: str, found: Sequence[float]) -> None:
    print(f"{what}: {len(found)} values, max {max(found):.4f}, median {statistics.median(found):.4f} nats")
    assert max(found) < 0.25
    assert statistics.median(found) < 0.05


@pytest.mark.parametrize(
    ("prompt", "n", "shown"),
    [("pointwise-yes-no", 32, 1), ("pointwise-graded", 12, 1), ("first-identifier", 8, 4)],
)
def test_labels_are_those_of_transformers(
    there: OpenAIBackbone, here: TransformersBackbone, lists: list[Candidates], prompt: str, n: int, shown: int
) -> None:
    each = calls(lists, prompt, n, shown)
    found = asked(there, each)
    close(prompt, differences(found, answered(here, each)))
    assert [a.prompt_tokens for a in found] == [len(here.prepare(call).token_ids) for call in each]


def test_likelihoods_are_those_of_transformers(
    there: OpenAIBackbone, here: TransformersBackbone, lists: list[Candidates]
) -> None:
    """A query's mean, which is its score; a single improbable token may be off by more in bf16."""
    each = calls(lists, "pointwise-query-likelihood", 12, 1)
    found, expected = asked(there, each), answered(here, each)
    print("tokens: max", max(differences(found, expected)))
    means = [[Answer((statistics.mean(a.logprobs),)) for a in some] for some in (found, expected)]
    close("likelihood", differences(*means))
    assert statistics.median(differences(found, expected)) < 0.05
    assert [len(a.logprobs) for a in found] == [len(a.logprobs) for a in expected]
    assert [a.prompt_tokens for a in found] == [a.prompt_tokens for a in expected]


def test_generation_is_greedy_whatever_the_server_recommends(
    there: OpenAIBackbone, chat: OpenAIBackbone, here: TransformersBackbone
) -> None:
    questions = ["Name the capital of France.", "Count from one to ten.", "What is water made of?"]
    each = [GenerateCall(Dialogue((Message("user", (Span(q),)),), "", Query(q), ()), 16) for q in questions]
    expected = [a.text for a in answered(here, each)]
    for backbone in (there, chat):
        found = asked(backbone, each)
        same = sum(a.text == text for a, text in zip(found, expected, strict=True))
        assert same >= 2, [a.text for a in found]  # bf16 may tip one
        assert [a.truncated for a in found] == [a.generated_tokens == 16 for a in found]
    (stopped,) = asked(there, [GenerateCall(each[1].dialogue, 16, stop=(expected[1][4],))])
    assert expected[1][4] not in stopped.text
    assert not stopped.truncated


def test_chat_agrees_with_completions(there: OpenAIBackbone, chat: OpenAIBackbone, lists: list[Candidates]) -> None:
    """The server renders the same prompt; what is among its 20 most probable tokens has the same score."""
    made = load_prompt("first-identifier")
    each = [made.ask(c.query, c.passages[:3]) for c in lists[:8]]
    exact, top = asked(there, each), asked(chat, each)
    assert [a.prompt_tokens for a in exact] == [a.prompt_tokens for a in top]
    whole = [(a, b) for a, b in zip(exact, top, strict=True) if b.logprobs and not b.missing]
    assert whole
    close("chat", differences(*zip(*whole, strict=True)))
    for a, b in zip(exact, top, strict=True):
        if b.missing and b.logprobs:  # the bounds are no lower than what they stand for
            assert max(y - x for x, y in zip(a.logprobs, b.logprobs, strict=True)) > -0.25


def test_constraints_hold(there: OpenAIBackbone, chat: OpenAIBackbone) -> None:
    dialogue = Dialogue((Message("user", (Span("Tell me about the weather."),)),), "", Query("q"), ())
    schema = {"type": "object", "properties": {"sky": {"enum": ["blue", "grey"]}}, "required": ["sky"]}
    wanted: list[Constraint] = [
        Choice(("perhaps", "never")),
        Regex(r"\[[1-3]\]( > \[[1-3]\]){2}"),
        JsonSchema(json.dumps({**schema, "additionalProperties": False})),
    ]
    for backbone in (there, chat):
        found = asked(backbone, [GenerateCall(dialogue, 40, constraint=c) for c in wanted])
        assert found[0].text in ("perhaps", "never")
        assert len(found[1].text) == len("[1] > [2] > [3]")
        assert json.loads(found[2].text)["sky"] in ("blue", "grey")
    made = rerank.load("listwise", prompt="listwise-permutation-constrained", backbone=there)
    assert made.rank("weather", ["sun", "rain", "snow"]).outcomes.failed == 0


def test_the_context_is_the_servers(there: OpenAIBackbone, chat: OpenAIBackbone) -> None:
    """What is cut to it fits to the last token; a prompt that only the server measures is its error."""
    long = Passage("some words of a passage " * 1000, "d")
    dialogue = Dialogue((Message("user", (Span(long.text, passage=True),)),), "", Query("q"), (long,))
    each = [LabelCall(dialogue, ("Yes", "No")), LikelihoodCall(dialogue, "what is it"), GenerateCall(dialogue, 5)]
    found = asked(there, each)
    assert [a.prompt_tokens for a in found] == [2047, 2047, 2043]
    with pytest.raises(ContextError, match="maximum context length is 2048 tokens"):
        asked(chat, each[2:])


def test_the_wrong_tokenizer_is_found_out(server: VLLMServer, tiny_model: Path) -> None:
    with pytest.raises(InputError, match="is not that of the served model 'small'"):
        OpenAIBackbone.load(base_url=server.url, tokenizer=str(tiny_model))


def test_the_server_dies_and_comes_back(
    server: VLLMServer, there: OpenAIBackbone, model: Path, lists: list[Candidates]
) -> None:
    """64 queries are in flight when it is killed: each is answered, as if nothing had been, or says what went wrong."""
    requests = [
        Candidates(Query(c.query.text, f"q{i}"), c.passages[i % 4 :][:4]) for i, c in enumerate((lists * 64)[:64])
    ]

    def rank(backbone: OpenAIBackbone, kill_at: int | None, killed: threading.Event) -> list[Ranking]:
        def watch(progress: Progress) -> None:
            if progress.batches == kill_at:
                server.kill()
                killed.set()

        ranker = rerank.load("pointwise", passage_tokens=60, backbone=backbone, on_progress=watch)
        return list(ranker.rank_many(requests, on_error="keep"))

    def worst(found: Ranking, expected: Ranking) -> float:
        scores = {hit.passage.doc_id: hit.score for hit in expected}
        return max(abs(hit.score - scores[hit.passage.doc_id]) for hit in found)

    # each query has all its calls in flight
    options = {"base_url": server.url, "tokenizer": str(model), "concurrency": 256, "timeout_s": 300}
    undisturbed = rank(there, None, threading.Event())
    assert all(r.error is None and r.usage.calls == 4 for r in undisturbed)

    down_s = 0.0

    def revive() -> None:
        nonlocal down_s
        assert killed.wait(300)
        started = time.monotonic()
        server.begin()
        server.wait()
        down_s = time.monotonic() - started

    killed = threading.Event()
    reviver = threading.Thread(target=revive)
    reviver.start()
    patient = OpenAIBackbone.load(retries=30, deadline_s=900, **options)
    found = rank(patient, 60, killed)
    reviver.join()
    patient.close()
    lost = [r for r in found if r.error is not None]
    whole = [(r, u) for r, u in zip(found, undisturbed, strict=True) if r.error is None]
    off = [worst(r, u) for r, u in whole]
    waited = sum(r.usage.seconds > down_s for r in found)
    print(
        f"killed, {down_s:.0f} s away: {len(whole)} answered (scores off by at most {max(off):.2e}), {len(lost)} failed"
    )
    print(f"{waited} queries were in flight all the while")
    assert waited >= 32
    assert all(isinstance(r.error, BackboneError) for r in lost)
    assert max(off) < 0.25
    assert len(whole) >= 60

    killed = threading.Event()
    hasty = OpenAIBackbone.load(retries=0, **options)
    found = rank(hasty, 60, killed)
    hasty.close()
    lost = [r for r in found if r.error is not None]
    off = [worst(r, u) for r, u in zip(found, undisturbed, strict=True) if r.error is None]
    print(f"killed for good: {len(off)} answered (scores off by at most {max(off):.2e}), {len(lost)} failed")
    print(lost[-1].error)
    assert all(isinstance(r.error, BackboneError) and server.url in str(r.error) for r in lost)
    assert all(r.outcomes.failed == 1 for r in lost)
    assert lost
    assert max(off) < 0.25


def test_a_served_adapter(
    lora_server: VLLMServer, here: TransformersBackbone, adapter: Path, model: Path, lists: list[Candidates]
) -> None:
    bare = OpenAIBackbone.load("small", base_url=lora_server.url, tokenizer=str(model))
    tuned = OpenAIBackbone.load(adapter="tuned", base_url=lora_server.url, tokenizer=str(model))
    assert (tuned.name, tuned.form.model) == ("small+tuned", "tuned")
    each = calls(lists, "pointwise-yes-no", 24, 1)
    found, without = asked(tuned, each), asked(bare, each)
    close("adapter", differences(found, answered(here.with_adapter(str(adapter)), each)))
    assert max(differences(found, without)) > 0.3  # it does something
    for backbone in (tuned, bare):
        backbone.close()
    with pytest.raises(UnknownNameError, match="unknown served adapter 'tunde'; did you mean 'tuned'"):
        OpenAIBackbone.load(adapter="tunde", base_url=lora_server.url)
