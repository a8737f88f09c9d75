"""The race: in every round each engine does one slice of each task in its turn, so that what else the machine does
falls on all alike. The order moves on by one from round to round; the machine's matrix products are timed between.

Loading is not counted, nor is a first slice of its own that warms each engine up. No prompt comes twice, so that a
cache over calls can keep only what prompts truly share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from rerank.bench.engines import ENGINES, REFERENCE, Contender, Scores, Setup
from rerank.bench.machine import settle
from rerank.bench.work import Cost, Slice, Task
from rerank.errors import RerankError

FAR = 0.5  # nats; an engine whose numbers are further off, in the median, does not do the same work
BASELINES = (REFERENCE, "sentence-transformers")  # whose times the others' are divided into


@dataclass(slots=True)
class Course:
    """What one engine did in one task, round by round."""

    seconds: list[float] = field(default_factory=list)
    scores: Scores = field(default_factory=list)


Courses = Mapping[Task, Mapping[str, Course]]


@dataclass(frozen=True, slots=True)
class Difference:
    """How far an engine's numbers are from the reference's, in nats."""

    median: float
    largest: float


@dataclass(frozen=True, slots=True)
class Row:
    """One engine in one task. Rates are medians of the rounds; `times` is how many times faster it was than another,
    the median of the rounds' quotients. `share` is of the machine's matrix products, every prompt counted in full;
    for `share_once`, what prompts of a slice begin with in common counts once. `agrees` is whether its numbers are
    those of the reference but for rounding."""

    engine: str
    seconds: tuple[float, ...]
    per_second: float
    tokens_per_second: float
    times: dict[str, float]
    share: float
    share_once: float
    difference: Difference | None
    agrees: bool


@dataclass(frozen=True, slots=True)
class Table:
    """One task, warm-up left out. `reference` is the engine whose numbers the others' were compared with; `absent`
    says of each engine without a row why it has none."""

    task: Task
    prompts: int
    tokens: int
    flops: int
    flops_shared_once: int
    reference: str
    rows: tuple[Row, ...]
    absent: dict[str, str]


def enter(
    names: Sequence[str], setup: Setup, tasks: Collection[Task], say: Callable[[str], None]
) -> tuple[dict[str, Contender], dict[str, str]]:
    """The engines that have one of these tasks, loaded; and of those that cannot run here, why."""
    from transformers.utils import logging as hf_logging

    contenders: dict[str, Contender] = {}
    absent: dict[str, str] = {}
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    for name in names:
        if ENGINES[name].tasks.isdisjoint(tasks):
            continue
        reason = ENGINES[name].missing()
        if reason is None:
            say(f"loading {name}")
            try:
                contenders[name] = ENGINES[name].load(setup)
            except (RerankError, OSError, ImportError, RuntimeError, ValueError, TypeError) as error:
                reason = f"could not be loaded: {' '.join(str(error).split())[:160]}"
        if reason is not None:
            absent[name] = reason
    if bars:
        hf_logging.enable_progress_bar()
    return contenders, absent


def race(
    contenders: Mapping[str, Contender],
    work: Mapping[Task, Sequence[Slice]],
    device: str,
    *,
    between: Callable[[], None],
    say: Callable[[str], None],
) -> Courses:
    """Every engine over its tasks, interleaved. A task's first slice warms up; `between` is called once a round.

    Interrupted, it returns the rounds that all engines have run, if there is one.
    """
    entered = list(contenders)
    courses = {task: {name: Course() for name in entered if task in ENGINES[name].tasks} for task in work}
    for turn in range(max(map(len, work.values()))):
        first = turn % len(entered)
        lap: list[tuple[Course, float, Scores]] = []
        try:
            for task, parts in work.items():
                for name in entered[first:] + entered[:first]:
                    if name not in courses[task]:
                        continue
                    say(f"{f'round {turn} of {len(parts) - 1}' if turn else 'warming up'}: {task}, {name}")
                    settle(device)
                    started = time.perf_counter()
                    scores = contenders[name].score(parts[turn])
                    settle(device)
                    lap.append((courses[task][name], time.perf_counter() - started, scores))
            between()
        except KeyboardInterrupt:
            if turn < 2:
                raise
            say(f"interrupted: the figures are those of {turn - 1} whole rounds")
            break
        for course, seconds, scores in lap if turn else ():
            course.seconds.append(seconds)
            course.scores += scores
    return courses


def table(
    task: Task,
    parts: Sequence[Slice],
    courses: Mapping[str, Course],
    absent: Mapping[str, str],
    cost: Cost,
    peak: float,
) -> Table:
    """The figures of one task. `parts` are without the warm-up, `peak` is in FLOP/s."""
    reference = REFERENCE if REFERENCE in courses else next(iter(courses), REFERENCE)
    full, once = [cost.in_full(part) for part in parts], [cost.shared_once(part) for part in parts]

    def rate(course: Course, amounts: Sequence[float]) -> float:
        return median(amount / seconds for amount, seconds in zip(amounts, course.seconds, strict=True))

    rows = []
    for name, course in courses.items():
        gap = None if name == reference else difference(course.scores, courses[reference].scores)
        row = Row(
            name,
            tuple(course.seconds),
            rate(course, [len(part.prompts) for part in parts]),
            rate(course, [part.tokens for part in parts]),
            {base: rate(course, courses[base].seconds) for base in BASELINES if base in courses},
            rate(course, full) / peak,
            rate(course, once) / peak,
            gap,
            gap is None or gap.median <= FAR,
        )
        rows.append(row)
    prompts, tokens = sum(len(part.prompts) for part in parts), sum(part.tokens for part in parts)
    return Table(task, prompts, tokens, sum(full), sum(once), reference, tuple(rows), dict(absent))


def without(task: Task, names: Sequence[str], absent: Mapping[str, str]) -> dict[str, str]:
    """Of each engine that has no row in this task, why: it has no such task, or could not run at all."""
    return {name: "scores pairs only" for name in names if task not in ENGINES[name].tasks} | dict(absent)


def difference(scores: Scores, reference: Scores) -> Difference:
    gaps = [
        abs(one - other)
        for row, same in zip(scores, reference, strict=True)
        for one, other in zip(row, same, strict=True)
    ]
    return Difference(median(gaps), max(gaps))
