"""The page as text: its figures, its escapes, and that it asks nothing of a network."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reports import HOSTILE, QUERIES, section

from rerank.errors import InputError
from rerank.eval import Prices, ceiling, stars
from rerank.eval.report import RunCard, Section, charts, render, write_report
from rerank.eval.report.origin import rows
from rerank.eval.report.words import findings, method


class Tags(HTMLParser):
    """Every element with its attributes, and the text of the tables' cells by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def data_of(page: str) -> list[dict[str, object]]:
    return [json.loads(each) for each in re.findall(r'class="data">(.*?)</script>', page, re.DOTALL)]


def test_the_figures_are_the_comparisons() -> None:
    given = section()
    page = render([given], prices=Prices(2, 10))
    table = {row[1].strip(): [" ".join(cell.split()) for cell in row] for row in Tags(page).rows[:5]}
    for row in given.comparison.rows:
        assert table[row.name][2] == f"{row.mean:.4f}{stars(row.p)}"
        if row.difference is not None and row.interval is not None and row.p is not None:
            low, high = row.interval
            assert table[row.name][3] == f"{row.difference:+.4f}"
            assert table[row.name][5:8] == [
                f"{low:+.4f} to {high:+.4f}", f"{row.p:.4f}", f"{row.wins} / {row.ties} / {row.losses}"
            ]  # fmt: skip
    assert table["better"][8:] == ["0.667", "2.0", "100.0", "10.0", "0.50", "0.000300"]
    assert table["base"][-1] == table["same"][-1] == "cost unknown"
    best = ceiling(given.runs["base"], given.qrels, "nDCG@10").mean["nDCG@10"]
    assert table["ceiling"][2] == f"{best:.4f}"
    (data,) = data_of(page)
    own = given.comparison.per_query
    assert [each["id"] for each in data["queries"]] == list(own["base"])
    for each in data["queries"]:
        assert each["values"] == [round(own[name][each["id"]], 6) for name in given.names]
        ranks = {data["docs"][doc][0]: (label, places) for doc, label, places in each["docs"]}
        moved = each["id"] != f"q{QUERIES - 1}"
        assert ranks["good"] == (2, [3, 1 if moved else 3, 3])
        assert ranks["worse"] == (None, [2, 2, 2])


def test_passages_are_cut_and_say_so() -> None:
    (data,) = data_of(render([section()]))
    texts = {doc: (text, length) for doc, text, length in data["docs"]}
    assert texts["bad"] == ("words of document 0", len("words of document 0"))
    text, length = texts["good"]
    assert len(text) == 600 < length


def test_words_say_what_differs_and_what_does_not() -> None:
    compared = section().comparison
    said = findings(compared, {})
    assert said[0] == f"On 12 queries, base, the baseline, has nDCG@10 {compared.rows[0].mean:.4f}."
    assert said[1].startswith("Significantly better: better (+") and "p 0.00" in said[1]
    assert said[2].startswith("No significant difference was found for same (+0.0000, p 1.0000)")
    base, better, same = compared.rows
    flipped = replace(compared, rows=(base, replace(better, difference=-0.3), same))
    assert findings(flipped, {})[1].startswith("Significantly worse: better (-0.3000")
    many = replace(compared, rows=(base, *(replace(better, name=f"r{i}", difference=i / 10) for i in range(1, 7))))
    assert re.findall(r"r\d \(\+0\.\d+", findings(many, {})[1]) == ["r6 (+0.6000", "r5 (+0.5000", "r4 (+0.4000"]
    assert findings(many, {})[1].endswith(" and 3 more runs.")
    assert "10,000 samples, seed 3), corrected for 2 comparisons by holm" in method(compared)
    assert "not corrected though 2 runs are compared" in method(replace(compared, correction="none"))


@pytest.mark.parametrize("field", ["title", "dataset", "names", "texts", "command"])
def test_hostile_text_is_only_text(field: str) -> None:
    evil = HOSTILE[0]
    given = section(evil if field == "dataset" else "tiny", hostile=field == "texts")
    names = HOSTILE if field == "names" else ("base", "better", "same")
    if field == "names":
        given = section(names=HOSTILE)
    page = render([given, section("other", names=names)], title=evil if field == "title" else "t", command=evil)
    plain = Tags(render([section(), section("other")], title="t", command="c"))
    found = Tags(page)
    assert sorted(tag for tag, _ in found.found) == sorted(tag for tag, _ in plain.found)  # it adds no element
    assert not [name for _, attributes in found.found for name in attributes if name.startswith("on")]
    assert len(data_of(page)) == 2
    if field == "texts":
        first = data_of(page)[0]
        assert first["docs"][0][:2] == ["</script>", " ".join(HOSTILE[0].split())]
    assert "<script>window" not in page and "<img" not in page and "&lt;script&gt;window" in page


def test_nothing_is_loaded_and_only_the_pages_own_script_runs() -> None:
    page = render([section()])
    policy = ""
    for tag, attributes in Tags(page).found:
        assert "src" not in attributes and "style" not in attributes
        if "href" in attributes:
            assert (tag, attributes["href"]) == ("link", "data:,") or (attributes["href"] or "").startswith("#")
        if attributes.get("http-equiv") == "Content-Security-Policy":
            policy = attributes["content"] or ""
    assert re.findall(r"https?://[^\"' ]*", page.replace("http://www.w3.org/2000/svg", "")) == []
    assert "url(" not in page and "@import" not in page
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for element, rule in (("style", "style-src"), ("script", "script-src")):
        (text,) = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}';" in policy


