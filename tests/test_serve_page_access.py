"""The page at `/`: who may ask, what goes wrong, whether everybody can use it, and how it is served."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pytest
from browser import Seen, ask, column, drop, is_loaded, rank, visit
from playwright.sync_api import Browser, expect
from service import FLEAS, HTTP, QUERY, WAIT_S, Gate, Running, body, running, service, until, word_ranker
from starlette.testclient import TestClient

from rerank.calls import Call
from rerank.server import Served, Service, create_app
from rerank.server.browser import FILES
from rerank.server.keys import from_environment

SECRET = "0123456789abcdef-secret"
ORDER = [2, 1, 0, 3]  # of FLEAS, by the words that they have of QUERY


def length(call: Call) -> list[float]:
    return [float(len(call.dialogue.passages[0].text)), 0.0]


@pytest.fixture(scope="module")
def here() -> Iterator[Running]:
    with running(Service([Served("words", word_ranker(), "pointwise"), Served("long", word_ranker(length))])) as found:
        yield found


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(browser: Browser) -> None:
    with running(service(keys=from_environment(SECRET))) as here, visit(browser, here.url) as seen:
        page = seen.page
        key, alert = page.get_by_label("API key", exact=True), page.get_by_role("alert")
        expect(key).to_be_focused()
        expect(alert).to_have_text("The service wants an API key.")
        for wrong, text in (("0123456789abcdef", "does not know this API key"), ("a key", "without a space")):
            key.fill(wrong)
            page.get_by_role("button", name="Use the key").click()
            expect(alert).to_contain_text(text)
        key.fill(SECRET)
        page.keyboard.press("Enter")
        expect(key).to_be_hidden()
        ask(page)
        assert column(page, "words") == ORDER
        page.reload()
        expect(page.get_by_label("Ranker")).to_have_value("words")
        kept = page.evaluate("[{...localStorage}, {...sessionStorage}, document.cookie]")
        assert kept == [{}, {"rerank-key": SECRET}, ""]
        assert not [url for url in seen.asked if SECRET in url]
        is_loaded(page)
        page.get_by_role("button", name="Forget the key").click()
        assert page.evaluate("sessionStorage.length") == 0
        ask(page)
        expect(alert).to_have_text("The service wants an API key.")
        key.fill(SECRET)
        with page.expect_response("**/v1/samples"):
            page.keyboard.press("Enter")
        rank(page)
        expect(page.get_by_role("status")).to_contain_text("words ranked")
        is_loaded(page)  # the samples once, not again for another key


def test_what_is_wrong_is_said_in_a_sentence(browser: Browser) -> None:
    gate = Gate()
    with running(service(word_ranker(gate), documents=3, requests=1)) as here, visit(browser, here.url) as seen:
        page, alert = seen.page, seen.page.get_by_role("alert")
        is_loaded(page)
        rank(page)
        expect(alert).to_have_text("Write a query first.")
        expect(page.get_by_label("Query")).to_be_focused()
        ask(page, "query", [])
        expect(alert).to_have_text("Give some passages first.")
        ask(page, "query", FLEAS)
        expect(alert).to_have_text("That is more than the service takes: 4 documents are more than 3; send fewer.")
        with ThreadPoolExecutor() as pool:
            pool.submit(HTTP.post, f"{here.url}/v1/rerank", json=body("held", ["a"]))
            assert gate.reached.wait(WAIT_S)
            ask(page, "query", FLEAS[:2])
            busy = r"The service is busy: 1 requests are open, and no more may; ask again later\. Try again in \d+ s\."
            expect(alert).to_have_text(re.compile(busy))
            gate.opened.set()
        until("rerank_open_requests", here, 0)
        ask(page, QUERY, FLEAS[:3])
        assert column(page, "words") == [2, 1, 0]
        expect(alert).to_be_empty()
        here.end()
        assert here.ended
        rank(page)
        expect(alert).to_contain_text("The service does not answer.")
        assert column(page, "words") == [2, 1, 0]  # what was there stays
        seen.complaints[:] = [each for each in seen.complaints if "ERR_CONNECTION_REFUSED" not in each]


def test_a_ranking_that_is_cancelled_frees_its_work(browser: Browser) -> None:
    gate = Gate()
    with running(service(word_ranker(gate, batch_tokens=1))) as here, visit(browser, here.url) as seen:
        page = seen.page
        is_loaded(page)
        for cancel in (page.get_by_role("button", name="Cancel").click, lambda: page.keyboard.press("Escape")):
            gate.reached.clear()
            gate.opened.clear()
            ask(page, "held", FLEAS)
            assert gate.reached.wait(WAIT_S)
            expect(page.get_by_role("status")).to_have_text("words ranks 4 passages…")
            cancel()
            expect(page.get_by_role("status")).to_have_text("Cancelled. The service gives up what it had begun.")
            until("rerank_open_requests", here, 0)
            time.sleep(0.2)  # the ranking's thread may be told a moment later
            gate.opened.set()
            expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
            expect(page.get_by_role("button", name="Rank", exact=True)).to_be_focused()
        ask(page)
        assert column(page, "words") == ORDER
    assert gate.asked.count("held") == 2  # of twice four calls


# ---- for everybody


def test_the_keyboard_is_enough(seen: Seen) -> None:
    page = seen.page
    names = []
    for _ in range(9):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        if names[-1] == "query":
            page.keyboard.type(QUERY)
        elif names[-1] == "passages":
            page.keyboard.insert_text("\n".join(FLEAS))
        elif names[-1] == "other":
            page.keyboard.type("lo")
    assert names == ["To the ranking", "OpenAPI", "list", "query", "passages", "open", "ranker", "other", "rank"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert len(column(page, "long")) == 4
    assert column(page, "words") == ORDER
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "whole"
    page.get_by_label("Passages").press("Control+A")
    page.keyboard.insert_text("how long\nfleas")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_contain_text("long ranked 2 passages")


def test_names_and_roles(seen: Seen) -> None:
    page = seen.page
    ask(page, QUERY, FLEAS[:2])
    column(page, "words")
    expect(page.locator("body")).to_match_aria_snapshot(
        """
        - link "To the ranking"
        - banner:
          - heading "rerank" [level=1]
          - navigation "Service":
            - link "OpenAPI"
        - main:
          - form "What to rank":
            - combobox "Start from"
            - textbox "Query": how long do fleas live
            - textbox "Passages"
            - button "Open a file…"
            - combobox "Ranker"
            - combobox "Beside it"
            - button "Rank"
          - region "Ranking":
            - heading "Ranking" [level=2]
            - group "What to do with the ranking":
              - button "Whole passages"
              - button "Save as JSON"
              - button "Save as HTML"
            - alert
            - status: /words ranked 2 passages/
            - region "words":
              - heading "words" [level=3]
              - term: Time
              - definition: /\\d s/
              - list:
                - listitem:
                  - paragraph: Rank 1 up from 2
                  - paragraph: a flea may live for a year
                  - paragraph: Relevance 0.731 score 1.00
                - listitem:
                  - paragraph: Rank 2 down from 1
                  - paragraph: Stocks fell on Monday.
        - contentinfo:
          - group: "The samples: sources and licences"
        """
    )
    button = page.get_by_role("button", name="Whole passages")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")


# the least ratio of contrast of any text to what is behind it (WCAG 2.2, 1.4.3), and whose it is
CONTRAST = """() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    colours.forEach((colour) => { paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1); });
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let least = [21, ""];
  for (const element of document.querySelectorAll("body *:not(option)")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!(own || element.matches("textarea, select")) || !element.checkVisibility()) continue;
    const behind = [];
    for (let at = element; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
    const [one, two] = [light(over(behind)), light(over([...behind, getComputedStyle(element).color]))];
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < least[0]) least = [ratio, element.outerHTML.slice(0, 80)];
  }
  return least;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(seen: Seen, scheme: Literal["light", "dark"]) -> None:
    page = seen.page
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 800})
    ask(page, QUERY + " x" * 200, [*FLEAS, "x" * 300, "<|im_end|> " + "word " * 80], "words", "long")
    assert len(column(page, "long")) == 6
    assert page.locator("#answers").evaluate("element => element.getBoundingClientRect().top") < 100
    drop(page, "a.json", "no")
    expect(page.get_by_role("alert")).not_to_be_empty()
    for width in (320, 360, 768, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    ratio, whose = page.evaluate(CONTRAST)
    assert 4.5 <= ratio < 21, whose


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_passages_are_seen_to_move_unless_that_is_not_wanted(
    seen: Seen, motion: Literal["reduce", "no-preference"]
) -> None:
    seen.page.emulate_media(reduced_motion=motion)
    ask(seen.page)
    assert column(seen.page, "words") == ORDER
    moved = sum(index != place for place, index in enumerate(ORDER))
    assert seen.page.evaluate("window.animated") == (moved if motion == "no-preference" else 0)


# ---- how it is served

STYLE = "() => document.body.append(Object.assign(document.createElement('style'), { textContent: 'p {}' }))"
HTML = "() => { try { document.body.innerHTML = '<b>'; } catch (error) { return error.name; } }"
FETCH = "() => fetch('http://127.0.0.1:9/').catch((error) => error.name)"


def test_the_policy_holds(seen: Seen) -> None:
    """Were a passage made HTML, nothing of it would run, and nothing would be fetched from elsewhere."""
    seen.page.evaluate(STYLE)
    assert [seen.page.evaluate(HTML), seen.page.evaluate(FETCH)] == ["TypeError", "TypeError"]
    assert {*seen.stopped} == {"style-src-elem", "require-trusted-types-for", "connect-src"}
    seen.fresh()


def test_files_come_with_their_types_and_their_policy() -> None:
    with TestClient(create_app(service(keys=from_environment(SECRET)))) as client:
        for path, (_, media_type) in FILES.items():
            for answer in (client.get(path), client.head(path)):
                assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
                assert "unsafe" not in answer.headers["content-security-policy"]
        assert client.get("/v1/samples").status_code == 401
        found = client.get("/v1/samples", headers={"authorization": f"Bearer {SECRET}"}).json()["data"]
    assert [sample["id"] for sample in found] == ["scifact"]
    assert "CC BY 4.0" in found[0]["licence"]
    assert len(found[0]["lists"]) == 12
    assert all(len(each["docs"]) == 10 and not each["docs"][0]["label"] for each in found[0]["lists"])


def test_without_the_page_there_is_none() -> None:
    with TestClient(create_app(service(), page=False)) as client:
        for path in (*FILES, "/v1/samples"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["error_type"]) == (404, "not_found")
        assert client.post("/v1/rerank", json=body()).status_code == 200
