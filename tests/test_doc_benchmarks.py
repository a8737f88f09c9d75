"""The scripts behind figures in the documentation, as small as they come, and the figures that they print at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
TOGETHER = ("t, not corrected", "t, Holm", "randomised Tukey HSD")


def printed(script: str, *arguments: object) -> list[str]:
    command = [sys.executable, str(DOCS / "benchmarks" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_the_plan_is_what_its_script_prints() -> None:
    page = (DOCS / "scale.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in printed("plan.py") if line.startswith("|")]
    assert len(rows) == 8
    assert [line for line in page if line.startswith(("| CPU core |", "| H100 |"))] == rows


def test_pairs_cost_and_memory_are_measured_in_one_process() -> None:
    header, _, row = printed("scale.py", 1000, "--here")
    assert cells(header)[:3] == ["pairs", "shards", "workers' CPU, us a pair"]
    pairs, shards, cost, memory, *_ = cells(row)
    assert (pairs, shards) == ("1,000", "4")
    assert float(cost) > 0 and float(memory) > 0


def test_equal_systems_are_found_to_differ_as_often_as_the_level_says() -> None:
    """300 pairs, 75 times six systems: four standard errors each way."""
    _, _, *rows = printed("false_positives.py", "--trials", 300)
    found = {cells(row)[0]: [float(value.rstrip("%")) / 100 for value in cells(row)[1:] if value] for row in rows}
    for name in ("t", "randomisation"):
        equal, _, apart, _ = found[name]
        assert equal == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 300) ** 0.5)
        assert apart > 0.5
    alone, holm, tukey = (found[f"any of 15 pairs, 75 trials: {n}"][0] for n in TOGETHER)
    assert alone > 0.2
    assert max(holm, tukey) < 0.05 + 4 * (0.05 * 0.95 / 75) ** 0.5
