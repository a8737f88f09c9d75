"""Cascades: the stages done by hand give the same, no passage is lost, all queries share a stage's batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rerank
from rerank import FirstStage, ScriptedBackbone
from rerank.backbones import oracle
from rerank.backbones.scripted import Script
from rerank.calls import Call
from rerank.errors import ContextError, InputError
from rerank.reranker import Ranker
from rerank.types import Candidates, Outcomes, Passage, Query, Ranking, Usage

Make = Callable[..., Candidates]
CHEAP = {f"d{i}": (i * 37 % 61) / 20 for i in range(60)}
DEAR = {f"d{i}": (i * 23 % 59) / 20 for i in range(60)}
LAST = {f"d{i}": (i * 11 % 53) / 20 for i in range(60)}


def pointwise(script: Script) -> rerank.Reranker:
    return rerank.load("pointwise", backbone=ScriptedBackbone(script))


def best(ids: Iterable[str], relevance: dict[str, float]) -> list[str]:
    return sorted(ids, key=lambda doc_id: -relevance[doc_id])


def descend(ranking: Ranking) -> bool:
    scores = [hit.score for hit in ranking]
    return scores == sorted(scores, reverse=True) and [hit.rank for hit in ranking] == list(range(1, len(scores) + 1))


def cut(request: Candidates, doc_ids: Iterable[str]) -> Candidates:
    known = {p.doc_id: p for p in request.passages}
    return Candidates(request.query, tuple(known[doc_id] for doc_id in doc_ids))


def test_a_cut_is_ranked_on_and_the_rest_comes_back(make_candidates: Make) -> None:
    first, second = ScriptedBackbone(oracle(CHEAP)), ScriptedBackbone(oracle(DEAR))
    cascade = rerank.load("pointwise", backbone=first) % 5 >> rerank.load("listwise", backbone=second)
    requests = [make_candidates(30, f"q{i}") for i in range(4)]
    rankings = list(cascade.rank_many(requests))
    cheap = best((f"d{i}" for i in range(30)), CHEAP)
    assert [r.doc_ids for r in rankings] == [best(cheap[:5], DEAR) + cheap[5:]] * 4
    assert [r.usage.calls for r in rankings] == [31] * 4
    assert rankings[0].outcomes.clean == 31
    assert (first.batches, second.batches) == ([120], [4])
    assert all(map(descend, rankings))
    assert [hit.passage for hit in rankings[0]] == list(cut(requests[0], rankings[0].doc_ids).passages)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 60), cuts=st.tuples(*[st.none() | st.integers(1, 70)] * 3), end=st.none() | st.integers(1, 70))
def test_the_stages_by_hand_give_the_same(
    n: int, cuts: tuple[int | None, int | None, int | None], end: int | None
) -> None:
    request = Candidates(Query("q"), tuple(Passage(f"text {i}", f"d{i}") for i in range(n)))
    stages: list[Ranker] = [FirstStage(), *(pointwise(oracle(table)) for table in (CHEAP, DEAR, LAST))]
    cascade: Ranker = stages[0]
    for stage, keep in zip(stages[1:], cuts, strict=True):
        cascade = (cascade if keep is None else cascade % keep) >> stage
    if end is not None:
        cascade = cascade % end

    head, behind, usage = request, list[str](), Usage()
    for stage, keep in zip(stages, (*cuts, None), strict=True):
        (ranking,) = stage.rank_many([head])
        keep = n if keep is None else keep
        usage += replace(ranking.usage, seconds=0.0)
        behind = ranking.doc_ids[keep:] + behind
        head = cut(request, ranking.doc_ids[:keep])

    (found,) = cascade.rank_many([request])
    expected = [p.doc_id for p in head.passages] + behind
    assert found.doc_ids == expected[:end]
    assert end is not None or sorted(found.doc_ids) == sorted(f"d{i}" for i in range(n))
    assert descend(found)
    assert replace(found.usage, seconds=0.0) == usage


def test_a_cut_holds_for_all_that_follows_it(make_candidates: Make) -> None:
    """`>>` is associative, whoever wrote the brackets."""
    a, b, c = pointwise(oracle(CHEAP)), pointwise(oracle(DEAR)), pointwise(oracle(LAST))
    for cascade in (a % 9 >> b >> c, a % 9 >> (b >> c), (a % 9 >> b) >> c, a % 30 % 9 >> b >> c, a % 9 % 30 >> b >> c):
        ranking = cascade.rank("q", make_candidates(40).passages)
        assert ranking.usage.calls == 40 + 9 + 9
        cheap = best((f"d{i}" for i in range(40)), CHEAP)
        assert ranking.doc_ids == best(cheap[:9], LAST) + cheap[9:]


def test_scores_are_the_last_stages_and_those_behind_keep_their_distances(make_candidates: Make) -> None:
    ranking = (pointwise(oracle(CHEAP)) % 4 >> pointwise(oracle(DEAR))).rank("q", make_candidates(12).passages)
    head, behind = ranking.hits[:4], ranking.hits[4:]
    assert [hit.score for hit in head] == pytest.approx([DEAR[hit.passage.doc_id] for hit in head])
    assert behind[0].score == pytest.approx(head[-1].score - 1)
    for one, other in pairwise(behind):
        assert one.score - other.score == pytest.approx(CHEAP[one.passage.doc_id] - CHEAP[other.passage.doc_id])


@pytest.mark.parametrize("score", [1e300, -1e300, math.inf, -math.inf])
def test_scores_descend_whatever_they_are(score: float, make_candidates: Make) -> None:
    class Extreme(Ranker):
        def _run(self, requests: Iterable[Candidates]) -> Iterator[Ranking]:
            for request in requests:
                n = len(request)
                yield Ranking.of(request, range(n), [max(score, 0.0)] * 5 + [min(score, 0.0)] * (n - 5))

    for first, second in ((Extreme(), pointwise(oracle(DEAR))), (pointwise(oracle(CHEAP)), Extreme())):
        for keep in (3, 5, 7):
            assert descend((first % keep >> second).rank("q", make_candidates(10).passages))


def test_a_stage_sees_the_scores_of_the_one_before(make_candidates: Make) -> None:
    seen: dict[str, float | None] = {}

    def script(call: Call) -> list[float]:
        seen.update((p.doc_id, p.score) for p in call.dialogue.passages)
        return [0.0, 0.0]

    passages = [replace(p, score=100.0) for p in make_candidates(8).passages]
    ranking = (pointwise(oracle(CHEAP)) % 3 >> pointwise(script)).rank("q", passages)
    assert seen == pytest.approx({doc_id: CHEAP[doc_id] for doc_id in best((p.doc_id for p in passages), CHEAP)[:3]})
    assert {hit.passage.score for hit in ranking} == {100.0}


def test_every_stage_shares_its_batches(make_candidates: Make) -> None:
    backbones = [ScriptedBackbone(oracle(table)) for table in (CHEAP, DEAR, LAST)]
    a, b, c = (
        rerank.load(name, backbone=bb) for name, bb in zip(("pointwise", "listwise", "setwise"), backbones, strict=True)
    )
    list((a % 30 >> b % 3 >> c).rank_many([make_candidates(40, f"q{i}") for i in range(16)]))
    assert [backbone.batches for backbone in backbones] == [[640], [16, 16], [16, 16]]


def test_reasoning_is_kept_stage_by_stage(make_candidates: Make) -> None:
    def reasons(text: str) -> rerank.Reranker:
        answer = "<reason>" + text + '</reason><answer>{"[1]": 3, "[2]": 2, "[3]": 1}</answer>'
        return rerank.load("groupwise", backbone=ScriptedBackbone(lambda _: answer))

    ranking = (reasons("one") >> reasons("two")).rank("q", make_candidates(3).passages)
    assert ranking.reasoning == ("one", "two")


def failing(at: Callable[[Call], bool], script: Script) -> rerank.Reranker:
    class Fails(ScriptedBackbone):
        def prepare(self, call: Call):  # type: ignore[no-untyped-def]
            if at(call):
                raise ContextError(f"query {call.dialogue.query.query_id!r} is too long")
            return ScriptedBackbone.prepare(self, call)

    return rerank.load("pointwise", backbone=Fails(script))


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("lost", [{"q0"}, {"q2"}, {"q1", "q3"}, {"q0", "q1", "q2", "q3"}])
def test_a_query_that_fails_keeps_what_it_had_and_goes_no_further(
    stage: int, lost: set[str], make_candidates: Make
) -> None:
    tables = (CHEAP, DEAR, LAST)
    rankers: list[Ranker] = [pointwise(oracle(table)) for table in tables]
    rankers[stage] = failing(lambda call: call.dialogue.query.query_id in lost, oracle(tables[stage]))
    a, b, c = rankers
    cascade = a % 8 >> b % 4 >> c
    requests = [make_candidates(12, f"q{i}") for i in range(4)]
    found = list(cascade.rank_many(requests, on_error="keep"))
    assert [r.query.query_id for r in found] == ["q0", "q1", "q2", "q3"]
    order = [[f"d{i}" for i in range(12)]]
    for keep, table in zip((12, 8, 4), tables, strict=True):
        order.append(best(order[-1][:keep], table) + order[-1][keep:])
    for ranking in found:
        failed = ranking.query.query_id in lost
        assert ranking.doc_ids == order[stage if failed else 3]
        assert (ranking.error is not None) == failed == (ranking.outcomes.failed == 1)
        assert ranking.usage.calls == ((0, 12, 20)[stage] if failed else 24)
        assert descend(ranking)
    stream = cascade.rank_many(requests)
    with pytest.raises(ContextError, match=f"'{min(lost)}' is too long"):
        list(stream)


def test_an_error_of_the_source_comes_after_what_came_before_it(make_candidates: Make) -> None:
    def broken() -> Iterator[Candidates]:
        yield make_candidates(3, "q0")
        yield make_candidates(3, "q1")
        raise InputError("line 3 is broken")

    first = failing(lambda call: call.dialogue.query.query_id == "q1", oracle(CHEAP))
    stream = (first % 2 >> pointwise(oracle(DEAR))).rank_many(broken(), on_error="keep")
    assert [next(stream).query.query_id for _ in range(2)] == ["q0", "q1"]
    with pytest.raises(InputError, match="line 3 is broken"):
        next(stream)


def test_a_stream_without_end_is_ranked(make_candidates: Make) -> None:
    def endless() -> Iterator[Candidates]:
        i = 0
        while True:
            yield make_candidates(3, f"q{i}")
            i += 1

    stream = (pointwise(oracle(CHEAP)) % 2 >> pointwise(oracle(DEAR))).rank_many(endless())
    assert [next(stream).query.query_id for _ in range(1500)][-1] == "q1499"
    stream = rerank.fuse(pointwise(oracle(CHEAP)), FirstStage()).rank_many(endless())
    assert [next(stream).query.query_id for _ in range(1500)][-1] == "q1499"


def test_the_first_stage_is_the_scores_or_the_order() -> None:
    first = FirstStage()
    scored = [{"text": t, "id": t, "score": s} for t, s in (("a", 1.0), ("b", 3.0), ("c", 1.0))]
    ranking = first.rank("q", scored)
    assert [(hit.passage.doc_id, hit.score) for hit in ranking] == [("b", 3.0), ("a", 1.0), ("c", 1.0)]
    assert [hit.score for hit in first.rank("q", ["a", "b", "c"])] == [1, 1 / 2, 1 / 3]
    assert (ranking.usage, ranking.outcomes) == (Usage(), Outcomes())
    for bad in (None, math.nan, math.inf):
        mixed = [Passage("a", "a", score=1.0), Passage("b", "b", score=bad)]
        with pytest.raises(InputError, match=rf"passage 'b' has the first-stage score {bad}, .*give every passage its"):
            first.rank("q", mixed)
        (kept,) = first.rank_many([("q", mixed)], on_error="keep")
        assert kept.doc_ids == ["a", "b"] and kept.error is not None


def test_a_first_stage_that_is_cut_is_reranked_to_that_depth(make_candidates: Make) -> None:
    ranking = (FirstStage() % 5 >> pointwise(oracle(DEAR))).rank("q", make_candidates(9).passages)
    assert ranking.doc_ids == [*best([f"d{i}" for i in range(5)], DEAR), "d5", "d6", "d7", "d8"]
    assert ranking.usage.calls == 5


@pytest.mark.parametrize("bad", [0, -1, True, "5", 2.0])
def test_a_cut_is_a_number(bad: object) -> None:
    with pytest.raises(InputError, match=r"a cut is .*give a whole number of at least 1, as in 'ranker % 20'"):
        FirstStage() % bad  # type: ignore[operator]


def test_only_rankers_follow_one_another() -> None:
    with pytest.raises(TypeError):
        FirstStage() >> 5  # type: ignore[operator]


def test_closing_closes_every_stage() -> None:
    closed: list[str] = []

    class Noted(ScriptedBackbone):
        def close(self) -> None:
            closed.append(self.name)

    a, b, c = (rerank.load("pointwise", backbone=Noted(oracle({}), name=name)) for name in "abc")
    with FirstStage() % 50 >> a % 20 >> rerank.fuse(b, c):
        pass
    assert closed == ["a", "b", "c"]


# early stopping


@pytest.mark.parametrize(("name", "n"), [("listwise", 60), ("first", 60), ("full-ranking", 260)])
def test_passes_end_when_the_head_no_longer_changes(name: str, n: int) -> None:
    """An oracle's first pass brings the best w - s to the head, the second one leaves them there."""
    relevance = {f"d{i}": (i * 37 % 263) / 90 for i in range(n)}
    request = Candidates(Query("q"), tuple(Passage("text", doc_id) for doc_id in relevance))

    def ranked(**options: object) -> Ranking:
        return next(rerank.load(name, backbone=ScriptedBackbone(oracle(relevance)), **options).rank_many([request]))

    one, two, five = ranked(), ranked(passes=2), ranked(passes=5)
    assert five.usage.calls == 5 * one.usage.calls
    stopped = ranked(passes=5, stop_when_stable=10)
    assert (stopped.usage.calls, stopped.doc_ids) == (two.usage.calls, two.doc_ids)
    assert stopped.doc_ids[:10] == five.doc_ids[:10] == best(relevance, relevance)[:10]
    assert ranked(passes=5, stop_when_stable=n).doc_ids == five.doc_ids


