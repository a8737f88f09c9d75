"""What docs/feedback.md shows is run by the embedded models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rerank.backbones.embedded import EMBEDDED_BI_ENCODER, MINILM, resolve

GUIDE = (Path(__file__).parents[1] / "docs" / "feedback.md").read_text(encoding="utf-8")


@pytest.mark.model
def test_the_python_blocks_run_in_order(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL):
        code = block.replace(EMBEDDED_BI_ENCODER, str(resolve(recipe=MINILM)))  # the same weights, without the network
        exec(compile(code, "feedback.md", "exec", dont_inherit=True), namespace)
        shown = capsys.readouterr().out.splitlines()
        assert shown == re.findall(r"print\(.*\)  # (.*)$", block, flags=re.MULTILINE)
    assert list((tmp_path / "embeddings").glob("*.safetensors"))
