"""How the adapters that ship are made: docs/adapters, as far as no collection is needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rerank.data import load_dataset
from rerank.training.recipe import Recipe

FOLDER = Path(__file__).parents[1] / "docs" / "adapters"
RECIPES = sorted(FOLDER.glob("*-?.yaml"))
TEXTS = {
    f"d{i}": f"passage {i} on {animal} and what they eat" for i, animal in enumerate(["fleas", "cats", "lice"] * 8)
}


def prepare(*arguments: str | Path) -> None:
    done = subprocess.run([sys.executable, FOLDER / "prepare.py", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """A BEIR folder whose third query is a test query, and lists with the two others and a judgment."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    docs = ({"_id": doc_id, "title": "", "text": text} for doc_id, text in TEXTS.items())
    (folder / "corpus.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    queries = {"1": "what do fleas eat", "2": "what do cats eat", "3": "what do lice eat"}
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in queries.items()))
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n1\td0\t1\n2\td1\t1\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n3\td2\t1\n")
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_one(path: Path) -> None:
    recipe = Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert recipe.name == f"smollm2-135m-{path.stem}"


def test_every_recipe_and_command_is_in_the_script_and_every_file_is_made_before_it_is_read() -> None:
    script = (FOLDER / "make.sh").read_text(encoding="utf-8")
    assert RECIPES and all(path.stem in script for path in RECIPES)
    commands = set(re.findall(r"^def ([a-z]\w+)", (FOLDER / "prepare.py").read_text(encoding="utf-8"), re.MULTILINE))
    called = set(re.findall(r"(?:prepare|prepare\.py) ([a-z]+)", script))
    assert called == commands
    made = script + "".join(f"work/{name}.jsonl" for name in re.findall(r"taught (\S+) ", script))
    made += "".join(f"work/{name}{end}.jsonl" for name in ("scifact", "nfcorpus") for end in ("", "-written"))
    for path in RECIPES:
        for source in yaml.safe_load(path.read_text(encoding="utf-8"))["data"]:
            own = [source["dataset"], *([source["teacher"]] if "teacher" in source else [])]
            assert all(name in made for name in own if name.startswith("work/")), (path.stem, own)


def test_candidates_have_labels_and_leave_out_what_is_held(collection: Path, tmp_path: Path) -> None:
    lists, held, out = tmp_path / "lists.jsonl", tmp_path / "held.txt", tmp_path / "out" / "lists.jsonl"
    records = [
        {"qid": "a", "query": "What do FLEAS eat?", "docs": [{"docid": "d23", "label": 1}]},  # one that BM25 finds last
        {"qid": "b", "query": "what do lice eat", "docs": []},
    ]
    lists.write_text("".join(json.dumps(record) + "\n" for record in records))
    held.write_text(f"{collection.name}:test\n")
    prepare("candidates", out, collection / "corpus.jsonl", "10", held, lists)
    (found,) = map(json.loads, out.read_text().splitlines())
    assert found["qid"] == "0/a" and len(found["docs"]) == 11
    best, last = found["docs"][0], found["docs"][-1]
    assert "fleas" in TEXTS[best["docid"]] and "label" not in best
    assert last["docid"] == "d23" and last["label"] == 1  # judged, not among BM25's first ten, and not lost


def test_what_is_held_to_choose_on_has_texts_and_a_relevant_passage(collection: Path, tmp_path: Path) -> None:
    prepare("hold", tmp_path / "dev.jsonl", "1", "5", f"{collection}:train", f"{collection}:test")
    found = load_dataset(str(tmp_path / "dev.jsonl"))
    assert list(found.queries) == ["1", "3"] and found.qrels is not None
    assert all(max(labels.values()) == 1 and len(labels) == 5 for labels in found.qrels.values())


def test_easy_lists_show_the_best_passage_among_others(collection: Path, tmp_path: Path) -> None:
    docs = [[f"d{i}" for i in range(start, start + 6)] for start in (0, 12)]
    lists = [
        {"qid": str(n), "query": "what do fleas eat", "docs": [{"docid": d, "score": n + i} for i, d in enumerate(own)]}
        for n, own in enumerate(docs * 3)
    ]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lists))
    prepare("easy", tmp_path / "easy.jsonl", tmp_path / "lists.jsonl", collection / "corpus.jsonl")
    for line, own in zip((tmp_path / "easy.jsonl").read_text().splitlines(), docs * 3, strict=True):
        shown = json.loads(line)["docs"]
        assert [d["docid"] for d in shown if d["label"]] == [own[-1]]
        assert not {d["docid"] for d in shown[1:]} & set(own)
