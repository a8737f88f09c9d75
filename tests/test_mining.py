"""Hard negatives, the labels of a teacher of windows, and the commands that make them."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Cli, assert_error

from rerank.backbones.scripted import ScriptedBackbone, oracle
from rerank.data import Dataset, load_dataset, read_run
from rerank.errors import InputError
from rerank.prompts import load_prompt
from rerank.reranker import Reranker
from rerank.strategies import First, Listwise, Pointwise
from rerank.strategies.listwise import windows
from rerank.training.labelling import MultiPass
from rerank.training.mining import Mined, Miner, write_lists
from rerank.types import Candidates, Passage, Query

CORPUS = {f"d{i}": Passage(f"passage number {i}", f"d{i}") for i in range(10)} | {
    "copy": Passage("Passage number 2.", "copy")
}


def dataset(**judged: int) -> Dataset:
    """One query, whose first stage has d0 … d8 and a copy of d2, in this order; d9 is missed."""
    run = {"q": {f"d{i}": 20.0 - i for i in range(9)} | {"copy": 1.0}}
    return Dataset("tried", {"q": Query("which", "q")}, CORPUS, {"q": dict(judged)}, run)


def mined(data: Dataset, miner: Miner, depth: int = 100) -> Mined:
    (found,) = miner.mine(data, data.candidates(depth))
    return found


def test_negatives_are_the_first_stage_s_best_without_positives_and_their_copies() -> None:
    found = mined(dataset(d2=1, d0=2, d9=1, d5=0), Miner(negatives=6))
    assert [p.doc_id for p in found.candidates.passages] == ["d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7", "d9"]
    assert found.labels == {"d0": 2, "d2": 1, "d9": 1} | dict.fromkeys(["d1", "d3", "d4", "d5", "d6", "d7"], 0)
    all_of_them = mined(dataset(d2=1), Miner(negatives=99))
    assert "copy" not in all_of_them.labels and len(all_of_them.labels) == 9
    assert "copy" in mined(dataset(d3=1), Miner(negatives=99)).labels


def test_a_low_grade_is_a_negative_with_its_own_label_where_more_is_asked_of_a_positive() -> None:
    found = mined(dataset(d1=1, d3=2, d8=3), Miner(negatives=2, relevant=2))
    assert found.labels == {"d0": 0, "d1": 1, "d3": 2, "d8": 3}
    assert mined(dataset(d1=1, d3=2, d8=3), Miner(negatives=1, positives=2)).labels == {"d0": 0, "d3": 2, "d8": 3}


def test_the_last_of_the_candidates_are_the_least_hard() -> None:
    data = dataset(d2=1)
    assert mined(data, Miner(negatives=2, last=True)).labels == {"d2": 1, "d7": 0, "d8": 0}  # not its copy
    assert mined(data, Miner(negatives=2, last=True), depth=5).labels == {"d2": 1, "d3": 0, "d4": 0}
    teacher = {"q": {"d0": 0.1, "d1": 0.9, "d2": 0.8, "d3": 0.7}}
    assert mined(data, Miner(2, teacher=teacher, last=True)).labels == {"d0": 0, "d2": 1, "d3": 0}


TEACHER = {"q": {"d0": 0.1, "d1": 0.9, "d2": 0.8, "d3": 0.77, "d4": 0.75, "d5": 0.2, "d9": 0.6}}


def test_a_teacher_says_which_negatives_are_hard_and_which_may_be_positives() -> None:
    data = dataset(d2=1, d9=1)  # 0.7 in the mean
    assert mined(data, Miner(2, teacher=TEACHER)).labels == {"d1": 0, "d2": 1, "d3": 0, "d9": 1}
    high = {"q": TEACHER["q"] | {"d3": 0.95 * 0.7 - 0.001}}
    assert mined(data, Miner(2, teacher=high, share=0.95)).labels == {"d2": 1, "d3": 0, "d5": 0, "d9": 1}
    high = {"q": TEACHER["q"] | {"d3": 0.95 * 0.7 + 0.001}}
    assert mined(data, Miner(2, teacher=high, share=0.95)).labels == {"d0": 0, "d2": 1, "d5": 0, "d9": 1}
    assert mined(data, Miner(1, teacher=TEACHER, margin=-0.06)).labels == {"d2": 1, "d4": 0, "d9": 1}  # 0.76
    lower = {"q": {doc_id: score - 5 for doc_id, score in TEACHER["q"].items()}}
    assert mined(data, Miner(1, teacher=lower, margin=-0.06)).labels == {"d2": 1, "d4": 0, "d9": 1}
    with pytest.raises(InputError, match=r"-4\.3 in the mean; a share of that means nothing: give a margin"):
        mined(data, Miner(1, teacher=lower, share=0.9))


def test_queries_that_give_no_list_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rerank"):
        for data, miner in (
            (dataset(d1=0), Miner()),
            (dataset(gone=1), Miner()),
            (dataset(**{f"d{i}": 1 for i in range(9)}), Miner()),
            (dataset(d8=1), Miner(teacher=TEACHER, share=0.9)),
        ):
            assert list(miner.mine(data, data.candidates())) == []
    said = [r.getMessage().removeprefix("queries left out: ") for r in caplog.records]
    assert said == [
        "1 without a positive",
        "1 without a positive",
        "1 without a negative",
        "1 whose positives the teacher did not score",
    ]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Miner(0), "give at least 1"),
        (lambda: Miner(share=0.9), "give a teacher's run"),
        (lambda: Miner(teacher={}, share=0.9, margin=0.1), "give one of them"),
        (lambda: Miner(teacher={}, share=0.0), "give a number above 0"),
        (lambda: list(Miner().mine(Dataset("bare", {}), [])), "bare has no judgments"),
    ],
)
def test_a_miner_that_cannot_work_is_refused(make: Callable[[], object], why: str) -> None:
    with pytest.raises(InputError, match=why):
        make()


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_written_lists_are_read_as_they_were(name: str, tmp_path: Path) -> None:
    found = mined(dataset(d2=1, d9=2), Miner(3))
    assert write_lists(tmp_path / name, [found]) == {"queries": 1, "positives": 2, "negatives": 3}
    read = load_dataset(str(tmp_path / name))
    assert list(read.candidates()) == [found.candidates] and read.qrels == {"q": found.labels}
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_list_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    data = dataset(d2=1)
    with pytest.raises(InputError):
        write_lists(tmp_path / "out.jsonl", Miner(teacher={"q": {"d2": -1.0}}, share=0.5).mine(data, data.candidates()))
    assert list(tmp_path.iterdir()) == []


# Labels by many passes


def shuffled(n: int, seed: int = 0) -> tuple[Candidates, dict[str, float]]:
    relevance = {f"d{i}": float(i) for i in random.Random(seed).sample(range(n), n)}
    passages = tuple(Passage(f"passage {doc_id}", doc_id) for doc_id in relevance)
    return Candidates(Query("which", "q"), passages), relevance


@pytest.mark.parametrize("make", [First, Listwise])
def test_nine_passes_order_a_hundred_passages_where_one_orders_the_first_ten(make: type[Listwise]) -> None:
    request, relevance = shuffled(100)
    perfect = sorted(relevance, key=lambda d: -relevance[d])
    backbone = ScriptedBackbone(oracle(relevance))
    strategy = MultiPass(make())
    (ranking,) = Reranker(strategy, backbone).rank_many([request])
    assert ranking.doc_ids == perfect
    assert list(strategy.passes(100)) == list(range(0, 81, 10))
    # pass t has the windows of the 100 - 10 (t - 1) passages that are left: 9 + 8 + … + 1
    calls = sum(len(windows(100 - 10 * t, 20, 10)) for t in range(9))
    assert ranking.usage.calls == strategy.calls(100) == calls == 9 * 10 / 2
    (once,) = Reranker(make(), backbone).rank_many([request])
    assert once.doc_ids[:10] == perfect[:10] and once.doc_ids != perfect


@pytest.mark.parametrize(("window", "step"), [(20, 10), (4, 2), (5, 1), (6, 5)])
def test_any_length_is_ordered_whole(window: int, step: int) -> None:
    for n in (1, 2, 3, 5, 9, 10, 19, 20, 21, 25, 34, 45):
        request, relevance = shuffled(n, seed=n)
        strategy = MultiPass(First(window=window, step=step))
        (ranking,) = Reranker(strategy, ScriptedBackbone(oracle(relevance))).rank_many([request])
        assert ranking.doc_ids == sorted(relevance, key=lambda d: -relevance[d]), (n, window, step)
        assert ranking.usage.calls == strategy.calls(n)


def test_garbled_answers_keep_every_passage_and_are_counted() -> None:
    request, _ = shuffled(45)
    noise = random.Random(1)
    answers = iter(lambda: noise.choice(["[3] > [1]", "no idea", "[2] > [2] > [99] > [1]"]), None)
    strategy = MultiPass(Listwise())
    (ranking,) = Reranker(strategy, ScriptedBackbone(lambda call: next(answers))).rank_many([request])
    assert sorted(ranking.doc_ids) == sorted(p.doc_id for p in request.passages)
    counts = ranking.outcomes
    assert counts.clean == 0 and counts.repaired and counts.repaired + counts.failed == strategy.calls(45)


def test_thoughts_of_all_passes_are_told() -> None:
    request, relevance = shuffled(30)
    strategy = MultiPass(Listwise(prompt=load_prompt("listwise-reasoning")))
    (ranking,) = Reranker(strategy, ScriptedBackbone(oracle(relevance))).rank_many([request])
    assert len(ranking.reasoning) == ranking.usage.calls == strategy.calls(30)


def test_what_has_no_windows_or_carries_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="Pointwise has no windows to slide"):
        MultiPass(Pointwise())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="window 5 and step 5 carry nothing forward"):
        MultiPass(First(window=5, step=5))


# The commands


def test_mine_writes_lists_to_train_on(cli: Cli, beir: Path, tmp_path: Path) -> None:
    out = tmp_path / "lists.jsonl"
    status, printed, err = cli("data", "mine", beir, "-o", out, "--negatives", 1)
    assert (status, printed) == (0, "")
    assert f"{out}: 1 query, 1 positive, 1 negative" in err
    assert "queries left out: 1 without a negative" in err  # both passages on bones are judged relevant
    (line,) = out.read_text().splitlines()
    record = json.loads(line)
    assert [(d["docid"], d["label"]) for d in record["docs"]] == [("d1", 1), ("d2", 0)]
    assert record["docs"][0]["title"] == "Fleas" and record["docs"][0]["score"] > record["docs"][1]["score"]
    assert_error(cli("data", "mine", beir, "-o", out), "exists; delete it or give another output")


def test_mine_by_a_run_and_a_teacher(cli: Cli, beir: Path, tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text("".join(f"q1 Q0 d{i} 1 {9 - i} t\n" for i in (1, 2, 3, 4)))
    (tmp_path / "teacher.trec").write_text("q1 Q0 d1 1 1.0 t\nq1 Q0 d2 1 0.99 t\nq1 Q0 d3 1 0.1 t\nq1 Q0 d4 1 .2 t\n")
    given = ("--run", tmp_path / "run.trec", "--teacher", tmp_path / "teacher.trec", "--negatives", 1)
    for limit, negative in ((("--share", 0.95), "d4"), (("--margin", 0.85), "d3"), ((), "d2")):
        out = tmp_path / f"{negative}.jsonl"
        assert cli("data", "mine", beir, "-o", out, *given, *limit).status == 0
        assert load_dataset(str(out)).qrels == {"q1": {"d1": 1, negative: 0}}


def test_mine_says_what_is_wrong(cli: Cli, beir: Path, tmp_path: Path) -> None:
    out = tmp_path / "lists.jsonl"
    (tmp_path / "bare.jsonl").write_text('{"qid": 1, "query": "q", "docs": [{"docid": 1, "text": "t"}]}\n')
    assert_error(cli("data", "mine", beir, "-o", tmp_path / "lists.txt"), "lists end in .jsonl")
    assert_error(cli("data", "mine", beir, "-o", tmp_path / "no" / "lists.jsonl"), "no such folder to write in")
    assert_error(cli("data", "mine", beir, "-o", out, "--share", 0.9), "give a teacher's run")
    assert_error(cli("data", "mine", tmp_path / "bare.jsonl", "-o", out), "has no judgments")
    done = cli("data", "mine", beir, "-o", out, "--relevant", 5)
    assert done.status == 2 and "has both a positive and a negative; nothing is written" in done.err
    assert not out.exists()


def test_label_writes_a_teacher_s_run(cli: Cli, beir: Path, tmp_path: Path, model: list[str]) -> None:
    out = tmp_path / "teacher.trec"
    args = ("data", "label", beir, "-o", out, "-s", "first", "-O", "window=2", "-O", "step=1", *model)
    done = cli(*args)
    assert done.status == 0, done.err
    run = read_run(out)
    assert {q: sorted(docs) for q, docs in run.items()} == {"q1": ["d1", "d2"], "q2": ["d3", "d4"]}
    assert json.loads((tmp_path / "teacher.trec.json").read_text())["settings"]["multi_pass"] is True
    assert "is already there, made with these settings" in cli(*args).err
    assert_error(cli(*args, "-O", "step=2"), "carry nothing forward")
    assert_error(cli("data", "label", beir, "-o", out, "-s", "pointwise"), "pointwise has no windows to slide")
    assert_error(cli("data", "label", beir, "-o", "-"), "--output is a file here")


def test_data_explains_itself(cli: Cli) -> None:
    assert cli("data").status == 0
    for command in ("mine", "label"):
        status, out, err = cli("data", command, "--help")
        assert (status, err) == (0, "") and max(map(len, out.splitlines())) <= 100
