"""Prompts as data: what is shipped is valid, what is broken is refused, what is untrusted stays text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.calls import GenerateCall, LabelCall, LikelihoodCall
from rerank.errors import PromptError, UnknownNameError
from rerank.prompts import list_prompts, load_prompt
from rerank.prompts.answers import read_permutation
from rerank.prompts.neutralise import COMMON_CONTROL_TOKENS, control_token_pattern, neutralise
from rerank.types import Passage, Query

PASSAGES = [Passage("first text", "a", title="A Title"), Passage("second {query} text", "b")]


def text_of(call: LabelCall | LikelihoodCall | GenerateCall) -> str:
    return "\n".join("".join(span.text for span in message.spans) for message in call.dialogue.messages)


@pytest.mark.parametrize("prompt", list_prompts(), ids=lambda p: p.identity)
def test_a_shipped_prompt_shows_what_it_asks_about(prompt) -> None:  # type: ignore[no-untyped-def]
    shown = PASSAGES if prompt.shows == "many" else PASSAGES[1:]
    call = prompt.ask(Query("the query text"), shown)
    text = text_of(call)
    for passage in shown:
        assert passage.full_text in text
    assert ("the query text" in text) is (prompt.ranks and not isinstance(call, LikelihoodCall))
    passages = [s.text for m in call.dialogue.messages for s in m.spans if s.passage]
    assert passages == [p.full_text for p in shown]  # each once, and nothing else may be cut
    assert prompt.source.strip()
    assert load_prompt(f"{prompt.name}@{prompt.version}") == prompt


def test_what_calls_share_comes_first() -> None:
    """A cache of prefixes needs the instruction and the query before the passage (query likelihood cannot)."""
    for name in ("pointwise-yes-no", "pointwise-graded"):
        text = text_of(load_prompt(name).ask(Query("QUERY"), [Passage("PASSAGE", "a")]))
        assert text.index("QUERY") < text.index("PASSAGE")
    for name in ("pairwise", "setwise", "full-ranking"):
        text = text_of(load_prompt(name).ask(Query("QUERY"), [Passage("PASSAGE", "a"), Passage("OTHER", "b")]))
        assert text.index("QUERY") < text.index("PASSAGE") < text.index("OTHER")


def test_a_listwise_prompt_names_its_passages() -> None:
    assert "[1] A Title first text\n[2] second {query} text\n" in text_of(
        load_prompt("listwise-permutation").ask(Query("q"), PASSAGES)
    )
    call = load_prompt("first-identifier").ask(Query("q"), PASSAGES)
    assert "[A] A Title first text\n[B] second {query} text\n" in text_of(call)
    assert isinstance(call, LabelCall)
    assert call.labels == ("A", "B")
    assert call.dialogue.prefix == "["


@pytest.mark.parametrize("name", ["pairwise", "setwise", "first-identifier"])
def test_labels_are_in_the_order_of_the_passages(name: str) -> None:
    """Training sets the relevance of passage i beside the logit of label i."""
    passages = [Passage(f"text {i}", f"d{i}") for i in (5, 2, 9, 7)]
    call = load_prompt(name).ask(Query("q"), passages, 30)
    assert isinstance(call, LabelCall)
    text = text_of(call)
    assert [f"[{label}] {p.text}\n" in text for label, p in zip(call.labels, passages, strict=True)] == [True] * 4
    assert call.dialogue.passages == tuple(passages)
    assert call.dialogue.passage_tokens == 30


def test_a_top_is_asked_only_of_a_prompt_that_says_it() -> None:
    prompt = load_prompt("full-ranking")
    assert prompt.asks_top
    assert "best 2, each" in text_of(prompt.ask(Query("q"), PASSAGES))
    call = prompt.ask(Query("say {top}"), PASSAGES, top=1)
    assert "best 1, each" in text_of(call) and "say {top}" in text_of(call)
    for name in ("listwise-permutation", "first-identifier"):
        assert not load_prompt(name).asks_top
        with pytest.raises(PromptError, match=r"for the top 1 it must say \{top\}"):
            load_prompt(name).ask(Query("q"), PASSAGES, top=1)


GOOD = """
name: mine
version: 2
source: test
answer: {kind: binary, positive: "Yes", negative: "No"}
messages: [{role: user, content: "{query} {passage}"}]
"""
LIST = """
name: mine
version: 1
source: test
answer: {kind: permutation, tokens_per_item: 4}
messages:
- {role: user, content: "{count} for {query}"}
- each: [{role: user, content: "[{label}] {passage}"}, {role: assistant, content: "Received [{label}] {passage}."}]
"""


def test_a_prompt_file_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert load_prompt(str(path)).identity.startswith("mine@2#")
    path.write_text(LIST)
    call = load_prompt(path).ask(Query("q"), PASSAGES)
    assert [m.role for m in call.dialogue.messages] == ["user", "user", "assistant", "user", "assistant"]
    assert isinstance(call, GenerateCall)
    assert call.max_tokens == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD.replace("{passage}", "{pasage}"), "unknown placeholders ['pasage']"),
        (GOOD.replace("{passage}", ""), "placeholders ['passage'] are missing"),
        (GOOD.replace("{query}", "{query} {top}"), "unknown placeholders ['top']"),
        (LIST.replace("permutation, tokens_per_item: 4", "identifier").replace("for", "{top}"), "placeholders ['top']"),
        (GOOD.replace("{query}", "{query.text}"), "not a plain name"),
        (GOOD.replace("{query}", "{query!r}"), "not a plain name"),
        (GOOD.replace("{query}", "{query"), "unexpected '{'"),
        (GOOD.replace('positive: "Yes"', "positive: Yes"), "valid string"),
        (GOOD.replace('"No"', '"Yes"'), "same label"),
        (GOOD.replace("kind: binary", "kind: banary"), "answer"),
        (GOOD.replace("version: 2", "version: two"), "version"),
        (GOOD + "extra: 1\n", "extra"),
        (GOOD.replace("user", "human"), "role"),
        (LIST.replace("{label}", "x"), "repeats {label} and {passage}"),
        (LIST.replace("{query}", ""), "placeholders ['query'] are missing"),
        ("- a list", "must be a mapping"),
        ("a: [", "not YAML"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_broken_prompt_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(PromptError) as caught:
        load_prompt(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_unknown_prompts() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'pointwise-yes-no'"):
        load_prompt("pointwise-yes-on")
    with pytest.raises(UnknownNameError, match="did you mean 'pointwise-yes-no@1'"):
        load_prompt("pointwise-yes-no@7")
    with pytest.raises(PromptError, match="cannot read"):
        load_prompt("nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "order", "outcome"),
    [
        ("[2] > [3] > [1]", [1, 2, 0], "1 clean"),
        ("  [2]>[3]>[1].", [1, 2, 0], "1 clean"),
        ("[2], [3], [1]", [1, 2, 0], "1 clean"),
        ("[2]\n[3]\n[1]", [1, 2, 0], "1 clean"),
        ("The ranking is: [3] > [1] > [2]. I hope [9] helps.", [2, 0, 1], "1 clean"),
        ("[3] > [3] > [1]", [2, 0, 1], "1 repaired, 1 duplicate, 1 missing"),
        ("[3] > [0] > [4] > [1] > [2]", [2, 0, 1], "1 repaired, 2 foreign"),
        ("[3]", [2, 0, 1], "1 repaired, 2 missing"),
        ("I think [3] is best", [0, 1, 2], "1 failed"),
        ("see [1] and [2] of the documentation", [0, 1, 2], "1 failed"),
        ("3 > 1 > 2", [0, 1, 2], "1 failed"),
        ("[9] > [8]", [0, 1, 2], "1 failed"),
        ("", [0, 1, 2], "1 failed"),
    ],
)
def test_reading_a_permutation(text: str, order: list[int], outcome: str) -> None:
    found, outcomes = read_permutation(text, 3)
    assert (found, str(outcomes)) == (order, outcome)


@pytest.mark.parametrize(
    ("text", "top", "order", "outcome"),
    [
        ("[3] > [2]", 2, [2, 1, 0, 3], "1 clean"),
        ("[3] > [2] > [4]", 2, [2, 1, 3, 0], "1 clean"),
        ("[3]", 2, [2, 0, 1, 3], "1 repaired, 1 missing"),
        ("[3] > [3] > [2]", 2, [2, 1, 0, 3], "1 repaired, 1 duplicate"),
        ("[4] > [3] > [2]", 9, [3, 2, 1, 0], "1 repaired, 1 missing"),
        ("none", 2, [0, 1, 2, 3], "1 failed"),
    ],
)
def test_reading_only_the_top(text: str, top: int, order: list[int], outcome: str) -> None:
    found, outcomes = read_permutation(text, 4, top)
    assert (found, str(outcomes)) == (order, outcome)


@given(st.text(alphabet="[]0123456789>, \nab", max_size=60), st.integers(1, 12))
def test_whatever_is_read_is_a_permutation(text: str, n: int) -> None:
    order, outcomes = read_permutation(text, n)
    assert sorted(order) == list(range(n))
    assert outcomes.clean + outcomes.repaired + outcomes.failed == 1
    if outcomes.failed:
        assert order == list(range(n))


PATTERN = control_token_pattern(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "[CLS]"])


@given(
    st.lists(
        st.sampled_from(["<|im_end|>", "<|im_start|>", "[CLS]", "<", "|", ">", "im_end", "\x00", "[3]", "[ B ]", "a "])
    )
)
def test_no_control_token_or_identifier_is_left(pieces: list[str]) -> None:
    text = "".join(pieces)
    for identifiers in ("numbers", "letters"):
        clean = neutralise(text, PATTERN, identifiers)
        assert not any(token in clean for token in {"<|im_start|>", "<|im_end|>", "[CLS]", *COMMON_CONTROL_TOKENS})
        assert "\x00" not in clean
        assert ("[3]" if identifiers == "numbers" else "[ B ]") not in clean


def test_neutralising_removes_no_word_and_leaves_the_rest_alone() -> None:
    text = "Line one\nwith [tags] & <b>HTML</b>, a | b, x < y > z, array[3] and \ud800 é 漢字"
    assert neutralise(text, PATTERN) == text.replace("\ud800", " ")
    assert neutralise("stop <|im_end|> now", PATTERN) == "stop < |im_end|> now"
    assert neutralise("<|someone_elses_token|>", PATTERN) == "< |someone_elses_token|>"
