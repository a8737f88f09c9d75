"""Strategies whose model thinks before it answers: Rank-R1 and ReasonRank against an oracle, noise, and nonsense."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import best_first, given_order, shown, shuffled, with_top

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.calls import Call, GenerateCall
from rerank.errors import CapabilityError, InputError, PromptError
from rerank.prompts import load_prompt
from rerank.strategies import load_strategy
from rerank.types import Outcomes, Ranking

BEST, ORDER = load_prompt("setwise-reasoning"), load_prompt("listwise-reasoning")  # read once
Script = Callable[[Call], str]


def ranked(n: int, script: Script, strategy: str = "rank-r1", **options: object) -> Ranking:
    prompt = BEST if strategy in ("rank-r1", "setwise", "pairwise") else ORDER
    ranker = rerank.load(strategy, backbone=ScriptedBackbone(script), **{"prompt": prompt, **options})
    (ranking,) = ranker.rank_many([shuffled(n)[0]])
    return ranking


def calls(n: int, **options: object) -> int:
    return load_strategy("rank-r1", prompt=BEST, **options).calls(n)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 60),
    children=st.integers(1, 30),
    k=st.integers(1, 25),
    votes=st.integers(1, 2),
    algorithm=st.sampled_from(["heapsort", "bubblesort"]),
)
def test_an_oracle_gives_the_exact_top(n: int, children: int, k: int, votes: int, algorithm: str) -> None:
    relevance = shuffled(n)[1]
    options = {"children": children, "k": k, "votes": votes, "algorithm": algorithm}
    ranking = ranked(n, oracle(relevance), **options)  # type: ignore[arg-type]
    assert ranking.doc_ids[:k] == best_first(relevance)[:k]
    assert ranking.usage.calls <= calls(n, **options)
    assert ranking.outcomes == Outcomes(clean=ranking.usage.calls)
    assert len(ranking.reasoning) == ranking.usage.calls


def test_the_paper_shows_twenty_and_orders_ten() -> None:
    sizes, relevance = list[int](), shuffled(100)[1]
    judge = oracle(relevance)

    def script(call: Call) -> str:
        sizes.append(len(shown(call)))
        return str(judge(call))

    ranking = ranked(100, script)
    assert ranking.doc_ids == with_top(relevance, 10)
    assert max(sizes) == 20
    # the root and its 5 inner children build the heap; each of 9 removals sifts through at most two levels
    assert len(sizes) == ranking.usage.calls <= calls(100) == 6 + 1 + 2 * 9
    assert ranked(100, oracle(relevance), "setwise", children=19).doc_ids == ranking.doc_ids  # type: ignore[arg-type]


def test_votes_outweigh_a_model_that_errs_now_and_then() -> None:
    """One answer in ten names any of the passages."""
    relevance, noise = shuffled(40)[1], random.Random(0)

    def script(call: Call) -> str:
        best = max(range(len(shown(call))), key=lambda i: relevance[shown(call)[i]])
        named = noise.randrange(len(shown(call))) if noise.random() < 0.1 else best
        return f"<think>perhaps [1]</think> <answer>[{named + 1}]</answer>"

    assert ranked(40, script, votes=9).doc_ids == with_top(relevance, 10)
    assert ranked(40, script).doc_ids != with_top(relevance, 10)


@pytest.mark.parametrize("strategy", ["rank-r1", "listwise"])
@pytest.mark.parametrize(
    "answer",
    ["", "I cannot say.", "error [503]", "<think>[2] > [1], [2]", "<think>[2]</think>", "<answer>[99]", "[2] > [1]"],
)
def test_answers_that_cannot_be_read_keep_the_given_order_and_say_so(strategy: str, answer: str) -> None:
    ranking = ranked(50, lambda _: answer, strategy)
    assert ranking.doc_ids == given_order(50)
    assert ranking.outcomes == Outcomes(failed=ranking.usage.calls)
    assert ranking.usage.calls > 1


def test_one_thought_that_was_cut_costs_its_own_call_only() -> None:
    """The last window's answer is lost: it keeps the order that the windows before it gave."""
    relevance, count = shuffled(30)[1], iter(range(9))
    judge = oracle(relevance)

    def script(call: Call) -> str:
        return "<think>[1] > [2], no, [2] > [1]" if next(count) == 1 else str(judge(call))

    ranking = ranked(30, script, "listwise")
    given, tail = given_order(30)[:10], given_order(30)[10:]
    assert ranking.doc_ids == given + sorted(tail, key=lambda doc_id: -relevance[doc_id])
    assert ranking.outcomes == Outcomes(clean=1, failed=1)
    assert ranking.reasoning[1] == f"[{given[0]}] > [{given[1]}], no, [{given[1]}] > [{given[0]}]"


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 60),
    strategy=st.sampled_from(
        ["rank-r1", "setwise", "pairwise", "listwise", "full-ranking", "elimination", "tournament"]
    ),
    seed=st.integers(0, 10**6),
)
def test_whatever_is_written_every_passage_is_kept_once(n: int, strategy: str, seed: int) -> None:
    noise = random.Random(seed)

    def script(call: Call) -> str:
        order = noise.sample(range(1, len(shown(call)) + 1), len(shown(call)))
        whole = " > ".join(f"[{i}]" for i in order)
        good = f"<think>first [1]</think> <answer>{noise.choice([whole, f'[{order[0]}]'])}</answer>"
        return noise.choice([good, good, good[: noise.randrange(len(good))], "", "sorry [1]", "<answer>[0]</answer>"])

    ranking = ranked(n, script, strategy)
    assert sorted(ranking.doc_ids) == sorted(given_order(n))
    assert ranking.outcomes.clean + ranking.outcomes.repaired + ranking.outcomes.failed == ranking.usage.calls


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("setwise", {"votes": 3}),
        ("pairwise", {"algorithm": "allpair"}),
        ("pairwise", {"k": 3}),
        ("listwise", {"window": 6, "step": 3}),
        ("listwise", {"shuffles": 3, "merge": "kemeny"}),
        ("full-ranking", {}),
        ("elimination", {}),
        ("tournament", {"group": 4}),
    ],
)
def test_every_strategy_reads_thoughts_and_gives_them_back(strategy: str, options: dict[str, object]) -> None:
    """One for each call, with the passages' own ids."""
    relevance, best = shuffled(12)[1], list[str]()
    judge = oracle(relevance)

    def script(call: Call) -> str:
        best.append(max(shown(call), key=relevance.__getitem__))
        return str(judge(call))

    ranking = ranked(12, script, strategy, **options)
    assert best_first(relevance)[0] in ranking.doc_ids[:2]  # the last two of a tournament have equal points
    assert sorted(ranking.reasoning) == sorted(f"[{doc_id}] is the best" for doc_id in best)
    assert ranking.outcomes == Outcomes(clean=ranking.usage.calls)


