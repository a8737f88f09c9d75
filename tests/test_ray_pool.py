"""Shards on a real Ray cluster of this machine: the same run as in one process, whoever dies on the way."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import MagicMock

import pytest
import sharded_case
from command import Cli, assert_error, lists
from sharded_case import WAIT_S, Script, asked, is_gone, rank, requests, wait_for, wait_until

from rerank.data import read_run
from rerank.data.shards import list_shards, write_shards
from rerank.errors import BackboneError, InputError, RerankError
from rerank.ray_pool import Pool, Shift, heard_interrupts, room
from rerank.sharded import here

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytest.importorskip("ray", reason="Ray is not installed: pip install 'rerank-llm[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster with two CPUs that belongs to these tests; its address."""
    with pytest.MonkeyPatch.context() as patch:
        # the workers import what the tests import
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(sharded_case.__file__).parent), *filter(None, sys.path)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_DEDUP_LOGS_SKIP_REGEX", "died or was killed|retries remaining")
        # it would kill workers where other processes fill the memory
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        made = started()
        try:
            yield made.address
        finally:
            made.shutdown()


def started(attempts: int = 3) -> Cluster:
    """A busy machine can exceed the time that Ray waits for its own parts, as `Pool` has it too."""
    from ray.cluster_utils import Cluster

    for left in reversed(range(attempts)):
        made = Cluster()
        try:
            made.add_node(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20)
            return made
        except Exception as error:
            made.shutdown()
            if not left or "timed out" not in str(error):
                raise
    raise AssertionError("no attempt was made")


def processes(folder: Path) -> list[tuple[str, str]]:
    """The queries that were asked, in order, each with the process that was."""
    lines = (line.split() for line in (folder / "asked").read_text().splitlines())
    return [(query, pid) for query, pid in lines]


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    write_shards(requests(), tmp_path / "shards", per_shard=4)
    return list_shards(tmp_path / "shards")


@pytest.fixture
def alone(tmp_path: Path, shards: list[Path]) -> bytes:
    """The run that one process writes."""
    (tmp_path / "alone").mkdir()
    rank(tmp_path / "alone" / "out.trec", shards, Script(tmp_path / "alone"), here)
    return (tmp_path / "alone" / "out.trec").read_bytes()


