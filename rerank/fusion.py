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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from threading import Lock
from typing import TYPE_CHECKING, Literal, get_args

from rerank.data import Run
from rerank.errors import InputError, UnknownNameError
from rerank.reranker import Ranker, Reranker
from rerank.types import Candidates, Outcomes, Ranking, Usage

if TYPE_CHECKING:
    import ranx

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
            yield self.fused(request, found)

    def fused(self, request: Candidates, rankings: Sequence[Ranking]) -> Ranking:
        """What the stages found for a request, put together; for rankings that are there already."""
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
        """ranx's, passage by passage."""
        everyone = {passage.doc_id: 0.0 for passage in request.passages}
        found = [{hit.passage.doc_id: hit.score for hit in ranking} for ranking in rankings]
        if any(docs.keys() != everyone.keys() for docs in found):
            raise RuntimeError(f"a stage of a fusion did not return each of the {len(everyone)} passages once")
        fused = _by_ranx(found, self.method, self.norm, self.weights, self.k)
        return [fused[doc_id] for doc_id in everyone]

    def rerankers(self) -> Iterator[Reranker]:
        return chain.from_iterable(stage.rerankers() for stage in self.stages)

    def limited(self, passage_tokens: int) -> Fusion:
        stages = [stage.limited(passage_tokens) for stage in self.stages]
        return Fusion(stages, method=self.method, norm=self.norm, weights=self.weights, k=self.k)

    def close(self) -> None:
        for stage in self.stages:
            stage.close()


def fuse_runs(
    *runs: Run,
    method: OfRanks | OfScores = "rrf",
    norm: Norm | None = None,
    weights: Sequence[float] | None = None,
    k: int | None = None,
) -> Run:
    """One run of several first stages' (a hybrid); see `fuse` for the methods.

    Stages find different documents, and one that a stage did not find gets nothing of it: no term of a sum, and as if
    that stage had not been asked in `max`, `min` and `med`; `bordafuse` shares out the points that are left. `zmuv` is
    refused, since the nothing would be its mean. A rank is by score, ties in the run's own order; what ties in the
    fusion stands in the order of the runs.
    """
    if len(runs) < 2:
        raise InputError(f"there is {len(runs)} run to fuse; give two or more")
    _check_options(method, norm, k)
    _check_weights(method, weights, len(runs))
    if norm == "zmuv":
        raise InputError(
            "zmuv puts the mean of what a stage found at 0, which is also what a document gets that it did not find; "
            "give min-max, sum or rank"
        )
    scale = None if method in get_args(OfRanks) else norm or "min-max"
    fused: Run = {}
    for query_id in dict.fromkeys(query_id for run in runs for query_id in run):
        found = [run.get(query_id, {}) for run in runs]
        if any(not math.isfinite(score) for docs in found for score in docs.values()):
            raise InputError(f"query {query_id!r}: a run to fuse has a score that is not finite")
        each = [dict(sorted(docs.items(), key=lambda pair: -pair[1])) for docs in found]
        scores = _by_ranx(each, method, scale, weights, (k or RRF_K) if method == "rrf" else None)
        fused[query_id] = dict(sorted(scores.items(), key=lambda pair: -pair[1]))
    return fused


def _by_ranx(
    found: Sequence[Mapping[str, float]],
    method: OfRanks | OfScores,
    norm: Norm | None,
    weights: Sequence[float] | None,
    k: int | None,
) -> dict[str, float]:
    """What ranx makes of one query's documents and scores, best first where ranks count; in the order of their first
    place. Documents are named by numbers, which any id would be safe as."""
    import ranx

    names = {doc_id: str(i) for i, doc_id in enumerate(dict.fromkeys(doc_id for docs in found for doc_id in docs))}
    if not names:
        return {}
    by_rank = norm in (None, "rank")
    # ranx ranks by score, and orders ties at random: where ranks count, the places stand in for scores
    runs = [
        {names[doc_id]: float(-i) if by_rank else score for i, (doc_id, score) in enumerate(docs.items())}
        for docs in found
    ]
    options: dict[str, object] = {} if weights is None else {"weights": list(weights)}
    options |= {} if k is None else {"k": k}
    with _ranx_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba's, of a cast in ranx's rrf, when that is first compiled
        fused = ranx.fuse(
            [_ranx_run(run) for run in runs],
            norm=None if norm == "none" else norm,
            method=method,
            params=options,
        )
        return {doc_id: float(fused.run["q"][name]) for doc_id, name in names.items()}


def _ranx_run(docs: dict[str, float]) -> ranx.Run:
    """ranx makes no run of a query without documents, and fuses one all the same."""
    import ranx

    run = ranx.Run({"q": docs or {"-": 0.0}})
    if not docs:
        del run.run["q"]["-"]
    return run


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
