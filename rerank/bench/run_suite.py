"""A suite from its datasets to its standings, in a folder:

DATASET/RANKER.trec        the cell's run, and its card beside it
DATASET/first-stage.trec   the candidates as they came
DATASET/qrels.txt          the judgments of the queries that took part
results.json               all figures, per query too
report.html                the same to look at, passages and all
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

from rerank.bench.cache import Kept
from rerank.bench.cells import Contestant, Task, first_stage_cell, read_task, reason_of, run_cells
from rerank.bench.standings import Standings, record, standings
from rerank.bench.suite import Suite, Trial
from rerank.bench.watching import Unwatched, Watching
from rerank.errors import RerankError
from rerank.eval.report import write_report
from rerank.runs import only_process, write_json

RESULTS, REPORT = "results.json", "report.html"
_log = logging.getLogger(__name__)


def run_suite(
    suite: Suite,
    trials: Sequence[Trial],
    contestants: Sequence[Contestant],
    folder: Path,
    cache: Path,
    *,
    command: str | None = None,
    watching: Watching = lambda *_: nullcontext(Unwatched()),
) -> Standings:
    """Ranks what is not known yet and measures everything. `watching` is called as `strategies.compare` does, and
    `command` is what the report says that it was made by."""
    folder.mkdir(parents=True, exist_ok=True)
    with only_process(folder / RESULTS), closing(Kept(cache)) as kept:
        tasks = [_task(trial, suite.seed) for trial in trials]
        ready = [task for task in tasks if isinstance(task, Task)]
        cells = [first_stage_cell(task, folder) for task in ready]
        for contestant in contestants:
            cells += run_cells(contestant, ready, kept, folder, block=suite.block, watching=watching)
        found = standings(suite, tasks, contestants, cells)
        write_json(folder / RESULTS, record(found))
        if sections := found.sections:
            write_report(
                folder / REPORT, sections, title=suite.name, axis=found.axis, command=command, overall=found.overall
            )
        return found


def _task(trial: Trial, seed: int) -> Task | tuple[Trial, str]:
    """Or why there is none: a dataset that fails holds up no other."""
    try:
        return read_task(trial, seed)
    except Exception as error:
        reason = reason_of(error)
        _log.warning("%s cannot be read: %s", trial.name, reason, exc_info=not isinstance(error, RerankError))
        return trial, reason
