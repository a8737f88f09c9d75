"""Starting vLLM and ending it: from a script, with what does not fit, and when a process is killed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; it has an environment of its own: make vllm", allow_module_level=True)

import psutil
from vllm_case import TEXTS

import rerank
from rerank.backbones.embedded import resolve
from rerank.backbones.transformers_ import TransformersBackbone
from rerank.backbones.vllm_ import VLLMBackbone
from rerank.backbones.vllm_adapters import room
from rerank.errors import BackboneError, InputError

pytestmark = [pytest.mark.vllm, pytest.mark.model]


def test_options_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dtype 'int4'"):
        VLLMBackbone.load(dtype="int4")
    with pytest.raises(InputError, match="both given"):
        VLLMBackbone.load(gpu_memory_utilization=0.5, kv_cache_gib=1)
    with pytest.raises(InputError, match="takes no device"):
        rerank.load("pointwise", backbone="vllm", device="cpu")
    with pytest.raises(InputError, match=r"has no config\.json"):
        VLLMBackbone.load(str(tmp_path))


def test_what_vllm_cannot_start_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In this process, where it checks options and models, and in its own, where it takes memory."""
    with pytest.raises(BackboneError, match=r"vLLM cannot start .*divisible by tensor parallel size"):
        VLLMBackbone.load(tensor_parallel_size=2)  # the model has nine heads
    for file in resolve().iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchForCausalLM"]}))
    with pytest.raises(BackboneError, match="NoSuchForCausalLM"):
        VLLMBackbone.load(str(tmp_path))
    with pytest.raises(BackboneError, match=r"(?i)vLLM cannot start .*kv cache"):
        VLLMBackbone.load(gpu_memory_utilization=0.0001, enforce_eager=True)
    assert capfd.readouterr() == ("", "")


PROMPTS = ("pointwise-yes-no", "pointwise-query-likelihood", "pointwise-query-likelihood")  # the last from the cache
SCRIPT = f"""
PROMPTS = {PROMPTS}
import json, os, sys
import torch, transformers
import rerank
from rerank.backbones.vllm_ import VLLMBackbone
from rerank.backbones.vllm_adapters import room
from rerank.errors import AdapterError

before, main = dict(os.environ), sys.modules["__main__"]
backbone = VLLMBackbone.load(
    dtype="float32", float32_logits=False, block_size=64, max_model_len=2048, enforce_eager=True
)
assert dict(os.environ) == before and sys.modules["__main__"] is main
config = backbone.engine.llm.llm_engine.vllm_config
assert config.cache_config.block_size == 64 and config.cache_config.kv_cache_memory_bytes == 2 * 2**30
assert config.model_config.dtype == torch.float32 and not hasattr(config.model_config.hf_config, "head_dtype")
try:
    backbone.with_adapter(".")
except AdapterError as error:
    assert "without room for adapters" in str(error)
for prompt in PROMPTS:
    ranking = rerank.load("pointwise", prompt=prompt, backbone=backbone).rank("how long do fleas live", sys.argv[1:])
    print(json.dumps({{hit.passage.doc_id: hit.score for hit in ranking}}))
"""


def test_a_script_without_a_main_guard(tmp_path: Path) -> None:
    """It ends by itself, without a word, though it closes nothing; and in float32 what it says is exact."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), *TEXTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    exact = TransformersBackbone.load(dtype="float32", device="cpu")
    for prompt, line in zip(PROMPTS, done.stdout.splitlines(), strict=True):
        ranking = rerank.load("pointwise", prompt=prompt, backbone=exact).rank("how long do fleas live", TEXTS)
        assert json.loads(line) == pytest.approx({hit.passage.doc_id: hit.score for hit in ranking}, abs=1e-3)


def test_a_killed_process_leaves_none_behind() -> None:
    code = """if True:
        import subprocess, sys
        from rerank.backbones.vllm_engine import end_with_this
        other = subprocess.Popen(["sleep", "600"])
        end_with_this([other.pid])
        print(other.pid, flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        other = psutil.Process(int(parent.stdout.readline()))
        assert other.is_running()
        parent.kill()
    other.wait(timeout=30)


def test_room_for_adapters_is_what_vllm_offers() -> None:
    assert [room(rank, None) for rank in (None, 1, 2, 16, 17, 300, 512)] == [None, 1, 8, 16, 32, 320, 512]
