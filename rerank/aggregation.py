"""One order of many comparisons, or of many orders.

A matrix of preferences has p[i][j] in [0, 1], how much passage i is preferred to j, and p[j][i] = 1 - p[i][j];
1/2 is a tie, and the diagonal is not looked at. An order holds passages by their places 0..n-1 in the first stage's
order, best first. Where orders are equally good an exact search takes the first of them in the order of a dictionary:
what is tied all through stays as it was given. `wins` and `bradley_terry` give scores, the others orders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rerank.errors import InputError

Preferences = Sequence[Sequence[float]]
Matrix = NDArray[np.float64]

KEMENY_EXACT = 20  # 2^n sets of passages: 0.7 s and 150 MB at 20, a listwise window; a quarter of it at 18
PATH_EXACT = 16  # 2^n sets, and n beginnings of each: 0.1 s at 16
_SETTLED = 1e-9  # a step of λ that is no step
_GAIN = 1e-9  # a move that gains less is rounding, and could be taken back for ever


def wins(p: Preferences) -> list[float]:
    """s_i = Σ_j p[i][j], the wins and half the ties: PRP's allpair (Qin et al., Findings of NAACL 2024)."""
    _matrix(p)
    return [sum((value for j, value in enumerate(row) if j != i), 0.0) for i, row in enumerate(p)]


def bradley_terry(p: Preferences, *, tie: float = 0.1) -> list[float]:
    """Log-strengths λ, of mean 0: P(i before j) = 1 / (1 + exp(λ_j - λ_i)), of maximum likelihood.

    By the MM algorithm (Hunter, Annals of Statistics 2004, eq. 3): γ_i = W_i / Σ_j N_ij / (γ_i + γ_j), until no λ moves
    any more. The maximum is at infinity where some passages win against all others, so each pair gets `tie` more
    comparisons that ended even; the data are one comparison a pair.

    Where every pair was compared, as here, the order is that of `wins`, since at the maximum the expected wins are the
    observed ones, and they grow with λ. What is gained is a scale whose differences are log-odds.
    """
    if not 0 < tie < np.inf:
        raise InputError(f"tie is {tie}; give more than 0, since a passage that wins everything has no finite strength")
    matrix = _matrix(p)
    n = len(matrix)
    won = matrix.sum(axis=1) + (n - 1) * tie / 2
    strengths, moved = np.ones(n), np.inf
    while n > 1 and moved > _SETTLED:
        against = (1 / (strengths[:, None] + strengths[None, :])).sum(axis=1) - 1 / (2 * strengths)
        updated = won / ((1 + tie) * against)
        updated /= np.exp(np.log(updated).mean())
        moved = np.abs(np.log(updated / strengths)).max()
        strengths = updated
    return [float(value) for value in np.log(strengths)]


def kemeny(p: Preferences) -> list[int]:
    """The order that agrees with the most preferences, max Σ p[i][j] over i before j (Kemeny, Daedalus 1959).

    Exact, part by part: passages that each win against every one of the others stand before them in any such order
    (Truchon's extended Condorcet criterion, 1998). Raises InputError for more than `KEMENY_EXACT` passages, even where
    the parts would be small: how small is known only when all comparisons are paid for.
    """
    check_kemeny(len(p))
    matrix = _matrix(p)
    return [i for part in _parts(matrix) for i in _kemeny(matrix, part)]


def check_kemeny(n: int) -> None:
    if n > KEMENY_EXACT:
        raise InputError(
            f"the exact Kemeny order is found for at most {KEMENY_EXACT} passages, not {n}; give fewer, or aggregate "
            "by wins, bradley-terry or path"
        )


