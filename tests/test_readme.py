"""What the README shows is run: its Python blocks, in order, and its commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.model
def test_the_python_blocks_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    assert len(blocks("python")) >= 6
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
        shown = capsys.readouterr().out
        assert shown.strip()
        for expected in re.findall(r"print\(.*\)  # (\[.*\])$", block, flags=re.MULTILINE):
            assert expected in shown


@pytest.mark.model
@pytest.mark.parametrize("block", [b for b in blocks("bash") if not b.startswith("make ")])
def test_the_commands_run(block: str, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_make_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", "".join(blocks("bash")), flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


@pytest.mark.model
def test_the_demo_measures_bm25_and_every_strategy() -> None:
    """A short demo: the figure over all queries, and a row each."""
    done = subprocess.run(
        [Path(sys.executable).parent / "rerank", "demo", "--queries", "2", "--depth", "5", "--passage-tokens", "40"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "160"},
    )
    assert "nDCG@10 of BM25 over all: 0.676" in done.stdout
    for row in ("BM25, as given", "bi-encoder", "pointwise", "first"):
        assert re.search(rf"^{row} +0\.\d\d\d", done.stdout, flags=re.MULTILINE), done.stdout
    assert "BM25" in " ".join(done.stdout.splitlines()[-3:])
