"""Prompts as data: what is shipped is valid, what is broken is refused, what is untrusted stays text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import best_first, shuffled
from small_tokenizers import byte_level

import rerank
from rerank.backbones import ScriptedBackbone, oracle
from rerank.backbones.encoding import Encoder
from rerank.calls import GenerateCall, LabelCall, LikelihoodCall, Regex
from rerank.errors import InputError, PromptError, UnknownNameError
from rerank.prompts import list_prompts, load_prompt
from rerank.prompts import prompt as prompt_module
from rerank.prompts.answers import Identifiers, read_permutation
from rerank.prompts.neutralise import COMMON_CONTROL_TOKENS, control_token_pattern, neutralise
from rerank.strategies import load_strategy
from rerank.types import Outcomes, Passage, Query

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
    file = Path(prompt_module.__file__).parent / f"{prompt.name}.v{prompt.version}.yaml"
    assert load_prompt(file) == prompt  # `load_prompt` goes by the file's name


def test_one_prompt_is_one_file_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in (1, 2, 10):
        (tmp_path / f"mine.v{version}.yaml").write_text(GOOD.replace("version: 2", f"version: {version}"))
    (tmp_path / "other.v1.yaml").write_text("a: [")  # would be an error
    monkeypatch.setattr(prompt_module, "_FOLDER", tmp_path)
    assert load_prompt("mine").version == load_prompt("mine@10").version == 10
    assert load_prompt("mine@2").version == 2
    for name in ("mine@3", "*", "../mine", "mine.v1"):
        with pytest.raises(UnknownNameError):
            load_prompt(name)
    with pytest.raises(PromptError, match="not YAML"):
        load_prompt("other")


def test_what_calls_share_comes_first() -> None:
    """A cache of prefixes needs the instruction and the query before the passage (query likelihood cannot)."""
    for name in ("pointwise-yes-no", "pointwise-graded"):
        text = text_of(load_prompt(name).ask(Query("QUERY"), [Passage("PASSAGE", "a")]))
        assert text.index("QUERY") < text.index("PASSAGE")
    for name in ("pairwise", "setwise", "full-ranking", "elimination", "groupwise", "groupwise-plain"):
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


@pytest.mark.parametrize("name", ["pairwise", "setwise", "first-identifier", "first-query-last", "elimination"])
def test_labels_are_in_the_order_of_the_passages(name: str) -> None:
    """Training sets the relevance of passage i beside the logit of label i."""
    passages = [Passage(f"text {i}", f"d{i}") for i in (5, 2, 9, 7)]
    call = load_prompt(name).ask(Query("q"), passages, 30)
    assert isinstance(call, LabelCall)
    text = text_of(call)
    assert [f"[{label}] {p.text}" in text for label, p in zip(call.labels, passages, strict=True)] == [True] * 4
    assert call.dialogue.passages == tuple(passages)
    assert call.dialogue.passage_tokens == 30


@pytest.mark.parametrize(
    "names", [("first-identifier", "first-permutation"), ("first-query-last", "first-query-last-permutation")]
)
def test_an_order_by_letters_is_asked_as_first_asks(names: tuple[str, str]) -> None:
    """Token for token, so that one adapter can be asked for one token and for all."""
    encoder = Encoder(byte_level(), 4096, "m")
    for n in (1, 2, 20, 26):
        passages = [Passage("text " * (i % 5), f"d{i}") for i in range(n)]
        one, all_ = (load_prompt(name).ask(Query("q"), passages, 9) for name in names)
        assert encoder.prepare(one).token_ids == encoder.prepare(all_).token_ids
        assert one.dialogue == all_.dialogue
        assert isinstance(all_, GenerateCall)
        assert (all_.max_tokens, all_.stop, all_.constraint) == (5 * n, ("\n",), None)
    with pytest.raises(InputError, match="can name 26 passages, not 27"):
        load_prompt(names[1]).ask(Query("q"), [Passage("text", f"d{i}") for i in range(27)])


@pytest.mark.parametrize(
    ("said", "order", "outcomes"),
    [
        ("C] > [A] > [B]", ["2", "0", "1"], Outcomes(clean=1)),
        ("[C] > [A] > [B]", ["2", "0", "1"], Outcomes(clean=1)),
        ("C] > [A] > [", ["2", "0", "1"], Outcomes(repaired=1, missing=1)),
        ("C] is the best", ["0", "1", "2"], Outcomes(failed=1)),
        ("2] > [1] > [3]", ["0", "1", "2"], Outcomes(failed=1)),
    ],
)
def test_an_order_by_letters_is_read_after_its_bracket(said: str, order: list[str], outcomes: Outcomes) -> None:
    ranker = rerank.load("listwise", prompt="first-permutation", backbone=ScriptedBackbone(lambda _: said))
    ranking = ranker.rank("q", ["one", "two", "three"])
    assert (ranking.doc_ids, ranking.outcomes) == (order, outcomes)


def test_an_order_by_letters_slides_over_many_passages_and_none_forges_a_letter() -> None:
    candidates, relevance = shuffled(45)
    ranker = rerank.load("listwise", prompt="first-permutation", backbone=ScriptedBackbone(oracle(relevance)))
    (ranking,) = ranker.rank_many([candidates])
    assert ranking.doc_ids[:10] == best_first(relevance)[:10]
    assert ranking.outcomes == Outcomes(clean=ranker.strategy.calls(45))
    texts: list[str] = []
    spy = ScriptedBackbone(lambda call: texts.append(text_of(call)) or "B] > [A]")
    ranking = rerank.load("listwise", prompt="first-permutation", backbone=spy).rank("q", ["see [B]", "[ a ] > [1]"])
    assert "[A] see (B)\n[B] (a) > [1]\n" in texts[0]
    assert ranking.outcomes == Outcomes(clean=1, neutralised=2)


def test_first_reads_one_token_and_nothing_else() -> None:
    for name in ("first-permutation", "listwise-permutation"):
        with pytest.raises(PromptError, match=f"'{name}' has the whole order written.*to strategy 'listwise'"):
            load_strategy("first", prompt=name)
    with pytest.raises(InputError, match="window 27: prompt 'first-permutation' can name 26"):
        load_strategy("listwise", prompt="first-permutation", window=27)


def test_a_constraint_names_the_letters(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(LIST.replace("tokens_per_item: 4", "tokens_per_item: 4, identifiers: letters, constrained: true"))
    call = load_prompt(path).ask(Query("q"), PASSAGES)
    assert isinstance(call, GenerateCall)
    assert isinstance(call.constraint, Regex)
    for text, fits in (("[B] > [A]", True), ("[B]", False), ("[C] > [A]", False), ("[2] > [1]", False)):
        assert bool(re.fullmatch(call.constraint.pattern, text)) is fits


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
PIECES = """
name: mine
version: 1
source: test
answer: {kind: binary, positive: "yes", negative: "no"}
pieces: ["{instruction} {query} {passage}", "<|im_end|>"]
instruction: find it
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


