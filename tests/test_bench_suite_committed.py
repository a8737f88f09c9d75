"""The suites that are committed: what a fresh clone shows by one command, and who else finds the same in its runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import Cli
from suites import Asked, run, two_lists, write

from rerank.bench.suite import FIRST_STAGE

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
RANKERS = ["pointwise", "first", "setwise", "pairwise sliding", "groupwise"]


def agree(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DOCS / "agree.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.model
def test_a_fresh_clone_gets_the_table_and_its_page_by_one_command(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cli("bench", DOCS / "tiny.yaml", "-o", out, "--cache", tmp_path / "cache")
    assert done.status == 0, done
    table = done.out.split("\n\n")[0].splitlines()
    rows = {line[:18].rstrip(): line for line in table[1:]}
    assert list(rows) == [FIRST_STAGE, *RANKERS, "best order of thes"]
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["failures"] == []
    (dataset,) = results["datasets"]
    assert [row["ranker"] for row in dataset["rankers"]] == [FIRST_STAGE, *RANKERS]
    page = (out / "report.html").read_text(encoding="utf-8")
    for row in dataset["rankers"]:
        name, mean = row["ranker"], f"{row['mean']['nDCG@10']:.4f}"
        assert mean in rows[name]
        assert re.search(rf'<th scope="row">{name}</th><td class="n strong">{mean}<', page), name
        assert len(row["per_query"]["nDCG@10"]) == 4
        if name != FIRST_STAGE:
            low, high = row["interval"]
            assert f"±{(high - low) / 2:.4f}" in rows[name]
            assert row["cost"]["calls"] > 0
    checked = agree(out)
    assert checked.returncode == 0, checked
    assert checked.stdout.startswith("6 runs, ")


def test_others_find_the_same_in_a_suites_runs_and_a_changed_figure_is_told_of(tmp_path: Path) -> None:
    measures = ["nDCG@10", "nDCG", "RR@2", "RR(rel=2)", "AP(rel=2)@100", "AP", "R(rel=2)@3", "P@5"]
    noisy = Asked(lambda call: [-float(sum(map(ord, call.dialogue.passages[0].text)) % 3), -1.0])
    run(
        write(two_lists(tmp_path), measures=measures),
        Asked().contestant("oracle"),
        noisy.contestant("noisy", prompt="pointwise-yes-no"),
    )
    found = agree(tmp_path / "out")
    assert found.returncode == 0, found
    assert found.stdout.startswith("6 runs, 480 figures")  # eight queries and two means, by eight measures
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    results["datasets"][0]["rankers"][2]["mean"]["RR@2"] += 2e-4
    (tmp_path / "out" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    changed = agree(tmp_path / "out")
    assert changed.returncode == 1
    assert "one/noisy.trec: RR@2 differs by up to 0.000200" in changed.stdout
