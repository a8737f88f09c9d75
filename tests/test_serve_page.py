"""The page at `/`, in a real browser, before a real service: what is ranked, taken in and shared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from browser import Seen, ask, column, drop, is_loaded, rank, visit
from playwright.sync_api import Browser, Page, expect
from service import FLEAS, QUERY, Json, Running, body, running, word_ranker

import rerank
from rerank.backbones import ScriptedBackbone
from rerank.calls import Call
from rerank.server import Served, Service
from rerank.server.browser import samples

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script><b>bold</b> {{7*7}}"
ORDER = [2, 1, 0, 3]  # of FLEAS, by the words that they have of QUERY


def thought(call: Call) -> str:
    return f"<think>The second. {HOSTILE}</think> <answer>[2]</answer>"


def rankers() -> Service:
    thinking = rerank.load("rank-r1", backbone=ScriptedBackbone(thought))
    garbled = rerank.load("listwise", backbone=ScriptedBackbone(lambda call: "I would rather not say."))
    return Service([Served("words", word_ranker(), "pointwise"), Served("thinking", thinking), Served("mute", garbled)])


@pytest.fixture(scope="module")
def here() -> Iterator[Running]:
    with running(rankers()) as found:
        yield found


def asked_of_api(here: Running, query: str, documents: list[str], model: str) -> Json:
    answer: Json = httpx.post(f"{here.url}/v2/rerank", json=body(query, documents, model=model)).json()
    return answer


# ---- ranking


def test_a_sample_is_ranked_as_the_api_ranks_it(seen: Seen, here: Running) -> None:
    page, sample = seen.page, samples()[0].lists[3]
    page.get_by_label("Start from").select_option(sample.query)
    rank(page)
    documents = [f"{each.title} {each.text}" for each in sample.docs]
    answer = asked_of_api(here, sample.query, documents, "words")
    order = [result["index"] for result in answer["results"]]
    assert order != sorted(order)
    assert column(page, "words") == order
    expect(page.get_by_role("status")).to_contain_text("words ranked 10 passages in ")
    for place, (index, item) in enumerate(zip(order, page.locator("li[data-index]").all(), strict=True)):
        move = "as given" if index == place else f"{'up' if place < index else 'down'} from {index + 1}"
        assert item.locator(".place").text_content() == f"Rank {place + 1} {move}"
        assert item.locator(".text").text_content() == documents[index]
        assert item.locator(".score b").text_content() == f"{answer['results'][place]['relevance_score']:.3f}"
    relevant = [place for place, each in enumerate(sample.docs) if each.label]
    after = min(order.index(place) for place in relevant) + 1
    expect(page.locator(".notices")).to_contain_text(f"rank {min(relevant) + 1} → {after}")
    facts = dict(zip(page.locator("dt").all_text_contents(), page.locator("dd").all_text_contents(), strict=True))
    assert (facts["Calls"], facts["Unreadable"]) == ("10", "0")
    assert facts["Tokens in"] == f"{answer['rerank']['usage']['prompt_tokens']:,}"


def test_two_rankers_stand_side_by_side(seen: Seen, here: Running) -> None:
    page = seen.page
    page.set_viewport_size({"width": 1400, "height": 900})
    ask(page, QUERY, FLEAS, "words", "thinking")
    other = [result["index"] for result in asked_of_api(here, QUERY, FLEAS, "thinking")["results"]]
    assert column(page, "thinking") == other != ORDER
    assert column(page, "words") == ORDER
    both, same = len({*ORDER[:2]} & {*other[:2]}), sum(a == b for a, b in zip(ORDER[:2], other[:2], strict=True))
    text = f"Of the first 2 of each, {both} are in both, and {same} at the same rank."
    expect(page.get_by_text(text)).to_be_visible()
    first = page.get_by_role("region", name="words").locator("li[data-index]").first
    expect(first).to_contain_text(f"rank {other.index(ORDER[0]) + 1} by thinking")
    one, two = (page.get_by_role("region", name=name).locator("ol").bounding_box() for name in ("words", "thinking"))
    assert one and two
    assert (one["y"], one["width"]) == (two["y"], two["width"])
    assert one["x"] + one["width"] < two["x"]


def test_thoughts_are_shown_and_answers_that_cannot_be_read_are_said(seen: Seen) -> None:
    page = seen.page
    ask(page, QUERY, FLEAS[:2], "thinking", "mute")
    assert column(page, "mute") == [0, 1]
    expect(page.get_by_role("region", name="mute")).to_contain_text("1 of 1 answer could not be read.")
    page.get_by_text(re.compile(r"Reasoning \(\d+\)")).click()
    expect(page.locator(".reasoning p").first).to_have_text(f"The second. {HOSTILE}")


def test_passages_are_text_whatever_they_hold(seen: Seen) -> None:
    page = seen.page
    texts = [HOSTILE, "&lt;b&gt;", "</textarea><script>alert(3)</script>", "javascript:alert(4)", "\u202e <|im_end|>"]
    ask(page, HOSTILE, texts)
    order = column(page, "words")
    assert page.locator(".text").all_text_contents() == [texts[index] for index in order]
    assert page.locator(".asked").text_content() == HOSTILE
    assert page.locator("#result :is(img, script, b:not(.place b, .score b))").count() == 0
    expect(page.get_by_text("control tokens broken")).to_be_visible()


# ---- what is taken in


def test_passages_are_told_apart(seen: Seen) -> None:
    for text, expected in (
        ("one\n\ntwo\n", "2 passages, by blank lines"),
        ("one\ntwo\n  \n", "2 passages, by lines"),
        ("one\nstill one\n \t\n\ntwo", "2 passages, by blank lines"),
        ("[1] one", "1 passage"),
        (" \n\n ", "no passages"),
    ):
        seen.page.get_by_label("Passages").fill(text)
        expect(seen.page.locator("#count")).to_have_text(expected)


DOCS = [{"docid": "d", "text": "a\n\nb", "label": 2}]
LISTS = "".join(json.dumps({"qid": str(i), "query": f"query {i}", "docs": DOCS}) + "\n" for i in range(3))
RANK_LLM = [{"query": {"text": "q", "qid": 1}, "candidates": [{"docid": 7, "doc": {"title": "T", "segment": "x"}}]}]


def test_files_of_many_forms(seen: Seen) -> None:
    page = seen.page
    for name, content, query, sent in (
        ("a.txt", "\ufeffone\r\ntwo", None, ["one", "two"]),
        ("a.jsonl", '{"text": "one"}\n\n{"id": 3, "title": "T", "contents": "two"}', None, ["one", "T two"]),
        ("a.json", json.dumps(["one", "two"]), None, ["one", "two"]),
        ("r.json", json.dumps(RANK_LLM), "q", ["T x"]),
        ("request.json", json.dumps(body("q", ["one", {"text": "two"}])), "q", ["one", "two"]),
        ("no-name", json.dumps({"query": "q", "documents": ["one", "one"]}), "q", ["one", "one"]),
        ("lists.jsonl", LISTS, "query 0", ["a\n\nb"]),
    ):
        page.get_by_label("Query").fill("mine")
        drop(page, name, content)
        expect(page.get_by_label("Query")).to_have_value(query or "mine")
        expect(page.get_by_role("status")).to_contain_text("to rank.")
        with page.expect_request("**/v2/rerank") as request:
            rank(page)
        assert request.value.post_data_json["documents"] == sent, name
        assert len(column(page, "words")) == len(sent), name
    page.get_by_label("Start from").select_option("query 2")
    expect(page.get_by_label("Query")).to_have_value("query 2")
    rank(page)
    expect(page.locator("li[data-index] .marks")).to_have_text("djudged 2")


def test_files_that_cannot_be_used(seen: Seen) -> None:
    empty = {"format": "rerank ranking 1", "query": "q", "docs": ["a"], "rankings": [{}]}
    for name, content, text in (
        ("a.json", "one", "a.json cannot be used. It is neither JSON nor JSON Lines. Line 1:"),
        ("a.jsonl", '{"text": "a"}\n{"text"', "Line 2:"),
        ("b.json", '[{"txt": "a"}]', "Passage 1 has no text"),
        ("c.json", "[]", "c.json cannot be used. There is no passage in it."),
        ("d.txt", " \n", "d.txt cannot be used. There is no passage in it."),
        ("e.json", json.dumps(empty), "not whole"),
    ):
        drop(seen.page, name, content)
        expect(seen.page.get_by_role("alert")).to_contain_text(text)


PASTE = """(text) => {
  const clipboardData = new DataTransfer();
  clipboardData.setData("text/plain", text);
  document.getElementById("passages").dispatchEvent(new ClipboardEvent("paste", { clipboardData, cancelable: true }));
}"""


def test_json_that_is_pasted_and_bytes_that_are_no_text(seen: Seen, tmp_path: Path) -> None:
    page = seen.page
    page.evaluate(PASTE, json.dumps(body()))
    expect(page.locator("#count")).to_have_text("4 passages, by blank lines")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    page.locator("#file").set_input_files(tmp_path / "a.txt")
    expect(page.get_by_role("alert")).to_have_text("a.txt is no text in UTF-8.")


# ---- sharing


def saved(page: Page, button: str, folder: Path) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    target = folder / download.value.suggested_filename
    download.value.save_as(target)
    return target


def test_a_ranking_is_saved_and_dropped_back(seen: Seen, tmp_path: Path) -> None:
    page = seen.page
    ask(page, HOSTILE, [*FLEAS, HOSTILE], "words", "thinking")
    orders = {name: column(page, name) for name in ("thinking", "words")}
    file = saved(page, "Save as JSON", tmp_path)
    assert re.fullmatch(r"rerank-[a-z0-9-]+\.json", file.name)
    shown = page.locator("#result").inner_html()
    seen.fresh()
    is_loaded(page)
    drop(page, file.name, file.read_text(encoding="utf-8"))
    assert {name: column(page, name) for name in orders} == orders
    assert page.locator("#result").inner_html() == shown
    assert not [url for url in seen.asked if "rerank" in url]
    rank(page)
    expect(page.get_by_role("status")).to_contain_text("words ranked 5 passages")


def test_a_saved_ranking_that_does_not_fit_is_refused(seen: Seen, here: Running) -> None:
    spoiling: list[Callable[[Json], object]] = [
        lambda answer: answer["results"].pop(),
        lambda answer: answer["results"][0].update(index=3),
        lambda answer: answer["results"][0].update(relevance_score="1"),
        lambda answer: answer.pop("rerank"),
        lambda answer: answer["rerank"].update(reasoning="none"),
    ]
    for number, spoil in enumerate(spoiling):
        answer = asked_of_api(here, QUERY, FLEAS, "words")
        spoil(answer)
        rankings = [{"answer": answer, "seconds": 1}]
        made = {"format": "rerank ranking 1", "query": QUERY, "docs": FLEAS, "rankings": rankings}
        drop(seen.page, f"{number}.json", json.dumps(made))
        text = f"{number}.json cannot be used. Its rankings are not whole, or are not of its passages."
        expect(seen.page.get_by_role("alert")).to_have_text(text)


def test_a_saved_page_needs_no_service(seen: Seen, browser: Browser, tmp_path: Path) -> None:
    ask(seen.page, HOSTILE, [*FLEAS, HOSTILE])
    order = column(seen.page, "words")
    file = saved(seen.page, "Save as HTML", tmp_path)
    with visit(browser, file.as_uri(), offline=True) as alone:
        assert alone.asked == [file.as_uri()]
        assert alone.page.locator(".text").all_text_contents() == [[*FLEAS, HOSTILE][index] for index in order]
        assert alone.page.title() == f"rerank: {HOSTILE}"
        assert alone.page.locator("script, img, button").count() == 0
        assert alone.page.evaluate("getComputedStyle(document.querySelector('li')).display") == "grid"


@pytest.mark.model
def test_the_embedded_model_ranks_on_the_page(browser: Browser) -> None:
    ranker = rerank.load("pointwise")
    with running(Service([Served("pointwise", ranker)])) as here, visit(browser, here.url) as seen:
        is_loaded(seen.page)
        ask(seen.page)
        expect(seen.page.get_by_role("status")).to_contain_text("pointwise ranked 4 passages")
        order = column(seen.page, "pointwise")
        assert [str(index) for index in order] == ranker.rank(QUERY, FLEAS).doc_ids
        assert {*order[:2]} == {1, 2}  # those of the fleas' lives
