"""The race of the engines, on a tiny model: everybody gets the same, nobody is fast by being wrong, and it adds up."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from command import Cli, as_list, assert_error
from transformers import AutoModelForCausalLM

import rerank
from rerank import bench
from rerank.bench.engines import Scores
from rerank.bench.race import FAR, Course
from rerank.bench.work import Rendered
from rerank.data import load_dataset
from rerank.errors import InputError

PAIRS, WINDOWS, ROUNDS, TOKENS = 6, 3, 2, 5
OURS, LOOP, THEIRS = "rerank", "plain loop", "sentence-transformers"
SETTINGS = ["--device", "cpu", "--dtype", "float32", "--pairs", PAIRS, "--windows", WINDOWS, "--rounds", ROUNDS]
SETTINGS += ["--passage-tokens", TOKENS]


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command may set torch's threads and an environment variable."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0")
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 queries of 22 passages, all different."""
    path = tmp_path_factory.mktemp("lists") / "lists.jsonl"
    texts = [[f"{'abcdefgh'[q]}{d} of some words" for d in range(22)] for q in range(8)]
    path.write_text("".join(as_list(f"q{q}", *row, query=f"query {q}") for q, row in enumerate(texts)))
    return path


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> bench.Model:
    return bench.Model.read("tiny", str(tiny_model))


