"""Packed sequences: the model's own numbers, a shared prefix computed once, whatever the kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, MistralConfig

import rerank
from rerank.backbones import packing
from rerank.backbones.packing import by_prefix, pack
from rerank.backbones.transformers_ import TransformersBackbone
from rerank.backbones.weights import Weights
from rerank.data import load_dataset
from rerank.types import Candidates

Make = Callable[..., Candidates]
CPU = torch.device("cpu")

# few letters, so that many sequences begin alike, repeat, or are the beginning of another
texts = st.lists(st.lists(st.integers(3, 5), min_size=1, max_size=12).map(tuple), min_size=1, max_size=9)


@pytest.fixture(scope="module")
def weights(tiny_model: Path) -> Weights:
    return TransformersBackbone.load(str(tiny_model), device="cpu", dtype="float32").weights


def trie(sequences: list[tuple[int, ...]]) -> int:
    """How many distinct beginnings the sequences have."""
    return len({sequence[:end] for sequence in sequences for end in range(1, len(sequence) + 1)})


@settings(deadline=None, max_examples=60)
@given(sequences=texts, chunk=st.sampled_from([1, 40, 2**16]), products=st.booleans())
def test_packed_logits_are_the_models_own(
    weights: Weights, sequences: list[tuple[int, ...]], chunk: int, products: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(packing, "_CHUNK", {"cpu": chunk})
        patch.setattr(packing, "_products_win", lambda *_: products)
        found = weights.logits(sequences, [min(2, len(s)) for s in sequences], None)
        for sequence, logits in zip(sequences, found, strict=True):
            own = weights.model(torch.tensor([sequence])).logits[0, -2:]
            assert torch.allclose(logits, own, atol=1e-4)


@settings(deadline=None)
@given(sequences=texts)
def test_what_is_shared_is_there_once(sequences: list[tuple[int, ...]]) -> None:
    sequences = [sequence[:8] for sequence in sequences]  # in longer ones, one token in common is not worth it
    made = pack(sequences, device=CPU, dtype=torch.float32)
    assert made.ids.shape == made.positions.shape == (1, trie(sequences))
    for sequence, rows in zip(sequences, made.rows, strict=True):
        assert made.ids[0, rows].tolist() == list(sequence)
        assert made.positions[0, rows].tolist() == list(range(len(sequence)))
    apart = pack(sequences, device=CPU, dtype=torch.float32, share=False)
    assert apart.ids.shape == (1, sum(map(len, sequences)))


@settings(deadline=None)
@given(sequences=texts, budget=st.integers(1, 40))
def test_batches_hold_every_sequence_once_and_no_more_than_the_budget(
    sequences: list[tuple[int, ...]], budget: int
) -> None:
    sequences = [sequence[:8] for sequence in sequences]
    for share in (True, False):
        batches = by_prefix(sequences, budget, share=share)
        assert sorted(i for batch in batches for i in batch) == list(range(len(sequences)))
        for batch in batches:
            size = (trie if share else lambda group: sum(map(len, group)))([sequences[i] for i in batch])
            assert size <= budget or len(batch) == 1
    assert by_prefix(sequences, None) in ([], [sorted(range(len(sequences)), key=lambda i: sequences[i])])


def test_the_calls_of_a_query_share_their_instruction(tiny_model: Path, make_candidates: Make) -> None:
    """The queries' passages come to the model as a pack much smaller than their prompts."""
    backbone = TransformersBackbone.load(str(tiny_model), device="cpu", dtype="float32")
    computed: list[int] = []
    decoder = backbone.weights.model.get_decoder()
    decoder.register_forward_pre_hook(
        lambda _m, _a, given: computed.append(given["input_ids"].numel()), with_kwargs=True
    )
    requests = [make_candidates(20, f"q{i}", query=f"what is number {i}") for i in range(3)]
    list(rerank.load("pointwise", backbone=backbone).rank_many(requests))
    computed.clear()
    rankings = list(rerank.load("pointwise", backbone=backbone).rank_many(requests))
    asked = sum(ranking.usage.prompt_tokens for ranking in rankings)
    assert sum(computed) < 0.5 * asked
    computed.clear()
    apart = dataclasses.replace(backbone, prefix_reuse=False)
    others = list(rerank.load("pointwise", backbone=apart).rank_many(requests))
    assert sum(computed) == asked
    for one, other in zip(rankings, others, strict=True):
        assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-4)


def save(folder: Path, tiny_model: Path, model: Any) -> Path:
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def strangers(tiny_model: Path) -> Iterator[tuple[str, Any, bool]]:
    size = len(AutoTokenizer.from_pretrained(tiny_model))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # positions are learned: they come from the pack
        yield (
            "gpt2",
            GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=size,
                    n_embd=32,
                    n_layer=2,
                    n_head=4,
                    n_positions=512,
                    initializer_range=0.3,
                    eos_token_id=2,
                )
            ),
            True,
        )
        # looks back 16 tokens: a pack does not
        yield "mistral", AutoModelForCausalLM.from_config(
            MistralConfig(
                vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, sliding_window=16, initializer_range=0.3, eos_token_id=2,
            )
        ), False  # fmt: skip


def test_other_architectures_give_their_own_numbers(tiny_model: Path, tmp_path: Path) -> None:
    """Packed where that is the same, and otherwise not packed."""
    sequences = [tuple(range(3, 60)), tuple(range(3, 40)), (*range(3, 30), *range(90, 140))]
    for name, model, packs in strangers(tiny_model):
        folder = save(tmp_path / name, tiny_model, model)
        weights = TransformersBackbone.load(str(folder), device="cpu", dtype="float32").weights
        with torch.inference_mode():
            found = weights.logits(sequences, [3] * 3, None)
            model.eval()
            for sequence, logits in zip(sequences, found, strict=True):
                assert torch.allclose(logits, model(torch.tensor([sequence])).logits[0, -3:], atol=1e-4), name
        assert weights.packs is packs, name


@pytest.mark.model
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-3), ("bfloat16", 0.25)])
def test_embedded_scores_with_and_without_prefix_reuse(dtype: str, most: float) -> None:
    """Five short passages only: a processor without bfloat16 takes ten times float32's time for it."""
    request = next(iter(load_dataset("sample:scifact").candidates()))
    requests = [dataclasses.replace(request, passages=request.passages[:5])]
    reusing = TransformersBackbone.load(dtype=dtype, device="cpu")
    differences = []
    for name in ("pointwise", "first"):
        one, other = (
            list(rerank.load(name, passage_tokens=40, backbone=b).rank_many(requests))
            for b in (reusing, dataclasses.replace(reusing, prefix_reuse=False))
        )
        for a, b in zip(one, other, strict=True):
            scores = {hit.passage.doc_id: hit.score for hit in b}
            differences += [abs(hit.score - scores[hit.passage.doc_id]) for hit in a]
    assert max(differences) < most