def test_each_query_stops_by_itself(make_candidates: Make) -> None:
    """What is in order already takes one pass."""
    backbone = ScriptedBackbone(oracle({f"d{i}": -float(i) for i in range(40)}))
    ranker = rerank.load("listwise", backbone=backbone, passes=3, stop_when_stable=10)
    sorted_, reversed_ = make_candidates(40, "a"), make_candidates(40, "b")
    reversed_ = Candidates(reversed_.query, reversed_.passages[::-1])
    found = list(ranker.rank_many([sorted_, reversed_]))
    assert [r.usage.calls for r in found] == [3, 6]
    assert backbone.batches == [2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "options"),
    [("pairwise", {"algorithm": "sliding"}), ("setwise", {"algorithm": "bubblesort", "children": 1})],
)
@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 60), stable=st.integers(1, 12), seed=st.randoms())
def test_neighbours_that_hold_still_are_sorted(
    name: str, options: dict[str, object], n: int, stable: int, seed: object
) -> None:
    """With a judge that does not contradict itself the head is the one that all passes would give, for less."""
    order = list(range(n))
    seed.shuffle(order)  # type: ignore[attr-defined]
    relevance = {f"d{i}": place / 10 for i, place in enumerate(order)}
    request = Candidates(Query("q"), tuple(Passage("text", doc_id) for doc_id in relevance))

    def ranked(**more: object) -> Ranking:
        ranker = rerank.load(name, backbone=ScriptedBackbone(oracle(relevance)), k=12, **options, **more)
        found = next(ranker.rank_many([request]))
        assert found.usage.calls <= ranker.strategy.calls(n)
        return found

    whole, stopped = ranked(), ranked(stop_when_stable=stable)
    assert stopped.doc_ids[:stable] == whole.doc_ids[:stable] == best(relevance, relevance)[:stable]
    assert sorted(stopped.doc_ids) == sorted(relevance)
    assert stopped.usage.calls <= whole.usage.calls


