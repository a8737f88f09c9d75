"""A study: rankers on a sample of judged queries, as given and disturbed.

Every cell is a run in the output folder, as `rerank run` leaves it: one that is there is read, and one that was begun
goes on. A cell holds the queries whose input is another; the others keep the ranking of the input as given.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from rerank.bench.cache import identity_of
from rerank.bench.watching import Loaded, Watching
from rerank.data import Qrels, Run, load_dataset, read_qrels, read_run
from rerank.errors import InputError
from rerank.eval import Evaluation, compare, evaluate
from rerank.eval.measures import order_of_scores
from rerank.eval.significance import interval, randomisation
from rerank.eval.stability import kendall_tau, rbo
from rerank.jobs import Progress
from rerank.reranker import Ranker
from rerank.robustness.perturbations import Perturbation, Setting, perturbed, target
from rerank.robustness.smoothing import Smoothed, Smoothing
from rerank.runs import Journal, fingerprint, is_complete, journal_path, only_process, resumable_run, totals_of
from rerank.types import Candidates

FIRST_STAGE, AS_GIVEN = "first stage", "as given"


class Contender(Protocol):
    """A ranker that is checked and not loaded, as `rerank.cli.cascade.Plan` is."""

    @property
    def settings(self) -> dict[str, object]: ...

    def calls(self, n: int) -> int: ...

    def load(self, *, on_progress: Callable[[Progress], None] | None = None) -> Ranker: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """Judged queries with their candidates, and the judgments of these queries."""

    name: str
    requests: tuple[Candidates, ...]
    qrels: Qrels

    @classmethod
    def read(
        cls, dataset: str, *, qrels: str | None = None, run: str | None = None, queries: int | None, depth: int
    ) -> Sample:
        """The first `queries` judged queries with their first `depth` candidates."""
        loaded = load_dataset(dataset)
        judged = loaded.qrels if qrels is None else read_qrels(qrels)
        if judged is None:
            raise InputError(f"dataset {dataset!r} has no judgments; give some with --qrels")
        stage = None if run is None else read_run(run)
        found = [each for each in loaded.candidates(depth, run=stage) if each.query.query_id in judged][:queries]
        if not found:
            raise InputError(f"no query of {dataset} has both judgments and candidates")
        return cls(dataset, tuple(found), {each.query.query_id: judged[each.query.query_id] for each in found})

    def evaluated(self, run: Run, measure: str) -> Evaluation:
        return evaluate(run, self.qrels, (measure,))

    @property
    def given(self) -> Run:
        return {r.query.query_id: {p.doc_id: -float(i) for i, p in enumerate(r.passages)} for r in self.requests}


@dataclass(frozen=True, slots=True)
class Rise:
    """The mean place of a passage before and after something was put into it, over the queries that have such a one;
    `interval` is of their difference, more is further up. `up` and `first` are shares: placed higher, placed first."""

    before: float
    after: float
    interval: tuple[float, float]
    p: float
    up: float
    first: float


@dataclass(frozen=True, slots=True)
class Row:
    """One ranker on one input. `against` is the mean that `difference` is to: of the first stage for an input as given,
    else of the same ranker on the input as given. `queries` are those whose input is another, else all. `spread` is the
    standard deviation over queries; `certified[k]` how many of how many queries are certified."""

    ranker: str
    input: str
    queries: int
    value: float
    spread: float
    against: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    tau: float | None = None
    rbo: float | None = None
    rise: Rise | None = None
    certified: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def relative(self) -> float | None:
        return self.difference / self.against if self.difference is not None and self.against else None


@dataclass(frozen=True, slots=True)
class Part:
    """What is measured on one dataset."""

    dataset: str
    queries: int
    depth: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Study:
    """The first part is the dataset that is disturbed; the others are other domains, as given. `failed` are queries
    that could not be asked and kept their given order."""

    measure: str
    seed: int
    parts: tuple[Part, ...]
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Certifying:
    """What to certify: the first `ks`, with scores brought to [0, 1] by `bounded[ranker]`."""

    smoothing: Smoothing
    ks: tuple[int, ...]
    bounded: Mapping[str, Callable[[float], float]]


def study(
    samples: Sequence[Sample],
    contenders: Mapping[str, Contender],
    perturbations: Sequence[Perturbation],
    setting: Setting,
    out: Path,
    *,
    watching: Watching,
    certifying: Certifying | None = None,
    measure: str = "nDCG@10",
    block: int = 16,
) -> Study:
    """Ranks what is not ranked yet, and measures. The first sample is disturbed, the others are other domains."""
    out.mkdir(parents=True, exist_ok=True)
    desk = _Desk(out, block, watching)
    first = samples[0]
    disturbed = {each.name: [perturbed(each, r, setting) for r in first.requests] for each in perturbations}
    clean: dict[str, list[Run]] = {}
    rows: dict[str, list[Row]] = {}
    for name, contender in contenders.items():
        with _Seat(desk, name, contender) as seat:
            clean[name] = [seat.run(each, AS_GIVEN, each.requests) for each in samples]
            runs = {
                each.name: seat.disturbed(first, each, disturbed[each.name], clean[name][0]) for each in perturbations
            }
            rows[name] = _rows(first, name, clean[name][0], runs, perturbations, disturbed, setting, measure)
            if certifying is not None and name in certifying.bounded:
                rows[name].append(_certified(seat, first, certifying, clean[name][0], measure))
    parts = []
    for i, each in enumerate(samples):
        gains = _gains(each, {name: runs[i] for name, runs in clean.items()}, measure)
        ordered = [gains[0]] + [row for gain in gains[1:] for row in (gain, *(rows[gain.ranker] if i == 0 else ()))]
        parts.append(Part(each.name, len(each.requests), max(map(len, each.requests)), tuple(ordered)))
    return Study(measure, setting.seed, tuple(parts), tuple(desk.failed))


class _Desk:
    """Where the cells are."""

    def __init__(self, out: Path, block: int, watching: Watching) -> None:
        self.out, self.block, self.watching = out, block, watching
        self.failed: list[str] = []


class _Seat:
    """One ranker at the desk; it is loaded when there is something to rank, and closed at the end."""

    def __init__(self, desk: _Desk, name: str, contender: Contender) -> None:
        self.desk, self.name, self.contender = desk, name, contender
        self._loaded = Loaded(lambda show: contender.load(on_progress=show))
        self._identity = identity_of(contender.settings)

    def __enter__(self) -> _Seat:
        return self

    def __exit__(self, *_: object) -> None:
        self._loaded.drop()

    def _output(self, settings: Mapping[str, object]) -> Path:
        """Named after the whole of the settings, so that other seeds, depths and synonyms have cells of their own."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
        words = f"{Path(str(settings['dataset'])).name} {self.name} {settings['cell']} {digest}"
        return self.desk.out / (re.sub(r"[^\w.=+@-]+", "-", words) + ".trec")

    def run(self, sample: Sample, cell: str, requests: Sequence[Candidates]) -> Run:
        """The cell's run; nothing for no requests."""
        if not requests:
            return {}
        own = {**self._settings(sample, cell, requests), "block": self.desk.block}
        output = self._output(own)
        with only_process(output):
            if not is_complete(output, own):
                journal = Journal(journal_path(output), own)
                with self.desk.watching(
                    f"{self.name}, {cell}", len(requests), self.contender.calls, journal.totals.queries
                ) as watch:
                    ranker = self._loaded.get(watch)
                    resumable_run(
                        ranker, watch.watch(requests), output, tag="rerank", block=self.desk.block, journal=journal
                    )
            self.desk.failed += [f"{self.name}, {cell}: {each}" for each in totals_of(output).errors]
        return read_run(output)

    def disturbed(self, sample: Sample, perturbation: Perturbation, inputs: Sequence[Candidates], clean: Run) -> Run:
        changed = [new for old, new in zip(sample.requests, inputs, strict=True) if new != old]
        return {**clean, **self.run(sample, perturbation.name, changed)}

    def scores(self, sample: Sample, smoothing: Smoothing) -> Iterator[dict[str, float]]:
        """Of every variant of every passage, exactly as the ranker gave them, query by query."""
        todo = [smoothing.request(each) for each in sample.requests]
        settings = self._settings(sample, "smoothed", todo)
        path = journal_path(self._output(settings))
        with only_process(path):
            journal = Journal(path, settings)
            done = journal.totals.queries
            if done < len(todo):
                with self.desk.watching(f"{self.name}, smoothed", len(todo), self.contender.calls, done) as watch:
                    ranker = self._loaded.get(watch)
                    for request in list(watch.watch(todo))[done:]:
                        journal.commit([request], list(ranker.rank_many([request])))
            for ranking in journal.rankings():
                yield {hit.passage.doc_id: hit.score for hit in ranking}

    def _settings(self, sample: Sample, cell: str, requests: Sequence[Candidates]) -> dict[str, object]:
        """What the cell depends on, the very texts included: the samples, seeds and synonyms show in these. `identity`
        has what the settings only name: what is in a model's folder, the device, this library's code."""
        asked = hashlib.sha256(json.dumps([fingerprint(each) for each in requests]).encode()).hexdigest()[:16]
        known = {"dataset": sample.name, "cell": cell, "texts": asked, "identity": self._identity}
        return {**known, **self.contender.settings}


