"""`rerank ls strategies`: costs that are measured, sources that stand in one place, and the details of one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Cli, assert_error

from rerank.cli.ls_strategies import formula_of, measured, randomness, source_of
from rerank.prompts import load_prompt
from rerank.strategies import STRATEGIES, load_strategy, options_of
from rerank.types import Passage, Query

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_prompt_tokens_are_those_of_the_prompts() -> None:
    """In words: n passages of 100, and what stands around them, which does not depend on n."""
    assert measured(load_strategy("pointwise"), 100)[0] == 5 * measured(load_strategy("pointwise"), 20)[0]
    once = measured(load_strategy("first"), 20)[0]
    assert measured(load_strategy("first"), 100)[0] == 9 * once
    label = len("[T]")  # what is filled into a prompt is words of its own
    assert once - measured(load_strategy("first"), 19)[0] == 100 + label
    prompt = load_prompt("pointwise-yes-no")
    call = prompt.ask(Query("what is asked here in eight words or so"), [Passage("", "d0")])
    around = sum(len(span.text.split()) for message in call.dialogue.messages for span in message.spans)
    assert measured(load_strategy("pointwise"), 20)[0] == 20 * (around + 100)


@pytest.mark.parametrize("name", STRATEGIES)
def test_fewer_calls_are_measured_than_the_bound(name: str) -> None:
    for n in (1, 20):
        made = load_strategy(name)
        assert len(measured(made, n)[1]) <= made.calls(n)


def ceil(above: int, below: int) -> int:
    return -(-above // below)


SLID = "passes shuffles (1 + ceil(max(0, n - window) / step))"
HEAP = "heapsort votes (n/(c-1) + k (log_c(n) + 1)) at most"
# a strategy, its options, what its formula says, and that as a function of n; the last of two tells of a bound
FORMULAS: list[tuple[str, dict[str, object], str, Callable[[int], float]]] = [
    ("pointwise", {}, "n", lambda n: n),
    ("pairwise", {"algorithm": "allpair"}, "allpair n(n-1)", lambda n: n * (n - 1)),
    ("pairwise", {"algorithm": "sliding", "k": 3}, "sliding 2 sum(n-t, t=1..k)",
     lambda n: 2 * sum(n - t for t in range(1, min(3, n) + 1))),
    ("pairwise", {"k": 7}, "heapsort 4n + 4(k-1) log2(n) at most", lambda n: 4 * n + 4 * 6 * math.log2(n)),
    ("setwise", {"children": 4, "votes": 3}, HEAP, lambda n: 3 * (n / 3 + 10 * (math.log(n, 4) + 1))),
    ("setwise", {"algorithm": "bubblesort", "children": 4, "k": 3}, "bubblesort votes sum(ceil((n-t)/c), t=1..k)",
     lambda n: sum(ceil(n - t, 4) for t in range(1, min(3, n) + 1))),
    ("rank-r1", {}, HEAP, lambda n: n / 18 + 10 * (math.log(n, 19) + 1)),
    ("listwise", {"window": 7, "step": 3, "passes": 2}, SLID, lambda n: 2 * (1 + ceil(max(0, n - 7), 3))),
    ("first", {"window": 7, "step": 3, "shuffles": 4}, SLID, lambda n: 4 * (1 + ceil(max(0, n - 7), 3))),
    ("full-ranking", {}, SLID, lambda n: 1 + ceil(max(0, n - 100), 50)),
    ("elimination", {"drop": 3}, "ceil((n-1) / drop)", lambda n: ceil(n - 1, 3)),
    ("groupwise", {"group": 7, "shuffles": 3}, "shuffles ceil(n / group)", lambda n: 3 * ceil(n, 7)),
    ("groupwise", {"prompt": "groupwise-expected", "shuffles": 3}, "shuffles n where a prompt scores one passage",
     lambda n: 3 * n),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "words", "value"), FORMULAS, ids=[f"{n}-{o}" for n, o, _, _ in FORMULAS])
def test_the_formula_is_what_the_calls_are(
    name: str, options: dict[str, object], words: str, value: Callable[[int], float], cli: Cli
) -> None:
    assert words in formula_of(STRATEGIES[name])
    made = load_strategy(name, **options)  # type: ignore[arg-type]
    for n in range(2, 121):
        assert made.calls(n) <= value(n) if "at most" in words else made.calls(n) == value(n), n
    assert words in cli("ls", "strategies", name).out


def test_every_strategy_has_a_formula(cli: Cli) -> None:
    """The tournament's stages are a table of the paper, so its sum is not written again here."""
    assert {name for name, *_ in FORMULAS} | {"tournament"} == set(STRATEGIES)
    out = cli("ls", "strategies").out
    assert all(formula_of(make) in out for make in STRATEGIES.values())


def test_what_is_drawn_at_random_is_said() -> None:
    found = {name: randomness(name) for name in STRATEGIES}
    assert found["pointwise"] == found["pairwise"] == found["elimination"] == "no"
    assert found["tournament"] == found["groupwise"] == "seeded"
    assert found["setwise"] == found["listwise"] == found["first"] == found["full-ranking"] == "(seeded)"


@pytest.mark.parametrize("name", STRATEGIES)
def test_with_one_seed_a_strategy_asks_the_same_again(name: str) -> None:
    again = [[dialogue.messages for dialogue in measured(load_strategy(name), 12)[1]] for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_readme_has_the_source_that_the_class_has(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \|.*\|$", README, flags=re.MULTILINE)
    assert row.split(" | ")[-1].rstrip(" |") == source_of(STRATEGIES[name])


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_details_say_what_every_option_means(name: str, cli: Cli) -> None:
    status, out, err = cli("ls", "strategies", name)
    assert (status, err) == (0, "")
    head, _, told = out.partition("option ")
    assert out.startswith(name)
    assert source_of(STRATEGIES[name]) in head
    assert re.search(rf"^100 +at most {STRATEGIES[name]().calls(100):,} ", head, flags=re.MULTILINE)
    table, _, meanings = told.partition("\n\n")
    for option in options_of(STRATEGIES[name]):
        assert re.search(rf"^{option} ", table, flags=re.MULTILINE)
        assert re.search(rf"`{option}\b", meanings), f"{name}: the docstring of its class does not say what {option} is"


def test_the_table_is_readable_in_a_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """120 columns wide no name, number or option is broken in two."""
    monkeypatch.setenv("COLUMNS", "120")
    out = cli("ls", "strategies").out
    assert max(map(len, out.splitlines())) <= 120
    for name, make in STRATEGIES.items():
        made = make()
        assert re.search(rf"^{name} +{made.prompt.needs} +{made.calls(20):,}, {made.calls(100):,} ", out, re.MULTILINE)
        assert all(f"{option}={getattr(made, option)}" in out for option in options_of(make))


def test_what_is_not_there_is_said(cli: Cli) -> None:
    assert_error(cli("ls", "strategies", "frist"), "unknown strategy 'frist'; did you mean 'first'?")
    assert_error(cli("ls", "prompts", "setwise"), "of prompts there is no more to show of one; leave 'setwise' out")
