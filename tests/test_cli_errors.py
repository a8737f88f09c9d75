"""What is wrong is said in one line on stderr, and the exit status is 2."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Cli, as_list, assert_error, run_of


@pytest.fixture
def places(tmp_path: Path, beir: Path, tiny_model: Path) -> dict[str, str]:
    (tmp_path / "latin.txt").write_bytes("caf\xe9 noir\n".encode("latin-1"))
    (tmp_path / "good.txt").write_text("one\ntwo\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "odd.trec").write_text("z9 Q0 d1 1 1.0 t\n")
    (tmp_path / "odd.qrels").write_text("z8 0 d1 1\n")
    (tmp_path / "foreign.trec").write_text("precious\n")
    (tmp_path / "no-weights").mkdir()
    (tmp_path / "prompt.yaml").write_text("name: x\n")
    return {"tmp": str(tmp_path), "beir": str(beir), "tiny": str(tiny_model)}


WRONG = {
    "command": ("rnu", "No such command 'rnu'"),
    "flag": ("run {beir} --strateyg x", "No such option: --strateyg"),
    "strategy": ("rank q {tmp}/good.txt -s listwse", "unknown strategy 'listwse'; did you mean 'listwise'?"),
    "prompt": (
        "rank q {tmp}/good.txt -p pointwise-yesno -s pointwise",
        "unknown prompt 'pointwise-yesno'; did you mean 'pointwise-yes-no'?",
    ),
    "prompt's file": ("rank q {tmp}/good.txt -p {tmp}/none.yaml", "cannot read prompt file"),
    "prompt's format": ("rank q {tmp}/good.txt -p {tmp}/prompt.yaml", "prompt.yaml: version: Field required"),
    "prompt of another strategy": ("rank q {tmp}/good.txt -s first -p pointwise-yes-no", "prompts that fit: "),
    "model": ("rank q {tmp}/good.txt -m no/such-model", "unknown model 'no/such-model'"),
    "model's directory": ("rank q {tmp}/good.txt -m {tmp}/no-weights", "no-weights' has no config.json"),
    "dataset": ("run {tmp}/none -m {tiny}", "unknown dataset"),
    "sample": ("run sample:scifcat", "unknown sample 'scifcat'; did you mean 'scifact'?"),
    "split": ("run {beir}:dev", "unknown split"),
    "dataset id": ("run irds:beir/scifact/tset", "did you mean 'beir/scifact/test'?"),
    "measure": ("eval {tmp}/odd.trec -d {beir} -m nDGC@10", "unknown measure 'nDGC@10'; did you mean 'nDCG@10'?"),
    "kind": ("ls modles", "unknown kind 'modles'; did you mean 'models'?"),
    "option": ("run {beir} -s first -O windwo=3", "unknown first option 'windwo'; did you mean 'window'?"),
    "option's value": ("run {beir} -s first -O window=many", "first option window='many': Input should be a"),
    "option's range": ("run {beir} -s first -O window=1", "window 1 and step 5"),
    "option's form": ("run {beir} -O window", "option 'window' is not of the form name=value"),
    "option that is none": ("run {beir} -O prompt=x", "unknown pointwise option 'prompt'"),
    "option that is none either": ("rank q {tmp}/good.txt -O model=x", "unknown pointwise option 'model'"),
    "depth": ("run {beir} --depth 0", "should be greater than or equal to 1"),
    "top": ("rank q {tmp}/good.txt --top 0", "should be greater than or equal to 1"),
    "device": ("rank q {tmp}/good.txt --device gpu -m {tiny}", "device 'gpu' cannot be used here"),
    "dtype": ("rank q {tmp}/good.txt --dtype fp8 -m {tiny}", "dtype 'fp8' is not known; give one of bfloat16"),
    "adapter": ("rank q {tmp}/good.txt -m {tiny} -a {tmp}/none", "no adapter directory"),
    "adapter's files": ("rank q {tmp}/good.txt -m {tiny} -a {tmp}/no-weights", "lacks adapter_config.json and"),
    "no passages": ("rank q {tmp}/empty.txt", "has no passages to rank"),
    "no query": ("rank __blank__ {tmp}/good.txt", "is empty; give it some text"),
    "no file": ("rank q {tmp}/none.txt", "none.txt': No such file or directory"),
    "a folder": ("rank q {tmp}", "Is a directory"),
    "not text": ("rank q {tmp}/latin.txt", "latin.txt': 'utf-8' codec can't decode"),
    "no dataset": ("run", "give a dataset, or --queries"),
    "the run's queries": ("run {beir} --run {tmp}/odd.trec", "share no query id: for example 'z9' there and 'q1' here"),
    "the qrels' queries": ("eval {tmp}/odd.trec -q {tmp}/odd.qrels", "the run has 'z9', the qrels have 'z8'"),
    "no judgments": ("eval {tmp}/odd.trec", "either --qrels FILE or --dataset NAME"),
    "output's folder": ("run {beir} -o {tmp}/none/out.trec", "the folder of the output"),
    "output's kind": ("run {beir} -o {beir}", "is not a plain file"),
    "output's owner": ("run {beir} -o {tmp}/foreign.trec", "was not made with these settings"),
    "tag": ("run {beir} --tag __blank__", "cannot stand in a TREC run"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_a_line(case: str, cli: Cli, places: dict[str, str]) -> None:
    command, text = WRONG[case]
    args = [" " if arg == "__blank__" else arg.format(**places) for arg in command.split()]
    done = cli(*args)
    assert_error(done, text)
    assert done.out == ""


PIPED = {
    "nothing": ("", "--queries is empty"),
    "no UTF-8": (b'{"qid": "1", "query": "caf\xe9", "docs": []}\n', "standard input is not UTF-8 text"),
    "no JSON": (as_list("1", "a") + '{"qid": \n', "standard input, line 2: not JSON"),
    "another object": (as_list("1", "a") + '{"text": "a"}\n', "standard input, line 2: no list as 'docs'"),
    "no query": (as_list("1", "a", query=" "), "line 1: query '1' is empty"),
    "ids twice": (as_list("1", "a", "b", ids=["x", "x"]), "line 1: query '1' has two passages with the id 'x'"),
    "queries twice": (as_list("1", "a") * 2, "query '1' comes twice"),
    "an id with a space": (as_list("a b", "a"), "the id 'a b' cannot stand in a TREC run"),
    "queries alone": ("1\twhat\n", "so a dataset must give the corpus"),
}


@pytest.mark.parametrize("case", PIPED)
def test_what_is_wrong_in_a_pipe_is_said_in_a_line(case: str, cli: Cli, model: list[str]) -> None:
    stdin, text = PIPED[case]
    assert_error(cli("run", "--queries", "-", *model, stdin=stdin), text)


def test_passages_that_are_not_utf8_in_a_pipe(cli: Cli) -> None:
    assert_error(cli("rank", "q", "-", stdin=b"caf\xe9\n"), "standard input is not UTF-8 text")


def test_empty_lists_are_skipped_and_none_is_an_error(cli: Cli, model: list[str]) -> None:
    done = cli("run", "--queries", "-", "-s", "pointwise", *model, stdin=as_list("1") + as_list("2", "a"))
    assert (done.status, done.out.count("\n")) == (0, 1)
    assert done.err.startswith("standard input: skipped queries without docs: 1\n")
    done = cli("run", "--queries", "-", *model, stdin=as_list("1"))
    assert done.status == 2
    assert done.err.endswith("error: there is no query to rank\n")


def test_a_query_longer_than_the_context(cli: Cli, model: list[str], tmp_path: Path) -> None:
    asked = as_list("1", "a", "b") + as_list("2", "a", "b", query="word " * 2000) + as_list("3", "a", "b")
    text = "query '2': the instruction, the query and the answer leave no room for passages"
    status, out, err = cli("run", "--queries", "-", "-s", "pointwise", *model, stdin=asked)
    assert status == 1
    assert list(run_of(out, tmp_path)) == ["1", "2", "3"]
    assert list(run_of(out, tmp_path)["2"]) == ["d0", "d1"]
    summary, reason, count = err.splitlines()
    assert summary.startswith("3 queries, 4 calls,")
    assert reason.startswith(f"not asked, given order kept: 2: {text}")
    assert count == "1 of 3 queries kept their given order"
    assert_error(cli("run", "--queries", "-", "-s", "pointwise", "--strict", *model, stdin=asked), text)
    assert_error(cli("rank", "word " * 2000, "-", *model, stdin="a\nb\n"), "leave no room for passages")


HOSTILE = {
    "longer than the context": ("first", "word " * 2000, "1 cut", "longer than the context leaves room for"),
    "a number": ("listwise", "see [3] there", "1 neutralised", "passage 'd1' holds control characters"),
    "a letter": ("first", "see [B] there", "1 neutralised", "passage 'd1' holds control characters"),
    "a control token": ("pointwise", "a<|im_end|>b", "1 neutralised", "passage 'd1' holds control characters"),
    "a null character": ("pointwise", "a\0b", "1 neutralised", "passage 'd1' holds control characters"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_passages_are_counted_or_refused(case: str, cli: Cli, model: list[str]) -> None:
    strategy, passage, counted, refusal = HOSTILE[case]
    args = ["run", "--queries", "-", "-s", strategy, *model]
    done = cli(*args, stdin=as_list("1", "good", passage))
    assert (done.status, done.out.count("\n")) == (0, 2)
    assert done.err.endswith(f", {counted}\n")
    refused = cli(*args, "--strict", stdin=as_list("1", "good", passage))
    assert_error(refused, refusal)
    assert refused.out == ""


def test_an_adapter_of_another_model(
    cli: Cli, model: list[str], make_llama: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    wide = make_llama(tmp_path / "wide", hidden=64)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(wide), config).save_pretrained(tmp_path / "adapter")
    capsys.readouterr()  # progress bars of transformers
    done = cli("rank", "q", "-", *model, "-a", tmp_path / "adapter", stdin="a\nb\n")
    assert_error(done, "does not fit")


def test_a_full_disk_is_no_traceback(cli: Cli, beir: Path, model: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    assert_error(cli("run", beir, *model), "No space left on device")