def path(p: Preferences) -> list[int]:
    """TSPRank: the path through all passages with the most weight, max Σ p[i][j] over i right before j (Li et al.,
    KDD 2025, arXiv 2411.12064).

    Exact for up to `PATH_EXACT` passages (Held and Karp 1962). Above, where the paper takes a solver, each passage in
    turn is inserted where it gains most, then neighbouring parts of the path change places until no exchange gains. To
    reverse parts (2-opt) does not help here: backwards each link p weighs 1 - p. Plain wins and losses have many
    paths of the same weight; passages are taken in the order of their `wins`, so that it decides among them.

    The paper learns its weights for this. Only neighbours count: the path goes round every tie, by whatever passage
    wins by mistake, and of probabilities it need not be the order that all agree on. With p = σ(s_i - s_j) and eight
    s from 3 to 0 it is 0, 2, 4, 6, 1, 3, 5, 7, since one long step back costs less than longer steps forward gain.
    """
    scores = wins(p)
    start = sorted(range(len(p)), key=lambda i: -scores[i])
    matrix = _matrix(p)[np.ix_(start, start)]
    order = _held_karp(matrix) if len(p) <= PATH_EXACT else _exchanged(matrix, _inserted(matrix))
    return [start[i] for i in order]


def borda(orders: Sequence[Sequence[int]]) -> list[int]:
    """By the sum of places over all orders; ties keep the first stage's order."""
    places = _places(orders).sum(axis=0)
    return sorted(range(len(places)), key=lambda i: places[i])


def kemeny_of_orders(orders: Sequence[Sequence[int]]) -> list[int]:
    """The order with the least Kendall distance to all these together: `kemeny` of how many orders have i before
    j. Exact where the parts that it falls into (see `kemeny`) have up to `KEMENY_EXACT` passages; a larger one
    has Borda's order, in which one passage at a time is put elsewhere, the move that gains most, until none gains."""
    places = _places(orders)
    votes = (places[:, :, None] < places[:, None, :]).sum(axis=0).astype(np.float64)  # whole, so that equal is equal
    order, start = list[int](), borda(orders)
    for part in _parts(votes / len(orders)):
        short = len(part) <= KEMENY_EXACT
        order += _kemeny(votes, part) if short else _moved(votes, [i for i in start if i in set(part)])
    return order


def _matrix(p: Preferences) -> Matrix:
    """The preferences with 0 on the diagonal."""
    if not p or any(len(row) != len(p) for row in p):
        raise InputError(f"preferences have {len(p)} rows of {sorted({len(row) for row in p})} values; give a square")
    matrix = np.array(p, dtype=np.float64)
    np.fill_diagonal(matrix, 0.5)
    if not (np.all(matrix >= 0) and np.allclose(matrix + matrix.T, 1)):  # not: a NaN is refused too
        raise InputError("preferences must lie in [0, 1], and p[j][i] be 1 - p[i][j]")
    np.fill_diagonal(matrix, 0)
    return matrix


