"""What is chosen for speed changes the last digits of a score, and nothing else."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters import save_adapter

import rerank
from rerank.backbones.speedups import Int8Linear
from rerank.backbones.transformers_ import TransformersBackbone
from rerank.data import load_dataset
from rerank.errors import AdapterError, InputError
from rerank.types import Candidates

Make = Callable[..., Candidates]


def scores(backbone: TransformersBackbone, request: Candidates, **options: int) -> list[float]:
    (ranking,) = rerank.load("pointwise", backbone=backbone, **options).rank_many([request])
    return [hit.score for hit in sorted(ranking, key=lambda hit: hit.passage.doc_id)]


def test_an_int8_layer_is_near_its_own_and_knows_no_company() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(64, 32)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2, 5, 64, generator=generator)
    eight = Int8Linear(layer)
    # each of 64 products is off by half a step of either factor at most
    steps = x.abs().amax(-1, keepdim=True) / 127, layer.weight.abs().amax(1) / 127
    bound = 64 * 0.51 * (steps[0] * layer.weight.abs().amax(1) + steps[1] * x.abs().amax(-1, keepdim=True))
    assert ((eight(x) - layer(x)).abs() < bound).all()
    assert (eight(x) - layer(x)).abs().median() < 0.02 * layer(x).abs().median()
    loud = torch.cat([x, 1000 * torch.ones(2, 1, 64)], 1)
    assert torch.equal(eight(loud)[:, :5], eight(x))
    assert eight(x.bfloat16()).dtype == torch.bfloat16


def test_int8_is_the_same_with_and_without_a_product_of_the_processor_s() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(576, 40)
    x = torch.randn(24, 576, generator=generator)
    eight = Int8Linear(layer)
    answers = []
    for eight.fast in (True, False):
        answers.append(eight(x))
    assert torch.equal(*answers)


def test_int8_takes_an_adapter_when_loaded_and_none_after(
    tiny_model: Path, tmp_path: Path, make_candidates: Make
) -> None:
    adapter = str(save_adapter(tiny_model, tmp_path / "a", seed=1, base=str(tiny_model)))
    request = make_candidates(9)
    whole = TransformersBackbone.load(str(tiny_model), adapter=adapter, device="cpu", dtype="float32")
    eight = TransformersBackbone.load(str(tiny_model), adapter=adapter, device="cpu", dtype="int8")
    assert eight.name == whole.name
    linears = [m for m in eight.weights.model.get_decoder().modules() if isinstance(m, Int8Linear)]
    assert len(linears) == 2 * 7
    plain = scores(whole.with_adapter(None), request)
    tuned, rounded = scores(whole, request), scores(eight, request)
    moved = max(abs(a - b) for a, b in zip(plain, tuned, strict=True))
    assert max(abs(a - b) for a, b in zip(tuned, rounded, strict=True)) < 0.3 * moved  # the adapter is in it
    with pytest.raises(AdapterError, match="is int8 and takes no further adapter"):
        eight.with_adapter(adapter)


def test_compiled_layers_answer_as_the_others(tiny_model: Path, make_candidates: Make) -> None:
    plain = TransformersBackbone.load(str(tiny_model), device="cpu", dtype="float32")
    compiled = TransformersBackbone.load(str(tiny_model), device="cpu", dtype="float32", compile=True)
    assert all(layer._compiled_call_impl is not None for layer in compiled.weights.model.get_decoder().layers)
    for n in (5, 1, 17):
        request = make_candidates(n)
        assert scores(compiled, request) == pytest.approx(scores(plain, request), abs=1e-3)
    request = make_candidates(3)
    texts = [
        [hit.passage.doc_id for hit in rerank.load("listwise", backbone=b).rank_many([request]).__next__()]
        for b in (plain, compiled)
    ]
    assert texts[0] == texts[1]


def test_threads_and_batches_are_set(tiny_model: Path) -> None:
    before = torch.get_num_threads()
    try:
        TransformersBackbone.load(str(tiny_model), device="cpu", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    for option in ("threads", "batch_tokens"):
        with pytest.raises(InputError, match=f"{option} is 0"):
            rerank.load("first", model=str(tiny_model), backbone_options={option: 0})
    ranker = rerank.load("first", model=str(tiny_model), backbone_options={"batch_tokens": "77"})
    assert isinstance(ranker.backbone, TransformersBackbone) and ranker.backbone.batch_tokens == 77
    with pytest.raises(InputError, match="unknown transformers option 'batch_token'; did you mean 'batch_tokens'"):
        rerank.load("first", model=str(tiny_model), backbone_options={"batch_token": 1})


@pytest.mark.model
def test_the_embedded_model_in_int8() -> None:
    """What it gave stands in docs/log.md."""
    request = next(iter(load_dataset("sample:scifact").candidates()))
    request = dataclasses.replace(request, passages=request.passages[:40])
    exact = scores(TransformersBackbone.load(device="cpu", dtype="float32"), request, passage_tokens=60)
    backbone = TransformersBackbone.load(device="cpu", dtype="int8")
    eight = scores(backbone, request, passage_tokens=60)
    assert backbone.weights.packs
    differences = [abs(a - b) for a, b in zip(exact, eight, strict=True)]
    assert max(differences) < 1.5 and statistics.median(differences) < 0.75
