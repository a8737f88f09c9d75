"""Cascades from the command line: how they are written, what they load, what is recorded, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from adapters import save_adapter
from command import Cli, assert_error, lists, run_of
from hypothesis import given
from hypothesis import strategies as st

from rerank.backbones import transformers_
from rerank.cli.cascade import plan
from rerank.cli.cascade_text import Term, Written, parse
from rerank.cli.options import Engine
from rerank.cli.progress import Summed
from rerank.errors import InputError
from rerank.jobs import Progress
from rerank.types import Usage

NOTHING = Engine(None, None, "transformers", None, None, None)

GRAMMAR: list[tuple[str, tuple[Written, ...]]] = [
    ("first", (Written((Term("first", {}),), None),)),
    (" first ", (Written((Term("first", {}),), None),)),
    ("full-ranking%7", (Written((Term("full-ranking", {}),), 7),)),
    ("pointwise % 20 >> setwise", (Written((Term("pointwise", {}),), 20), Written((Term("setwise", {}),), None))),
    ("a%20>>b%5>>c", (Written((Term("a", {}),), 20), Written((Term("b", {}),), 5), Written((Term("c", {}),), None))),
    ("first ( window = 10 , step=5 ) % 3", (Written((Term("first", {"window": "10", "step": "5"}),), 3),)),
    ("first(passage-tokens=none)", (Written((Term("first", {"passage_tokens": "none"}),), None),)),
    ("a(prompt='x, (y) >> z.yaml')", (Written((Term("a", {"prompt": "x, (y) >> z.yaml"}),), None),)),
    (
        'a(model="it\'s",adapter=runs/a%20b=c)',
        (Written((Term("a", {"model": "it's", "adapter": "runs/a%20b=c"}),), None),),
    ),
    (
        "0.2*first-stage + 0.8 * first(window=5) % 9>>2*a+b",
        (
            Written((Term("first-stage", {}, 0.2), Term("first", {"window": "5"}, 0.8)), 9),
            Written((Term("a", {}, 2), Term("b", {})), None),
        ),
    ),
]


@pytest.mark.parametrize(("text", "stages"), GRAMMAR, ids=[text for text, _ in GRAMMAR])
def test_how_a_cascade_is_written(text: str, stages: tuple[Written, ...]) -> None:
    assert parse(text) == stages


WORDS = st.from_regex(r"[a-z][a-z0-9-]{0,6}", fullmatch=True)
VALUES = st.text(alphabet="ab1 ,()%>=/.-", min_size=0, max_size=8)
NUMBERS = st.integers(1, 999).map(lambda n: n / 100)
OPTIONS = st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,6}", fullmatch=True), VALUES, max_size=3)
TERMS = st.builds(Term, WORDS, OPTIONS)
SUMS = st.lists(st.builds(Term, WORDS, OPTIONS, NUMBERS), min_size=2, max_size=3).map(tuple)
STAGES = st.builds(Written, st.tuples(TERMS) | SUMS, st.none() | st.integers(1, 999))


@given(stages=st.lists(STAGES, min_size=1, max_size=4), space=st.sampled_from(["", " ", "  "]))
def test_what_is_written_is_read(stages: list[Written], space: str) -> None:
    def term(term: Term, weighed: bool) -> str:
        options = f"{space},{space}".join(f"{name}{space}={space}'{value}'" for name, value in term.options.items())
        weight = f"{term.weight}{space}*{space}" if weighed else ""
        return weight + term.name + (f"{space}({options})" if options else "")

    def written(stage: Written) -> str:
        cut = f"{space}%{space}{stage.keep}" if stage.keep is not None else ""
        return f"{space}+{space}".join(term(each, len(stage.terms) > 1) for each in stage.terms) + cut

    assert parse(f"{space}>>{space}".join(map(written, stages))) == tuple(stages)


@given(text=st.text(alphabet="ab>%(),='\" 1-", max_size=20))
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    try:
        stages = parse(text)
    except InputError:
        return
    assert stages


WRONG = {
    "": "--strategy '': at the end there should be a strategy's name; stages are written as in",
    "first >>": "at the end there should be a strategy's name",
    "first > setwise": "at '> setwise' there should be '>>', '+', '%', '(' or the end",
    "first setwise": "at 'setwise' there should be '>>'",
    "first % many": "at 'many' there should be a number of passages",
    "first % 0 >> setwise": "first % 0 leaves nothing; give at least 1",
    "first(window)": "at ')' there should be '=' after the option 'window'",
    "first()": "at ')' there should be an option's name",
    "first(window=": "at the end there should be a value for 'window'",
    "first(window=3": "at the end there should be ',' or ')'",
    "first(window=3, window=4)": "gives a stage window twice",
    "listwse % 3 >> first": "unknown strategy 'listwse'; did you mean 'listwise'?",
    "pointwise % 3 >> first(windwo=3)": "unknown first option 'windwo'; did you mean 'window'?",
    "pointwise % 3 >> first(window=many)": "first option window='many': Input should be a",
    "pointwise(prompt=pointwise-yesno) >> first": "did you mean 'pointwise-yes-no'?",
    "pointwise(backbone=bi-encodr) >> first": "unknown backbone 'bi-encodr'; did you mean 'bi-encoder'?",
    "pointwise >> listwise(backbone=bi-encoder)": "prompt 'pointwise-pair' shows one passage",
    "first-stage % 3": "first-stage asks no model; have a stage follow it",
    "first-stage(k=3) >> first": "first-stage has no options; leave out k",
    "0.5*first % 3": "the weight of first changes nothing where it stands alone",
    "first-stage + 0*first": "first has the weight 0; leave it out",
    "first-stage + ": "at the end there should be a strategy's name",
    "0.2 first-stage + first": "at '0.2 first-stage + first' there should be a strategy's name",
    "first-stage + first-stage": "first-stage asks no model",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_said_in_a_line(text: str, cli: Cli) -> None:
    done = cli("rank", "q", "-s", text, stdin="one\ntwo\n")
    assert_error(done, WRONG[text])
    assert done.out == ""


@pytest.mark.parametrize(
    ("engine", "text", "prompt", "options", "words"),
    [
        ({}, "pointwise % 3 >> first", None, ["window=3"], "are for one stage, and --strategy has 2; write them with"),
        ({}, "pointwise % 3 >> first", "first-identifier", None, "as in 'pointwise(NAME=VALUE)'"),
        ({}, "first(window=3)", None, ["window=4"], "window is given in --strategy and beside it; leave out one"),
        ({}, "first(prompt=first-identifier)", "first-identifier", None, "prompt is given in --strategy and beside it"),
        ({"model": "m"}, "pointwise(model=a) >> first(model=b)", None, None, "--model is given, and every stage has"),
        ({"adapter": "m"}, "first(model=a)", None, None, "--adapter is given, and every stage has"),
        ({"backbone": "openai"}, "pointwise(backbone=bi-encoder)", None, None, "--backbone is given, and every stage"),
        (
            {"backbone_options": ["threads=1"]},
            "pointwise(backbone=bi-encoder)",
            None,
            None,
            "--backbone-option is given",
        ),
    ],
)
def test_what_no_stage_would_take_is_refused(
    engine: dict[str, object], text: str, prompt: str | None, options: list[str] | None, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        plan(text, replace(NOTHING, **engine), prompt, options)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_a_plan_says_what_it_costs_and_what_it_is() -> None:
    made = plan(
        "first-stage % 50>>pointwise(backbone=bi-encoder) % 20 >> first(window=10, step=5)", NOTHING, None, None
    )
    assert made.calls(100) == 50 + 3
    assert made.calls(4) == 4 + 1
    assert made.title == "first-stage % 50 >> pointwise % 20 >> first"
    assert made.tag == "rerank-first-stage-50-pointwise-20-first"
    assert [stage.terms[0].engine.backbone for stage in made.stages] == ["transformers", "bi-encoder", "transformers"]
    first, cheap, dear = made.settings["stages"]  # type: ignore[misc]
    assert first == {"strategy": "first-stage", "keep": 50}
    assert (cheap["keep"], cheap["backbone"], cheap["options"]) == (20, "bi-encoder", {"passage_tokens": None})
    assert dear["keep"] is None and {"window": 10, "step": 5}.items() <= dear["options"].items()
    assert dear["prompt"].startswith("first-query-last@")


def test_a_sum_says_what_it_costs_and_what_it_is() -> None:
    made = plan("0.2*first-stage + 0.8*pointwise % 20 >> first-stage+first(window=10)", NOTHING, None, None)
    assert made.calls(100) == 100 + 3
    assert made.title == "0.2*first-stage + 0.8*pointwise % 20 >> 1*first-stage + 1*first"
    assert made.tag == "rerank-0.2*first-stage-0.8*pointwise-20-1*first-stage-1*first"
    first, _ = made.settings["stages"]  # type: ignore[misc]
    assert [term["weight"] for term in first["sum"]] == [0.2, 0.8]
    (alone,) = plan("first-stage + first", NOTHING, None, ["window=9"]).stages
    assert alone.settings["strategy"] == "1*first-stage + 1*first"
    assert alone.terms[1].strategy.window == 9


def test_run_takes_a_sum(cli: Cli, model: list[str], tmp_path: Path) -> None:
    """The scores are the weighted z-scores of both; `first-stage` alone gives them its own."""

    def scores(strategy: str) -> dict[str, dict[str, float]]:
        done = cli("run", "--queries", "-", "-s", strategy, *model, stdin=lists(3))
        assert done.status == 0, done
        return {query: dict(docs) for query, docs in run_of(done.out, tmp_path).items()}

    given, asked = scores("first-stage % 9 >> first-stage + pointwise % 9"), scores("pointwise")
    both = scores("0.25 * first-stage + 0.75 * pointwise")

    def z(values: dict[str, float]) -> dict[str, float]:
        return {name: (value - fmean(values.values())) / pstdev(values.values()) for name, value in values.items()}

    for query, found in both.items():
        order = {name: 1 / rank for rank, name in enumerate(sorted(asked[query]), start=1)}
        expected = {name: 0.25 * z(order)[name] + 0.75 * z(asked[query])[name] for name in found}
        assert found == pytest.approx(expected, abs=1e-4)
        assert given[query].keys() == found.keys()


def test_one_strategy_is_recorded_as_before() -> None:
    beside, within = (
        plan("first", NOTHING, None, ["window=9", "step=3"]),
        plan("first(window=9,step=3)", NOTHING, None, None),
    )
    assert beside.settings == within.settings and "stages" not in beside.settings
    assert beside.tag == "rerank-first"
    with_stage = plan("first-stage % 7 >> first", NOTHING, None, ["window=9", "step=3"])
    assert with_stage.calls(100) == 1


def test_run_takes_a_cascade_and_resumes_it(cli: Cli, model: list[str], tmp_path: Path) -> None:
    asked = tmp_path / "lists.jsonl"
    asked.write_text(lists(5))
    output = tmp_path / "out.trec"
    args = ["run", "--queries", asked, "-o", output, *model]
    done = cli(*args, "-s", "pointwise % 2 >> setwise(children=1)")
    assert done.status == 0, done
    assert "5 queries, 20 calls" in done.err  # 3, then one question about two, each
    assert all(len(docs) == 3 for docs in run_of(output.read_text(), tmp_path).values())
    assert output.read_text().split()[5] == "rerank-pointwise-2-setwise"
    settings = json.loads((tmp_path / "out.trec.json").read_text())["settings"]
    assert settings["strategy"] == "pointwise % 2 >> setwise"
    assert [stage["options"].get("children") for stage in settings["stages"]] == [None, 1]

    assert "already there" in cli(*args, "-s", "pointwise%2>>setwise( children=1 )").err
    other = cli(*args, "-s", "pointwise % 2 >> setwise(children=2)")
    assert_error(other, "was not made with these settings (stages: ")
    assert_error(cli(*args, "-s", "pointwise"), "was not made with these settings")


def test_a_cascade_that_is_cut_at_its_end_writes_so_many(cli: Cli, model: list[str], tmp_path: Path) -> None:
    done = cli("run", "--queries", "-", "-s", "pointwise % 2", *model, stdin=lists(3))
    assert done.status == 0, done
    assert [len(docs) for docs in run_of(done.out, tmp_path).values()] == [2, 2, 2]


def test_rank_takes_a_cascade(cli: Cli, model: list[str]) -> None:
    done = cli("rank", "q", "--json", "-s", "first-stage % 2 >> first", *model, stdin="one\ntwo\nthree\n")
    assert done.status == 0, done
    records = [json.loads(line) for line in done.out.splitlines()]
    assert records[2]["line"] == 3 and {record["line"] for record in records} == {1, 2, 3}
    done = cli("rank", "q", "-s", "first-stage % 2 >> first", *model, stdin="one\ntwo\nthree\n")
    assert done.err.startswith("1 call,")


def test_stages_of_one_model_load_it_once(
    cli: Cli, model: list[str], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter", seed=1, base=str(tiny_model))
    loads: list[object] = []
    load = transformers_.load_weights

    def counted(*args: object) -> object:
        loads.append(args[0])
        return load(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(transformers_, "load_weights", counted)
    text = "one\ntwo\nthree\n"

    def scores(strategy: str) -> list[float]:
        done = cli("rank", "q", "--json", "-s", strategy, *model, stdin=text)
        assert done.status == 0, done
        return [json.loads(line)["score"] for line in done.out.splitlines()]

    bare, tuned = scores("pointwise"), scores(f"pointwise(adapter={adapter})")
    assert bare != tuned
    loads.clear()
    assert scores(f"pointwise >> pointwise(adapter={adapter})") == pytest.approx(tuned)
    assert scores(f"pointwise(adapter={adapter}) >> pointwise") == pytest.approx(bare)
    assert len(loads) == 2  # one for each command


def test_progress_of_stages_adds_up_over_blocks() -> None:
    seen: list[Progress] = []
    first, second = Summed(seen.append, 2).shows
    first(Progress(0, 1, Usage(10)))
    second(Progress(0, 1, Usage(2)))
    second(Progress(3, 2, Usage(4)))
    first(Progress(0, 1, Usage(10)))  # the next block
    second(Progress(3, 1, Usage(5)))
    assert [p.usage.calls for p in seen] == [10, 12, 14, 24, 29]
    assert [p.batches for p in seen] == [1, 2, 3, 4, 5]
    assert [p.queries for p in seen] == [0, 0, 3, 3, 6]
