"""The run card: where every run comes from, beside the others, as far as anybody wrote it down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rerank.eval.report.section import RunCard

UNKNOWN = "unknown"

# what a reader looks for, and where `rerank run` writes it; a row is there even if no run tells it
_WANTED: tuple[tuple[str, str], ...] = (
    ("strategy", "settings.strategy"),
    ("options", "settings.options"),
    ("seeds", "seeds"),
    ("prompt", "settings.prompt"),
    ("model", "settings.model"),
    ("adapter", "settings.adapter"),
    ("adapter's SHA-256", "settings.adapter_sha256"),
    ("dataset", "settings.dataset"),
    ("first stage", "settings.run"),
    ("queries from", "settings.queries"),
    ("depth", "settings.depth"),
    ("candidates' SHA-256", "candidates"),
    ("queries ranked", "queries"),
    ("answers", "outcomes"),
    ("not asked", "errors"),
    ("rerank", "versions.rerank-llm"),
    ("torch", "versions.torch"),
    ("transformers", "versions.transformers"),
    ("ranx", "versions.ranx"),
    ("command", "command"),
)
_TOLD_ELSEWHERE = {"tag", "usage", "settings.tag"}
_NULL = {
    "settings.model": "the engine's default",
    "settings.run": "the dataset's own, else BM25",
    "settings.queries": "the dataset",
    "settings.device": "chosen by itself",
    "settings.dtype": "chosen by itself",
}


@dataclass(frozen=True, slots=True)
class Row:
    """`cells` are text, and whether it is known, in the order of the runs."""

    label: str
    cells: tuple[tuple[str, bool], ...]


def rows(cards: Iterable[RunCard]) -> list[Row]:
    """What is wanted of every run, then all else that some card tells."""
    cards = list(cards)
    flat = [_flat(card) for card in cards]
    shown = [("file", "file"), ("file's SHA-256", "sha256"), *_WANTED]
    known = {key for _, key in shown} | _TOLD_ELSEWHERE
    more = [key for each in flat for key in each if key not in known]
    shown += [(key.removeprefix("settings.").replace("versions.", ""), key) for key in dict.fromkeys(more)]
    return [Row(label, tuple(_cell(each, key) for each in flat)) for label, key in shown]


def _cell(card: Mapping[str, object], key: str) -> tuple[str, bool]:
    if key not in card:
        return UNKNOWN, False
    value = card[key]
    if value is None or value == [] or value == {}:
        return _NULL.get(key, "none"), True
    if isinstance(value, Mapping):
        told = {name: each for name, each in value.items() if key != "outcomes" or each}  # of answers what there was
        return ", ".join(f"{name} {_plain(each)}" for name, each in told.items()) or "none", True
    return _plain(value), True


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return "; ".join(map(_plain, value))
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{name} {_plain(each)}" for name, each in value.items()) + ")"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _flat(card: RunCard) -> dict[str, object]:
    """One level of keys; `settings` and `versions` are opened."""
    found: dict[str, object] = {"file": card.file, "sha256": card.sha256}
    found = {key: value for key, value in found.items() if value is not None}
    for key, value in (card.told or {}).items():
        if key in ("settings", "versions") and isinstance(value, Mapping):
            found |= {f"{key}.{name}": each for name, each in value.items()}
        else:
            found[key] = value
    settings = (card.told or {}).get("settings")
    if isinstance(settings, Mapping):
        found["seeds"] = _seeds(settings) or None
        # of a cascade every stage has its own
        if "stages" in settings or "sum" in settings:
            for key in ("options", "prompt", "model", "adapter", "adapter_sha256"):
                found.setdefault(f"settings.{key}", "see the stages")
    return found


def _seeds(settings: Mapping[str, object]) -> dict[str, object]:
    """Options whose name ends with seed, of the strategy and of a cascade's stages."""
    found: dict[str, object] = {}
    for name, value in settings.items():
        inner = value if isinstance(value, list | tuple) else [value]
        for each in inner:
            if isinstance(each, Mapping):
                found |= _seeds(each)
        if name.endswith("seed") and not isinstance(value, Mapping | list):
            found[name] = value
    return found
