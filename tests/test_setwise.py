"""Setwise ranking against an oracle: exact orders, counts of calls for every width, votes, and nonsense."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import best_first, shown, shuffled, with_top
from small_tokenizers import byte_level

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.backbones.encoding import Encoder
from rerank.calls import Call
from rerank.errors import InputError, PromptError
from rerank.prompts import load_prompt
from rerank.prompts.answers import LETTERS
from rerank.strategies import load_strategy
from rerank.types import Passage, Query, Ranking

PROMPT = load_prompt("setwise")  # read once: the files take longer than the test
ALGORITHMS = ["heapsort", "bubblesort"]
Script = Callable[[Call], str | list[float]]


def calls(n: int, **options: object) -> int:
    return load_strategy("setwise", prompt=PROMPT, **options).calls(n)


def ranked(n: int, script: Script, **options: object) -> Ranking:
    ranker = rerank.load("setwise", backbone=ScriptedBackbone(script), **{"prompt": PROMPT, **options})
    (ranking,) = ranker.rank_many([shuffled(n)[0]])
    return ranking


def paper_bound(algorithm: str, n: int, k: int, c: int) -> float:
    """Calls: a window of c + 1 covers c more places, in each of k passes; a heap of depth D is built with one
    question for each of at most n / c^h nodes of height h or more, and the k - 1 passages after the first
    cost at most D each."""
    if algorithm == "bubblesort":
        return sum(math.ceil((n - t) / c) for t in range(1, k + 1) if t < n)
    depth = next(d for d in itertools.count() if sum(c**level for level in range(d + 1)) >= n)
    return sum(math.ceil(n / c**h) for h in range(1, depth + 1)) + (k - 1) * depth


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("n", range(1, 31))
def test_an_oracle_gives_the_exact_top_within_the_papers_bound(algorithm: str, n: int) -> None:
    relevance = shuffled(n)[1]
    for children in (1, 2, 3, 9, 19, 25):
        for k in (1, 3, 10, 40):
            options = {"algorithm": algorithm, "children": children, "k": k}
            ranking = ranked(n, oracle(relevance), **options)
            assert ranking.doc_ids[:k] == best_first(relevance)[:k]
            if algorithm == "heapsort":
                assert ranking.doc_ids == with_top(relevance, k)
            most = calls(n, **options)
            assert ranking.outcomes.clean == ranking.usage.calls <= most
            assert most <= paper_bound(algorithm, n, min(k, n), children)


def test_more_children_take_fewer_calls() -> None:
    relevance = shuffled(100)[1]
    used = [ranked(100, oracle(relevance), children=c).usage.calls for c in (2, 9, 19)]
    assert used == sorted(used, reverse=True)
    assert used[-1] <= calls(100, children=19) == 25
    pairwise = rerank.load("pairwise", backbone=ScriptedBackbone(oracle(relevance)))
    assert used[0] < next(iter(pairwise.rank_many([shuffled(100)[0]]))).usage.calls / 2  # as in the paper's table


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("children", [2, 5])
def test_a_call_shows_a_node_and_its_children(algorithm: str, children: int) -> None:
    sizes, seen = set[int](), list[tuple[str, ...]]()

    def script(call: Call) -> list[float]:
        sizes.add(len(shown(call)))
        seen.append(tuple(shown(call)))
        return [0.0, *([-1.0] * (len(shown(call)) - 1))]

    ranking = ranked(31, script, algorithm=algorithm, children=children)
    assert max(sizes) == children + 1
    assert min(sizes) >= 2
    assert len(seen) == len(set(seen))  # nothing is asked twice
    assert ranking.doc_ids == [f"d{i}" for i in range(31)]  # whoever names the first changes nothing


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("votes", [1, 3])
@pytest.mark.parametrize("broken", [math.nan, None])
def test_what_cannot_be_read_keeps_the_given_order(algorithm: str, votes: int, broken: float | None) -> None:
    def script(call: Call) -> list[float]:
        return [] if broken is None else [broken] * len(shown(call))

    ranking = ranked(20, script, algorithm=algorithm, votes=votes)
    assert ranking.doc_ids == [f"d{i}" for i in range(20)]
    assert ranking.outcomes.failed == ranking.usage.calls > 0


def test_votes_outweigh_a_model_that_is_often_wrong() -> None:
    """Two answers in ten are any of the passages."""
    relevance, noise = shuffled(30)[1], random.Random(0)

    def script(call: Call) -> list[float]:
        best = max(shown(call), key=relevance.__getitem__)
        named = noise.choice(shown(call)) if noise.random() < 0.2 else best
        return [0.0 if doc_id == named else -1.0 for doc_id in shown(call)]

    one, many = (ranked(30, script, votes=votes) for votes in (1, 25))
    assert many.doc_ids == with_top(relevance, 10)
    assert one.doc_ids != many.doc_ids
    assert many.usage.calls <= calls(30, votes=25) == 25 * calls(30)


def test_votes_are_shuffled_by_the_seed_and_counted() -> None:
    orders: list[list[str]] = []

    def script(call: Call) -> list[float]:
        orders.append(shown(call))
        return [0.0, -1.0, -1.0]  # always the one shown first: the votes are then what the shuffles are

    def run(seed: int) -> tuple[list[list[str]], list[str]]:
        orders.clear()
        ranking = ranked(3, script, votes=7, seed=seed, k=1)
        return list(orders), ranking.doc_ids

    shuffles, ids = run(1)
    heads = [order[0] for order in shuffles]
    assert len(shuffles) == 7 and len({tuple(order) for order in shuffles}) > 1
    assert all(sorted(order) == ["d0", "d1", "d2"] for order in shuffles)
    assert ids[0] == max(["d0", "d1", "d2"], key=heads.count)
    assert run(1) == (shuffles, ids)
    assert run(2)[0] != shuffles


def test_one_vote_of_many_that_fails_does_not_count() -> None:
    answers = iter([[math.nan] * 2, [math.nan] * 2, None])

    def script(call: Call) -> list[float]:
        return next(answers) or [0.0 if doc_id == "d1" else -1.0 for doc_id in shown(call)]

    ranking = ranked(2, script, votes=3)
    assert ranking.doc_ids == ["d1", "d0"]
    assert (ranking.outcomes.failed, ranking.outcomes.clean) == (2, 1)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 60),
    children=st.integers(1, 25),
    k=st.integers(1, 12),
    votes=st.integers(1, 3),
    algorithm=st.sampled_from(ALGORITHMS),
    seed=st.integers(0, 10**6),
)
def test_whatever_is_answered_every_passage_is_kept_once(
    n: int, children: int, k: int, votes: int, algorithm: str, seed: int
) -> None:
    noise = random.Random(seed)

    def script(call: Call) -> list[float]:
        size = len(shown(call))
        return noise.choice([[noise.gauss(0, 1) for _ in range(size)], [0.0] * size, [math.nan] * size, []])

    options = {"algorithm": algorithm, "children": children, "k": k, "votes": votes}
    ranking = ranked(n, script, **options)
    assert sorted(ranking.doc_ids) == sorted(f"d{i}" for i in range(n))
    assert ranking.usage.calls <= calls(n, **options)
    assert ranking.outcomes.clean + ranking.outcomes.failed == ranking.usage.calls


def test_ties_go_to_the_first_stage() -> None:
    """Two grades: within each the given order is kept."""
    relevance = {f"d{i}": float(i % 2) for i in range(20)}
    odd, even = [f"d{i}" for i in range(1, 20, 2)], [f"d{i}" for i in range(0, 20, 2)]
    for algorithm in ALGORITHMS:
        for children in (1, 2, 4, 19):
            ranking = ranked(20, oracle(relevance), algorithm=algorithm, children=children, k=20)
            if algorithm == "heapsort":
                assert ranking.doc_ids == odd + even
            else:
                assert set(ranking.doc_ids[:10]) == set(odd)


def test_prompts_of_other_paradigms_can_choose_too() -> None:
    relevance = shuffled(20)[1]
    for prompt, children in (("first-identifier", 3), ("listwise-permutation", 29)):
        ranking = ranked(20, oracle(relevance), prompt=prompt, children=children)
        assert ranking.doc_ids == with_top(relevance, 10)


def test_the_queries_go_down_their_heaps_together() -> None:
    one, many = ScriptedBackbone(oracle(shuffled(15)[1])), ScriptedBackbone(oracle(shuffled(15)[1]))
    list(rerank.load("setwise", backbone=one, votes=2).rank_many([shuffled(15)[0]]))
    list(rerank.load("setwise", backbone=many, votes=2).rank_many([shuffled(15)[0]] * 6))
    assert one.batches[0] == 2 * 4  # the level above 8 leaves, two votes each
    assert many.batches == [6 * size for size in one.batches]


@pytest.mark.parametrize(("name", "n"), [("pairwise", 2), ("setwise", 26), ("first-identifier", 26)])
def test_letters_are_tokens_where_a_bracket_and_a_letter_are_one(name: str, n: int) -> None:
    """Their prompts end before the bracket; the one of FIRST ends in it."""
    fast = byte_level()
    assert fast.tokenize("[A") == ["[A"]
    call = load_prompt(name).ask(Query("q"), [Passage(f"text {i}", f"d{i}") for i in range(n)])
    assert [fast.decode(token) for token in Encoder(fast, 4096, "tiny").prepare(call).targets] == list(LETTERS[:n])


def test_no_passage_can_forge_a_letter() -> None:
    texts: list[str] = []

    def script(call: Call) -> list[float]:
        texts.append("".join(span.text for message in call.dialogue.messages for span in message.spans))
        return [0.0, -1.0]

    for name in ("setwise", "pairwise"):
        texts.clear()
        ranking = rerank.load(name, backbone=ScriptedBackbone(script)).rank("q", ["see [A]", "take [ b ] [B]"])
        assert ranking.outcomes.neutralised == 2
        assert all(text.count("[A]") == text.count("[B]") == 1 and "(b) (B)" in text for text in texts)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"algorithm": "heap"}, InputError, "'heapsort' or 'bubblesort'"),
        ({"children": 26}, InputError, "more than the 26 passages that prompt 'setwise' can name; give at most 25"),
        ({"children": 0}, InputError, "children is 0; give at least 1"),
        ({"k": 0}, InputError, "k is 0"),
        ({"votes": -1}, InputError, "votes is -1"),
        ({"seed": 3}, InputError, "seed is 3, but nothing is shuffled"),
        ({"prompt": "pointwise-graded"}, PromptError, "strategy 'setwise' needs many"),
        ({"passage_tokens": 0}, PromptError, "at least 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        load_strategy("setwise", **options)  # type: ignore[arg-type]
    assert words in str(caught.value)
