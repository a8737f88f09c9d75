"""Whether two systems differ, from their values on the same queries.

A value is a measure of one query; `values` are `[systems, queries]`, and a difference is a system's mean minus the
baseline's. All tests are two-sided and paired: what a query is worth to both systems cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rerank.errors import InputError, UnknownNameError

Values = NDArray[np.float64]
Test = Literal["t", "randomisation", "tukey"]
Correction = Literal["none", "bonferroni", "holm", "benjamini-hochberg"]

SAMPLES = 10_000
_AT_ONCE = 2_000_000  # numbers, in the samples that are drawn together
_EQUAL = 1e-12  # sums of the same numbers in another order differ by less


def paired_t(system: Values, baseline: Values) -> float:
    """Student's t test of the mean difference. 1 where no query differs, and for one query alone; 0 where all
    of several differ by the same."""
    from scipy import stats

    difference = system - baseline
    if len(difference) < 2:
        return 1.0
    if np.ptp(difference) < _EQUAL:
        return 1.0 if abs(difference[0]) < _EQUAL else 0.0
    return float(stats.ttest_rel(system, baseline).pvalue)


def randomisation(system: Values, baseline: Values, *, samples: int = SAMPLES, seed: int = 0) -> float:
    """Fisher's randomisation test: how often the mean differs by as much where each query's two values are exchanged at
    random (Smucker, Allan and Carterette, CIKM 2007).

    All 2^n exchanges where they are no more than `samples`, else so many drawn ones, with the observed one among them:
    p is never 0 then (Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 2010).
    """
    difference = system - baseline
    observed, n = abs(difference.sum()) - _EQUAL, len(difference)
    if n < 31 and 2**n <= samples:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        return float((np.abs(signs @ difference) >= observed).mean())
    generator, above, size = np.random.default_rng(seed), 0, max(1, _AT_ONCE // n)
    for start in range(0, samples, size):
        signs = 1 - 2 * generator.integers(0, 2, (min(size, samples - start), n), dtype=np.int8)
        above += int((np.abs(signs @ difference) >= observed).sum())
    return (above + 1) / (samples + 1)


def tukey_hsd(values: Values, *, samples: int = SAMPLES, seed: int = 0) -> Values:
    """Randomised Tukey HSD: p for every pair of systems `[systems, systems]`, corrected for all of them at once.

    Each query's values are given to the systems in random order, and a difference is held against the largest one
    between any two means of such a sample (Carterette, ACM TOIS 2012; Sakai, 2018). 1 on the diagonal.
    """
    systems, queries = values.shape
    means = values.mean(1)
    observed = np.abs(means[:, None] - means[None, :])
    generator, size = np.random.default_rng(seed), max(1, _AT_ONCE // values.size)
    above = np.zeros((systems, systems))
    for start in range(0, samples, size):
        count = min(size, samples - start)
        drawn = generator.permuted(np.broadcast_to(values, (count, systems, queries)), axis=1).mean(2)
        above += (np.ptp(drawn, axis=1)[:, None, None] >= observed - _EQUAL).sum(0)
    p = (above + 1) / (samples + 1)
    np.fill_diagonal(p, 1.0)
    return p


def interval(system: Values, baseline: Values, level: float = 0.95) -> tuple[float, float]:
    """The t interval of the mean difference. Of one query there is none: it is infinite."""
    from scipy import stats

    if not 0 < level < 1:
        raise InputError(f"the level is {level}; give a share in (0, 1), as 0.95")
    difference = system - baseline
    n, mean = len(difference), float(difference.mean())
    if n < 2:
        return (-np.inf, np.inf)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * difference.std(ddof=1) / n**0.5)
    return mean - half, mean + half


def corrected(p: Sequence[float], correction: Correction) -> list[float]:
    """p values that stand for several comparisons together: `bonferroni` and `holm` (Scand. J. Statistics 1979)
    bound the chance of one false finding, `benjamini-hochberg` (JRSS B 1995) the share of findings that are false."""
    if correction not in get_args(Correction):
        raise UnknownNameError("correction", correction, get_args(Correction))
    m = len(p)
    if correction == "none" or not m:
        return list(p)
    if correction == "bonferroni":
        return [min(1.0, m * each) for each in p]
    order = np.argsort(p, kind="stable")
    ranked, places = np.asarray(p, dtype=float)[order], np.arange(1, m + 1)
    if correction == "holm":
        adjusted = np.maximum.accumulate(ranked * (m - places + 1))
    else:
        adjusted = np.minimum.accumulate((ranked * m / places)[::-1])[::-1]
    found = np.empty(m)
    found[order] = np.minimum(adjusted, 1.0)
    return [float(value) for value in found]


def p_values(values: Values, test: Test, *, samples: int = SAMPLES, seed: int = 0) -> list[float]:
    """Of every system against the first, which is the baseline, one test each, uncorrected but for `tukey`."""
    if test not in get_args(Test):
        raise UnknownNameError("test", test, get_args(Test))
    baseline, *others = values
    if test == "tukey":
        return [float(p) for p in tukey_hsd(values, samples=samples, seed=seed)[0, 1:]]
    if test == "t":
        return [paired_t(each, baseline) for each in others]
    return [randomisation(each, baseline, samples=samples, seed=seed) for each in others]