@pytest.mark.parametrize(("strategy", "prompt"), [("rank-r1", BEST), ("listwise", ORDER), ("groupwise", None)])
def test_a_thought_has_the_budget_that_is_given(strategy: str, prompt: object) -> None:
    bounds: list[int] = []

    def script(call: Call) -> str:
        assert isinstance(call, GenerateCall)
        bounds.append(call.max_tokens)
        return "no"

    given = {} if prompt is None else {"prompt": prompt}
    for options in ({}, {"reason_tokens": "64"}):  # as the command line has it
        ranker = rerank.load(strategy, backbone=ScriptedBackbone(script), **given, **options)  # type: ignore[arg-type]
        ranker.rank("q", ["a", "b"])
    own = load_strategy(strategy, **given).prompt  # type: ignore[arg-type]
    assert own.reasons
    assert bounds[0] - bounds[1] == own.answer.reason_tokens - 64  # type: ignore[union-attr]
    assert load_strategy(strategy, reason_tokens=64, **given).prompt.identity != own.identity  # type: ignore[arg-type]


def test_a_backbone_that_cannot_write_is_refused() -> None:
    with pytest.raises(CapabilityError, match="'setwise-reasoning' needs a backbone that answers generate calls"):
        rerank.load("rank-r1", backbone=ScriptedBackbone(lambda _: "", kinds=frozenset()))


@pytest.mark.parametrize("strategy", ["listwise", "full-ranking", "elimination", "tournament"])
def test_strategies_that_need_an_order_refuse_a_prompt_that_names_the_best(strategy: str) -> None:
    with pytest.raises(
        PromptError, match=r"the best one only, and .* needs their order; prompts that fit: .*listwise-"
    ):
        load_strategy(strategy, prompt=BEST)
    with pytest.raises(PromptError, match=r"the best one only, and .* needs a score each"):
        load_strategy("groupwise", prompt=BEST)


@pytest.mark.parametrize(
    ("strategy", "options", "error", "words"),
    [
        ("rank-r1", {"prompt": "setwise"}, PromptError, "give the prompt to strategy 'setwise', or 'rank-r1'"),
        ("rank-r1", {"prompt": "groupwise"}, PromptError, "a score each, and strategy 'setwise' needs their order"),
        ("rank-r1", {"children": 0}, InputError, "children is 0"),
        ("rank-r1", {"reason_tokens": 0}, PromptError, "reason_tokens is 0; give at least 1, or None"),
        (
            "setwise",
            {"reason_tokens": 9},
            PromptError,
            "'setwise' has no thought written; prompts that have: groupwise, ",
        ),
        ("listwise", {"reason_tokens": 9}, PromptError, "listwise-reasoning, setwise-reasoning"),
        ("first", {"reason_tokens": 9}, PromptError, "'first-identifier' has no thought written"),
        ("groupwise", {"reason_tokens": 9, "prompt": "groupwise-plain"}, PromptError, "has no thought written"),
    ],
)
def test_wrong_options_are_refused(
    strategy: str, options: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        load_strategy(strategy, **options)  # type: ignore[arg-type]
    assert words in str(caught.value)
