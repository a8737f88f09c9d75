"""The study: what is measured of each input, cells that are kept, and the command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import log2
from pathlib import Path

import pytest
from command import Cli, as_list, assert_error
from rich.console import Console

from rerank.backbones import ScriptedBackbone
from rerank.bench.cache import _hash
from rerank.calls import Call, log_softmax
from rerank.cli import options as opt
from rerank.cli.robust import _fitting
from rerank.jobs import Progress
from rerank.reranker import Reranker
from rerank.robustness import Perturbation, Setting, Smoothing, Synonyms, chosen
from rerank.robustness.perturbations import target
from rerank.robustness.study import AS_GIVEN, FIRST_STAGE, Certifying, Part, Row, Sample, Study, study
from rerank.robustness.table import cells, explained, header, record, risen, shifts
from rerank.strategies import Pointwise
from rerank.types import Candidates

TOPICS = {
    "flea": ["fleas live a hundred days", "the flea lives for a hundred days on its host", "a flea jumps far"],
    "bone": ["a skeleton of bones", "bone density falls with age", "vitamin d is good for bone growth"],
    "moon": ["satellites are moons", "the moon circles the earth in a month", "a moon landing took place"],
    "bread": ["loaves and breads", "sourdough bread rises slowly", "rye bread keeps for a week"],
}
SYNONYMS = Synonyms.symmetric([("flea", "louse"), ("bone", "skeleton"), ("moon", "satellite"), ("bread", "loaf")])


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """Four queries, each with a passage that is not relevant before the relevant ones, which name the topic."""
    lines, labels = [], []
    for i, (topic, texts) in enumerate(TOPICS.items()):
        ids = [f"{topic}-{n}" for n in range(3)]
        lines.append(as_list(f"q{i}", *texts, query=f"about the {topic}", ids=ids))
        labels += [f"q{i} 0 {topic}-0 0", f"q{i} 0 {topic}-1 2", f"q{i} 0 {topic}-2 1"]
    (tmp_path / "lists.jsonl").write_text("".join(lines))
    (tmp_path / "qrels.txt").write_text("\n".join(labels) + "\n")
    (tmp_path / "synonyms.tsv").write_text("flea\tlouse\nbone\tskeleton\nmoon\tsatellite\nbread\tloaf\n")
    return tmp_path / "lists.jsonl", tmp_path / "qrels.txt"


class Overlap:
    """A contender that scores a passage by the last word of the query in it, and counts what it is asked."""

    def __init__(self, ends_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.loads = 0
        self._ends = ends_after

    @property
    def settings(self) -> dict[str, object]:
        return {"strategy": "overlap"}

    def calls(self, n: int) -> int:
        return n

    def load(self, *, on_progress: Callable[[Progress], None] | None = None) -> Reranker:
        self.loads += 1
        return Reranker(Pointwise(), ScriptedBackbone(self._score), on_progress=on_progress)

    def _score(self, call: Call) -> Sequence[float]:
        if len(self.asked) == self._ends:
            raise KeyboardInterrupt
        passage = call.dialogue.passages[0]
        self.asked.append(passage.doc_id)
        found = passage.full_text.split().count(call.dialogue.query.text.split()[-1])
        return log_softmax([2.0 * found - 1.0, 0.0])


class Quiet:
    def watch(self, requests: Iterable[Candidates]) -> Iterator[Candidates]:
        return iter(requests)

    def show(self, done: Progress) -> None:
        pass


def watching(*_: object) -> AbstractContextManager[Quiet]:
    return nullcontext(Quiet())


def sample(data: tuple[Path, Path]) -> Sample:
    return Sample.read(str(data[0]), qrels=str(data[1]), queries=None, depth=10)


def setting(of: Sample) -> Setting:
    return Setting(0, of.qrels, tuple(p for each in of.requests for p in each.passages), SYNONYMS)


def studied(
    data: tuple[Path, Path], out: Path, contender: Overlap, names: list[str] | None = None, **more: object
) -> Study:
    one = sample(data)
    return study([one], {"overlap": contender}, chosen(names), setting(one), out, watching=watching, **more)  # type: ignore[arg-type]


def rows(found: Study) -> dict[str, Row]:
    return {row.input if row.ranker != FIRST_STAGE else FIRST_STAGE: row for row in found.parts[0].rows}


GIVEN = (2 / log2(3) + 1 / log2(4)) / (2 + 1 / log2(3))  # the nDCG of labels 0, 2, 1


def test_what_is_measured(data: tuple[Path, Path], tmp_path: Path) -> None:
    found = rows(studied(data, tmp_path / "out", Overlap()))
    assert found[FIRST_STAGE].value == pytest.approx(GIVEN)
    clean = found[AS_GIVEN]
    assert (clean.value, clean.queries, clean.spread) == (pytest.approx(1.0), 4, pytest.approx(0.0))
    assert clean.difference == pytest.approx(1 - GIVEN)
    assert clean.relative == pytest.approx((1 - GIVEN) / GIVEN)
    assert clean.p == 2 / 2**4  # all four queries differ alike
    loud = found["capitals"]  # finds no word any more: the given order
    assert (loud.value, loud.queries, loud.difference) == (pytest.approx(GIVEN), 4, pytest.approx(GIVEN - 1))
    assert loud.tau == pytest.approx(1 - 2 * 2 / 3)  # 0, 1, 2 for 1, 2, 0: two pairs of three
    assert loud.rise is None
    assert (found["no-stop-words"].value, found["no-stop-words"].tau) == (pytest.approx(1.0), 1)
    assert found["reversed"].value < 1  # the two relevant ones tie, so that their given order decides
    assert found["sentence-order"].queries == 0  # no passage has two sentences
    assert found["query-synonym"].value < 1
    assert found["lexical-decoys"].value == found["distractors"].value == 1  # they come last, and tie at the most


def test_what_an_injected_text_gains(data: tuple[Path, Path], tmp_path: Path) -> None:
    found = rows(studied(data, tmp_path / "out", Overlap(), ["injection"]))
    one = sample(data)
    chosen_ids = [target(each, setting(one)) for each in one.requests]
    assert [p and p.doc_id for p in chosen_ids] == [f"{topic}-0" for topic in TOPICS]  # the one without relevance
    stuffed, ordered = found["injected-query"].rise, found["injected-command"].rise
    assert stuffed is not None
    assert ordered is not None
    assert (stuffed.before, stuffed.after, stuffed.up, stuffed.first) == (3, 1, 1, 1)  # it stood first as given
    assert stuffed.interval == (2, 2)
    assert stuffed.p == 2 / 2**4
    assert (ordered.before, ordered.after, ordered.up, ordered.p) == (3, 3, 0, 1)
    assert "overlap, injected-query: +2.00 places up" in risen(studied(data, tmp_path / "out", Overlap()))[3]


def test_only_what_is_disturbed_is_ranked_and_nothing_twice(data: tuple[Path, Path], tmp_path: Path) -> None:
    first, again, more = Overlap(), Overlap(), Overlap()
    found = studied(data, tmp_path / "out", first, ["sentence-order", "capitals"])
    assert len(first.asked) == 2 * 12  # as given, and in capitals
    assert studied(data, tmp_path / "out", again, ["sentence-order", "capitals"]) == found
    assert (again.loads, again.asked) == (0, [])
    grown = studied(data, tmp_path / "out", more, ["sentence-order", "capitals", "reversed"])
    assert len(more.asked) == 12
    assert set(rows(grown)) == {*rows(found), "reversed"}


def test_a_study_that_died_goes_on(data: tuple[Path, Path], tmp_path: Path) -> None:
    dies, again, whole = Overlap(ends_after=20), Overlap(), Overlap()
    with pytest.raises(KeyboardInterrupt):
        studied(data, tmp_path / "out", dies, ["query"], block=1)
    assert len(dies.asked) == 20
    found = studied(data, tmp_path / "out", again, ["query"], block=1)
    assert found == studied(data, tmp_path / "other", whole, ["query"], block=1)
    assert len(again.asked) == len(whole.asked) - 18  # 20 were asked, and the last block was not whole


def certifying(samples: int = 100) -> Certifying:
    return Certifying(Smoothing.of(SYNONYMS, samples=samples), (1, 2), {"overlap": lambda s: 1 / (1 + 2.7 ** (-s))})


def test_a_smoothed_ranker_is_measured_and_certified(data: tuple[Path, Path], tmp_path: Path) -> None:
    dies, again = Overlap(ends_after=12 + 8), Overlap()
    with pytest.raises(KeyboardInterrupt):
        studied(data, tmp_path / "out", dies, ["none"], certifying=certifying())
    found = studied(data, tmp_path / "out", again, ["none"], certifying=certifying())
    row = rows(found)["smoothed"]
    # each topic's word is in both relevant passages and has one synonym: they tie at g(1 word) / 2 + g(0) / 2, the
    # third lies at g(0) but for q1, whose third has the synonym, and so the same g as they
    assert row.queries == 4
    assert row.certified == {1: (0, 4), 2: (3, 4)}
    assert row.value == pytest.approx((3 + GIVEN) / 4)
    assert "certified top-1 0/4, top-2 3/4" in cells(row)
    asked = [doc for doc in again.asked if not doc.startswith("q")]
    assert 0 < len(asked) < 4 * (2 + 2 + 2)  # at most two texts of a passage, and the first query was done
    last = Overlap()
    assert rows(studied(data, tmp_path / "out", last, ["none"], certifying=certifying()))["smoothed"] == row
    assert last.loads == 0


def test_other_domains_are_compared_by_their_gain(data: tuple[Path, Path], tmp_path: Path) -> None:
    here = sample(data)
    away = Sample("away", here.requests[:2], {"q0": {"flea-0": 1}, "q1": {"bone-0": 1}})
    found = study([here, away], {"overlap": Overlap()}, [], setting(here), tmp_path, watching=watching)
    assert [(part.dataset, [row.ranker for row in part.rows]) for part in found.parts] == [
        (str(data[0]), [FIRST_STAGE, "overlap"]),
        ("away", [FIRST_STAGE, "overlap"]),
    ]
    gain, loss = (1 - GIVEN) / GIVEN, 1 / log2(4) - 1  # the relevant one falls from the first place to the third
    assert shifts(found) == [("overlap", "away", pytest.approx(loss), pytest.approx(loss - gain))]
    assert json.loads(json.dumps(record(found)))["domains"][0]["gain"] == pytest.approx(loss)
    assert len(header(found)) == len(cells(found.parts[0].rows[1]))
    assert "t intervals" in explained(found)


def test_a_query_that_cannot_be_asked_is_told_of(data: tuple[Path, Path], tmp_path: Path) -> None:
    class Strict(Overlap):
        def load(self, *, on_progress: Callable[[Progress], None] | None = None) -> Reranker:
            return Reranker(Pointwise(), ScriptedBackbone(self._score, control_tokens=frozenset({"moon"})), strict=True)

    found = studied(data, tmp_path / "out", Strict(), ["reversed"])
    assert [re.sub(": q2: .*", "", each) for each in found.failed] == ["overlap, as given", "overlap, reversed"]


def test_a_model_that_changed_under_its_name_has_cells_of_its_own(data: tuple[Path, Path], tmp_path: Path) -> None:
    class Local(Overlap):
        @property
        def settings(self) -> dict[str, object]:
            return {
                "strategy": "pointwise",
                "backbone": "transformers",
                "model": str(tmp_path / "model"),
                "dtype": "float32",
            }

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1")
    first, same, changed = Local(), Local(), Local()
    studied(data, tmp_path / "out", first, ["reversed"])
    studied(data, tmp_path / "out", same, ["reversed"])
    assert first.asked and not same.asked
    (tmp_path / "model" / "weights").write_bytes(b"2")
    _hash.cache_clear()  # as in another process
    studied(data, tmp_path / "out", changed, ["reversed"])
    assert len(changed.asked) == len(first.asked)


def test_of_one_query_the_record_is_valid_json(data: tuple[Path, Path], tmp_path: Path) -> None:
    one = Sample.read(str(data[0]), qrels=str(data[1]), queries=1, depth=10)
    found = study([one], {"overlap": Overlap()}, chosen(["injected-query"]), setting(one), tmp_path, watching=watching)
    told = json.loads(json.dumps(record(found), allow_nan=False))
    disturbed = told["parts"][0]["rows"][2]
    assert disturbed["interval"] is disturbed["rise"]["interval"] is None
    assert disturbed["rise"]["before"] == 3


def test_the_command(cli: Cli, data: tuple[Path, Path], tmp_path: Path, model: list[str]) -> None:
    lists, qrels = data
    out = tmp_path / "out"
    asked = ["robust", lists, "-q", qrels, "--adapter", "none", "-o", out, *model]
    both = [*asked, "-s", "pointwise", "-s", "first", "--perturb", "reversed", "--perturb", "injected-command"]
    done = cli(*both, "--queries", 2)
    assert done.status == 0, done
    lines = [line.split("  ")[0].strip() for line in done.out.splitlines()]
    names = ["- reversed", "- injected-command"]
    assert lines == [f"{lists}: 2 queries, 3 candidates", "input", "first stage", "pointwise", *names, "first", *names]
    assert "first, injected-command: " in done.err
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    again = cli(*both, "--queries", 2, "--format", "markdown")
    assert again.out.startswith("| input | queries | nDCG@10 |")
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before
    told = json.loads(cli(*both, "--queries", 2, "-f", "json").out)
    assert [row["input"] for row in told["parts"][0]["rows"]] == [
        AS_GIVEN,
        *2 * [AS_GIVEN, "reversed", "injected-command"],
    ]

    synonyms = ["--synonyms", tmp_path / "synonyms.tsv"]
    certified = cli(*asked, "--perturb", "none", "--certify", 1, "--samples", 8, "--queries", 2, *synonyms)
    assert certified.status == 0, certified
    assert re.search(r"- smoothed .* certified top-1 [0-2]/2", certified.out)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["-s", "first", "--certify", 1], "first cannot be certified: randomised smoothing needs a ranker that scores"),
        (["-s", "pointwise % 2 >> pointwise", "--certify", 1], "scores each passage alone"),
        (["--certify", 3, "-k", 3], "--certify 3 of 3 candidates leaves none to keep out"),
        (["--samples", 5], "--samples is for --certify K"),
        (["--certify", 1, "--score-range", 2, 1], "--score-range is 2 1; give two numbers, the lower first"),
        (["--perturb", "capitls"], "unknown perturbation 'capitls'; did you mean 'capitals'"),
        (["-s", "first", "-s", "pointwise", "-O", "window=3"], "--prompt and --option are for one ranker"),
        (["-s", "first", "-s", "first"], "--strategy first is given twice"),
        (["--perturb", "order", "--synonyms", "x.tsv"], "nothing that is asked for needs them"),
        (["--measure", "nDGC@10"], "nDCG"),
        (["--domain", "lists.jsonl"], "no judgments"),
    ],
)
def test_the_command_refuses(
    cli: Cli,
    data: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[object],
    why: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_error(cli("robust", data[0], "-q", data[1], *options), why)


def test_scores_without_known_bounds_need_a_range(cli: Cli, data: tuple[Path, Path]) -> None:
    asked = ["robust", data[0], "-q", data[1], "-s", "pointwise(backbone=bi-encoder)", "--certify", 1]
    assert_error(cli(*asked), "give them with --score-range, as in --score-range -1 1 for cosines")


def test_perturbations_are_listed(cli: Cli) -> None:
    done = cli("ls", "perturbations")
    assert done.status == 0
    kinds: list[Perturbation] = chosen(None)
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == [each.name for each in kinds]


def test_a_narrow_terminal_gets_fewer_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Study(
        "nDCG@10", 0, (Part("d", 6, 8, (Row("ranker", "reversed", 6, 0.5, 0.1, 0.6, -0.1, (-0.2, 0), 0.5, 1, 1),)),)
    )
    names, line = header(found), [cells(found.parts[0].rows[0])]
    monkeypatch.setattr(opt, "screen", Console(width=40, force_terminal=True))
    narrow, (cut,) = _fitting(names, line)
    assert narrow == ["input", "nDCG@10", "change", "p", ""]
    assert cut == ["- reversed", "0.5000", "-0.1000", "0.5000", ""]
    assert "no room for queries, RBO, 95% interval, tau" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(opt, "screen", Console(width=200, force_terminal=True))
    assert _fitting(names, line) == (names, line)
