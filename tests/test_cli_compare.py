"""`rerank compare`: what is printed, in each format, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import Cli, assert_error

from rerank.eval import stars

QUERIES = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A baseline that has the relevant document second, a run that has it first, and one that is the baseline."""
    (tmp_path / "qrels.txt").write_text("".join(f"q{i} 0 good 1\nq{i} 0 bad 0\n" for i in range(QUERIES)))
    for name, first in (("base", "bad"), ("better", "good"), ("same", "bad")):
        second = "good" if first == "bad" else "bad"
        lines = (f"q{i} Q0 {first} 1 2.0 x\nq{i} Q0 {second} 2 1.0 x\nq{i} Q0 new 3 0.5 x\n" for i in range(QUERIES))
        (tmp_path / f"{name}.trec").write_text("".join(lines))
    usage = {"calls": 24, "prompt_tokens": 1200, "generated_tokens": 120, "seconds": 6.0}
    (tmp_path / "better.trec.json").write_text(json.dumps({"queries": QUERIES, "usage": usage}))
    return tmp_path


def runs(folder: Path, *more: object) -> list[object]:
    return ["compare", *(folder / f"{n}.trec" for n in ("base", "better", "same")), "-q", folder / "qrels.txt", *more]


def test_the_table(cli: Cli, folder: Path) -> None:
    done = cli(*runs(folder))
    assert done.status == 0, done
    header, base, better, same = done.out.splitlines()
    assert header.split()[:3] == ["run", "nDCG@10", "difference"]
    assert base.split()[:2] == ["base.trec", "0.6309"]
    # every one of 2^12 exchanges but two is smaller, and there are two comparisons
    assert better.split()[:7] == ["better.trec", "1.0000***", "+0.3691", "+0.3691", "to", "+0.3691", "0.0010"]
    assert better.split()[7:] == ["12/0/0", "0.667", "2.0", "100.0", "10.0", "0.50", "yes"]
    assert same.split()[1:3] == ["0.6309", "+0.0000"] and "1.0000" in same and "0/12/0" in same
    assert "12 queries; differences to base.trec" in done.err
    assert "Fisher's randomisation test, holm" in done.err
    assert "best order of base.trec's documents: 1.0000" in done.err


