"""What the components of all frameworks share: their ranker, when it is loaded, and what is made of a list."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from service import FLEAS, QUERY, WAIT_S, Gate, word_ranker

import rerank
from rerank.calls import Call
from rerank.errors import CapabilityError, InputError
from rerank.integrations.common import Document, RankerArguments, arguments_of

ORDER = [2, 1, 0, 3]  # by the words that they have of QUERY
SMALL = {"prompt": "pointwise-yes-no", "device": "cpu", "dtype": "float32"}


def documents(*texts: str) -> list[Document]:
    return [Document(text) for text in texts or FLEAS]


def indices(found: Any) -> list[int]:
    return [line.index for line in found.lines]


def test_the_order_is_the_rankers() -> None:
    given = RankerArguments(ranker=word_ranker())
    order = given.ordered(QUERY, documents())
    expected = word_ranker().rank(QUERY, FLEAS)
    assert indices(order) == ORDER == [int(name) for name in expected.doc_ids]
    assert [line.score for line in order.lines] == [hit.score for hit in expected]
    assert order.usage.calls == len(FLEAS)
    assert order.notes(order.lines[0]) == {"rerank_outcomes": "4 clean"}
    assert asyncio.run(given.aordered(QUERY, documents())).lines == order.lines


def test_many_queries_are_one_stream() -> None:
    given = RankerArguments(ranker=word_ranker(), on_error="keep")
    asked = [(QUERY, documents()), ("x", []), (" ", documents("a", "b")), ("cat", documents("dog", " ", "cat"))]
    found = list(given.ordered_many(asked))
    assert [indices(order) for order in found] == [ORDER, [], [0, 1], [2, 0, 1]]
    assert [order.error is None for order in found] == [True, True, False, True]


def test_first_stage_scores_reach_the_ranker() -> None:
    """Not those of documents without text, which need have none."""
    given = RankerArguments(ranker=rerank.FirstStage() % 2 >> word_ranker())
    found = given.ordered(
        "cat", [Document("cat", 1.0), Document("dog", 3.0), Document("", None), Document("a cat", 2.0)]
    )
    assert indices(found) == [3, 1, 0, 2]


def test_nothing_with_text_asks_no_model() -> None:
    given = RankerArguments(model="no-such-model")
    assert given.ordered(QUERY, []).lines == ()
    order = given.ordered("", documents("", " \n"))
    assert [(line.index, line.score, line.empty) for line in order.lines] == [(0, None, True), (1, None, True)]
    assert order.notes(order.lines[0]) == {"rerank_outcomes": "empty"}


def test_documents_without_text_come_last_and_equal_ones_stay() -> None:
    given = RankerArguments(ranker=word_ranker())
    order = given.ordered("cat", documents("", "cat", "dog", "\t", "cat"))
    assert indices(order) == [1, 4, 2, 0, 3]
    assert [line.score for line in order.lines] == [1.0, 1.0, 0.0, None, None]


def test_a_query_that_cannot_be_asked() -> None:
    found = [Document("a", 2.0), Document("", 1.0), Document("b", 0.5)]
    with pytest.raises(InputError, match="query 'q' is empty"):
        RankerArguments(ranker=word_ranker()).ordered(" ", found)
    kept = RankerArguments(ranker=word_ranker(), on_error="keep").ordered(" ", found)
    assert [(line.index, line.score) for line in kept.lines] == [(0, 2.0), (2, 0.5), (1, None)]
    assert "query 'q' is empty" in kept.notes(kept.lines[0])["rerank_error"]


def test_a_failed_ranking_keeps_the_given_order(tiny_model: Path) -> None:
    """Of a query that is longer than the context."""
    arguments: dict[str, Any] = {"model": str(tiny_model), **SMALL}
    long = "word " * 2000
    with pytest.raises(rerank.RerankError, match="shorten the query"):
        RankerArguments(**arguments).ordered(long, documents("a", "b"))
    given = RankerArguments(**arguments, on_error="keep")
    for order in (given.ordered(long, documents("a", "b")), asyncio.run(given.aordered(long, documents("a", "b")))):
        assert indices(order) == [0, 1]
        notes = order.notes(order.lines[0])
        assert notes["rerank_outcomes"] == "1 failed"
        assert "shorten the query" in notes["rerank_error"]


def test_notes_are_of_the_last_ranker_alone() -> None:
    given = RankerArguments(ranker=word_ranker(), on_error="keep")
    failed, ranked = given.ordered(" ", documents()), given.ordered(QUERY, documents())
    metadata = failed.noted({"page": 1}, failed.lines[0])
    assert {"page", "rerank_error", "rerank_outcomes"} == metadata.keys()
    assert ranked.noted(metadata, ranked.lines[0]) == {"page": 1, "rerank_outcomes": "4 clean"}


def test_an_engine_that_breaks_down_is_no_querys_error() -> None:
    def script(call: Call) -> list[float]:
        raise ZeroDivisionError("broken")

    given = RankerArguments(ranker=word_ranker(script), on_error="keep")
    with pytest.raises(ZeroDivisionError, match="broken"):
        given.ordered(QUERY, documents())
    with pytest.raises(ZeroDivisionError, match="broken"):
        asyncio.run(given.aordered(QUERY, documents()))


def test_threads_share_batches() -> None:
    gate = Gate()
    ranker = word_ranker(gate)
    given = [RankerArguments(ranker=ranker), RankerArguments(ranker=ranker)]  # two components, one ranker
    with ThreadPoolExecutor(4) as pool:
        held = pool.submit(given[0].ordered, "held", documents("a"))
        assert gate.reached.wait(WAIT_S)
        others = [pool.submit(given[i % 2].ordered, QUERY, documents()) for i in range(3)]
        deadline = threading.Event()
        while ranker._merger.waiting[0] < 3 and not deadline.wait(0.005):
            pass
        gate.opened.set()
        assert indices(held.result(WAIT_S)) == [0]
        assert [indices(each.result(WAIT_S)) for each in others] == [ORDER] * 3


def test_one_that_is_cancelled_frees_its_work() -> None:
    gate = Gate()
    given = RankerArguments(ranker=word_ranker(gate))

    async def main() -> None:
        held = asyncio.create_task(given.aordered("held", documents("a")))
        assert await asyncio.to_thread(gate.reached.wait, WAIT_S)
        waiting = asyncio.create_task(given.aordered("never asked", documents("a")))
        while given.loaded()._merger.waiting[0] == 0:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.opened.set()
        await held

    asyncio.run(asyncio.wait_for(main(), WAIT_S))
    assert gate.asked == ["held"]


def test_a_ranker_is_loaded_at_its_first_use_and_once(tiny_model: Path) -> None:
    given = RankerArguments(model=str(tiny_model), **SMALL)
    assert given._held is None
    with ThreadPoolExecutor(4) as pool:
        loaded = {id(ranker) for ranker in pool.map(lambda _: given.loaded(), range(8))}
    assert len(loaded) == 1
    assert given.model_copy().loaded() is given.loaded()
    other = given.model_copy(update={"prompt": "pointwise-graded"})
    assert other.loaded() is not given.loaded()
    for bare in (pickle.loads(pickle.dumps(given)), copy.deepcopy(given)):
        assert bare._held is None
        assert bare.told() == given.told() == {"ranker": "pointwise", "model": str(tiny_model), **SMALL}
    before = given.loaded()
    given.close()
    assert given._held is None
    assert given.loaded() is not before


def test_what_was_loaded_ranks_as_the_library_does(tiny_model: Path) -> None:
    given = RankerArguments(model=str(tiny_model), options={"passage_tokens": 4}, **SMALL)
    expected = rerank.load("pointwise", model=str(tiny_model), passage_tokens=4, **SMALL).rank(QUERY, FLEAS)
    order = given.ordered(QUERY, documents())
    assert [str(i) for i in indices(order)] == expected.doc_ids
    assert [line.score for line in order.lines] == [hit.score for hit in expected]


def test_a_ready_ranker_is_its_owners() -> None:
    class Closing(rerank.FirstStage):
        closed = False

        def close(self) -> None:
            self.closed = True

    ranker = Closing()
    given = RankerArguments(ranker=ranker)
    given.close()
    assert given.loaded() is ranker
    assert not ranker.closed
    for write in (given.told, lambda: pickle.dumps(given)):
        with pytest.raises(InputError, match="a ready Closing cannot be written into a file; name it by"):
            write()


@pytest.mark.parametrize(
    ("ranker", "arguments", "text"),
    [
        ("listwse", {}, "unknown strategy 'listwse'; did you mean 'listwise'?"),
        ("first", {"window": 10}, "unknown argument 'window'"),
        ("first", {"window": 10}, r"goes into options={\.\.\.}"),
        ("first", {"modl": "x"}, "did you mean 'model'"),
        ("first", {"options": {"windw": 10}}, "did you mean 'window'"),
        ("first", {"options": {"window": "many"}}, "window"),
        ("first", {"options": {"model": "x"}}, "unknown first option 'model'"),
        ("pointwise", {"backbone": "bi"}, "unknown backbone 'bi'"),
        ("pointwise", {"prompt": "no-such-prompt"}, "no-such-prompt"),
        ("pointwise", {"on_error": "hide"}, "on_error: Input should be 'raise' or 'keep'; given was 'hide'"),
        ("pointwise", {"strict": "maybe"}, "strict: Input should be a valid boolean"),
        (3, {}, "ranker: Input should be a valid string; given was 3"),
        (rerank.FirstStage(), {"model": "x", "dtype": "int8"}, "dtype, model given beside a ready ranker"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(ranker: Any, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        arguments_of(ranker, arguments)


def test_a_key_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="leave it to the environment") as refused:
        RankerArguments(backbone="openai", backbone_options={"api_key": "sk-secret"})
    assert "sk-secret" not in str(refused.value)


def test_an_engine_that_cannot_answer_is_refused_at_once() -> None:
    with pytest.raises(CapabilityError, match="bi-encoder"):
        RankerArguments(ranker="listwise", backbone="bi-encoder", prompt="listwise-permutation")


def test_an_adapter_of_the_hub_is_not_fetched_to_check() -> None:
    given = RankerArguments(adapter="you/your-lora", options={"instruction": "its own prompt may have a place for one"})
    assert given._held is None


def test_what_is_missing_is_named_with_its_extra() -> None:
    """And the package itself is imported without any of the frameworks."""
    script = """
import importlib, sys
needs = {"langchain": "langchain_core", "llamaindex": "llama_index", "haystack": "haystack", "pyterrier": "pyterrier",
         "mcp": "mcp_types"}
for module in needs.values():
    sys.modules[module] = None
import rerank.integrations.common
from rerank.errors import BackboneError
assert not {"torch", "pandas", "fastapi"} & set(sys.modules)
for extra, module in needs.items():
    try:
        importlib.import_module(f"rerank.integrations.{extra}")
    except BackboneError as error:
        assert str(error).endswith(f"needs {module}: pip install 'rerank-llm[{extra}]'"), error
    else:
        raise AssertionError(extra)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
