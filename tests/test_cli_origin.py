"""What the card of a run tells of where it comes from."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from rerank.adapters import digest, shipped
from rerank.cli.cascade import plan
from rerank.cli.options import Engine, command_line


def test_no_key_is_in_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["run", "my data", "-B", "api_key=s3cret", "--backbone-option=API-KEY = s3cret\nx", "-O", "window=10"]
    monkeypatch.setattr(sys, "argv", ["/bin/rerank", *typed])
    found = command_line()
    assert "s3cret" not in found
    assert found == "rerank run 'my data' -B api_key=... '--backbone-option=API-KEY =...' -O window=10"


def test_adapters_are_named_by_their_weights(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    own = hashlib.sha256(b"weights").hexdigest()
    name, folder = next(iter(shipped().items()))
    weights = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert (digest(str(tmp_path)), digest(name), digest("somebody/of-the-hub")) == (own, weights, None)
    for adapter, expected in ((str(tmp_path), own), (name, weights)):
        assert engine(adapter).settings["adapter_sha256"] == expected
    for adapter in ("somebody/of-the-hub", None):
        assert "adapter_sha256" not in engine(adapter).settings
    told = plan("pointwise % 5 >> 0.5*first-stage + 0.5*pointwise", engine(name), None, None).settings
    stages = cast("list[dict[str, Any]]", told["stages"])
    assert stages[0]["adapter_sha256"] == stages[1]["sum"][1]["adapter_sha256"] == weights
    assert "adapter_sha256" not in stages[1]["sum"][0]


def engine(adapter: str | None) -> Engine:
    return Engine(None, adapter, "transformers", None, None, None)
