"""What a suite finds, against trec_eval and ranx, and the command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import pytrec_eval
from command import Cli
from suites import DOCUMENTS, QUERIES, RELEVANCE, Asked, run, two_lists, write

from rerank.backbones import ScriptedBackbone, oracle
from rerank.bench.run_suite import run_suite
from rerank.bench.standings import Standings
from rerank.bench.suite import FIRST_STAGE, read_suite
from rerank.calls import Call
from rerank.data import read_qrels, read_run
from rerank.data.catalogue import Entry
from rerank.eval import Prices, compare, evaluate
from rerank.runs import totals_of


@pytest.fixture
def collections(tmp_path: Path) -> Path:
    return two_lists(tmp_path)


def test_the_figures_are_those_of_trec_eval_and_ranx_on_the_stored_runs(collections: Path) -> None:
    measures = ["nDCG@10", "RR(rel=2)@10", "AP(rel=2)@100", "R(rel=2)@100", "P@5"]
    noisy = Asked(lambda call: [-float(len(call.dialogue.query.text + call.dialogue.passages[0].doc_id) % 3), -1.0])
    path = write(collections, measures=measures)
    found = run(path, Asked().contestant("oracle"), noisy.contestant("ties", prompt="pointwise-yes-no"))
    results = json.loads((collections / "out" / "results.json").read_text())
    for dataset in results["datasets"]:
        qrels = read_qrels(collections / "out" / dataset["name"] / "qrels.txt")
        assert len(dataset["rankers"]) == 3
        for row in dataset["rankers"]:
            scores = read_run(collections / "out" / row["run"])
            ours = row["mean"]
            graded = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "P.5"}).evaluate(scores)
            binary = pytrec_eval.RelevanceEvaluator(
                qrels, {"map_cut.100", "recall.100", "recip_rank"}, relevance_level=2
            )
            strict = binary.evaluate(scores)
            for measure, table, key in (
                ("nDCG@10", graded, "ndcg_cut_10"),
                ("P@5", graded, "P_5"),
                ("AP(rel=2)@100", strict, "map_cut_100"),
                ("R(rel=2)@100", strict, "recall_100"),
                ("RR(rel=2)@10", strict, "recip_rank"),
            ):
                theirs = {query_id: table[query_id][key] for query_id in qrels}
                assert row["per_query"][measure] == pytest.approx(theirs, abs=1e-4), (row["ranker"], measure)
                assert ours[measure] == pytest.approx(sum(theirs.values()) / len(theirs), abs=1e-4)
            assert ours["nDCG@10"] == pytest.approx(of_ranx(qrels, scores), abs=1e-4)
    one, _ = found.comparisons.values()
    assert [row.name for row in one.rows] == [FIRST_STAGE, "oracle", "ties"]
    files = {n: collections / "out" / "one" / f"{n}.trec" for n in (FIRST_STAGE, "oracle", "ties")}
    judged = read_qrels(collections / "qrels.txt")
    again = compare({n: evaluate(read_run(f), judged, measures) for n, f in files.items()}, "nDCG@10")
    assert one.rows == again.rows
    oracle_row = one.rows[1]
    assert oracle_row.mean == pytest.approx(1.0) and oracle_row.p is not None and oracle_row.interval is not None


def of_ranx(qrels: dict[str, dict[str, int]], scores: dict[str, dict[str, float]]) -> float:
    from ranx import Qrels, Run
    from ranx import evaluate as measured

    return float(measured(Qrels(qrels), Run(scores), "ndcg@10", make_comparable=True))


def test_a_suite_costs_and_orders_its_rankers(collections: Path) -> None:
    best = replace(Asked().contestant("best"), prices=Prices(prompt=2, generated=10))
    found = run(write(collections), best, Asked(lambda call: [0.0, -1.0]).contestant("same", prompt="pointwise-yes-no"))
    cost = found.cost("best")
    assert cost is not None
    queries, usage = cost.queries, cost.usage
    assert (queries, usage.calls) == (2 * QUERIES, 2 * QUERIES * DOCUMENTS)
    assert found.money("best") == pytest.approx(2 * usage.prompt_tokens / 1e6)
    assert found.money("same") is None
    assert list(found.overall) == ["mean", "borda", "kemeny"]
    assert found.overall["mean"]["best"] == pytest.approx(1.0)
    assert max(found.overall["kemeny"], key=lambda name: found.overall["kemeny"][name]) == "best"
    assert totals_of(collections / "out" / "one" / "best.trec").usage.calls == QUERIES * DOCUMENTS
    assert found.columns[0].ceiling == pytest.approx(1.0)


def test_of_one_query_there_is_no_interval(cli: Cli, collections: Path, scripted: Asked) -> None:
    path = write(collections, queries=1)
    done = cli("bench", path, "--cache", collections / "cache", "-o", collections / "out")
    assert done.status == 0 and "±" not in done.out, done
    told = json.loads((collections / "out" / "results.json").read_text(), parse_constant=pytest.fail)
    assert told["datasets"][0]["rankers"][1]["interval"] is None


def test_parts_of_one_dataset_count_once_in_the_mean(collections: Path) -> None:
    suite, (one, two) = read_suite(write(collections))
    part = Entry(about="-", part_of="whole", queries=8, measures=("nDCG@10",), licence="-")
    three = [replace(one, entry=part), replace(two, entry=part), replace(one, name="three", spec=two.spec, depth=2)]
    found = run_suite(suite, three, [Asked().contestant("best")], collections / "out", collections / "cache")
    means = {column.name: column.evaluations[FIRST_STAGE].mean["nDCG@10"] for column in found.columns}
    assert len(set(means.values())) > 1
    expected = ((means["one"] + means["two"]) / 2 + means["three"]) / 2
    assert found.overall["mean"][FIRST_STAGE] == pytest.approx(expected)
    assert on_the_page(collections, found.rankers) == told(found)
    # and where all are parts of one there is nothing to put in order
    alone = run_suite(suite, three[:2], [Asked().contestant("best")], collections / "out", collections / "cache")
    assert alone.overall == {}
    assert set(on_the_page(collections, alone.rankers).values()) == {()}


def told(found: Standings) -> dict[str, tuple[str, ...]]:
    """The last columns of the table, with the page's digits."""
    return {
        name: tuple(
            format(each[name], ".4f" if way == "mean" else ".2f") if name in each else ""
            for way, each in found.overall.items()
        )
        for name in found.rankers
    }


