"""The page in a real browser: nothing fetched, nothing wider than the screen, every query in reach of the keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from reports import HOSTILE, QUERIES, section
from service import WAIT_S

from rerank.eval import Prices
from rerank.eval.report import write_report


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long names and hostile texts in two datasets."""
    path = tmp_path_factory.mktemp("report") / "page.html"
    long = ("base" + "-with-options" * 6, "better", "same")
    write_report(
        path, [section("tiny", names=long), section("hostile", names=HOSTILE, hostile=True)], prices=Prices(2, 10)
    )
    return path


@contextmanager
def opened(browser: Browser, file: Path, width: int = 1280, scheme: str = "light") -> Iterator[Page]:
    """The page; at the end nothing was asked for but itself, and the console is empty."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(WAIT_S * 1000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url != file.as_uri() else None)
    page.goto(file.as_uri())
    yield page
    assert said == []
    assert page.evaluate("window.hacked") is None
    context.close()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_has_both_schemes(browser: Browser, page_file: Path, width: int, scheme: str) -> None:
    with opened(browser, page_file, width, scheme) as page:
        for box in page.locator("details").all():
            box.evaluate("box => box.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        dark = sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(","))) < 3 * 128
        assert dark == (scheme == "dark")
        page.locator("button[data-query]").first.click()
        dialog = page.locator("dialog")
        expect(dialog.locator("h2")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert dialog.evaluate("box => box.scrollWidth <= box.clientWidth")


def test_a_point_opens_its_query(browser: Browser, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        point = page.locator("#d1 .scatter").first.locator(".pt").last  # nothing is drawn over the last
        query = int(point.get_attribute("data-query") or "")
        point.hover()
        readout = page.locator("#d1 .readout").first
        expect(readout).to_contain_text(f"what is {query}?")
        expect(readout).to_contain_text("better 1.0000")
        point.click()
        dialog = page.locator("dialog[open]")
        expect(dialog.locator("h2")).to_have_text(f"what is {query}?")
        orders = [[row.inner_text().split() for row in side.locator("li").all()] for side in dialog.locator("ol").all()]
        assert [[row[0] for row in side] for side in orders] == [["1", "2", "3"]] * 2
        assert "0" in orders[0][0][:3] and "2" in orders[1][0][:3]  # the label of the first place, before and after
        assert dialog.locator("svg path.up").count() == dialog.locator("svg path.down").count() == 1
        dialog.get_by_text("Passages (3)").click()
        cut = dialog.locator(".texts details").first
        cut.locator("summary").click()
        expect(cut).to_contain_text("words of document 2 long")
        expect(cut).to_contain_text("The first 600 of 1019 characters")
        page.keyboard.press("Escape")
        expect(page.locator("dialog[open]")).to_have_count(0)


def test_the_keyboard_reaches_every_query(browser: Browser, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        chart = page.locator("#d1 .scatter").first
        assert chart.locator(".pt").count() == QUERIES
        assert chart.locator(".pt[tabindex='0']").count() == 1  # one stop of the Tab key
        focused = "document.activeElement.dataset.query"
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.matches('#d1 .scatter .pt')"):
                break
        seen = [page.evaluate(focused)]
        for _ in range(QUERIES - 1):
            page.keyboard.press("ArrowRight")
            seen.append(page.evaluate(focused))
        assert sorted(map(int, seen)) == list(range(QUERIES))
        page.keyboard.press("Home")
        assert page.evaluate(focused) == seen[0] == str(QUERIES - 1)  # the one that did not gain
        page.keyboard.press("Enter")
        expect(page.locator("dialog[open] h2")).to_have_text(f"what is {QUERIES - 1}?")
        page.keyboard.press("Escape")
        expect(page.locator("#d1 .scatter .pt:focus")).to_have_attribute("data-query", seen[0])


def test_cost_axis_and_movements(browser: Browser, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        costs = page.locator("#d1 .costs")
        assert costs.locator("[data-axis]:visible").get_attribute("data-axis") == "tokens"
        costs.get_by_label("money", exact=True).check()
        expect(costs.locator("[data-axis]:visible")).to_have_attribute("data-axis", "money")
        assert page.locator("#d1 .mover[open] .orders").count() == 1  # of the run that moved anything
        later = page.locator("#d1 .mover").nth(1)
        later.locator("summary").first.click()
        later.locator(".orders").wait_for()


def test_hostile_text_stays_text(browser: Browser, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        page.locator("#d2 .scatter").first.locator(".pt").last.click()
        expect(page.locator("dialog[open]")).to_contain_text(HOSTILE[0])
        assert page.locator("img").count() == 0 and page.locator("a[href^=javascript]").count() == 0


def test_in_print_nothing_scrolls(browser: Browser, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        page.emulate_media(media="print")
        assert page.locator("nav").is_hidden() and page.locator("h1").is_visible()
        hidden = "box => ['auto', 'scroll'].includes(getComputedStyle(box).overflowX)"
        assert not any(box.evaluate(hidden) for box in page.locator(".scroll").all())
