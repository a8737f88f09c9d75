"""How alike two orders of the same things are: what a ranker's order is worth when its input is disturbed.

Orders are lists of ids, best first. Only ids that both orders hold are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from rerank.errors import InputError

PERSISTENCE = 0.9  # of RBO: the first 10 places have 86 % of the weight (Webber, Moffat and Zobel, 2010, eq. 21)


def kendall_tau(one: Sequence[str], other: Sequence[str]) -> float:
    """Kendall's tau: the share of pairs that both order alike, less those that they order otherwise; 1 for one id.

    >>> kendall_tau(["a", "b", "c"], ["a", "c", "b"])
    0.333333333333
    """
    one, other = _common(one, other)
    if len(one) < 2:
        return 1.0
    from scipy import stats

    place = {doc_id: i for i, doc_id in enumerate(other)}
    return round(float(stats.kendalltau(range(len(one)), [place[doc_id] for doc_id in one]).statistic), 12)


def rbo(one: Sequence[str], other: Sequence[str], p: float = PERSISTENCE) -> float:
    """Rank-biased overlap, extrapolated (Webber, Moffat and Zobel, ACM TOIS 2010, eq. 30): the overlap of the first d
    places, weighted by p^d; 1 for equal orders. Differences at the head count most, which tau does not know."""
    if not 0 < p < 1:
        raise InputError(f"rbo's p is {p}; give a number between 0 and 1")
    one, other = _common(one, other)
    if not one:
        return 1.0
    seen: tuple[set[str], set[str]] = (set(), set())
    total = overlap = 0.0
    for depth, pair in enumerate(zip(one, other, strict=True), start=1):
        for ids, doc_id in zip(seen, pair, strict=True):
            ids.add(doc_id)
        overlap = len(seen[0] & seen[1]) / depth
        total += overlap * p**depth
    return float(total * (1 - p) / p + overlap * p ** len(one))


def _common(one: Sequence[str], other: Sequence[str]) -> tuple[list[str], list[str]]:
    """Both orders without what the other lacks."""
    here, there = set(one), set(other)
    if len(here) < len(one) or len(there) < len(other):
        raise InputError("an order holds an id twice; ids must be distinct")
    return [each for each in one if each in there], [each for each in other if each in here]