def on_the_page(folder: Path, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What the report's table of all datasets has beside its datasets."""
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    table = page.partition('id="overview"')[2].partition("</table>")[0]
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', table)
    orders = sum(head in ("mean", "Borda", "Kemeny") for head in heads)
    rows = dict(re.findall(r'<tr><th scope="row">([^<]*)</th>(.*?)</tr>', table, re.DOTALL))
    cells = {name: re.findall(r'<td class="n">([^<]*)', rows[name]) for name in names}
    return {name: tuple(own[len(own) - orders :]) for name, own in cells.items()}


def test_the_page_has_the_tables_orders_where_a_run_failed(collections: Path) -> None:
    def script(call: Call) -> str | Sequence[float]:
        if call.dialogue.query.text.startswith("two"):
            raise RuntimeError("device lost")
        return [-float(call.dialogue.passages[0].doc_id[1:]), -1.0]

    best, fails = Asked().contestant("best"), Asked(script).contestant("fails", passage_tokens=9)
    found = run(write(collections), best, fails)
    assert set(found.overall["kemeny"]) == {FIRST_STAGE, "best"}
    assert on_the_page(collections, found.rankers) == told(found)
    assert told(found)["fails"] == ("", "", "")


def test_more_rankers_than_have_a_kemeny_order(cli: Cli, collections: Path, scripted: Asked) -> None:
    rankers = [{"strategy": "pointwise", "name": f"r{i}", "options": {"passage_tokens": 9 + i}} for i in range(20)]
    path = write(collections, rankers=rankers, queries=2)
    done = cli("bench", path, "--cache", collections / "cache", "-o", collections / "out")
    assert done.status == 0, done
    assert done.out.splitlines()[0].split()[-2:] == ["mean", "borda"]
    told = "no Kemeny order: it is found exactly, for at most 20 rankers, and there are 21"
    assert told in done.err
    assert told in (collections / "out" / "report.html").read_text(encoding="utf-8")
    assert set(json.loads((collections / "out" / "results.json").read_text())["overall"]) == {"mean", "borda"}


def test_money_and_frontier_are_in_the_results_and_on_the_page(collections: Path) -> None:
    cheap = replace(Asked(lambda call: [0.0, -1.0]).contestant("cheap"), prices=Prices(1, 5))
    dear = replace(Asked().contestant("dear", passage_tokens=50), prices=Prices(2, 10))
    found = run(write(collections), cheap, dear)
    results = json.loads((collections / "out" / "results.json").read_text())
    assert results["money"] == {name: pytest.approx(found.money(name)) for name in ("cheap", "dear")}
    assert results["frontier_cost"] == "money"
    for dataset in results["datasets"]:
        rows = {row["ranker"]: row for row in dataset["rankers"]}
        assert rows["dear"]["money"] == pytest.approx(2 * rows["dear"]["cost"]["prompt_tokens"] / 1e6)
        # ties keep the given order, so that `cheap` is the first stage for more money
        assert {name: row["frontier"] for name, row in rows.items()} == {
            FIRST_STAGE: True, "cheap": False, "dear": True,
        }  # fmt: skip
    page = (collections / "out" / "report.html").read_text(encoding="utf-8")
    assert "money: first-stage at 0 and 0, cheap at 1 and 5, dear at 2 and 10 per million prompt tokens" in page
    per_query = results["datasets"][0]["rankers"][2]["money"] / QUERIES
    assert f'<td class="n">{per_query:.6f}</td>' in page
    assert 'value="money" checked' in page
    # where one has no price the frontier goes by tokens, and the others still have their money
    mixed = run(write(collections), replace(cheap, prices=None), dear, out="mixed")
    results = json.loads((collections / "mixed" / "results.json").read_text())
    assert (mixed.axis, results["frontier_cost"], set(results["money"])) == ("tokens", "tokens", {"dear"})
    assert results["datasets"][0]["rankers"][1]["money"] is None


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({}, True),
        ({"queries": 4}, False),  # a sample
        ({"depth": 5}, False),
        ({"first_stage": "another"}, False),
        ({"value": 0.9}, False),  # it says that it is the same first stage, and measures something else
    ],
)
def test_published_figures_stand_beside_the_same_candidates_only(
    collections: Path, changed: dict[str, object], shown: bool
) -> None:
    suite, (trial, _) = read_suite(write(collections, depth=6))
    given = evaluate(
        {q: {f"d{d}": -float(d) for d in range(DOCUMENTS)} for q in RELEVANCE}, read_qrels(collections / "qrels.txt")
    )
    value = changed.pop("value", round(given.mean["nDCG@10"], 4))
    figures = {"source": "rank_llm", "first_stage": "theirs", "depth": 6, "values": {"Great-7B": 0.7}}
    told = {"theirs": {"source": "anserini", "value": value}}
    entry = Entry(about="-", queries=8, measures=("nDCG@10",), licence="-", first_stages=told, published=(figures,))
    trial = replace(trial, **({"entry": entry, "first_stage": "theirs"} | changed))
    found = run_suite(suite, [trial], [Asked().contestant("best")], collections / "out", collections / "cache")
    assert [figure.ranker for figure in found.columns[0].published] == (["Great-7B"] if shown else [])


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The command's backbones are scripted; no model is loaded."""
    asked = Asked()

    def load(name: str, **_: object) -> ScriptedBackbone:
        def script(call: Call) -> str | Sequence[float]:
            asked.queries.append(call.dialogue.query.query_id)
            return oracle(RELEVANCE)(call)

        asked.loads += 1
        return ScriptedBackbone(script)

    monkeypatch.setattr("rerank.cli.options.load_backbone", load)
    return asked


