"""The command as it is used: what it prints where, what it leaves, and one line for what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Cli, as_list, assert_error, lists, run_of

from rerank.data import read_run

LIMIT_S = 60.0  # for what a process has to do before it is stopped; a run that hangs fails here
COMMAND = (sys.executable, "-m", "rerank")


# What is there


def test_without_a_command_the_help_is_shown(cli: Cli) -> None:
    bare, asked = cli(), cli("--help")
    assert bare == asked == (0, bare.out, "")
    for name in ("demo", "rank", "run", "eval", "compare", "bench", "ls"):
        assert re.search(rf"^  {name}  +\S.*\.$", bare.out, re.MULTILINE)  # whole sentences, not cut by '...'
    assert cli("--version").out.startswith("rerank ")


@pytest.mark.parametrize("command", ["demo", "rank", "run", "eval", "compare", "bench", "ls"])
def test_every_command_explains_itself(command: str, cli: Cli) -> None:
    status, out, err = cli(command, "--help")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    assert not re.search(r"^  -.*<(str|int|list)", out, re.MULTILINE)  # a type says nothing of what to give


@pytest.mark.parametrize(
    ("kind", "holds"),
    [
        ("strategies", ["pointwise", "window=20, step=10", "listwise-permutation", "algorithm=heapsort, children=2"]),
        ("prompts", ["pointwise-yes-no@1", "labels", "Liang et al.", "pairwise@1", "setwise@1", "full-ranking@1"]),
        ("models", ["HuggingFaceTB/SmolLM2-135M-Instruct (default)"]),
        ("backbones", ["transformers", "vllm", "openai", "cross-encoder", "pip install 'rerank-llm[llm]'"]),
        ("datasets", ["sample:scifact", "irds:ID", "{qid, query, docs: [{docid, text, label}]}"]),
    ],
)
def test_ls_shows_a_shelf(kind: str, holds: list[str], cli: Cli) -> None:
    status, out, err = cli("ls", kind)
    assert (status, err) == (0, "")
    assert all(text in out for text in holds)
    assert out.rstrip("\n") in cli("ls").out


def test_listing_and_measuring_load_no_model_library() -> None:
    script = (
        "import sys; from rerank.cli import main\n"
        "for args in (['ls'], ['--help'], ['run', '--help']):\n"
        "    sys.argv[1:] = args\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "print('loaded', *{'torch', 'transformers', 'peft', 'ranx', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT_S)
    assert done.stdout.endswith("loaded\n"), done.stdout[-200:] + done.stderr


def test_a_table_in_a_pipe_is_not_folded(cli: Cli, tmp_path: Path, beir: Path) -> None:
    name = tmp_path / ("long" * 40 + ".trec")
    name.write_text("q1 Q0 d1 1 1.0 t\n")
    assert str(name) in cli("eval", name, "-d", beir).out


# rerank run


def test_run_on_a_beir_folder(cli: Cli, model: list[str], beir: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.trec"
    status, out, err = cli("run", beir, "-s", "pointwise", "-o", output, "--tag", "mine", *model)
    assert (status, out) == (0, "")
    assert re.fullmatch(r"2 queries, 4 calls, [\d,]+ prompt and 0 generated tokens, \S+ s; answers: 4 clean\n", err)
    run = read_run(output)
    assert {query_id: set(docs) for query_id, docs in run.items()} == {"q1": {"d1", "d2"}, "q2": {"d3", "d4"}}
    assert all(line.endswith(" mine") for line in output.read_text().splitlines())
    card = json.loads((tmp_path / "out.trec.json").read_text())
    assert card["settings"]["strategy"] == "pointwise"
    assert card["settings"]["prompt"].startswith("pointwise-yes-no@1#")
    assert card["settings"]["options"] == {"passage_tokens": None}
    assert card["usage"]["calls"] == card["outcomes"]["clean"] == 4
    assert {"python", "rerank-llm", "torch", "transformers", "ranx"} <= card["versions"].keys()
    assert card["command"].startswith(f"rerank run {beir} -s pointwise -o {output} --tag mine")
    assert len(card["candidates"]) == 64

    before = {path: path.stat().st_mtime_ns for path in (output, tmp_path / "out.trec.json")}
    again = cli("run", beir, "-s", "pointwise", "-o", output, "--tag", "mine", *model)
    assert again == (0, "", f"{output} is already there, made with these settings\n")
    assert before == {path: path.stat().st_mtime_ns for path in before}
    other = cli("run", beir, "-s", "pointwise", "-o", output, *model)
    assert other.status == 2
    assert "was not made with these settings (tag: 'mine' there, 'rerank-pointwise' now)" in other.err


@pytest.mark.parametrize(
    ("args", "calls"),
    [
        (["-s", "pairwise", "-O", "algorithm=allpair", "-O", "soft=true"], 2 * 2),
        (["-s", "setwise", "-O", "children=9", "-O", "votes=3"], 2 * 3),
        (["-s", "full-ranking", "-O", "top=1"], 2 * 1),
    ],
)
def test_run_compares_and_ranks_in_one_go(
    cli: Cli, model: list[str], beir: Path, tmp_path: Path, args: list[str], calls: int
) -> None:
    status, out, err = cli("run", beir, *args, *model)
    assert status == 0
    assert f"2 queries, {calls} calls," in err
    assert {q: set(docs) for q, docs in run_of(out, tmp_path).items()} == {"q1": {"d1", "d2"}, "q2": {"d3", "d4"}}


def test_run_takes_a_first_stage_a_depth_a_limit_and_options(
    cli: Cli, model: list[str], beir: Path, tmp_path: Path
) -> None:
    stage = tmp_path / "stage.trec"
    stage.write_text("".join(f"{q} Q0 d{i} 0 {i}.0 x\n" for q in ("q1", "q2") for i in (1, 2, 3, 4)))
    args = ["run", beir, "--run", stage, "-s", "first", "-k", 3, "--limit", 1, "-O", "window=2", "-O", "step=1"]
    status, out, err = cli(*args, "-O", "passage-tokens=4", *model)
    assert status == 0
    assert {query_id: set(docs) for query_id, docs in run_of(out, tmp_path).items()} == {"q1": {"d4", "d3", "d2"}}
    assert "1 query, 2 calls," in err  # two windows of two
    longer = cli(*args, *model)
    tokens = [int(re.search(r"([\d,]+) prompt", text)[1].replace(",", "")) for text in (err, longer.err)]  # type: ignore[index]
    assert tokens[0] < tokens[1]


def test_run_on_a_request_file_of_rank_llm(cli: Cli, model: list[str], tmp_path: Path) -> None:
    file = tmp_path / "requests.json"
    candidates = [{"docid": f"d{i}", "score": 9 - i, "doc": {"text": f"text {i}"}} for i in range(4)]
    file.write_text(json.dumps([{"query": {"text": "what", "qid": "7"}, "candidates": candidates}]))
    status, out, _ = cli("run", file, "-k", 3, *model)
    assert status == 0
    assert {query_id: set(docs) for query_id, docs in run_of(out, tmp_path).items()} == {"7": {"d0", "d1", "d2"}}


def test_run_on_lists_through_a_pipe(cli: Cli, model: list[str], tmp_path: Path) -> None:
    status, out, err = cli("run", "--queries", "-", "-k", 2, "-s", "pointwise", *model, stdin=lists(3))
    assert status == 0
    assert {q: set(docs) for q, docs in run_of(out, tmp_path).items()} == {f"q{i}": {"d0", "d1"} for i in range(3)}
    assert out.count(" rerank-pointwise\n") == 6
    assert err.count("\n") == 1  # the summary: no trace of a progress bar
    file = tmp_path / "lists.jsonl"
    file.write_text(lists(3))
    assert cli("run", file, "-k", 2, "-s", "pointwise", *model).out == out
    assert cli("run", "--queries", file, "-k", 2, "-s", "pointwise", *model).out == out


def test_run_on_queries_through_a_pipe_searches_the_corpus(
    cli: Cli, model: list[str], beir: Path, tmp_path: Path
) -> None:
    status, out, _ = cli("run", beir, "--queries", "-", *model, stdin="x\tflea\n\ny\tbone\tdensity\n")
    assert status == 0
    found = {query_id: set(docs) for query_id, docs in run_of(out, tmp_path).items()}
    assert found == {"x": {"d1", "d2"}, "y": {"d3", "d4"}}


def test_the_bar_keeps_off_stdout(cli: Cli, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = cli("run", "--queries", "-", "-s", "pointwise", *model, stdin=lists(3))
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich: both are terminals
    status, out, err = cli("run", "--queries", "-", "-s", "pointwise", *model, stdin=lists(3))
    assert status == 0
    assert out == plain.out
    assert "\x1b[?25l" in err  # the cursor was hidden, so there was a bar
    output = tmp_path / "out.trec"
    status, out, err = cli("run", "--queries", "-", "-s", "pointwise", "-o", output, *model, stdin=lists(3))
    assert (status, out) == (0, "")
    assert output.read_text() == plain.out


def test_finished_output_of_a_pipe_is_not_taken_for_that_of_another(cli: Cli, model: list[str], tmp_path: Path) -> None:
    args = ["run", "--queries", "-", "-o", tmp_path / "out.trec", *model]
    assert cli(*args, stdin=lists(1)).status == 0
    assert_error(cli(*args, stdin=lists(2)), "through standard input cannot be told")


# Runs that are stopped


def start(*args: object) -> subprocess.Popen[bytes]:
    """A shell that runs the tests in the background has them, and what they start, ignore an interrupt."""
    command = [*COMMAND, *map(str, args)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes)


def wait_for(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + LIMIT_S
    while not true():
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < end, "the process did not come so far"
        time.sleep(0.01)


def reads_input(process: subprocess.Popen[bytes]) -> bool:
    """Whether it waits for its standard input; where the system does not say, that it may."""
    try:
        call = Path(f"/proc/{process.pid}/syscall").read_text().split()
    except OSError:
        return True
    return call[0] in ("0", "63") and call[1] == "0x0"  # read(2) on x86-64 and on 64-bit Arm, of file 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl-c"])
def test_a_run_that_was_stopped_goes_on(how: signal.Signals, cli: Cli, model: list[str], tmp_path: Path) -> None:
    args = ["run", "--queries", "-", "-s", "pointwise", "--block", 2, *model, "-o"]
    assert cli(*args, tmp_path / "whole.trec", stdin=lists(7)).status == 0
    output, journal = tmp_path / "out.trec", tmp_path / "out.trec.journal"
    process = start(*args, output)
    assert process.stdin is not None
    # two blocks and half a third; the process then waits for more, and there it is stopped
    process.stdin.write("".join(lists(7).splitlines(keepends=True)[:5]).encode())
    process.stdin.flush()
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b'{"committed": 2}\n') == 2, process)
    wait_for(lambda: reads_input(process), process)  # elsewhere Python may let an interrupt pass
    process.send_signal(how)
    status = process.wait(LIMIT_S)
    err = process.stderr.read().decode() if process.stderr is not None else ""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    assert not output.exists()
    if how == signal.SIGINT:
        assert status == 130
        assert err == f"{output}: queries done: 4; the same command goes on from there\ninterrupted\n"

    resumed = cli(*args, output, stdin=lists(7))
    assert resumed.status == 0
    assert resumed.err.startswith(f"{output}: queries done: 4; going on from there\n7 queries, 21 calls,")
    assert output.read_bytes() == (tmp_path / "whole.trec").read_bytes()
    assert not list(tmp_path.glob("out.trec.[!j]*"))
    assert not journal.exists()


@pytest.fixture
def stopped(cli: Cli, model: list[str], tmp_path: Path) -> list[object]:
    """The command of a run that ended in its third block, at a line that is not JSON."""
    args = ["run", "--queries", "-", "-s", "pointwise", "--block", 2, *model, "-o", tmp_path / "out.trec"]
    broken = "".join(lists(7).splitlines(keepends=True)[:5]) + "{broken\n"
    assert_error(cli(*args, stdin=broken), "standard input, line 6: not JSON")
    return args


def test_input_that_breaks_off_can_be_mended(stopped: list[object], cli: Cli, tmp_path: Path) -> None:
    resumed = cli(*stopped, stdin=lists(7))
    assert resumed.err.startswith(f"{tmp_path / 'out.trec'}: queries done: 4;")
    assert len(read_run(tmp_path / "out.trec")) == 7


def test_a_journal_that_does_not_belong_is_refused(stopped: list[object], cli: Cli, tmp_path: Path) -> None:
    journal = tmp_path / "out.trec.journal"
    assert_error(cli(*stopped, "-k", 2, stdin=lists(7)), "other settings (depth: 100 there, 2 now)")
    assert_error(cli(*stopped, "-O", "passage_tokens=4", stdin=lists(7)), "(options.passage_tokens: None there, 4 now)")
    assert_error(cli(*stopped, stdin=as_list("other", "x")), "begun with other queries or passages (at query 'q0')")
    journal.write_bytes(journal.read_bytes().replace(b"asked", b"asekd", 1))
    assert_error(cli(*stopped, stdin=lists(7)), f"{journal} is damaged (KeyError: 'asked'); delete it")


def test_a_mistake_leaves_nothing_in_the_way(cli: Cli, model: list[str], beir: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.trec"
    before = set(tmp_path.iterdir())
    assert cli("run", tmp_path / "beri", "-o", output, *model).status == 2
    assert cli("run", beir, "-o", output, "--model", "/no/such/model").status == 2
    assert set(tmp_path.iterdir()) == before
    assert cli("run", beir, "-o", output, *model).status == 0


@pytest.mark.parametrize("args", [["ls"], ["eval", "{run}", "-d", "{beir}", "--per-query"], ["--help"]])
def test_a_reader_that_has_gone_is_no_error(args: list[str], beir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.trec"
    run.write_text("q1 Q0 d1 1 1.0 t\n")
    read, write = os.pipe()
    os.close(read)  # as `| head -0` does, without a race
    command = [*COMMAND, *(arg.format(run=run, beir=beir) for arg in args)]
    with os.fdopen(write, "wb") as gone:
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, timeout=LIMIT_S)
    assert (done.returncode, done.stderr) == (141, b"")


# rerank rank


def test_rank_shows_the_lines_of_a_file(cli: Cli, model: list[str], tmp_path: Path) -> None:
    file = tmp_path / "passages.txt"
    file.write_text("the first\n\nthe [third] line\nthe \x1b[31mfourth\n")
    status, out, err = cli("rank", "which", file, "-s", "pointwise", *model)
    assert status == 0
    head, *rows = (line.split(maxsplit=3) for line in out.splitlines())
    assert head == ["rank", "score", "line", "passage"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    shown = {row[2]: row[3].rstrip() for row in rows}
    assert shown == {"1": "the first", "3": "the [third] line", "4": "the  [31mfourth"}  # the terminal is left alone
    assert "\x1b" not in out
    assert [float(row[1]) for row in rows] == sorted((float(row[1]) for row in rows), reverse=True)
    assert err.startswith("3 calls, ")
    assert cli("rank", "which", "-", "-s", "pointwise", *model, stdin=file.read_text()).out == out
    assert cli("rank", "which", "-s", "pointwise", *model, stdin=file.read_text()).out == out

    status, out, err = cli("rank", "which", file, "-s", "pointwise", "--json", "--top", 2, *model)
    records = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, "")
    assert [(r["rank"], str(r["line"])) for r in records] == [(i, row[2]) for i, row in enumerate(rows[:2], start=1)]
    assert {r["text"] for r in records} <= {"the first", "the [third] line", "the \x1b[31mfourth"}


def test_rank_strict_names_the_line(cli: Cli, model: list[str]) -> None:
    done = cli("rank", "which", "-s", "first", "--strict", *model, stdin="good\nsee [B]\n")
    assert_error(done, "passage '2' holds")


# rerank eval


def test_eval_measures_runs_and_given_orders(cli: Cli, beir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.trec"
    run.write_text("q1 Q0 d2 1 2.0 t\nq1 Q0 d1 2 1.0 t\nq2 Q0 d3 1 2.0 t\nq2 Q0 d4 2 1.0 t\n")
    given = tmp_path / "given.jsonl"
    given.write_text(as_list("q1", "a", "b", ids=["d1", "d2"]) + as_list("q2", "a", "b", ids=["d2", "d3"]))
    status, out, err = cli("eval", run, given, "-d", beir, "-m", "RR@10", "-m", "P@1", "--per-query")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0][0] == "run"
    assert rows[0][-2:] == ["RR@10", "P@1"]
    values = [(row[0], *row[-2:]) for row in rows[1:7]]
    assert values == [
        ("q1", "0.5000", "0.0000"),
        ("q2", "1.0000", "1.0000"),
        (str(run), "0.7500", "0.5000"),
        ("q1", "1.0000", "1.0000"),
        ("q2", "0.5000", "0.0000"),
        (str(given), "0.7500", "0.5000"),
    ]


def test_eval_prints_json(cli: Cli, beir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.trec"
    run.write_text("q1 Q0 d2 1 2.0 t\nq1 Q0 d1 2 1.0 t\n")
    args = ["eval", run, "--qrels", beir / "qrels" / "test.tsv", "-m", "RR", "--json"]
    record = json.loads(cli(*args).out)
    assert (record["run"], record["queries"], record["mean"]) == (str(run), 2, {"RR": (1 / 2 + 0) / 2})
    assert json.loads(cli(*args, "--per-query").out)["per_query"] == {"RR": {"q1": 0.5, "q2": 0.0}}
    assert json.loads(cli(*args, "--judged-only").out)["mean"] == {"RR": (1 + 0) / 2}  # d2 has no label