def _places(orders: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """The place of each passage in each order, [orders, n]."""
    if not orders or any(sorted(order) != list(range(len(orders[0]))) for order in orders):
        raise InputError("give at least one order, and every order with each of 0..n-1 once")
    return np.argsort(np.array(orders, dtype=np.int64), axis=1)


def _parts(matrix: Matrix) -> list[list[int]]:
    """The passages in as many parts as can be, each of which wins all comparisons with those behind it."""
    order = np.argsort(-(matrix >= 0.5).sum(axis=1), kind="stable")
    won = (matrix > 0.5)[np.ix_(order, order)]
    cuts = [k for k in range(1, len(order)) if won[:k, k:].all()]
    return [sorted(part.tolist()) for part in np.split(order, cuts)]


def _kemeny(matrix: Matrix, part: Sequence[int]) -> list[int]:
    """By dynamic programming over sets, as Held and Karp's: best(S) = max_i Σ_{j in S} p[i][j] + best(S - i), where i
    is the first of S."""
    p, n = matrix[np.ix_(part, part)], len(part)
    best = np.full(2**n, -np.inf)
    best[0] = 0

    def with_first(sets: NDArray[np.int64]) -> Matrix:
        """Of each set, with each passage as its first. [sets, n]"""
        inside = sets[:, None] >> np.arange(n) & 1 == 1
        return np.where(inside, inside @ p.T + best[sets[:, None] ^ 1 << np.arange(n)], -np.inf)

    for sets in _by_size(n):
        best[sets] = with_first(sets).max(axis=1)
    order, left = list[int](), 2**n - 1
    while left:
        order.append(int(with_first(np.array([left])).argmax()))
        left ^= 1 << order[-1]
    return [part[i] for i in order]


def _by_size(n: int) -> Iterator[NDArray[np.int64]]:
    """The sets of 1, 2, … n things, each set a number whose bits are its members."""
    sizes = np.zeros(1, dtype=np.int8)
    for _ in range(n):
        sizes = np.concatenate([sizes, sizes + 1])
    yield from (np.flatnonzero(sizes == size) for size in range(1, n + 1))


def _held_karp(matrix: Matrix) -> list[int]:
    """best(S, i) = max_j p[i][j] + best(S - i, j), of the paths over S that begin with i."""
    n = len(matrix)
    best = np.full((2**n, n), -np.inf)
    best[1 << np.arange(n), np.arange(n)] = 0
    for sets in list(_by_size(n))[1:]:
        for first in range(n):
            those = sets[sets >> first & 1 == 1]
            best[those, first] = (matrix[first] + best[those ^ 1 << first]).max(axis=1)
    left = 2**n - 1
    order = [int(best[left].argmax())]
    while left := left ^ 1 << order[-1]:
        order.append(int((matrix[order[-1]] + best[left]).argmax()))
    return order


def _inserted(matrix: Matrix) -> list[int]:
    """A path made by greedy insertion, one passage after the other."""
    order = [0]
    for new in range(1, len(matrix)):
        after, before = matrix[order, new], matrix[new, order]  # of the gap behind, and before, each passage
        replaced = matrix[order[:-1], order[1:]]
        gains = [before[0], *(after[:-1] + before[1:] - replaced), after[-1]]
        order.insert(max(reversed(range(len(gains))), key=lambda place: gains[place]), new)  # the last of equals
    return order


def _exchanged(matrix: Matrix, order: list[int]) -> list[int]:
    """Lets two neighbouring parts of the path change places, the two that gain most, again and again."""
    n = len(order)
    while True:
        w = np.zeros((n + 2, n + 2))  # the ends are things that weigh nothing
        w[1:-1, 1:-1] = matrix[np.ix_(order, order)]
        links = np.append(0, w.diagonal(1))  # of each with the one before it
        gain, i, j, k = _GAIN, 0, 0, 0
        for first in range(1, n):  # the parts are [first, second) and [second, end)
            second, end = np.arange(first + 1, n + 1), np.arange(first + 2, n + 2)
            gained = (w[first - 1, second] - links[first] - links[second])[:, None] + w[np.ix_(second - 1, end)]
            gained = np.triu(gained + w[end - 1, first] - links[end])
            best = int(gained.argmax())
            if gained.flat[best] > gain:
                gain = float(gained.flat[best])
                i, j, k = first - 1, first + best // len(end), first + 1 + best % len(end)
        if not k:
            return order
        order = [*order[:i], *order[j:k], *order[i:j], *order[k:]]


def _moved(votes: Matrix, order: list[int]) -> list[int]:
    """Puts the passage whose move gains most elsewhere, again and again."""
    n = len(order)
    while True:
        lead = (votes - votes.T)[np.ix_(order, order)]
        passed = np.cumsum(lead, axis=1)  # [i, j]: how much i is preferred to those up to j
        own = passed.diagonal()[:, None]
        ahead = own - np.hstack([np.zeros((n, 1)), passed[:, :-1]])  # gained by putting i before j < i
        gains = np.where(np.tri(n, k=-1) == 1, ahead, own - passed)  # or behind j > i
        i, j = divmod(int(gains.argmax()), n)
        if gains[i, j] <= _GAIN:
            return order
        order.insert(j, order.pop(i))
