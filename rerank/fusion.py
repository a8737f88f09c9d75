"""Fusion: several rankers order the same passages, and their scores or ranks are put together by ranx.

    rerank.fuse(rerank.FirstStage(), rerank.load("pointwise"), method="wsum", norm="zmuv", weights=(0.3, 0.7))

What the methods and norms compute is ranx's (Bassani and Romelli, CIKM 2022). Every stage ranks every passage, so that
no rule for absent ones is needed; those methods of ranx are left out that differ from others by that rule only, or
whose result depends on the order of a set, as `condorcet` does.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from threading import Lock
from typing import Literal, get_args

from rerank.errors import InputError, UnknownNameError
from rerank.reranker import Ranker
from rerank.types import Candidates, Outcomes, Ranking, Usage

OfRanks = Literal["rrf", "isr", "bordafuse"]
OfScores = Literal["sum", "wsum", "mnz", "max", "min", "med"]
Norm = Literal["min-max", "zmuv", "sum", "rank", "none"]

RRF_K = 60  # Cormack, Clarke and Büttcher, SIGIR 2009

_ranx_lock = Lock()  # numba's threads end the process when two callers meet in them


def fuse(
    *stages: Ranker,
    method: OfRanks | OfScores = "rrf",
    norm: Norm | None = None,
    weights: Sequence[float] | None = None,
    k: int | None = None,
) -> Fusion:
    """A ranker that asks all stages about all passages of a query and fuses their answers.

    By ranks r: `rrf`, Σ 1 / (k + r), with k = 60 unless given; `isr`, m Σ 1 / r² for m stages; `bordafuse`,
    Σ (n + 1 - r). By scores, each stage's brought to one scale by `norm` and then put together: their `sum`
    (CombSUM), `mnz` (CombMNZ), `max`, `min`, `med`ian, or `wsum`, the sum with a weight for each stage. `norm` is for
    each query: `min-max` to 0..1 (the default, as in ranx), `zmuv` to mean 0 and variance 1 (z-scores), `sum` to a
    least of 0 and a sum of 1, `rank` to 1 - (r - 1) / n, `none` as they are.

    A rank is a passage's place, so that what ties in a stage ranks in that stage's order; what ties in the fusion
    keeps the given order. Many strategies give ranks as their scores. Usage, outcomes and reasoning are those of all
    stages; a query that fails in one of them keeps its given order, and has that one's error. What ranx computes is
    compiled when it is first used on a machine, which takes up to a minute, and kept.
    """
    return Fusion(stages, method=method, norm=norm, weights=weights, k=k)


class Fusion(Ranker):
    """See `fuse`."""

    def __init__(
        self,
        stages: Sequence[Ranker],
        *,
        method: OfRanks | OfScores = "rrf",
        norm: Norm | None = None,
        weights: Sequence[float] | None = None,
        k: int | None = None,
    ) -> None:
        _check_stages(stages)
        _check_options(method, norm, k)
        _check_weights(method, weights, len(stages))
        self.stages, self.method = tuple(stages), method
        self.norm: Norm | None = None if method in get_args(OfRanks) else norm or "min-max"
        self.weights = None if weights is None else tuple(float(weight) for weight in weights)
        self.k = (k or RRF_K) if method == "rrf" else None

    def _run(self, requests: Iterable[Candidates]) -> Iterator[Ranking]:
        shared = _Shared(requests, 1 + len(self.stages))
        rankings = [stage._run(shared.reader(i)) for i, stage in enumerate(self.stages, start=1)]
        for request, *found in zip(shared.reader(0), *rankings, strict=True):
            yield self._fused(request, found)

    def _fused(self, request: Candidates, rankings: Sequence[Ranking]) -> Ranking:
        n = len(request)
        order, scores = list(range(n)), [float(n - i) for i in range(n)]
        error = next((ranking.error for ranking in rankings if ranking.error is not None), None)
        if error is None:
            fused = self._scores(request, rankings)
            if all(map(math.isfinite, fused)):
                order.sort(key=lambda i: -fused[i])
                scores = [fused[i] for i in order]
            else:
                error = InputError(
                    f"query {request.query.query_id!r}: a stage gave a score that is not finite; fuse by ranks, "
                    "as with method='rrf'"
                )
        return replace(
            Ranking.of(request, order, scores),
            usage=sum((ranking.usage for ranking in rankings), Usage()),
            outcomes=sum((ranking.outcomes for ranking in rankings), Outcomes()),
            reasoning=tuple(text for ranking in rankings for text in ranking.reasoning),
            error=error,
        )

    def _scores(self, request: Candidates, rankings: Sequence[Ranking]) -> list[float]:
        """ranx's, passage by passage. Passages are named by their positions, which any id would be safe as."""
        import ranx

        n = len(request)
        names = {passage.doc_id: str(i) for i, passage in enumerate(request.passages)}
        by_rank = self.norm in (None, "rank")
        # ranx ranks by score, and orders ties at random: where ranks count, the places stand in for scores
        runs = [
            {names[hit.passage.doc_id]: float(n - hit.rank) if by_rank else hit.score for hit in ranking}
            for ranking in rankings
        ]
        if any(run.keys() != set(names.values()) for run in runs):
            raise RuntimeError(f"a stage of a fusion did not return each of the {n} passages once")
        options: dict[str, object] = {} if self.weights is None else {"weights": list(self.weights)}
        options |= {} if self.k is None else {"k": self.k}
        with _ranx_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numba's, of a cast in ranx's rrf, when that is first compiled
            fused = ranx.fuse(
                [ranx.Run({"q": run}) for run in runs],
                norm=None if self.norm == "none" else self.norm,
                method=self.method,
                params=options,
            )
            return [float(fused.run["q"][str(i)]) for i in range(n)]

    def close(self) -> None:
        for stage in self.stages:
            stage.close()


