"""Work over shards with a scripted backbone, whose workers tell what they are asked, wait, and die on command."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rerank import ScriptedBackbone
from rerank.calls import Call
from rerank.reranker import Reranker
from rerank.runs import Totals
from rerank.sharded import Executor, Step, Work, parts_path, run_shards
from rerank.strategies import load_strategy
from rerank.types import Candidates, Passage, Query

SETTINGS = {"strategy": "scripted"}
WAIT_S = 120.0
GO_S = 10 * WAIT_S  # longer than whoever watches a script waits for all that comes before its `go`


def requests(queries: int = 24, passages: int = 3, first: int = 0) -> Iterator[Candidates]:
    for q in range(first, first + queries):
        texts = (f"passage {i} of {q}" for i in range(passages))
        yield Candidates(Query(f"question {q}", f"q{q}"), tuple(Passage(text, f"d{i}") for i, text in enumerate(texts)))


@dataclass(frozen=True)
class Script:
    """Answers by a sum of the characters. What it was asked is in `folder/asked`, with the process; at `wait_at` it
    waits for the file `folder/go`, and says so by `folder/waits`; at each query of `meet` it waits until all of these
    are asked, which one process by itself never sees; at `die_at` its process is killed, so many times."""

    folder: Path
    wait_at: str | None = None
    meet: tuple[str, ...] = ()
    die_at: str | None = None
    deaths: int = 1

    def __call__(self, call: Call) -> list[float]:
        query_id, passage = call.dialogue.query.query_id, call.dialogue.passages[0]
        if passage.doc_id == "d0":
            with (self.folder / "asked").open("a") as asked:
                asked.write(f"{query_id} {os.getpid()}\n")
            if query_id == self.wait_at and not (self.folder / "go").exists():
                (self.folder / "waits").touch()
                wait_for(self.folder / "go", GO_S)
            if query_id in self.meet:
                (self.folder / f"met-{query_id}").touch()
                for other in self.meet:
                    wait_for(self.folder / f"met-{other}")
            if query_id == self.die_at and len(list(self.folder.glob("died*"))) < self.deaths:
                (self.folder / f"died{os.getpid()}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return [float(sum(map(ord, passage.text)) * 7919 % 101), 0.0]


def ranker(script: Script) -> Reranker:
    return Reranker(load_strategy("pointwise"), ScriptedBackbone(script))


def work(output: Path, script: Script, **changes: object) -> Work:
    given = {"settings": SETTINGS, "tag": "t", "depth": 100, "block": 2, **changes}
    return Work(partial(ranker, script), parts_path(output), **given)  # type: ignore[arg-type]


def rank(output: Path, shards: list[Path], script: Script, executor: Executor, **changes: object) -> list[Step]:
    """The steps that were told of."""
    steps: list[Step] = []
    run_shards(work(output, script, **changes), shards, output, executor, steps.append)
    return steps


def asked(folder: Path) -> list[str]:
    file = folder / "asked"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(path: Path, seconds: float = WAIT_S) -> None:
    wait_until(path.exists, f"{path} did not come", seconds)


def wait_until(happened: Callable[[], bool], otherwise: str, seconds: float = WAIT_S) -> None:
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError(otherwise)
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Whether the process runs no more; one that nobody has asked for its status yet does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except FileNotFoundError:  # it went just now, or the system has no such files
        return Path("/proc/self").exists()


def totals_of(steps: list[Step]) -> Totals:
    whole = Totals()
    for step in sorted((step for step in steps if step.query_ids is not None), key=lambda step: step.shard):
        whole = whole.joined(step.totals)
    return whole


def drive() -> None:
    """A driver of its own: FOLDER of shards, OUTPUT, the script's folder, ADDRESS; it waits at query q9."""
    from rerank.data.shards import list_shards
    from rerank.ray_pool import Pool

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts with & ignore it
    shards, output, folder = map(Path, sys.argv[1:4])
    script = Script(folder, wait_at="q9")
    try:
        rank(output, list_shards(shards), script, Pool(2, sys.argv[4]))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    drive()
