"""Fusion: what ranx gives for the same runs, for any scores; and what is refused."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import pytest
import ranx
from hypothesis import given, settings
from hypothesis import strategies as st

import rerank
from rerank import FirstStage, ScriptedBackbone, fuse
from rerank.backbones import oracle
from rerank.errors import ContextError, InputError, UnknownNameError
from rerank.fusion import Norm, OfRanks, OfScores
from rerank.reranker import Ranker
from rerank.types import Candidates, Outcome, Outcomes, Passage, Query, Ranking, Usage

Make = Callable[..., Candidates]

WAYS: list[dict[str, object]] = [
    *({"method": method} for method in get_args(OfRanks)),
    {"method": "rrf", "k": 10},
    *({"method": method} for method in get_args(OfScores) if method != "wsum"),
    *({"method": "wsum", "norm": norm, "weights": (0.3, 0.5, 0.2)} for norm in get_args(Norm)),
]


@dataclass
class Told(Ranker):
    """Scores each query's passages as it was told, by position."""

    scores: Sequence[Sequence[float]]
    error: ContextError | None = None

    def _run(self, requests: Iterable[Candidates]) -> Iterator[Ranking]:
        for request, scores in zip(requests, self.scores, strict=False):
            order = sorted(range(len(scores)), key=lambda i: -scores[i])
            usage, outcomes = Usage(1, 2, 3, 4.0), Outcomes.of(Outcome.CLEAN)
            hits = Ranking.of(request, order, [scores[i] for i in order]).hits
            yield Ranking(request.query, hits, usage, outcomes, (f"because {len(order)}",), self.error)


def requests(tables: Sequence[Sequence[float]]) -> list[Candidates]:
    return [
        Candidates(Query("q", f"q{j}"), tuple(Passage("text", f"d{i}") for i in range(len(scores))))
        for j, scores in enumerate(tables)
    ]


def by_ranx(stages: Sequence[Told], way: dict[str, object]) -> dict[str, dict[str, float]]:
    """ranx on all queries at once, with the passages' ids."""
    runs = [
        ranx.Run({f"q{j}": {f"d{i}": float(s) for i, s in enumerate(scores)} for j, scores in enumerate(stage.scores)})
        for stage in stages
    ]
    norm = way.get("norm", "min-max")
    params = {
        name: list(value) if name == "weights" else value for name, value in way.items() if name in ("weights", "k")
    }  # type: ignore[call-overload]
    fused = ranx.fuse(runs, norm=None if norm == "none" else norm, method=way["method"], params=params)
    return {query: dict(scores) for query, scores in fused.to_dict().items()}


@settings(deadline=None, max_examples=15)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3), seed=st.randoms(use_true_random=False))
@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_a_fusion_is_ranxs(way: dict[str, object], sizes: list[int], seed: object) -> None:
    """Scores of a stage are distinct here: of ties ranx leaves the order open."""
    draw: Callable[..., list[float]] = seed.sample  # type: ignore[attr-defined]
    stages = [Told([[x / 8 - 40 for x in draw(range(640), n)] for n in sizes]) for _ in range(3)]
    asked = requests(stages[0].scores)
    expected = by_ranx(stages, way)
    for request, ranking in zip(asked, fuse(*stages, **way).rank_many(asked), strict=True):  # type: ignore[arg-type]
        scores = expected[request.query.query_id]
        assert {hit.passage.doc_id: hit.score for hit in ranking} == pytest.approx(scores)
        assert len(ranking) == len(request)
        places = {p.doc_id: i for i, p in enumerate(request.passages)}
        assert ranking.doc_ids == sorted(
            places, key=lambda d: (-next(h.score for h in ranking if h.passage.doc_id == d), places[d])
        )
        assert [hit.rank for hit in ranking] == list(range(1, len(ranking) + 1))
        assert {hit.passage for hit in ranking} == set(request.passages)