def test_several_datasets_have_one_table() -> None:
    one, two = section("one"), section("two")
    page = render([one, two])
    overview = [[" ".join(cell.split()) for cell in row] for row in Tags(page).rows[:4]]
    assert overview[0] == ["run", "one", "two", "mean", "Borda", "Kemeny"]
    mean, mark = one.comparison.rows[1].mean, stars(one.comparison.rows[1].p)
    assert overview[2] == ["better", f"{mean:.4f}{mark}", f"{mean:.4f}{mark}", f"{mean:.4f}", "2.00", "2.00"]
    other = section("two", names=("base", "better", "third"))
    overview = [[" ".join(cell.split()) for cell in row] for row in Tags(render([one, other])).rows[:5]]
    assert overview[0] == ["run", "one", "two"] and overview[4] == ["third", "not measured", overview[1][1]]


def test_the_card_says_what_is_known_and_what_is_not() -> None:
    told = {
        "settings": {"model": None, "prompt": "p@1#ab", "options": {"window": 10, "seed": 7}, "odd": [1, 2]}
        | {"adapter_sha256": "cd" * 32},
        "versions": {"rerank-llm": "1.0"},
        "errors": [],
    }
    found = {row.label: row.cells for row in rows([RunCard(), RunCard("a.trec", "ab" * 32, told)])}
    assert found["file"] == (("unknown", False), ("a.trec", True))
    assert found["model"] == (("unknown", False), ("the engine's default", True))
    assert found["seeds"][1] == ("seed 7", True)
    assert found["options"][1] == ("window 10, seed 7", True)
    assert found["adapter's SHA-256"][1] == ("cd" * 32, True)
    assert found["not asked"][1] == ("none", True)
    assert found["rerank"][1] == ("1.0", True) and found["torch"][1] == ("unknown", False)
    assert found["odd"] == (("unknown", False), ("1; 2", True))
    cascade = {"settings": {"strategy": "a % 2 >> b", "stages": [{"options": {"seed": 5}, "keep": 2}]}}
    found = {row.label: row.cells for row in rows([RunCard(told=cascade)])}
    assert found["seeds"] == (("seed 5", True),) and found["model"] == (("see the stages", True),)


def test_a_run_that_lacks_queries_is_named() -> None:
    whole = section()
    part = replace(whole, runs=whole.runs | {"same": {"q0": whole.runs["same"]["q0"]}})
    assert (whole.lacking, part.lacking) == ({}, {"same": QUERIES - 1})
    assert "Beware: same lacks 11 of the 12 queries; what is lacking counts as 0." in render([part])


def test_the_documentation_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "compare.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    exec(compile(block, "compare.md", "exec"), {})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Significantly worse: backwards" in page and "On 300 queries" in page


def test_charts() -> None:
    plot = charts.cost_plot("tokens", [("none", 0.5, None), ("a", 0.6, 10.0), ("b", 0.5, 20.0), ("c", 0.7, 1000.0)])
    assert plot is not None and plot.x.log
    assert [(spot.number, spot.best) for spot in plot.spots] == [(2, True), (3, False), (4, True)]
    assert [name for _, name, _ in plot.lines] == ["none"]
    assert plot.spots[0].y > plot.spots[2].y and plot.spots[0].x < plot.spots[1].x < plot.spots[2].x
    assert charts.cost_plot("calls", [("none", 0.5, None)]) is None
    same = charts.cost_plot("calls", [("a", 0.0, 0.0), ("b", 0.0, 0.0)])
    assert same is not None and same.spots[0].best and same.spots[1].best and not same.x.log
    assert [text for _, text in charts.Scale(0, 1, 0, 100).ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert [text for _, text in charts.Scale(9, 1.1e6, 0, 1, log=True).ticks][-1] == "1M"
    base, better, same_row = section().comparison.rows
    zero, found = charts.whiskers([base, better, replace(same_row, interval=(-math.inf, math.inf))])
    assert set(found) == {"better", "same"} and found["same"].low == found["same"].high == zero
    assert zero < found["better"].low < found["better"].middle


def test_a_single_query_and_no_texts(tmp_path: Path) -> None:
    from rerank.eval import compare, evaluate

    qrels, base, own = {"q": {"d": 1}}, {"q": {"e": 2.0, "d": 1.0}}, {"q": {"d": 1.0}}
    measured = {name: evaluate(run, qrels, ["nDCG@10"]) for name, run in (("base", base), ("own", own))}
    bare = Section("bare", compare(measured, "nDCG@10"), {"base": base, "own": own}, qrels)
    write_report(tmp_path / "page.html", [bare])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "On 1 query, base" in page and "-inf to +inf" in page
    assert "No run has a card" in page and "Texts were not given" in unescape(page)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_wrong_input(tmp_path: Path) -> None:
    given = section()
    with pytest.raises(InputError, match="nothing to report"):
        render([])
    with pytest.raises(InputError, match="needs prices"):
        render([given], axis="money")
    with pytest.raises(InputError, match="0 places deep"):
        render([given], depth=0)
    with pytest.raises(InputError, match="folder of the report"):
        write_report(tmp_path / "none" / "page.html", [given])
    with pytest.raises(InputError, match="has 'same', but its run was not given"):
        replace(given, runs={name: given.runs[name] for name in ("base", "better")})
    with pytest.raises(InputError, match=r"b.trec has no card of a run: it lacks"):
        _ = RunCard("b.trec", None, {"queries": 3}).cost
    with pytest.raises(InputError, match="no card of a run"):
        _ = RunCard("b.trec", None, {"queries": 3, "usage": {"cals": 3}}).cost
