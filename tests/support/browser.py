"""A headless Chromium that a test can watch: what it says, what it asks for, and what its policies stop."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright
from service import FLEAS, QUERY, WAIT_S

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--disable-quic"),
    *("--disable-background-networking", "--disable-component-update"),
)
# tells of what its policies stop, and of what is animated
_WATCH = """
window.stopped = [];
document.addEventListener("securitypolicyviolation", (event) => stopped.push(event.violatedDirective));
window.animated = 0;
const animate = Element.prototype.animate;
Element.prototype.animate = function (...given) { animated += 1; return animate.apply(this, given); };
"""


def _executable(playwright: Playwright) -> str:
    found = [path for name in _NAMES if (path := shutil.which(name))]
    own = playwright.chromium.executable_path
    found += [own] if Path(own).exists() else []
    if not found:
        pytest.skip(f"no Chromium: none of {', '.join(_NAMES)}, nor 'playwright install chromium'")
    return found[0]


@contextmanager
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_S * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_executable(playwright), args=[*_FLAGS], timeout=120_000)
        yield browser
        browser.close()


@dataclass
class Seen:
    """A page, all that it asked for, and all that it complained of."""

    page: Page
    url: str
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def stopped(self) -> list[str]:
        """What a policy stopped."""
        return list(self.page.evaluate("window.stopped"))

    def check(self) -> None:
        """That nothing went elsewhere, nothing broke, and no policy had anything to stop."""
        refused = "Failed to load resource: the server responded with a status"  # which the page tells in words
        assert [each for each in self.complaints if not each.startswith(refused)] == []
        assert [each for each in self.asked if not each.startswith((self.url, "blob:", "data:"))] == []
        assert self.stopped == []

    def fresh(self) -> None:
        self.page.goto(self.url)
        self.asked.clear()
        self.complaints.clear()


@contextmanager
def visit(browser: Browser, url: str, **options: Any) -> Iterator[Seen]:
    """Ends with a check."""
    context = browser.new_context(**{"reduced_motion": "reduce", "service_workers": "block", **options})
    context.set_default_timeout(WAIT_S * 1000)
    context.add_init_script(_WATCH)
    seen = Seen(context.new_page(), url)
    seen.page.on("request", lambda request: seen.asked.append(request.url))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("dialog", lambda dialog: seen.complaints.append(f"dialog: {dialog.message}"))
    seen.page.on(
        "console", lambda said: seen.complaints.append(said.text) if said.type in ("error", "warning") else None
    )
    seen.page.goto(url)
    yield seen
    seen.check()
    context.close()


def is_loaded(page: Page) -> None:
    expect(page.locator("#list optgroup")).to_have_count(1)  # the samples, which come last


def ask(page: Page, query: str = QUERY, texts: Sequence[str] = FLEAS, *rankers: str) -> None:
    page.get_by_label("Query").fill(query)
    page.get_by_label("Passages").fill("\n".join(texts))
    for label, name in zip(("Ranker", "Beside it"), rankers, strict=False):
        page.get_by_label(label).select_option(name)
    rank(page)


def rank(page: Page) -> None:
    page.get_by_role("button", name="Rank", exact=True).click()


def column(page: Page, name: str) -> list[int]:
    """The passages' places in the given order, in the order that they are shown in."""
    region = page.get_by_role("region", name=name, exact=True)
    expect(region).to_be_visible()
    return [int(item.get_attribute("data-index") or "") for item in region.locator("li[data-index]").all()]


def drop(page: Page, name: str, content: str) -> None:
    files = page.evaluate_handle(
        "([name, text]) => { const all = new DataTransfer(); all.items.add(new File([text], name)); return all; }",
        [name, content],
    )
    page.dispatch_event("body", "drop", {"dataTransfer": files})