def test_the_formulas() -> None:
    a, b = Told([[3.0, 2.0, 1.0]]), Told([[0.0, 10.0, 4.0]])
    (asked,) = requests(a.scores)

    def scores(**way: object) -> dict[str, float]:
        return {hit.passage.doc_id: hit.score for hit in next(fuse(a, b, **way).rank_many([asked]))}  # type: ignore[arg-type]

    rrf = {"d0": 1 / 61 + 1 / 63, "d1": 1 / 62 + 1 / 61, "d2": 1 / 63 + 1 / 62}
    assert scores() == pytest.approx(rrf)
    mean, sd = 14 / 3, math.sqrt((14 / 3) ** 2 / 3 + (10 - 14 / 3) ** 2 / 3 + (4 - 14 / 3) ** 2 / 3)
    z = [math.sqrt(3 / 2), 0.0, -math.sqrt(3 / 2)]
    assert scores(method="wsum", norm="zmuv", weights=(0.3, 0.7)) == pytest.approx(
        {f"d{i}": 0.3 * z[i] + 0.7 * (s - mean) / sd for i, s in enumerate(b.scores[0])}
    )
    assert scores(method="sum") == pytest.approx({"d0": 1.0, "d1": 0.5 + 1.0, "d2": 0.0 + 0.4})
    assert scores(method="mnz") == pytest.approx({"d0": 2.0, "d1": 3.0, "d2": 0.8})
    assert scores(method="max", norm="none") == {"d0": 3.0, "d1": 10.0, "d2": 4.0}


def test_costs_add_up_and_reasoning_is_kept() -> None:
    stages = [Told([[1.0, 2.0]]), Told([[2.0, 1.0]])]
    ranking = next(fuse(*stages).rank_many(requests(stages[0].scores)))
    assert ranking.usage == Usage(2, 4, 6, 8.0)
    assert ranking.outcomes == Outcomes(clean=2)
    assert ranking.reasoning == ("because 2", "because 2")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_ties_keep_their_orders(way: dict[str, object]) -> None:
    """In a stage the place counts, in the fusion the given order: the same each time, for many ties."""
    tied = Told([[0.0] * 40])
    (asked,) = requests(tied.scores)
    ranking = next(fuse(tied, tied, tied, **way).rank_many([asked]))  # type: ignore[arg-type]
    assert ranking.doc_ids == [p.doc_id for p in asked.passages]


def test_the_first_stages_scores_take_part() -> None:
    passages = [Passage("a", "a", score=9.0), Passage("b", "b", score=1.0), Passage("c", "c", score=5.0)]
    ranker = rerank.load("pointwise", backbone=ScriptedBackbone(oracle({"a": 0.0, "b": 2.0, "c": 1.5})))
    ranking = fuse(FirstStage(), ranker, method="wsum", weights=(0.5, 0.5)).rank("q", passages)
    expected = {"a": 0.5 * 1 + 0.5 * 0, "b": 0.5 * 0 + 0.5 * 1, "c": 0.5 * 0.5 + 0.5 * 0.75}
    assert {hit.passage.doc_id: hit.score for hit in ranking} == pytest.approx(expected)
    none = [Passage(p.text, p.doc_id) for p in passages]  # 1, 1/2, 1/3
    ranking = fuse(FirstStage(), ranker, method="sum").rank("q", none)
    assert {hit.passage.doc_id: hit.score for hit in ranking} == pytest.approx({"a": 1.0, "b": 0.25 + 1, "c": 0.75})
    some = [passages[0], none[1]]
    with pytest.raises(InputError, match=r"passage 'b' has the first-stage score None.*give every passage its score"):
        fuse(FirstStage(), ranker, method="sum").rank("q", some)


def test_a_query_that_fails_in_a_stage_keeps_the_given_order() -> None:
    stages = [Told([[1.0, 2.0]]), Told([[1.0, 2.0]], ContextError("too long"))]
    asked = requests(stages[0].scores)
    (ranking,) = fuse(*stages).rank_many(asked, on_error="keep")
    assert ranking.doc_ids == ["d0", "d1"] and ranking.error is stages[1].error
    assert ranking.usage.calls == 2
    with pytest.raises(ContextError, match="too long"):
        list(fuse(*stages).rank_many(asked))


def test_scores_without_end_are_fused_by_rank() -> None:
    stages = [Told([[1.0, math.inf]]), Told([[2.0, 1.0]])]
    asked = requests(stages[0].scores)
    assert next(fuse(*stages).rank_many(asked)).doc_ids == ["d0", "d1"]
    with pytest.raises(InputError, match="not finite; fuse by ranks, as with method='rrf'"):
        list(fuse(*stages, method="sum").rank_many(asked))


def test_every_stage_is_a_batch_over_all_queries(make_candidates: Make) -> None:
    a, b, c = (ScriptedBackbone(oracle({f"d{i}": i / 20 for i in range(60)})) for _ in range(3))
    fused = fuse(rerank.load("pointwise", backbone=a), FirstStage(), rerank.load("listwise", backbone=b))
    cascade = fused % 10 >> rerank.load("first", backbone=c)
    found = list(cascade.rank_many([make_candidates(40, f"q{i}") for i in range(16)]))
    assert (a.batches, b.batches, c.batches) == ([640], [16] * 3, [16])
    assert [r.query.query_id for r in found] == [f"q{i}" for i in range(16)]
    assert [r.usage.calls for r in found] == [40 + 3 + 1] * 16


