"""A strategy of one's own: a page of code and an entry point, and it is batched, accounted, run and listed."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from command import Cli, assert_error, lists, run_of

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.calls import Call
from rerank.errors import InputError, UnknownNameError
from rerank.prompts import Prompt, load_prompt
from rerank.strategies import STRATEGIES, Setwise, Steps, Strategy, Verdict, load_strategy
from rerank.types import Candidates, Outcomes


@dataclass(frozen=True, slots=True)
class Bubble:
    """The best passage, carried forward by pairs from the tail, `passes` times."""

    source = "Ours, for a test"
    prompt: Prompt = field(default_factory=lambda: load_prompt("first-identifier"))
    passes: int = 1

    def calls(self, n: int) -> int:
        return self.passes * (n - 1)

    def rank(self, candidates: Candidates) -> Steps:
        order, outcomes = list(range(len(candidates))), Outcomes()
        for at in self.passes * list(reversed(range(len(order) - 1))):
            pair = order[at : at + 2]
            (answer,) = yield [self.prompt.ask(candidates.query, [candidates.passages[i] for i in pair])]
            read = self.prompt.order(answer, 2)
            order[at : at + 2] = [pair[i] for i in read.positions]
            outcomes += read.outcomes
        return Verdict(tuple(order), outcomes=outcomes)


Install = Callable[..., None]


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[str], str]:
    """The identity of the strategy `written` of a package, as another process finds it after such an edit."""

    def identity(line: str) -> str:
        (tmp_path / "site" / "my_written").mkdir(exist_ok=True)
        (tmp_path / "site" / "my_written" / "__init__.py").write_text("")
        (tmp_path / "site" / "my_written" / "helper.py").write_text(line)
        code = "from rerank.strategies import Setwise\n\n\nclass Written(Setwise):\n    pass\n"
        (tmp_path / "site" / "my_written" / "strategy.py").write_text(code)
        asked = "from rerank.bench.cache import identity_of; print(identity_of({'strategy': 'written'}))"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)])}
        done = subprocess.run(
            [sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    return identity


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts the metadata of a package on the path, as pip leaves it beside the package's code."""

    def make(package: str = "my-bubble", **offered: str) -> None:
        folder = tmp_path / "site" / f"{package.replace('-', '_')}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        points = "".join(f"{name} = {where}\n" for name, where in offered.items())
        (folder / "entry_points.txt").write_text(f"[rerank.strategies]\n{points}")
        monkeypatch.syspath_prepend(tmp_path / "site")

    return make


def test_it_is_a_page() -> None:
    assert len(inspect.getsource(Bubble).splitlines()) + 1 <= 30  # and the line of its entry point
    made: Strategy = Bubble()
    assert made.calls(9) == 8


def test_it_is_batched_and_accounted(install: Install, make_candidates: Callable[..., Candidates]) -> None:
    install(bubble=f"{__name__}:Bubble")
    backbone = ScriptedBackbone(oracle({f"d{i}": i / 10 for i in range(9)}))
    ranker = rerank.load("bubble", backbone=backbone, passes="2")  # as text, converted to what the class says
    rankings = list(ranker.rank_many([make_candidates(9, f"q{i}") for i in range(5)]))
    assert [r.doc_ids[:2] for r in rankings] == [["d8", "d7"]] * 5
    assert backbone.batches == [5] * 16
    assert [r.usage.calls for r in rankings] == [16] * 5 == [ranker.strategy.calls(9)] * 5
    assert all(r.usage.prompt_tokens > 0 and r.outcomes == Outcomes(clean=16) for r in rankings)


def test_what_cannot_be_read_is_counted(install: Install) -> None:
    install(bubble=f"{__name__}:Bubble")

    def script(call: Call) -> list[float]:
        return []

    ranking = rerank.load("bubble", backbone=ScriptedBackbone(script)).rank("q", ["a", "b", "c"])
    assert (ranking.doc_ids, ranking.outcomes) == (["0", "1", "2"], Outcomes(failed=2))


