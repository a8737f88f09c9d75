"""What `/` needs beside the API: the page's files, and samples to begin with. The page asks as every client does.

What it shows is text from anywhere, so its policy lets it run its own script alone, make no HTML of a string, and speak
to nobody but the service.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from rerank.data import load_dataset
from rerank.server.bodies import Sample, SampleDocument, SampleList

FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    **{f"/{name}": (name, "text/javascript; charset=utf-8") for name in ("page.js", "lists.js", "ranking.js")},
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",  # the icon
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_LISTS, _DEPTH = 12, 10


def asset(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    content = (files("rerank.server") / "page" / name).read_bytes()

    async def served(_: Request) -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return served


@lru_cache(maxsize=1)
def samples() -> list[Sample]:
    """Of SciFact, claims whose judged abstract BM25 has among its first ten, but not as the first; spread over all."""
    dataset = load_dataset("sample:scifact")
    licence = (files("rerank.data.samples") / "scifact" / "LICENSE.md").read_text(encoding="utf-8")
    found = []
    for candidates in dataset.candidates(_DEPTH):
        judged = (dataset.qrels or {}).get(candidates.query.query_id, {})
        labels = [judged.get(passage.doc_id, 0) for passage in candidates.passages]
        if any(labels) and not labels[0]:
            documents = [
                SampleDocument(docid=each.doc_id, title=each.title, text=each.text, label=label)
                for each, label in zip(candidates.passages, labels, strict=True)
            ]
            found.append(SampleList(qid=candidates.query.query_id, query=candidates.query.text, docs=documents))
    return [Sample(id="scifact", licence=licence, lists=found[:: len(found) // _LISTS][:_LISTS])]