def test_a_narrow_terminal_cuts_no_cell(folder: Path) -> None:
    def printed(columns: int) -> list[str]:
        command = [sys.executable, "-m", "rerank", *map(str, runs(folder))]
        environment = os.environ | {"COLUMNS": str(columns)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()

    wide, narrow = printed(150), printed(60)
    assert len(wide) == 4 and len(narrow) > 4 and max(map(len, narrow)) <= 60
    cells = {cell for line in wide for cell in line.split()}
    assert cells == {cell for line in narrow for cell in line.split()}
    assert sum(line.startswith("better.trec") for line in narrow) == len(narrow) / 4


def test_formats_prices_and_names(cli: Cli, folder: Path) -> None:
    named = ["compare", f"BM25_1={folder / 'base.trec'}", f"ours={folder / 'better.trec'}", "-q", folder / "qrels.txt"]
    latex = cli(*named, "--format", "latex", "--price-in", "2", "--price-out", "10").out
    assert latex.startswith("\\begin{tabular}{lrrrrrrrrrrrr}")
    assert "BM25\\_1 & 0.6309" in latex and "95\\% interval" in latex and latex.rstrip().endswith("\\end{tabular}")
    assert "0.000300" in latex  # (100 · 2 + 10 · 10) / 10^6
    markdown = cli(*named, "--format", "markdown").out.splitlines()
    assert markdown[1] == "|---" + "|---:" * 11 + "|"
    assert markdown[3].startswith("| ours | 1.0000\\*\\*\\* | +0.3691 |")
    told = json.loads(cli(*named, "--format", "json", "--test", "tukey", "--price-in", "2").out)
    assert (told["test"], told["correction"], told["queries"], told["ceiling"]) == ("tukey", "none", QUERIES, 1.0)
    base, ours = told["runs"]
    assert "p" not in base and ours["p"] < 0.01 and ours["wins"] == QUERIES
    assert ours["cost"] == {"calls": 24, "prompt_tokens": 1200, "queries": QUERIES, "generated_tokens": 120}
    assert ours["money"] == pytest.approx(0.0024)
    assert ours["per_query"]["q0"] == 1.0


def test_movers_are_shown_side_by_side(cli: Cli, folder: Path) -> None:
    docs = [{"docid": d, "text": f"text of\n{d}", "label": int(d == "good")} for d in ("bad", "good", "new")]
    lists = "".join(json.dumps({"qid": f"q{i}", "query": f"what {i}", "docs": docs}) + "\n" for i in range(QUERIES))
    (folder / "lists.jsonl").write_text(lists)
    args = ["compare", folder / "base.trec", folder / "better.trec", folder / "same.trec", "--movers", "2"]
    out = cli(*args, "-d", folder / "lists.jsonl").out
    assert "better.trec, q0: +0.3691  what 0" in out and "better.trec, q1: +0.3691" in out
    assert "q2:" not in out and "same.trec, q0" not in out
    assert "1  (0) bad text of bad" in out and "(1) good text of good" in out
    bare = cli(*args, "-q", folder / "qrels.txt").out
    assert "(?) new" in bare and "text of" not in bare


def texts(folder: Path, *, names: tuple[str, ...] = ("bad", "good")) -> Path:
    docs = [{"docid": d, "text": f"text of {d}", "label": int(d == "good")} for d in names]
    lists = "".join(json.dumps({"qid": f"q{i}", "query": f"what {i}", "docs": docs}) + "\n" for i in range(QUERIES))
    (folder / "lists.jsonl").write_text(lists)
    return folder / "lists.jsonl"


def test_the_page(cli: Cli, folder: Path) -> None:
    page = folder / "page.html"
    # judgments from a file, texts from a dataset that knows two of the three documents
    done = cli(*runs(folder, "-d", texts(folder), "--html", page, "--price-in", "2", "--cost", "seconds"))
    assert done.status == 0 and f"{page}: written" in done.err
    text = page.read_text(encoding="utf-8")
    assert "On 12 queries, base.trec, the baseline, has nDCG@10 0.6309." in text
    assert 'value="seconds" checked' in text and 'value="money"' in text
    found = json.loads(text.split('class="data">')[1].split("</script>")[0])
    assert {doc: words for doc, words, _ in found["docs"]} == {
        "bad": "text of bad",
        "good": "text of good",
        "new": None,
    }
    assert found["queries"][0]["text"] == "what 0"
    assert "rerank compare" in text  # the command that made it


def test_texts_come_from_runs_that_are_candidates(cli: Cli, folder: Path) -> None:
    args = ["compare", f"base={texts(folder)}", folder / "better.trec", "-q", folder / "qrels.txt"]
    assert cli(*args, "--html", folder / "page.html").status == 0
    assert "text of good" in (folder / "page.html").read_text(encoding="utf-8")
    assert "(1) good text of good" in cli(*args, "--movers", "1").out


def test_several_datasets(cli: Cli, folder: Path) -> None:
    for name in ("base.trec", "better.trec", "better.trec.json", "same.trec"):
        for dataset in ("one", "two"):
            (folder / f"{dataset}.{name}").write_text((folder / name).read_text())
    given = ["compare", *(folder / f"{{}}.{n}.trec" for n in ("base", "better", "same")), "-q", folder / "qrels.txt"]
    done = cli(*given, "--over", "one,two", "--html", folder / "page.html")
    assert done.status == 0, done
    lines = done.out.splitlines()
    assert [line for line in lines if line in ("one", "two", "all datasets")] == ["one", "two", "all datasets"]
    assert lines[-4].split() == ["run", "one", "two", "mean", "Borda", "Kemeny"]
    assert lines[-2].split() == ["better.trec", "1.0000***", "1.0000***", "1.0000", "2.00", "2"]
    assert '<a href="#d2">two</a>' in (folder / "page.html").read_text(encoding="utf-8")
    told = json.loads(cli(*given, "--over", "one,two", "-f", "json").out)
    assert told["consensus"]["borda"] == {"base.trec": 0.5, "better.trec": 2.0, "same.trec": 0.5}
    assert told["datasets"]["two"]["runs"][1]["frontier"] is True
    (folder / "two.same.trec").write_text("q0 Q0 bad 1 1.0 x\n")
    assert "lacks" not in done.err
    assert f"Beware: same.trec lacks {QUERIES - 1} of the 12 queries" in cli(*given, "--over", "one,two").err
    assert_error(cli(*given, "--over", "one,one"), "give distinct names")
    assert_error(cli(*given, "--over", "one,none"), "none.base.trec")
    assert_error(cli(*runs(folder, "--over", "one,two")), "no RUN, --qrels or --dataset has one")


def test_more_runs_than_have_a_kemeny_order(cli: Cli, folder: Path) -> None:
    for dataset in ("one", "two"):
        for i in range(21):
            (folder / f"{dataset}.r{i}.trec").write_text((folder / "base.trec").read_text())
    given = ["compare", *(folder / f"{{}}.r{i}.trec" for i in range(21)), "-q", folder / "qrels.txt"]
    done = cli(*given, "--over", "one,two")
    assert done.status == 0, done
    assert [line for line in done.out.splitlines() if line.startswith("run")][-1].split()[-2:] == ["mean", "Borda"]
    assert "no Kemeny order: it is found exactly, for at most 20 rankers, and there are 21" in done.err
    asked_json = cli(*given, "--over", "one,two", "-f", "json")
    assert set(json.loads(asked_json.out)["consensus"]) == {"mean", "borda"} and "no Kemeny order" in asked_json.err


def test_one_query_is_valid_json(cli: Cli, folder: Path) -> None:
    (folder / "qrels.txt").write_text("q0 0 good 1\nq0 0 bad 0\n")
    for test in ("randomisation", "t"):
        done = cli(*runs(folder, "-f", "json", "--test", test))
        _, better, _ = json.loads(done.out, parse_constant=pytest.fail)["runs"]
        assert (better["interval"], better["p"]) == (None, 1.0)


def test_markdown_escapes_what_would_be_a_column(cli: Cli, folder: Path) -> None:
    for dataset in ("a|b", "c"):
        for name in ("base", "same"):
            (folder / f"{dataset}.{name}.trec").write_text((folder / f"{name}.trec").read_text())
    given = ["compare", *(folder / f"{{}}.{n}.trec" for n in ("base", "same")), "-q", folder / "qrels.txt"]
    done = cli(*given, "--over", "a|b,c", "-f", "markdown")
    assert "| run | a\\|b | c | mean | Borda | Kemeny |" in done.out


@pytest.mark.parametrize("option", ["--samples", "--seed"])
def test_what_the_t_test_has_no_use_for_is_refused(cli: Cli, folder: Path, option: str) -> None:
    assert_error(
        cli(*runs(folder, "--test", "t", option, 500)), f"{option} is for tests that draw samples, and t draws"
    )
    assert cli(*runs(folder, "--test", "randomisation", option, 500)).status == 0


def test_wrong_cost(cli: Cli, folder: Path) -> None:
    assert_error(cli(*runs(folder, "--cost", "money")), "needs prices")
    (folder / "better.trec.json").unlink()
    assert_error(cli(*runs(folder, "--cost", "calls")), "no frontier by calls: no run has a card")
    assert_error(cli(*runs(folder, "--html", folder / "none" / "page.html")), "folder of the report")


def test_wrong_input_is_a_line(cli: Cli, folder: Path) -> None:
    base, qrels = folder / "base.trec", folder / "qrels.txt"
    assert_error(cli("compare", base, "-q", qrels), "there are 1 runs to compare")
    assert_error(cli("compare", base, base, "-q", qrels), f"{base} is given twice; leave one out, or name them")
    assert_error(cli(*runs(folder, "--test", "tuky")), "unknown test 'tuky'; did you mean 'tukey'?")
    assert_error(cli(*runs(folder, "--correction", "hulm")), "unknown correction 'hulm'; did you mean 'holm'?")
    assert_error(cli(*runs(folder, "--test", "tukey", "--correction", "holm")), "holm would correct that again")
    assert_error(cli(*runs(folder, "--level", "95")), "the level is 95")
    assert_error(cli(*runs(folder, "-m", "nDGC@10")), "unknown measure")
    assert_error(cli("compare", base, folder / "none.trec", "-q", qrels), "none.trec")
    (folder / "same.trec.json").write_text("{")
    done = cli(*runs(folder))
    assert done.status == 0 and "same.trec.json is no card of a run" in done.err


def test_stars() -> None:
    assert [stars(p) for p in (None, 0.05, 0.049, 0.009, 0.0009)] == ["", "", "*", "**", "***"]