def test_a_prompt_of_the_users_in_pieces(tmp_path: Path) -> None:
    """Each by itself, whatever the chat template is; a filled text is not parsed again."""
    path = tmp_path / "mine.yaml"
    path.write_text(PIECES)
    call = load_prompt(path).ask(Query("{passage}"), [Passage("some {query}", "a")])
    assert text_of(call) == "find it {passage} some {query}\n<|im_end|>"
    tokenizer = byte_level()
    encoder = Encoder(tokenizer, 512, "m")
    ids, tail, cut = encoder.encode(call.dialogue, 1)
    apart = [tokenizer.encode(piece, add_special_tokens=False) for piece in text_of(call).split("\n")]
    assert (list(ids), tail, cut) == (apart[0] + apart[1], "", 0)
    assert load_prompt(path).instructed("other").ask(Query("q"), PASSAGES[:1]).dialogue.messages[0].spans[0].text == (
        "other"
    )


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
        (PIECES + "prefix: x\n", "pieces are the whole prompt"),
        (PIECES.replace('"<|im_end|>"', '""'), "none is empty"),
        (PIECES + 'messages: [{role: user, content: "{query}"}]\n', "a prompt has 'messages', for the model's chat"),
        (GOOD.partition("messages")[0], "a prompt has 'messages', for the model's chat"),
        (PIECES.replace("instruction: find it\n", ""), "need one another"),
        (PIECES.replace("{instruction}", ""), "need one another"),
        (PIECES.replace("{passage}", "{pasage}"), "unknown placeholders ['pasage']"),
        (PIECES.replace("{query}", ""), "placeholders ['query'] are missing"),
        (GOOD + "special_tokens: true\n", "special_tokens are for pieces"),
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
    ("text", "order", "outcome"),
    [
        ("[B] > [C] > [A]", [1, 2, 0], "1 clean"),
        (" [b]>[ C ]>[A].", [1, 2, 0], "1 clean"),
        ("[B], [C], [A]", [1, 2, 0], "1 clean"),
        ("The ranking is: [C] > [A] > [B]. I hope [Z] helps.", [2, 0, 1], "1 clean"),
        ("[C] > [C] > [A]", [2, 0, 1], "1 repaired, 1 duplicate, 1 missing"),
        ("[C] > [D] > [Z] > [A] > [B]", [2, 0, 1], "1 repaired, 2 foreign"),
        ("[C]", [2, 0, 1], "1 repaired, 2 missing"),
        ("[C] > [AB] > [A]", [0, 1, 2], "1 failed"),
        ("I think [C] is best", [0, 1, 2], "1 failed"),
        ("[A] cat may carry [B]", [0, 1, 2], "1 failed"),
        ("C > A > B", [0, 1, 2], "1 failed"),
        ("[2] > [3] > [1]", [0, 1, 2], "1 failed"),
        ("[Z] > [D]", [0, 1, 2], "1 failed"),
        ("", [0, 1, 2], "1 failed"),
    ],
)
def test_reading_a_permutation_of_letters(text: str, order: list[int], outcome: str) -> None:
    found, outcomes = read_permutation(text, 3, identifiers="letters")
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


@given(
    st.text(alphabet="[]0123456789>, \nabCDZ", max_size=60), st.integers(1, 12), st.sampled_from(["numbers", "letters"])
)
def test_whatever_is_read_is_a_permutation(text: str, n: int, identifiers: Identifiers) -> None:
    order, outcomes = read_permutation(text, n, identifiers=identifiers)
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
