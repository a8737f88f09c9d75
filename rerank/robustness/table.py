"""A study as a table, and as a record for machines."""

from __future__ import annotations

from dataclasses import asdict
from math import isinf

from rerank.robustness.study import AS_GIVEN, FIRST_STAGE, Row, Study


def header(study: Study) -> list[str]:
    return ["input", "queries", study.measure, "change", "95% interval", "p", "tau", "RBO", ""]


def cells(row: Row) -> list[str]:
    """Beside the header. A ranker's own name stands where its input is as given, what disturbs it below."""
    return [
        row.ranker if row.input == AS_GIVEN else f"- {row.input}",
        str(row.queries),
        f"{row.value:.4f}",
        "" if row.difference is None else f"{row.difference:+.4f}",
        "" if row.interval is None else f"{row.interval[0]:+.3f} to {row.interval[1]:+.3f}",
        "" if row.p is None else f"{row.p:.4f}",
        "" if row.tau is None else f"{row.tau:.2f}",
        "" if row.rbo is None else f"{row.rbo:.2f}",
        _also(row),
    ]


def _also(row: Row) -> str:
    if row.rise is not None:
        return f"place {row.rise.before:.1f} to {row.rise.after:.1f}" + ("*" if row.rise.p < 0.05 else "")
    if row.certified:
        return "certified " + ", ".join(f"top-{k} {n}/{of}" for k, (n, of) in row.certified.items())
    if row.input == AS_GIVEN and row.relative is not None:
        return f"gain {row.relative:+.1%}"
    return ""


def explained(study: Study) -> str:
    """What the figures of the table are."""
    rows = [row for part in study.parts for row in part.rows]
    told = (
        f"a ranker's change is to the {FIRST_STAGE}, below it to the ranker itself; t intervals; p by Fisher's "
        "randomisation test, Holm over a ranker's inputs"
    )
    if any(row.rise for row in rows):
        told += "; place: of the passage that the text was put into, before and after, * where p is below .05"
    if any(row.certified for row in rows):
        told += "; certified: queries whose first k no exchange of synonyms in the other passages changes"
    return told


def risen(study: Study) -> list[str]:
    """In words, what each injected text did."""
    return [
        f"{row.ranker}, {row.input}: {row.rise.before - row.rise.after:+.2f} places up ({row.rise.interval[0]:+.2f} to "
        f"{row.rise.interval[1]:+.2f}, p {row.rise.p:.3f}), higher in {row.rise.up:.0%}, first in {row.rise.first:.0%}"
        for part in study.parts
        for row in part.rows
        if row.rise is not None
    ]


def shifts(study: Study) -> list[tuple[str, str, float, float]]:
    """Out-of-domain drop: ranker, domain, its relative gain over the first stage there, and that less the gain on the
    first dataset."""
    home = {row.ranker: row.relative for row in study.parts[0].rows if row.input == AS_GIVEN}
    return [
        (row.ranker, part.dataset, row.relative, row.relative - here)
        for part in study.parts[1:]
        for row in part.rows
        if row.relative is not None and (here := home.get(row.ranker)) is not None
    ]


def _finite(record: dict[str, object]) -> dict[str, object]:
    """None for an interval of one query, which is infinite: JSON has no such number."""
    return {
        name: _finite(value) if isinstance(value, dict) else None if _is_infinite(value) else value
        for name, value in record.items()
    }


def _is_infinite(value: object) -> bool:
    return isinstance(value, tuple) and any(isinstance(each, float) and isinf(each) for each in value)


def record(study: Study) -> dict[str, object]:
    return {
        "measure": study.measure,
        "seed": study.seed,
        "parts": [
            {
                "dataset": part.dataset,
                "queries": part.queries,
                "depth": part.depth,
                "rows": [_finite(asdict(row)) | {"relative": row.relative} for row in part.rows],
            }
            for part in study.parts
        ],
        "domains": [
            {"ranker": ranker, "dataset": dataset, "gain": gain, "difference": difference}
            for ranker, dataset, gain, difference in shifts(study)
        ],
        "failed": study.failed,
    }