def test_two_workers_one_of_them_killed_write_the_run_of_one_process(
    cluster: str, shards: list[Path], alone: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "out.trec"
    script = Script(tmp_path, die_at="q6", meet=("q0", "q4"))  # the first of two shards, which two workers have at once
    steps = rank(output, shards, script, Pool(2, cluster))
    assert output.read_bytes() == alone
    assert len(list(tmp_path.glob("died*"))) == 1
    times = Counter(asked(tmp_path))
    assert {query for query, n in times.items() if n > 1} == {"q6"}  # the block under way begins with it
    assert set(times) == {f"q{i}" for i in range(24)}
    first = dict(reversed(processes(tmp_path)))
    assert first["q0"] != first["q4"]
    assert sum(step.query_ids is not None for step in steps) == 6
    ours, theirs = (json.loads((tmp_path / d / "out.trec.json").read_text()) for d in (".", "alone"))
    for each in (ours, theirs):
        del each["usage"]["seconds"]
    assert ours == theirs
    assert not (tmp_path / "out.trec.parts").exists()


@pytest.mark.timeout(9 * WAIT_S)  # more than all that it waits for
def test_a_driver_that_is_killed_goes_on(cluster: str, shards: list[Path], alone: bytes, tmp_path: Path) -> None:
    output = tmp_path / "out.trec"
    command = [sys.executable, sharded_case.__file__, str(tmp_path / "shards"), str(output), str(tmp_path), cluster]
    for deadly, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        (tmp_path / "waits").unlink(missing_ok=True)
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(tmp_path / "waits")
        wait_for(tmp_path / "out.trec.parts" / "000005.jsonl.trec")  # the other worker has done what there is to do
        driver.send_signal(deadly)
        out, err = driver.communicate(timeout=WAIT_S)
        assert (driver.returncode, out) == (status, ""), err
        assert not output.exists()
        # the worker that waits lives a little longer than its driver, and would go on with its block
        waiting = int(next(pid for query, pid in reversed(processes(tmp_path)) if query == "q9"))
        wait_until(lambda pid=waiting: is_gone(pid), f"the worker {waiting} outlives its driver")
    (tmp_path / "go").touch()
    rank(output, shards, Script(tmp_path), Pool(2, cluster))
    assert output.read_bytes() == alone
    times = Counter(asked(tmp_path))
    assert {query for query, n in times.items() if n > 1} <= {"q8", "q9"}  # the block that was under way
    assert set(times) == {f"q{i}" for i in range(24)}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_a_destructor_swallows_is_heard() -> None:
    class Interrupts:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with heard_interrupts() as interrupted:
            Interrupts()
            assert interrupted.is_set()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(KeyboardInterrupt):
        next(Shift(MagicMock(), [Path("a.jsonl")], 1).steps(interrupted))


def test_errors_come_back_in_a_sentence(cluster: str, shards: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out.trec"
    with pytest.raises(BackboneError, match=r"3 workers died on the shard 000001.jsonl, .*What is done is kept"):
        rank(output, shards[:2], Script(tmp_path, die_at="q6", deaths=99), Pool(1, cluster))
    assert len(list(tmp_path.glob("died*"))) == 3
    shards[1].write_text("{")
    with pytest.raises(RerankError, match=r"000001.jsonl, line 1: not JSON"):
        rank(tmp_path / "b.trec", shards, Script(tmp_path), Pool(1, cluster))
    with pytest.raises(RerankError, match=r"there is no .*gone.jsonl on .*every machine sees"):
        rank(tmp_path / "c.trec", [tmp_path / "gone.jsonl"], Script(tmp_path), Pool(1, cluster))


@pytest.mark.parametrize(
    ("machines", "needs", "fit"),
    [
        ([(2, 0), (2, 0)], (1, 0), 4),
        ([(2, 0), (2, 0)], (3, 0), 0),  # four CPUs together, and three nowhere
        ([(8, 1), (1, 3)], (2, 1), 1),  # CPUs and GPUs must be on one machine
        ([(1, 0)], (0.1, 0), 10),
        ([(1, 0)], (0, 0), math.inf),
        ([], (1, 0), 0),
    ],
)
def test_workers_fit_on_machines(machines: list[tuple[float, float]], needs: tuple[float, float], fit: float) -> None:
    nodes = [{name: amount for name, amount in zip(("CPU", "GPU"), each, strict=True) if amount} for each in machines]
    assert room(nodes, dict(zip(("CPU", "GPU"), needs, strict=True))) == fit


def test_workers_that_do_not_fit_are_told_of(
    cluster: str, shards: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rank(tmp_path / "out.trec", shards, Script(tmp_path), Pool(3, cluster))
    assert "Ray has 2 CPUs and 0 GPUs on 1 machines, enough for 2 of 3 workers" in caplog.text


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1: .*is it the address that 'ray start --head' printed"),
        ("head", "the Ray address 'head' is not of the form HOST:PORT"),
        ("ray://head:10001", "the Ray address 'ray://head:10001' is not of the form"),
    ],
)
def test_an_address_where_no_cluster_is(address: str, said: str, shards: list[Path], tmp_path: Path) -> None:
    with pytest.raises((BackboneError, InputError), match=said):
        rank(tmp_path / "out.trec", shards, Script(tmp_path), Pool(2, address))


def test_the_command_starts_a_cluster_of_its_own(cli: Cli, tmp_path: Path, model: list[str]) -> None:
    (tmp_path / "lists.jsonl").write_text(lists(5))
    given = ["run", tmp_path / "lists.jsonl", *model, "--block", 64]
    assert cli(*given, "-o", tmp_path / "here.trec").status == 0
    done = cli(*given, "-o", tmp_path / "ray.trec", "--engine", "ray", "--workers", 1)
    assert (done.status, done.out) == (0, ""), done.err
    assert "5 queries, 15 calls" in done.err
    there, alone = (read_run(tmp_path / name) for name in ("ray.trec", "here.trec"))
    # a worker has one thread, and sums in another order than two do
    assert {q: list(scores) for q, scores in there.items()} == {q: list(scores) for q, scores in alone.items()}
    assert all(there[q] == pytest.approx(scores, abs=1e-4) for q, scores in alone.items())
    gone = cli(*given, "-o", tmp_path / "x.trec", "--engine", "ray", "--ray-address", "localhost:1")
    assert_error(gone, "no Ray cluster answers at localhost:1")
