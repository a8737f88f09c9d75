"""Every strategy against an oracle: the exact order, within its count of calls, whatever is answered."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import shuffled

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.errors import InputError, PromptError, UnknownNameError
from rerank.strategies import STRATEGIES, load_strategy
from rerank.strategies.listwise import windows

VARIANTS = [
    ("pointwise", "pointwise-yes-no"),
    ("pointwise", "pointwise-graded"),
    ("pointwise", "pointwise-query-likelihood"),
    ("listwise", "listwise-permutation"),
    ("listwise", "listwise-reasoning"),
    ("first", "first-identifier"),
    ("full-ranking", "full-ranking"),
    ("elimination", "elimination"),
    ("elimination", "elimination-permutation"),
    ("groupwise", "groupwise"),
    ("groupwise", "groupwise-plain"),
    ("groupwise", "groupwise-plain-constrained"),
    ("groupwise", "groupwise-expected"),
]


@pytest.mark.parametrize(("name", "prompt"), VARIANTS)
@pytest.mark.parametrize("n", [1, 2, 19, 20])
def test_an_oracle_gives_the_exact_order(name: str, prompt: str, n: int) -> None:
    candidates, relevance = shuffled(n)
    ranker = rerank.load(name, prompt=prompt, backbone=ScriptedBackbone(oracle(relevance)))
    (ranking,) = ranker.rank_many([candidates])
    assert ranking.doc_ids == sorted(relevance, key=lambda doc_id: -relevance[doc_id])
    assert [hit.rank for hit in ranking] == list(range(1, n + 1))
    assert [hit.score for hit in ranking] == sorted((hit.score for hit in ranking), reverse=True)
    assert ranking.usage.calls == ranker.strategy.calls(n)


@pytest.mark.parametrize("name", ["listwise", "first"])
def test_windows_bring_the_best_to_the_head(name: str) -> None:
    """One pass of windows is not a sort; but w - s passages are carried on, so the best ten are found."""
    candidates, relevance = shuffled(100)
    ranker = rerank.load(name, backbone=ScriptedBackbone(oracle(relevance)))
    (ranking,) = ranker.rank_many([candidates])
    assert ranking.doc_ids[:10] == sorted(relevance, key=lambda doc_id: -relevance[doc_id])[:10]
    assert ranking.usage.calls == 9  # the paper's count for 100, 20, 10


@given(n=st.integers(1, 60), data=st.data())
def test_windows_cover_every_position_and_the_head_last(n: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 60))
    step = data.draw(st.integers(1, size))
    found = windows(n, size, step)
    assert {i for start, end in found for i in range(start, end)} == set(range(n))
    assert found[-1] == (0, min(size, n))
    assert found[0][1] == n
    assert all(end - start == min(size, n) for start, end in found)
    assert len(found) == 1 + math.ceil(max(0, n - size) / step)


@given(n=st.integers(1, 60), window=st.integers(2, 26), data=st.data())
def test_windows_of_any_size_bring_what_they_carry_to_the_head(n: int, window: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(1, window - 1))
    candidates, relevance = shuffled(n)
    for name in ("listwise", "first"):
        ranker = rerank.load(name, window=window, step=step, backbone=ScriptedBackbone(oracle(relevance)))
        (ranking,) = ranker.rank_many([candidates])
        top = window if n <= window else window - step
        assert ranking.doc_ids[:top] == sorted(relevance, key=lambda doc_id: -relevance[doc_id])[:top]


@given(n=st.integers(1, 60), data=st.data())
def test_any_window_and_step_keep_every_passage_once(n: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 26))
    step = data.draw(st.integers(1, size))
    answers = st.text(alphabet="[]0123456789> ,a", max_size=40)
    ranker = rerank.load("listwise", window=size, step=step, backbone=ScriptedBackbone(lambda _: data.draw(answers)))
    (ranking,) = ranker.rank_many([shuffled(n)[0]])
    assert sorted(ranking.doc_ids) == sorted(f"d{i}" for i in range(n))
    assert ranking.outcomes.clean + ranking.outcomes.repaired + ranking.outcomes.failed == ranking.usage.calls


@pytest.mark.parametrize("name", ["listwise", "full-ranking"])
def test_an_answer_that_is_cut_off_is_read_as_far_as_it_goes(name: str) -> None:
    """Over-long: the engine stops it in the middle of an identifier, after repeats."""
    said = " > ".join(["[3]", *["[1]"] * 500, "[2"])
    ranking = rerank.load(name, backbone=ScriptedBackbone(lambda _: said)).rank("q", ["a", "b", "c"])
    assert ranking.doc_ids == ["2", "0", "1"]
    assert (ranking.outcomes.repaired, ranking.outcomes.duplicate, ranking.outcomes.missing) == (1, 499, 1)


@pytest.mark.parametrize("answer", ["", "I cannot rank these.", "Error code: 429 - rate limit [20] reached", "0 1 2"])
def test_an_answer_that_is_no_ranking_keeps_the_order_and_says_so(answer: str) -> None:
    ranking = rerank.load("listwise", backbone=ScriptedBackbone(lambda _: answer)).rank("q", ["a", "b", "c"])
    assert ranking.doc_ids == ["0", "1", "2"]
    assert ranking.outcomes.failed == 1


@pytest.mark.parametrize("name", ["pointwise", "first"])
def test_numbers_that_are_none_are_an_outcome(name: str) -> None:
    """A model that overflows gives NaN; such a passage goes last and is counted."""

    def script(call: object) -> list[float]:
        labels = call.labels  # type: ignore[attr-defined]
        broken = name == "first" or call.dialogue.passages[0].doc_id == "0"  # type: ignore[attr-defined]
        return [math.nan if broken else 0.0] * len(labels)

    ranking = rerank.load(name, backbone=ScriptedBackbone(script)).rank("q", ["a", "b", "c"])
    assert ranking.doc_ids == (["0", "1", "2"] if name == "first" else ["1", "2", "0"])
    assert ranking.outcomes.failed == 1
    assert all(math.isfinite(hit.score) for hit in ranking)


def test_ties_keep_the_first_stage_order() -> None:
    ranking = rerank.load("pointwise", backbone=ScriptedBackbone(oracle({}))).rank("q", list("abcde"))
    assert ranking.doc_ids == ["0", "1", "2", "3", "4"]


def test_scores_of_the_pointwise_prompts_are_their_formulas() -> None:
    yes, no = math.log(0.7), math.log(0.3)
    ranking = rerank.load("pointwise", backbone=ScriptedBackbone(lambda _: [yes, no])).rank("q", ["a"])
    assert ranking[0].score == pytest.approx(yes - no)
    grades = [0.1, 0.2, 0.3, 0.4]
    backbone = ScriptedBackbone(lambda _: [math.log(p) for p in grades])
    ranking = rerank.load("pointwise", prompt="pointwise-graded", backbone=backbone).rank("q", ["a"])
    assert ranking[0].score == pytest.approx(sum(g * p for g, p in enumerate(grades)))
    backbone = ScriptedBackbone(lambda _: [-1.0, -2.0, -6.0])
    ranking = rerank.load("pointwise", prompt="pointwise-query-likelihood", backbone=backbone).rank("q", ["a"])
    assert ranking[0].score == pytest.approx((-1 - 2 - 6) / 3)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: load_strategy("listwse"), UnknownNameError, "unknown strategy 'listwse'; did you mean 'listwise'?"),
        (lambda: load_strategy("first", windw=3), UnknownNameError, "did you mean 'window'?"),
        (lambda: load_strategy("first", window="many"), InputError, "window='many'"),
        (lambda: load_strategy("first", window=27), InputError, "can name 26 passages"),
        (lambda: load_strategy("listwise", step=21), InputError, "1 <= step <= window"),
        (lambda: load_strategy("listwise", step=0), InputError, "1 <= step <= window"),
        (lambda: load_strategy("pointwise", passage_tokens=0), PromptError, "at least 1"),
        (lambda: load_strategy("pointwise", prompt="first-identifier"), PromptError, "prompts that fit: pointwise-"),
        (lambda: load_strategy("first", prompt="pointwise-graded"), PromptError, "first-identifier"),
        (lambda: load_strategy("first", prompt="first-identifer"), UnknownNameError, "'first-identifier'"),
    ],
)
def test_wrong_options_are_refused_with_advice(make: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)


def test_options_come_as_text_from_the_command_line() -> None:
    assert load_strategy("listwise", window="8", step="4").calls(20) == 4


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_says_what_it_costs(name: str) -> None:
    assert load_strategy(name).calls(1) <= 1
    costs = {"pointwise": 100, "pairwise": 600, "setwise": 151, "listwise": 9, "first": 9, "full-ranking": 1}
    costs |= {"elimination": 99, "tournament": 2 * (5 + 5 + 1 + 1 + 1), "groupwise": 5, "rank-r1": 25}
    assert load_strategy(name).calls(100) == costs[name]


def test_no_strategy_knows_a_model() -> None:
    """Strategies and prompts import neither an engine nor a tokenizer."""
    root = Path(rerank.__file__).parent
    for folder in ("strategies", "prompts"):
        for file in (root / folder).glob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            names |= {node.module or "" for node in froms}
            names |= {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
            bad = {n for n in names if n.split(".")[0] in {"torch", "transformers", "vllm", "tokenizers", "peft"}}
            bad |= {n for n in names if n.startswith("rerank.backbones")}
            assert not bad, file
