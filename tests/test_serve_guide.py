"""What docs/serve.md shows is run, against a service with a scripted ranker; its tables are those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from service import running, service

from rerank.cli.serve_file import ServeFile
from rerank.server import Limits, create_app
from rerank.server.failures import Kind
from rerank.server.scores import ScoreMap

GUIDE = (Path(__file__).parents[1] / "docs" / "serve.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)


def test_the_python_blocks_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    with running(service()) as here:
        for block in blocks("python"):
            code = block.replace("http://127.0.0.1:8080", here.url)
            exec(compile(code, "serve.md", "exec", dont_inherit=True), namespace)
            shown = capsys.readouterr().out.splitlines()
            assert shown == re.findall(r"print\(.*\)  # (.*)$", block, flags=re.MULTILINE)


def test_the_file_is_one() -> None:
    (block,) = blocks("yaml")
    found = ServeFile.model_validate(yaml.safe_load(block))
    assert [part.name for part in found.rankers] == ["fast", "best"]
    assert found.limits.documents == 200


def test_the_tables_are_whole() -> None:
    rows = dict(re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", GUIDE, flags=re.MULTILINE))
    said = {}
    for names, values in rows.items():
        for name, value in zip(names.split(", "), values.split(", "), strict=False):
            said[name.strip("`")] = value
    for name, field in Limits.model_fields.items():
        assert float(said[name]) == field.default, name
    for kind in (*get_args(Kind), *get_args(ScoreMap)):
        if kind != "client_gone":  # nobody reads that one
            assert f"`{kind}`" in GUIDE
    for path in create_app(service()).openapi()["paths"]:
        assert f"`{path}`" in GUIDE or f"GET {path}`" in GUIDE or f"POST {path}`" in GUIDE