def _gains(sample: Sample, runs: Mapping[str, Run], measure: str) -> list[Row]:
    """The first stage, and every ranker against it."""
    found = {FIRST_STAGE: sample.evaluated(sample.given, measure)}
    found |= {name: sample.evaluated(run, measure) for name, run in runs.items()}
    base, *others = compare(found, measure).rows
    n = len(sample.requests)
    rows = [Row(FIRST_STAGE, AS_GIVEN, n, base.mean, _spread(found[FIRST_STAGE], measure))]
    for each in others:
        rows.append(
            Row(
                each.name,
                AS_GIVEN,
                n,
                each.mean,
                _spread(found[each.name], measure),
                base.mean,
                each.difference,
                each.interval,
                each.p,
            )
        )
    return rows


def _rows(
    sample: Sample,
    ranker: str,
    clean: Run,
    runs: Mapping[str, Run],
    perturbations: Sequence[Perturbation],
    disturbed: Mapping[str, Sequence[Candidates]],
    setting: Setting,
    measure: str,
) -> list[Row]:
    """The ranker on every disturbed input; p is for all of them together (Holm)."""
    if not runs:
        return []
    found = {AS_GIVEN: sample.evaluated(clean, measure)}
    found |= {name: sample.evaluated(run, measure) for name, run in runs.items()}
    base, *others = compare(found, measure).rows
    before = order_of_scores(clean)
    rows = []
    for perturbation, each in zip(perturbations, others, strict=True):
        inputs = disturbed[perturbation.name]
        after = order_of_scores(runs[perturbation.name])
        tau, overlap = _stability(sample, before, after)
        rows.append(
            Row(
                ranker,
                perturbation.name,
                sum(new != old for old, new in zip(sample.requests, inputs, strict=True)),
                each.mean,
                _spread(found[perturbation.name], measure),
                base.mean,
                each.difference,
                each.interval,
                each.p,
                tau,
                overlap,
                _rise(sample, setting, before, after) if perturbation.kind == "injection" else None,
            )
        )
    return rows