def test_the_command_runs_and_lists_it(cli: Cli, model: list[str], install: Install, tmp_path: Path) -> None:
    output = tmp_path / "out.trec"
    args = ["run", "--queries", "-", "-s", "bubble", "-O", "passes=2", *model]
    assert_error(cli(*args, stdin=lists(3)), "unknown strategy 'bubble'")
    install(bubble=f"{__name__}:Bubble")
    status, out, err = cli(*args, "-o", output, stdin=lists(3))
    assert (status, out) == (0, "")
    assert "3 queries, 12 calls," in err
    assert {q: set(docs) for q, docs in run_of(output.read_text(), tmp_path).items()} == {
        f"q{i}": {"d0", "d1", "d2"} for i in range(3)
    }
    card = json.loads((tmp_path / "out.trec.json").read_text())
    assert (card["settings"]["strategy"], card["settings"]["options"]) == ("bubble", {"passes": 2})
    assert card["outcomes"]["clean"] == card["usage"]["calls"] == 12
    (row,) = [line for line in cli("ls", "strategies").out.splitlines() if line.startswith("bubble ")]
    assert "19, 99" in row
    assert "first-identifier; passes=1" in row
    assert row.endswith("Ours, for a test")
    assert "carried forward by pairs from the tail" in cli("ls", "strategies", "bubble").out
    assert_error(cli("run", "--queries", "-", "-s", "bubbel", *model, stdin=lists(1)), "did you mean 'bubble'?")


def test_ours_stand_first_and_need_no_look_at_what_is_installed(install: Install) -> None:
    ours = list(STRATEGIES)
    install(bubble=f"{__name__}:Bubble", aside="no.such.module:Aside")
    assert list(STRATEGIES) == [*ours, "aside", "bubble"]
    assert len(STRATEGIES) == len(ours) + 2
    assert STRATEGIES["bubble"] is Bubble  # one that does not load is in nobody's way
    assert "aside" in STRATEGIES


@pytest.mark.parametrize(
    ("offered", "asked", "told"),
    [
        ({"aside": "no.such.module:Aside"}, "aside", "strategy 'aside' of my-bubble (no.such.module:Aside) cannot be"),
        ({"aside": "rerank.strategies:Aside"}, "aside", "cannot be loaded: module 'rerank.strategies' has no attr"),
        ({"aside": "rerank.types:Query"}, "aside", "is no strategy: it has no rank and no calls"),
        ({"setwise": "rerank.types:Query"}, "aside", "'setwise' of my-bubble has a name that rerank itself has too"),
    ],
)
def test_what_cannot_be_used_says_whose_it_is(install: Install, offered: dict[str, str], asked: str, told: str) -> None:
    install(**offered)
    with pytest.raises(InputError) as caught:
        load_strategy(asked)
    assert told in str(caught.value)
    assert isinstance(load_strategy("setwise"), Setwise)


def test_a_name_that_two_packages_offer_is_refused(install: Install) -> None:
    install("one", bubble=f"{__name__}:Bubble")
    install("two", bubble=f"{__name__}:Bubble")
    with pytest.raises(InputError, match=r"'bubble' of (one|two) has a name that (one|two) has too; uninstall one"):
        load_strategy("bubble")
    with pytest.raises(InputError, match="has a name that"):
        list(STRATEGIES)


def test_without_it_the_name_is_unknown() -> None:
    with pytest.raises(UnknownNameError, match="unknown strategy 'bubble'"):
        load_strategy("bubble")


def test_an_edited_strategy_is_another_for_what_is_kept(install: Install, edited: Callable[[str], str]) -> None:
    """A suite asks anew, whatever file of the package the edit was in."""
    install("my-written", written="my_written.strategy:Written")
    first = edited("A = 1\n")
    assert first == edited("A = 1\n") != edited("A = 2\n")
