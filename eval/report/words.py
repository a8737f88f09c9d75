"""What a comparison says, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rerank.eval.comparison import SIGNIFICANT, Compared, Comparison
from rerank.eval.efficiency import Prices

_NAMED = 3  # runs in a sentence
TESTS = {
    "t": "Student's paired t test",
    "tukey": "randomised Tukey HSD",
    "randomisation": "Fisher's randomisation test",
}


def findings(comparison: Comparison, lacking: Mapping[str, int]) -> list[str]:
    """Sentences: which runs differ from the baseline, which cannot be told apart from it, on how many queries, and
    which runs lack some of them."""
    baseline, *others = comparison.rows
    better = [row for row in others if _differs(row) and (row.difference or 0) > 0]
    worse = [row for row in others if _differs(row) and (row.difference or 0) < 0]
    unclear = [row for row in others if row not in better and row not in worse]
    said = [
        f"On {counted(comparison.queries, 'query', 'queries')}, {baseline.name}, the baseline, "
        f"has {comparison.measure} {baseline.mean:.4f}."
    ]
    if better:
        said.append(f"Significantly better: {_listed(better)}.")
    if worse:
        said.append(f"Significantly worse: {_listed(worse)}.")
    if unclear:
        said.append(
            f"No significant difference was found for {_listed(unclear)}; that does not show that there is none."
        )
    if lacking:
        said.append(f"{lacks(lacking, comparison.queries)}.")
    return said


def lacks(lacking: Mapping[str, int], queries: int) -> str:
    """A warning, without its full stop: such a run's mean is low whatever it ranks."""
    first = [f"{name} lacks {count:,} of the {queries:,} queries" for name, count in lacking.items()]
    more = f" and {len(first) - _NAMED} more runs lack some" if len(first) > _NAMED else ""
    return f"Beware: {', '.join(first[:_NAMED])}{more}; what is lacking counts as 0"


def method(comparison: Comparison) -> str:
    """How significance was decided."""
    said = f"p by {TESTS[comparison.test]}, two-sided and paired by query"
    if comparison.test != "t":
        said += f" ({comparison.samples:,} samples, seed {comparison.seed})"
    pairs = len(comparison.rows) - 1
    if comparison.test == "tukey":
        said += ", which is for all pairs of runs together"
    elif comparison.correction == "none":
        said += ", not corrected" + (f" though {pairs} runs are compared" if pairs > 1 else "")
    else:
        said += f", corrected for {counted(pairs, 'comparison', 'comparisons')} by {comparison.correction}"
    stars = "* p < .05, ** p < .01, *** p < .001"
    return f"{said}. {stars}. Intervals: {comparison.level:.0%}, Student's t, of the mean difference, each on its own."


def priced(prices: Prices | None, own: Mapping[str, Prices]) -> str | None:
    """At what money is reckoned; None where nothing has a price."""
    said = [f"{name} at {each.prompt:g} and {each.generated:g}" for name, each in own.items()]
    if prices is not None:
        said.insert(0, f"{'the others' if own else 'all'} at {prices.prompt:g} and {prices.generated:g}")
    return f"{', '.join(said)} per million prompt tokens and generated ones" if said else None


def counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _differs(row: Compared) -> bool:
    return row.p is not None and row.p < SIGNIFICANT


def _listed(rows: Sequence[Compared]) -> str:
    """The largest differences first; of many only these."""
    largest = sorted(rows, key=lambda row: -abs(row.difference or 0.0))
    named = [f"{row.name} ({row.difference:+.4f}, p {_p(row.p)})" for row in largest]
    if len(named) > _NAMED + 1:
        named = [*named[:_NAMED], f"{len(named) - _NAMED} more runs"]
    return ", ".join(named[:-1]) + (" and " if named[1:] else "") + named[-1]


def _p(p: float | None) -> str:
    return "" if p is None else "< .0001" if p < 0.0001 else f"{p:.4f}"