def _stability(
    sample: Sample, before: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]]
) -> tuple[float, float]:
    """Mean tau and RBO over the queries."""
    pairs = [(before[r.query.query_id], after[r.query.query_id]) for r in sample.requests]
    return float(np.mean([kendall_tau(*pair) for pair in pairs])), float(np.mean([rbo(*pair) for pair in pairs]))


def _spread(found: Evaluation, measure: str) -> float:
    return float(np.std(list(found.per_query[measure].values())))


def _rise(
    sample: Sample, setting: Setting, before: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]]
) -> Rise | None:
    places = [
        [order[request.query.query_id].index(chosen.doc_id) + 1 for order in (before, after)]
        for request in sample.requests
        if (chosen := target(request, setting)) is not None
    ]
    if not places:
        return None
    was, now = np.array(places, dtype=float).T
    return Rise(
        float(was.mean()),
        float(now.mean()),
        interval(was, now),
        randomisation(was, now),
        float((now < was).mean()),
        float((now == 1).mean()),
    )


def _certified(seat: _Seat, sample: Sample, certifying: Certifying, clean: Run, measure: str) -> Row:
    """The smoothed ranker: what it measures, and which of its lists no attack changes."""
    bounded = certifying.bounded[seat.name]
    answers: list[Smoothed] = []
    for request, scores in zip(sample.requests, seat.scores(sample, certifying.smoothing), strict=True):
        inside = {name: bounded(score) for name, score in scores.items()}
        answers.append(certifying.smoothing.smoothed(request, inside))
    run = {
        each.asked.query.query_id: {each.asked.passages[i].doc_id: -float(place) for place, i in enumerate(each.order)}
        for each in answers
    }
    found = {AS_GIVEN: sample.evaluated(clean, measure), "smoothed": sample.evaluated(run, measure)}
    base, own = compare(found, measure).rows
    tau, overlap = _stability(sample, order_of_scores(clean), order_of_scores(run))
    verdicts = {k: [each.certified(k) for each in answers] for k in certifying.ks}
    row = Row(
        seat.name,
        "smoothed",
        len(answers),
        own.mean,
        _spread(found["smoothed"], measure),
        base.mean,
        own.difference,
        own.interval,
        own.p,
        tau,
        overlap,
    )
    counted = {k: (sum(v is True for v in found), sum(v is not None for v in found)) for k, found in verdicts.items()}
    return replace(row, certified=counted)
