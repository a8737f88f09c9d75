"""Full ranking: one call for all, only the best where only they are asked for, and what was not asked is no repair."""

from __future__ import annotations

import pytest
from judged import best_first, shuffled, with_top

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.calls import Call, GenerateCall, Regex
from rerank.errors import InputError, PromptError
from rerank.prompts import load_prompt
from rerank.strategies import load_strategy
from rerank.types import Outcomes, Passage, Query


@pytest.mark.parametrize("n", [2, 20, 99, 100])
def test_an_oracle_orders_all_in_one_call(n: int) -> None:
    candidates, relevance = shuffled(n)
    (ranking,) = rerank.load("full-ranking", backbone=ScriptedBackbone(oracle(relevance))).rank_many([candidates])
    assert ranking.doc_ids == best_first(relevance)
    assert ranking.usage.calls == load_strategy("full-ranking").calls(n) == 1
    assert ranking.outcomes == Outcomes(clean=1)


@pytest.mark.parametrize("n", [2, 26, 40])
def test_by_logits_nothing_is_written(n: int) -> None:
    """A letter is a token, so one call reads the order of 26; more take windows."""
    candidates, relevance = shuffled(n)
    options = {"prompt": "first-identifier", "window": 26, "step": 13}
    (ranking,) = rerank.load("full-ranking", backbone=ScriptedBackbone(oracle(relevance)), **options).rank_many(
        [candidates]
    )
    assert ranking.doc_ids[:13] == best_first(relevance)[:13]
    assert (ranking.doc_ids == best_first(relevance)) or n == 40
    assert (ranking.usage.calls, ranking.usage.generated_tokens) == (1 if n <= 26 else 3, 0)
    with pytest.raises(InputError, match="can name 26 passages"):
        rerank.load("full-ranking", prompt="first-identifier", backbone=ScriptedBackbone(oracle(relevance)))


def test_one_passage_is_not_asked_about() -> None:
    ranker = rerank.load("full-ranking", backbone=ScriptedBackbone(oracle({})))
    assert ranker.rank("q", ["alone"]).usage.calls == load_strategy("full-ranking").calls(1) == 0


def test_more_than_a_hundred_take_a_second_window() -> None:
    candidates, relevance = shuffled(130)
    (ranking,) = rerank.load("full-ranking", backbone=ScriptedBackbone(oracle(relevance))).rank_many([candidates])
    assert ranking.doc_ids[:50] == best_first(relevance)[:50]  # as many as the two windows share
    assert ranking.usage.calls == load_strategy("full-ranking").calls(130) == 2


def test_the_queries_share_their_batch() -> None:
    candidates, relevance = shuffled(100)
    backbone = ScriptedBackbone(oracle(relevance))
    list(rerank.load("full-ranking", backbone=backbone).rank_many([candidates] * 12))
    assert backbone.batches == [12]


def writing(relevance: dict[str, float], count: int, *, asked: list[Call] | None = None) -> ScriptedBackbone:
    """A perfect model that writes `count` identifiers and stops."""

    def script(call: Call) -> str:
        if asked is not None:
            asked.append(call)
        values = [relevance[passage.doc_id] for passage in call.dialogue.passages]
        best = sorted(range(len(values)), key=lambda i: -values[i])[:count]
        return " > ".join(f"[{i + 1}]" for i in best)

    return ScriptedBackbone(script)


@pytest.mark.parametrize(
    ("written", "outcomes"),
    [
        (10, Outcomes(clean=1)),
        (14, Outcomes(clean=1)),  # more than asked for is taken too
        (7, Outcomes(repaired=1, missing=3)),
        (0, Outcomes(failed=1)),
    ],
)
def test_what_was_not_asked_for_is_not_missing(written: int, outcomes: Outcomes) -> None:
    candidates, relevance = shuffled(60)
    (ranking,) = rerank.load("full-ranking", top=10, backbone=writing(relevance, written)).rank_many([candidates])
    assert ranking.doc_ids == with_top(relevance, written)
    assert ranking.outcomes == outcomes


def test_without_a_top_all_are_asked_for() -> None:
    candidates, relevance = shuffled(60)
    (ranking,) = rerank.load("full-ranking", backbone=writing(relevance, 10)).rank_many([candidates])
    assert ranking.doc_ids == with_top(relevance, 10)
    assert ranking.outcomes == Outcomes(repaired=1, missing=50)


@pytest.mark.parametrize(("top", "wanted"), [(None, 60), (10, 10), (80, 60)])
def test_a_call_asks_and_leaves_room_for_what_is_wanted(top: int | None, wanted: int) -> None:
    asked: list[Call] = []
    candidates, relevance = shuffled(60)
    list(rerank.load("full-ranking", top=top, backbone=writing(relevance, 60, asked=asked)).rank_many([candidates]))
    (call,) = asked
    assert isinstance(call, GenerateCall)
    text = "".join(span.text for message in call.dialogue.messages for span in message.spans)
    assert "[60] text 59\n" in text
    assert f"the best {wanted}, each once" in text
    assert call.max_tokens == 6 * wanted
    assert call.dialogue.passage_tokens == 100  # the paper's


def test_passages_of_a_window_reach_the_top_though_few_are_written() -> None:
    candidates, relevance = shuffled(130)
    (ranking,) = rerank.load("full-ranking", top=10, backbone=writing(relevance, 10)).rank_many([candidates])
    assert ranking.doc_ids[:10] == best_first(relevance)[:10]
    assert ranking.outcomes == Outcomes(clean=2)


@pytest.mark.parametrize("answer", ["I would say the first", "error [503]", "1, 2, 3"])
def test_an_answer_that_is_no_ranking_keeps_the_order(answer: str) -> None:
    candidates, _ = shuffled(30)
    for top in (None, 3):
        ranker = rerank.load("full-ranking", top=top, backbone=ScriptedBackbone(lambda _: answer))
        (ranking,) = ranker.rank_many([candidates])
        assert ranking.doc_ids == [f"d{i}" for i in range(30)]
        assert ranking.outcomes == Outcomes(failed=1)


def test_a_constrained_prompt_is_held_to_the_top() -> None:
    prompt = load_prompt("full-ranking")
    held = prompt.model_copy(update={"answer": prompt.answer.model_copy(update={"constrained": True})})
    call = held.ask(Query("q"), [Passage(text, text) for text in "abc"], top=2)
    assert isinstance(call, GenerateCall)
    assert call.constraint == Regex(r"\[(1|2|3)\]( > \[(1|2|3)\]){1}")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"top": 0}, InputError, "top is 0; give at least 1"),
        ({"top": 3, "prompt": "listwise-permutation"}, PromptError, "for a top it must say {top}"),
        ({"prompt": "first-identifier"}, InputError, "can name 26 passages"),
        ({"step": 101}, InputError, "1 <= step <= window"),
        ({"prompt": "pointwise-yes-no"}, PromptError, "full-ranking"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        load_strategy("full-ranking", **options)  # type: ignore[arg-type]
    assert words in str(caught.value)