def test_the_command(cli: Cli, collections: Path, scripted: Asked) -> None:
    engine = {"backbone": "openai", "model": "m", "backbone_options": {"base_url": "http://localhost:1/v1"}}
    rankers = [
        {"strategy": "pointwise", "name": "plain", "prices": {"prompt": 1, "generated": 2}, **engine},
        {"strategy": "pointwise % 4 >> first", "name": "cascade", **engine},
    ]
    path = write(collections, rankers=rankers)
    given = ["bench", path, "--cache", collections / "cache", "-o", collections / "out"]
    done = cli(*given)
    assert done.status == 0, done
    results, costs, datasets = (block.splitlines() for block in done.out.split("\n\n"))
    assert results[0].split()[-3:] == ["mean", "borda", "kemeny"]
    assert [line.split()[0] for line in results[1:4]] == [FIRST_STAGE, "plain", "cascade"]
    assert "1.0000" in results[2] and "±" in results[2]
    assert costs[0].split()[-2:] == ["money,", "all"] and costs[1].split()[:3] == ["plain", "16", "6.0"]
    assert datasets[1].split()[:3] == ["one", "8", "100"]
    asked = len(scripted.queries)
    markdown = cli(*given, "-f", "markdown")
    assert len(scripted.queries) == asked  # known
    assert markdown.out.startswith("| ranker | one nDCG@10 | two nDCG@10 | mean |")
    assert "rankings were known" in markdown.err
    assert "\\toprule" in cli(*given, "-f", "latex").out
    told = json.loads(cli(*given, "-f", "json").out)
    assert told == json.loads((collections / "out" / "results.json").read_text())
    # what `rerank eval` and `rerank compare` find in the folder is the same
    folder = collections / "out" / "one"
    mean = cli("eval", folder / "plain.trec", "--qrels", folder / "qrels.txt", "-m", "nDCG@10", "--json").out
    (row,) = (each for each in told["datasets"][0]["rankers"] if each["ranker"] == "plain")
    assert json.loads(mean)["mean"] == row["mean"]
    compared = cli(
        "compare", folder / "first-stage.trec", folder / "plain.trec", "-q", folder / "qrels.txt", "-f", "json"
    )
    assert json.loads(compared.out)["runs"][1]["p"] <= row["p"]  # one comparison, where the suite corrected for two
    assert json.loads(compared.out)["runs"][1]["cost"]["calls"] == row["cost"]["calls"]


def test_the_command_says_that_a_cell_failed(
    cli: Cli, collections: Path, scripted: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, **_: object) -> ScriptedBackbone:
        raise RuntimeError("no memory")

    monkeypatch.setattr("rerank.cli.options.load_backbone", load)
    path = write(collections, rankers=[{"strategy": "pointwise", "name": "plain"}])
    done = cli("bench", path, "--cache", collections / "cache", "-o", collections / "out")
    assert done.status == 1
    assert "failed" in done.out and "plain on one: RuntimeError: no memory" in done.err
