"""LoRA adapters: loaded, switched, merged, and refused where they do not belong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from adapters import save_adapter

import rerank
from rerank.backbones.transformers_ import TransformersBackbone
from rerank.errors import AdapterError, InputError

TEXTS = ["short", "a passage of some more words than the other " * 4, "Yes No " * 9]


@pytest.fixture(scope="module")
def backbone(tiny_model: Path) -> TransformersBackbone:
    return TransformersBackbone.load(str(tiny_model), device="cpu", dtype="float32")


def scores(backbone: TransformersBackbone) -> list[float]:
    ranking = rerank.load("pointwise", backbone=backbone).rank("q", TEXTS)
    return [hit.score for hit in sorted(ranking, key=lambda hit: hit.passage.doc_id)]


def test_adapters_are_loaded_switched_and_merged(tiny_model: Path, tmp_path: Path) -> None:
    one, two = (save_adapter(tiny_model, tmp_path / str(s), seed=s, base=str(tiny_model)) for s in (1, 2))
    bare = TransformersBackbone.load(str(tiny_model), device="cpu", dtype="float32")
    plain = scores(bare)
    first, second = bare.with_adapter(str(one)), bare.with_adapter(str(two))
    a, b = scores(first), scores(second)
    assert max(abs(x - y) for x, y in zip(plain, a, strict=True)) > 0.01
    assert max(abs(x - y) for x, y in zip(a, b, strict=True)) > 0.01
    assert scores(first) == a and scores(bare) == plain and scores(second) == b  # switched back and forth
    assert first.name == f"{tiny_model}+{one}"
    fresh = TransformersBackbone.load(str(tiny_model), adapter=str(two), device="cpu", dtype="float32")
    assert scores(fresh) == pytest.approx(b, abs=1e-5)
    merged = fresh.merge()
    assert scores(merged) == pytest.approx(b, abs=1e-4)
    assert merged.weights.peft is None
    with pytest.raises(InputError, match="no adapter to merge"):
        merged.merge()
    with pytest.raises(AdapterError, match="must be the only adapter"):
        first.merge()


@pytest.mark.parametrize("shape", [{"hidden": 64}, {"layers": 3}, {"layers": 1}], ids=str)
def test_an_adapter_of_another_model_is_refused(
    tiny_model: Path, tmp_path: Path, make_llama: Callable[..., Path], shape: dict[str, int]
) -> None:
    other = make_llama(tmp_path / "model", **shape)
    foreign = save_adapter(other, tmp_path / "foreign", seed=0, base=str(other))
    bare = TransformersBackbone.load(str(tiny_model), device="cpu", dtype="float32")
    before = scores(bare)
    with pytest.raises(AdapterError, match="does not fit"):
        bare.with_adapter(str(foreign))
    assert scores(bare) == before  # and nothing of it is left behind
    own = save_adapter(tiny_model, tmp_path / "own", seed=1, base=str(tiny_model))
    fitting = scores(bare.with_adapter(str(own)))
    assert scores(bare) == before and fitting != before
    with pytest.raises(AdapterError, match="does not fit"):
        bare.with_adapter(str(foreign))
    assert scores(bare.with_adapter(str(own))) == fitting


def test_an_adapter_that_names_another_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    other = save_adapter(tiny_model, tmp_path / "other", seed=0, base="someone/Another-Model")
    bare = TransformersBackbone.load(str(tiny_model), device="cpu", dtype="float32")
    named = dataclasses.replace(bare, weights=dataclasses.replace(bare.weights, name="HuggingFaceTB/SmolLM2"))
    with pytest.raises(AdapterError, match=r"trained for 'someone/Another-Model', not for 'HuggingFaceTB/SmolLM2'"):
        named.with_adapter(str(other))


def test_missing_adapters(backbone: TransformersBackbone, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no adapter directory"):
        backbone.with_adapter(str(tmp_path / "nowhere"))
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"a pickle, perhaps")
    with pytest.raises(AdapterError, match="only safetensors are read"):
        backbone.with_adapter(str(tmp_path))