class _Shared:
    """One stream of requests for several readers, each at its own pace and perhaps in a thread of its own, as the
    source of an engine that is asked call by call is. What one has read and another has not is kept, and no more."""

    def __init__(self, requests: Iterable[Candidates], readers: int) -> None:
        self._source = iter(requests)
        self._ahead: list[deque[Candidates]] = [deque() for _ in range(readers)]
        self._lock = Lock()

    def reader(self, number: int) -> Iterator[Candidates]:
        """An error of the source is raised to who meets it; for the others the stream ends there."""
        mine = self._ahead[number]
        while True:
            with self._lock:
                if not mine:
                    try:
                        request = next(self._source)
                    except StopIteration:
                        return
                    for queue in self._ahead:
                        queue.append(request)
                request = mine.popleft()
            yield request


def _check_stages(stages: Sequence[Ranker]) -> None:
    if len(stages) < 2:
        raise InputError(f"fuse has {len(stages)} stage(s); give two or more, as in fuse(FirstStage(), ranker)")
    for stage in stages:
        if not isinstance(stage, Ranker):
            raise InputError(f"fuse has a {type(stage).__name__} among its stages; give rankers, or FirstStage()")
        if (cut := stage._stages()[-1].keep) is not None:
            raise InputError(
                f"a stage of the fusion ends with a cut at {cut}, and fused stages rank every passage; cut before the "
                f"fusion, as in 'a % {cut} >> fuse(b, c)', or after it, as in 'fuse(a, b) % {cut}'"
            )


def _check_options(method: str, norm: str | None, k: int | None) -> None:
    of_ranks = get_args(OfRanks)
    if method not in (*of_ranks, *get_args(OfScores)):
        raise UnknownNameError("fusion method", method, (*of_ranks, *get_args(OfScores)))
    if norm is not None and norm not in get_args(Norm):
        raise UnknownNameError("norm", norm, get_args(Norm))
    if norm is not None and method in of_ranks:
        raise InputError(f"norm={norm} is for scores, and {method} looks at ranks alone; leave norm out, or give wsum")
    if k is not None and method != "rrf":
        raise InputError(f"k={k} is rrf's constant, which {method} does not have; leave k out, or give method='rrf'")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise InputError(f"k is {k!r}; give a whole number of at least 1, as the paper's 60")


def _check_weights(method: str, weights: Sequence[float] | None, stages: int) -> None:
    if method != "wsum":
        if weights is not None:
            raise InputError(f"weights are for method='wsum', and {method} has none; leave weights out, or give wsum")
        return
    if weights is None:
        raise InputError(f"wsum needs a weight for each of {stages} stages, as in weights=(0.3, 0.7); 'sum' has none")
    if len(weights) != stages:
        raise InputError(f"there are {len(weights)} weights for {stages} stages; give each stage one")
    if not all(map(math.isfinite, weights)) or not any(weights):
        raise InputError(f"weights are {tuple(weights)}; give numbers, not all of them 0")
