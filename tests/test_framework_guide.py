"""What docs/frameworks.md shows is run by the embedded model, its service by a scripted ranker; its tables are those of
the code."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # is read when it is first imported

import pytest
from service import running, service

import rerank
from rerank.cli.app import app
from rerank.integrations import common
from rerank.integrations.mcp import Answer, Limits

GUIDE = (Path(__file__).parents[1] / "docs" / "frameworks.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.model
def test_the_python_blocks_run_in_order(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The four components ask for the same model: it is loaded once here."""
    embedded = rerank.load("pointwise")
    for module in (common, rerank):
        monkeypatch.setattr(module, "load", lambda name, **_: {"pointwise": embedded}[name], raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    kept = ("PYTHON", "OMP_", "HF_", "XDG_", "RERANK_", "PIP_")
    inherited = {name: value for name, value in os.environ.items() if name.startswith(kept)}
    namespace: dict[str, object] = {"__name__": "guide"}
    with running(service()) as here:
        for block in blocks("python"):
            code = block.replace("http://127.0.0.1:8080", here.url)
            code = code.replace('args=["mcp"]', f'args=["mcp"], env={inherited!r}')
            exec(compile(code, "frameworks.md", "exec", dont_inherit=True), namespace)
            shown = capfd.readouterr().out.splitlines()
            assert shown == re.findall(r"print\(.*\)  # (.*)$", block, flags=re.MULTILINE)


def test_what_is_said_of_mcp() -> None:
    settings, answer = map(json.loads, blocks("json"))
    command = settings["mcpServers"]["rerank"]
    assert command["command"] == "rerank"
    assert command["args"][0] in {
        each.name or each.callback.__name__ for each in app.registered_commands if each.callback
    }
    assert Answer.model_validate(answer).model_dump() == answer
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", GUIDE, flags=re.MULTILINE))
    assert rows == {
        name: f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        for name, field in Limits.model_fields.items()
    }


def test_the_arguments_are_all_told() -> None:
    table = GUIDE[GUIDE.index("| argument |") : GUIDE.index("- Names and options")]
    assert set(common.RankerArguments.model_fields) <= set(re.findall(r"`(\w+)`", table))