def test_stopping_spares_calls() -> None:
    """Best first already: pass 1 asks about neighbours only, and the head stays. The tail is still out of order."""
    relevance = {f"d{i}": float(40 - i if i < 20 else i - 20) for i in range(40)}
    request = Candidates(Query("q"), tuple(Passage("text", doc_id) for doc_id in relevance))
    calls = {}
    for stable in (None, 10):
        ranker = rerank.load(
            "pairwise", algorithm="sliding", stop_when_stable=stable, backbone=ScriptedBackbone(oracle(relevance))
        )
        calls[stable] = next(ranker.rank_many([request])).usage.calls
    assert calls[10] == 2 * 39 < (calls[None] or 0)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 60), data=st.data())
def test_answers_of_any_kind_lose_no_passage(n: int, data: st.DataObject) -> None:
    answers = st.text(alphabet="[]0123456789> ,a", max_size=30)
    options = {"passes": data.draw(st.integers(2, 4)), "stop_when_stable": data.draw(st.integers(1, 60))}
    backbone = ScriptedBackbone(lambda _: data.draw(answers))
    listwise = rerank.load("listwise", window=8, step=4, backbone=backbone, **options)
    request = Candidates(Query("q"), tuple(Passage(f"text {i}", f"d{i}") for i in range(n)))
    (ranking,) = (FirstStage() % data.draw(st.integers(1, 60)) >> listwise).rank_many([request])
    assert sorted(ranking.doc_ids) == sorted(f"d{i}" for i in range(n))
    assert ranking.outcomes.clean + ranking.outcomes.repaired + ranking.outcomes.failed == ranking.usage.calls
    assert ranking.usage.calls <= listwise.strategy.calls(n)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("listwise", {"stop_when_stable": 10}, "stop_when_stable is 10, but passes is 1; give passes of 2 or more, or"),
        ("first", {"stop_when_stable": 0, "passes": 2}, "stop_when_stable is 0; give at least 1"),
        ("pairwise", {"stop_when_stable": 5}, "heapsort makes no passes; give algorithm=sliding, or leave"),
        ("pairwise", {"stop_when_stable": -1, "algorithm": "sliding"}, "stop_when_stable is -1; give at least 1"),
        ("setwise", {"stop_when_stable": 5}, "heapsort makes no passes; give algorithm=bubblesort, or leave"),
    ],
)
def test_where_nothing_can_stop_it_is_refused(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        rerank.load(name, backbone=ScriptedBackbone(oracle({})), **options)
    assert words in str(caught.value)
