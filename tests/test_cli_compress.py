"""`rerank compress`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Cli


@pytest.fixture
def adapter(tmp_path: Path, tiny_model: Path) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "adapter"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(0)
    config = LoraConfig(r=8, target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def test_a_lower_rank_is_written_and_said(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    done = cli("compress", adapter, "--rank", 2, "--output", tmp_path / "small")
    assert done.status == 0, done.err
    assert "rank 2, " in done.out and "100.0%" not in done.out
    assert json.loads((tmp_path / "small" / "adapter_config.json").read_text())["r"] == 2
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 8  # the given one is as it was


def test_the_whole_rank_keeps_all(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    assert "100.0%" in cli("compress", adapter, "--rank", 8, "--output", tmp_path / "same").out


def test_what_cannot_be_compressed_leaves_nothing(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"use_dora": True}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    done = cli("compress", adapter, "--rank", 2, "--output", tmp_path / "small")
    assert done.status == 2 and "use_dora" in done.err
    assert not (tmp_path / "small").exists()


def test_nothing_is_written_over(cli: Cli, adapter: Path) -> None:
    done = cli("compress", adapter, "--rank", 2, "--output", adapter)
    assert done.status == 2 and "exists" in done.err