@pytest.fixture(scope="module")
def work(lists: Path, model: bench.Model) -> dict[bench.Task, list[bench.Slice]]:
    requests = list(load_dataset(str(lists)).candidates())
    many = {"slices": ROUNDS + 1, "passage_tokens": TOKENS}
    return {
        "pointwise": bench.pointwise_work(requests, model.encoder, size=PAIRS // ROUNDS, **many),
        "first": bench.first_work(requests, model.encoder, size=-(-WINDOWS // ROUNDS), **many),
    }


@pytest.fixture(scope="module")
def setup(tiny_model: Path, work: dict[bench.Task, list[bench.Slice]]) -> bench.Setup:
    labels = work["pointwise"][0].prompts[0].labels
    return bench.Setup(str(tiny_model), str(tiny_model), "cpu", "float32", TOKENS, labels)


# What is asked


def passages(part: bench.Slice) -> list[tuple[str, str]]:
    return [(each.query.query_id, p.doc_id) for each in part.requests for p in each.passages]


def test_slices_share_nothing(work: dict[bench.Task, list[bench.Slice]]) -> None:
    for task, size, shown in (("pointwise", 3, 3), ("first", 2, 2 * 20)):
        parts = work[task]
        assert [len(part.prompts) for part in parts] == [size] * (ROUNDS + 1)
        asked = [pair for part in parts for pair in passages(part)]
        assert len(asked) == len(set(asked)) == shown * (ROUNDS + 1)
    assert [len(part.requests) for part in work["pointwise"]] == [1, 1, 1]  # a query's passages stay together
    assert all(len(each) == 20 for part in work["first"] for each in part.requests)


def test_a_slice_may_end_within_a_query(lists: Path, model: bench.Model) -> None:
    requests = load_dataset(str(lists)).candidates(depth=5)
    parts = bench.pointwise_work(requests, model.encoder, slices=2, size=8, passage_tokens=None)
    assert [[len(each) for each in part.requests] for part in parts] == [[5, 3], [2, 5, 1]]


def test_prompts_are_what_our_rankers_ask(
    work: dict[bench.Task, list[bench.Slice]], setup: bench.Setup, model: bench.Model
) -> None:
    tokenizer = model.encoder.tokenizer
    for task, parts in work.items():
        ranker = rerank.load(task, model=setup.model, device="cpu", dtype="float32", passage_tokens=TOKENS)
        for part in parts:
            used = [ranking.usage.prompt_tokens for ranking in ranker.rank_many(part.requests)]
            assert sum(used) == part.tokens
            assert [tuple(tokenizer.encode(p.text, add_special_tokens=False)) for p in part.prompts] == [
                p.ids for p in part.prompts
            ]
    texts = [prompt.text for prompt in work["pointwise"][0].prompts]
    assert "Query: query 0" in texts[0]
    assert [tokenizer.decode(label) for label in work["first"][0].prompts[0].labels] == list("ABCDEFGHIJKLMNOPQRST")
    assert [tokenizer.decode(label) for label in setup.labels] == ["Yes", "No"]


def test_cost_by_counting(work: dict[bench.Task, list[bench.Slice]], tiny_model: Path, model: bench.Model) -> None:
    weights = AutoModelForCausalLM.from_pretrained(tiny_model)
    layers = weights.config.num_hidden_layers
    inner = sum(
        p.numel() for name, p in weights.named_parameters() if "embed_tokens" not in name and "lm_head" not in name
    )
    width = weights.config.hidden_size
    for parts in work.values():
        prompts = [prompt.ids for prompt in parts[1].prompts]
        pasts = [range(1, len(ids) + 1) for ids in prompts]  # how many tokens each token looks at, itself included
        full = sum(2 * inner + 4 * width * layers * (past - 0.5) for each in pasts for past in each)
        assert model.cost.in_full(parts[1]) == pytest.approx(full)
        nodes = {ids[:end] for ids in prompts for end in range(1, len(ids) + 1)}  # the trie's
        once = sum(2 * inner + 4 * width * layers * (len(node) - 0.5) for node in nodes)
        assert model.cost.shared_once(parts[1]) == pytest.approx(once)
        assert once < full or len(prompts) == 1


def test_too_little_data_is_said(lists: Path, model: bench.Model) -> None:
    requests = list(load_dataset(str(lists)).candidates())
    with pytest.raises(InputError, match=r"has 176 pairs at this depth; 2 slices of 100, .* need 200"):
        bench.pointwise_work(requests, model.encoder, slices=2, size=100, passage_tokens=TOKENS)
    with pytest.raises(InputError, match="has 8 windows of 20 passages"):
        bench.first_work(requests, model.encoder, slices=3, size=3, passage_tokens=TOKENS)


# The race


class Stub:
    """Notes its turns; its scores are what it is given."""

    def __init__(self, name: str, turns: list[str], score: float) -> None:
        self._name, self._turns, self._number = name, turns, score

    def score(self, part: bench.Slice) -> Scores:
        self._turns.append(f"{self._name}:{part.task}:{part.prompts[0].text}")
        return [[self._number] for _ in part.prompts]

    def close(self) -> None:
        pass


def parts_of(task: bench.Task, n: int) -> list[bench.Slice]:
    return [bench.Slice(task, (), (Rendered(str(i), (1, 2, 3), ()),)) for i in range(n)]


def test_engines_take_turns() -> None:
    """Every round every engine does the same slice; who begins changes; the first slice is not counted."""
    turns: list[str] = []
    stubs = {name: Stub(name, turns, 0.0) for name in (OURS, LOOP, THEIRS)}
    work = {task: parts_of(task, 3) for task in bench.WORK}
    courses = bench.race(stubs, work, "cpu", between=lambda: turns.append("-"), say=lambda _: None)
    rounds = [list(group) for same, group in itertools.groupby(turns, key=lambda turn: turn == "-") if not same]
    assert rounds[1] == [
        f"{LOOP}:pointwise:1", f"{THEIRS}:pointwise:1", f"{OURS}:pointwise:1", f"{LOOP}:first:1", f"{OURS}:first:1",
    ]  # fmt: skip
    assert [group[0] for group in rounds] == [f"{name}:pointwise:{i}" for i, name in enumerate((OURS, LOOP, THEIRS))]
    assert {name: len(course.seconds) for name, course in courses["pointwise"].items()} == dict.fromkeys(stubs, 2)
    assert list(courses["first"]) == [OURS, LOOP]


def test_interrupted_it_keeps_the_rounds_that_all_have_run() -> None:
    class Impatient(Stub):
        def score(self, part: bench.Slice) -> Scores:
            if part.prompts[0].text == self.last:
                raise KeyboardInterrupt
            return super().score(part)

        last = "3"

    turns: list[str] = []
    work = {task: parts_of(task, 5) for task in bench.WORK}

    def run() -> Any:
        stubs = {OURS: Stub(OURS, turns, 1.0), LOOP: Impatient(LOOP, turns, 0.0)}
        return bench.race(stubs, work, "cpu", between=lambda: None, say=lambda _: None)

    for task, found in run().items():
        assert {name: len(course.seconds) for name, course in found.items()} == {OURS: 2, LOOP: 2}, task
        assert found[OURS].scores == [[1.0]] * 2
    Impatient.last = "1"
    with pytest.raises(KeyboardInterrupt):
        run()


def test_rates_are_medians_and_quotients_are_of_the_same_round() -> None:
    parts = parts_of("pointwise", 3)
    courses = {
        LOOP: Course([1.0, 2.0, 4.0], [[0.0], [1.0], [2.0]]),
        OURS: Course([0.5, 0.5, 4.0], [[0.1], [1.0], [1.8]]),
    }
    cost = bench.Cost(parameters=100, width=4, layers=2)
    table = bench.table("pointwise", parts, courses, {"vllm by hand": "vllm not installed"}, cost, peak=1000.0)
    loop, ours = table.rows
    assert (loop.per_second, ours.per_second) == (1 / 2, 2.0)
    assert ours.tokens_per_second == 3 * 2.0
    assert ours.times == {LOOP: 2.0}  # of 2, 4 and 1
    flops = 2 * 100 * 3 + 2 * 4 * 2 * 3**2
    assert (ours.share, table.flops) == (2.0 * flops / 1000.0, 3 * flops)
    assert loop.difference is None
    assert ours.difference is not None
    assert (ours.difference.median, ours.difference.largest) == pytest.approx((0.1, 0.2))
    assert table.absent == {"vllm by hand": "vllm not installed"}


def test_who_is_wrong_is_told(work: dict[bench.Task, list[bench.Slice]]) -> None:
    parts = parts_of("pointwise", 1)
    courses = {LOOP: Course([1.0], [[0.0]]), OURS: Course([0.1], [[FAR * 1.01]]), THEIRS: Course([1.0], [[FAR]])}
    rows = bench.table("pointwise", parts, courses, {}, bench.Cost(1, 1, 1), peak=1.0).rows
    assert [row.agrees for row in rows] == [True, False, True]


@pytest.mark.parametrize(
    ("name", "task"),
    [(OURS, "pointwise"), (OURS, "first"), (LOOP, "pointwise"), (LOOP, "first"), (THEIRS, "pointwise")],
)
def test_engines_score_as_the_model_does(
    name: str, task: bench.Task, work: dict[bench.Task, list[bench.Slice]], setup: bench.Setup
) -> None:
    contender = bench.ENGINES[name].load(setup)
    weights = AutoModelForCausalLM.from_pretrained(setup.path, dtype=torch.float32).eval()
    for part in work[task]:
        scores = contender.score(part)
        for prompt, row in zip(part.prompts, scores, strict=True):
            with torch.inference_mode():
                logits = weights(torch.tensor([prompt.ids])).logits[0, -1, list(prompt.labels)]
            expected = [logits[0] - logits[1]] if task == "pointwise" else logits.log_softmax(-1)
            assert row == pytest.approx([float(x) for x in expected], abs=1e-3)


# The command


def figures(cli: Cli, tmp_path: Path, *arguments: object) -> tuple[dict[str, Any], str]:
    done = cli("bench", "engines", *arguments, "--json", tmp_path / "figures.json")
    assert done.status == 0, done
    return json.loads((tmp_path / "figures.json").read_text()), done.out


def test_the_command_adds_up(
    cli: Cli,
    tmp_path: Path,
    lists: Path,
    tiny_model: Path,
    work: dict[bench.Task, list[bench.Slice]],
    model: bench.Model,
) -> None:
    found, out = figures(cli, tmp_path, lists, "-m", tiny_model, *SETTINGS, "--threads", 1)
    assert found["settings"] == {
        "dataset": str(lists), "model": str(tiny_model), "pairs": PAIRS, "windows": WINDOWS, "rounds": ROUNDS,
        "depth": 100, "passage_tokens": TOKENS, "threads": 1, "engines": list(bench.ENGINES),
    }  # fmt: skip
    assert found["machine"]["threads"] == 1
    assert found["machine"]["versions"]["torch"] == torch.__version__
    assert found["peak"]["flops"] == max(found["peak"]["rounds"]) > 0
    for table in found["tasks"]:
        parts = work[table["task"]][1:]
        assert table["prompts"] == sum(len(part.prompts) for part in parts)
        assert table["tokens"] == sum(part.tokens for part in parts)
        assert table["flops"] == sum(map(model.cost.in_full, parts))
        assert table["flops_shared_once"] == sum(map(model.cost.shared_once, parts)) < table["flops"]
        assert table["reference"] == LOOP
        rows = {row["engine"]: row for row in table["rows"]}
        assert rows.keys() | table["absent"].keys() == set(bench.ENGINES)
        for name, row in rows.items():
            each = list(zip(parts, row["seconds"], rows[LOOP]["seconds"], strict=True))
            assert row["per_second"] == pytest.approx(median(len(p.prompts) / s for p, s, _ in each))
            assert row["tokens_per_second"] == pytest.approx(median(p.tokens / s for p, s, _ in each))
            assert row["times"][LOOP] == pytest.approx(median(base / s for _, s, base in each))
            full = median(model.cost.in_full(p) / s for p, s, _ in each) / found["peak"]["flops"]
            assert row["share"] == pytest.approx(full)
            assert row["share_once"] < row["share"]
            assert (row["difference"] is None) == (name == LOOP)
            near = 0.5 if name == "rerank, int8" else 1e-3
            assert row["difference"] is None or row["difference"]["largest"] < near
            assert row["agrees"]
            assert f"{name} " in out
    pointwise, first = found["tasks"]
    assert {OURS, LOOP, THEIRS} <= {row["engine"] for row in pointwise["rows"]}
    assert first["absent"][THEIRS] == "scores pairs only"
    assert "1 threads on " in out
    assert "Pointwise, yes or no: 6 pairs" in out
    assert "FIRST, windows of 20 passages: 4 windows" in out


def test_what_is_missing_has_a_row(
    cli: Cli, tmp_path: Path, lists: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.setitem(sys.modules, "vllm", None)
    chosen = ["-e", "plain loop", "-e", "sentence-transformers", "-e", "vllm by hand", "-e", "plain loop"]
    found, out = figures(cli, tmp_path, lists, "-m", tiny_model, *SETTINGS, *chosen, "--windows", 0)
    (table,) = found["tasks"]
    assert [row["engine"] for row in table["rows"]] == [LOOP]
    assert table["absent"] == {THEIRS: "sentence_transformers not installed", "vllm by hand": "vllm not installed"}
    assert "sentence_transformers not installed" in out
    assert_error(
        cli("bench", "engines", lists, "-m", tiny_model, *SETTINGS, "-e", "vllm by hand"),
        "none of the engines can do any of this here (vllm by hand: vllm not installed)",
    )


def test_without_the_loop_the_first_engine_is_the_reference(
    cli: Cli, tmp_path: Path, lists: Path, tiny_model: Path
) -> None:
    chosen = ["-e", OURS, "-e", THEIRS, "--pairs", 2, "--windows", 0, "--rounds", 1, "--depth", 1]
    found, out = figures(cli, tmp_path, lists, "-m", tiny_model, *SETTINGS, *chosen)
    (table,) = found["tasks"]
    assert table["reference"] == OURS
    assert [row["difference"] is None for row in table["rows"]] == [True, False]
    assert list(table["rows"][0]["times"]) == [THEIRS]
    assert found["settings"]["depth"] == 1
    assert f"x {LOOP}" not in out


def test_an_engine_that_fails_to_load_has_a_row(setup: bench.Setup, tmp_path: Path) -> None:
    elsewhere = bench.Setup(str(tmp_path), str(tmp_path), "cpu", "float32", None, ())
    contenders, absent = bench.enter([LOOP, OURS], elsewhere, ["first"], say=lambda _: None)
    assert not contenders
    assert absent[LOOP].startswith("could not be loaded: ")
    assert "config.json" in absent[OURS]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-e", "vlm by hand"], "unknown engine 'vlm by hand'; did you mean 'vllm by hand'?"),
        (["--pairs", 0, "--windows", 0], "there is nothing to measure: give --pairs or --windows"),
        (["--pairs", 500], "the dataset has 176 pairs at this depth"),
        (["--threads", 4096], "threads is 4096; this process may use"),
        (["--dtype", "int4"], "dtype 'int4' is not known"),
        (["-m", "/nowhere/at/all"], "cannot read the model '/nowhere/at/all'"),
        (["--json", "/nowhere/at/all.json"], "--json /nowhere/at/all.json: there is no such folder"),
    ],
)
def test_errors_are_one_line(cli: Cli, lists: Path, tiny_model: Path, arguments: Sequence[object], text: str) -> None:
    assert_error(cli("bench", "engines", lists, "-m", tiny_model, *SETTINGS, *arguments), text)


def test_the_commands_explain_themselves(cli: Cli) -> None:
    for words in (["bench"], ["bench", "--help"], ["bench", "engines", "--help"]):
        status, out, err = cli(*words)
        assert (status, err) == (0, "")
        assert "engines" in out
        assert max(map(len, out.splitlines())) <= 100
    assert "2 x parameters without embeddings x tokens" in " ".join(out.split())


# vLLM


@pytest.mark.vllm
@pytest.mark.model
@pytest.mark.timeout(1500)
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
def test_vllm_scores_as_the_loop_does(cli: Cli, tmp_path: Path) -> None:
    chosen = ["-e", LOOP, "-e", "vllm by hand", "-e", "rerank over vllm"]
    arguments = ["--device", "cpu", "--dtype", "bfloat16", "--pairs", 4, "--windows", 1, "--rounds", 1]
    found, _ = figures(cli, tmp_path, *arguments, *chosen)
    for table in found["tasks"]:
        assert len(table["rows"]) == 3, table["absent"]
        assert all(row["agrees"] for row in table["rows"])