def test_a_fusion_behind_a_cut_sees_what_went_on(make_candidates: Make) -> None:
    table = {f"d{i}": (i * 7 % 20) / 10 for i in range(20)}
    ranker = rerank.load("pointwise", backbone=ScriptedBackbone(oracle(table)))
    ranking = (ranker % 5 >> fuse(FirstStage(), ranker, method="sum")).rank("q", make_candidates(20).passages)
    assert ranking.doc_ids == sorted(table, key=lambda doc_id: -table[doc_id])
    assert [hit.score for hit in ranking][:5] == pytest.approx([2, 1.5, 1, 0.5, 0])
    assert ranking.usage.calls == 25


def test_callers_in_several_threads() -> None:
    """numba's threads would end the process if two met in them."""
    stages = [Told([[float(i * 7 % 31) for i in range(31)]] * 40), Told([[float(i) for i in range(31)]] * 40)]
    asked = requests(stages[0].scores)
    expected = [r.doc_ids for r in fuse(*stages).rank_many(asked)]
    found: list[list[list[str]]] = []
    threads = [
        threading.Thread(target=lambda: found.append([r.doc_ids for r in fuse(*stages).rank_many(asked)]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_an_error_of_the_source_comes_after_what_came_before_it(make_candidates: Make) -> None:
    def broken() -> Iterator[Candidates]:
        yield make_candidates(3, "q0")
        raise InputError("line 2 is broken")

    ranker = rerank.load("pointwise", backbone=ScriptedBackbone(oracle({})))
    for stages in ((FirstStage(), ranker), (ranker, FirstStage()), (ranker, ranker)):
        stream = fuse(*stages).rank_many(broken())
        assert next(stream).query.query_id == "q0"
        with pytest.raises(InputError, match="line 2 is broken"):
            next(stream)


def test_a_stage_that_loses_a_passage_is_a_bug_and_says_so() -> None:
    class Lossy(Ranker):
        def _run(self, requests: Iterable[Candidates]) -> Iterator[Ranking]:
            return (Ranking.of(request, [0], [1.0]) for request in requests)

    with pytest.raises(RuntimeError, match="did not return each of the 2 passages once"):
        fuse(Lossy(), FirstStage()).rank("q", ["a", "b"])


@pytest.mark.parametrize(
    ("stages", "options", "words"),
    [
        ((), {}, "fuse has 0 stage(s); give two or more"),
        ((FirstStage(),), {}, "fuse has 1 stage(s); give two or more"),
        ((FirstStage(), "pointwise"), {}, "fuse has a str among its stages; give rankers"),
        (
            (FirstStage(), FirstStage() % 20),
            {},
            "ends with a cut at 20, and fused stages rank every passage; cut before",
        ),
        ((FirstStage(),) * 2, {"method": "rff"}, "unknown fusion method 'rff'; did you mean 'rrf'?"),
        ((FirstStage(),) * 2, {"method": "condorcet"}, "unknown fusion method 'condorcet'"),
        ((FirstStage(),) * 2, {"method": "sum", "norm": "zmv"}, "unknown norm 'zmv'; did you mean 'zmuv'?"),
        (
            (FirstStage(),) * 2,
            {"norm": "zmuv"},
            "norm=zmuv is for scores, and rrf looks at ranks alone; leave norm out",
        ),
        ((FirstStage(),) * 2, {"weights": (1, 2)}, "weights are for method='wsum', and rrf has none"),
        ((FirstStage(),) * 2, {"method": "wsum"}, "wsum needs a weight for each of 2 stages"),
        ((FirstStage(),) * 2, {"method": "wsum", "weights": (1,)}, "there are 1 weights for 2 stages"),
        (
            (FirstStage(),) * 2,
            {"method": "wsum", "weights": (0, 0)},
            "weights are (0, 0); give numbers, not all of them",
        ),
        ((FirstStage(),) * 2, {"method": "wsum", "weights": (1, math.nan)}, "give numbers"),
        ((FirstStage(),) * 2, {"method": "sum", "k": 60}, "k=60 is rrf's constant, which sum does not have"),
        ((FirstStage(),) * 2, {"k": 0}, "k is 0; give a whole number of at least 1"),
    ],
)
def test_wrong_fusions_are_refused_with_advice(
    stages: Sequence[Ranker], options: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        fuse(*stages, **options)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert isinstance(caught.value, UnknownNameError) == words.startswith("unknown")
