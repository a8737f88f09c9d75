"""Queries written for a corpus: who is asked, what passes, and a folder that `load_dataset` reads."""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from command import Cli, assert_error

from rerank.backbones import ScriptedBackbone
from rerank.calls import Call, GenerateCall, Kind
from rerank.data import load_dataset
from rerank.errors import CacheError, InputError, PromptError
from rerank.prompts import Prompt, load_prompt
from rerank.reranker import Reranker
from rerank.strategies import load_strategy
from rerank.training.checks import check_labels, check_options
from rerank.training.clusters import Clusters, cluster, drawn, tfidf
from rerank.training.mining import Mined, Miner, write_lists
from rerank.training.mixture import draw
from rerank.training.recipe import read_recipe
from rerank.training.sources import read_pools
from rerank.training.synthetic import (
    Notebook,
    Rules,
    Writer,
    choose,
    read_documents,
    request,
    worth,
    write_folder,
)
from rerank.types import Candidates, Passage, Query

WORDS = [f"common{i}" for i in range(14)]
FLEA = Passage(
    "An adult flea lives for about a hundred days on its host, and for two weeks without one.", "d1", "Fleas"
)


def corpus(n: int) -> dict[str, Passage]:
    return {f"d{i}": Passage(" ".join([f"word{i}", *WORDS]), f"d{i}") for i in range(n)}


def rules(**options: object) -> Rules:
    return Rules([load_prompt("query-generation"), load_prompt("query-generation-claim")], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["query-generation", "query-generation-claim"])
def test_the_prompts_ask_for_text_about_one_passage(name: str) -> None:
    prompt = load_prompt(name)
    call = prompt.ask(request(FLEA).query, [FLEA], 120)
    assert isinstance(call, GenerateCall)
    assert prompt.needs == Kind.GENERATE
    assert call.stop == ("\n",)
    assert [m.role for m in call.dialogue.messages[:3]] == ["system", "user", "assistant"]
    shown = "".join(span.text for span in call.dialogue.messages[-1].spans)
    assert FLEA.full_text in shown
    assert "to be written" not in str(call.dialogue.messages)  # the stand-in for the query is not shown


def test_a_text_prompt_ranks_nothing() -> None:
    with pytest.raises(PromptError, match=r"has a text written and orders no passages; prompts that fit.*yes-no"):
        load_strategy("pointwise", prompt="query-generation")
    with pytest.raises(PromptError, match="has no query written; give query-generation"):
        Writer((load_prompt("pointwise-yes-no"),))
    shown = load_prompt("query-generation").model_dump()
    shown["messages"] = [{"role": "user", "content": "{query} {passage}"}]
    with pytest.raises(ValueError, match="must not show a query"):
        Prompt.model_validate(shown)


def test_every_prompt_is_asked_about_every_document_in_few_batches() -> None:
    def script(call: Call) -> str:
        assert isinstance(call, GenerateCall)
        kind = "claim" if call.max_tokens == load_prompt("query-generation-claim").answer.max_tokens else "query"  # type: ignore[union-attr]
        return f' "a {kind} about {call.dialogue.passages[0].doc_id}" \nand more'

    backbone = ScriptedBackbone(script)
    writer = Writer((load_prompt("query-generation"), load_prompt("query-generation-claim")))
    rankings = list(Reranker(writer, backbone).rank_many([request(d) for d in corpus(5).values()]))
    assert [ranking.reasoning for ranking in rankings] == [
        (f"a query about d{i}", f"a claim about d{i}") for i in range(5)
    ]
    assert backbone.batches == [10]
    assert rankings[0].usage.calls == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty or endless"),
        ("?!", "empty or endless"),
        ("flea life", "too short or long"),
        ("how " * 21, "too short or long"),
        ("How long does sourdough take to rise?", "leaked from the prompt"),
        ("what is it Passage: the flea", "leaked from the prompt"),
        ("claim: fleas live long", "leaked from the prompt"),
        ("An adult flea lives for about a hundred days on its host", "copied"),
        ("How old is the oldest flea?", "excluded"),
        ("how long does a flea live", None),
        ("about a hundred days", None),  # no more words of it than a query may take
    ],
)
def test_what_passes_as_a_query(text: str, why: str | None) -> None:
    assert rules(excluded={"how old is the oldest flea"}).refuse(text, FLEA) == why


def test_none_passes_twice() -> None:
    made = rules()
    assert made.refuse("how long does a flea live", FLEA) is None
    assert made.refuse("How long does a flea live?", FLEA) == "a duplicate"


def test_documents_of_a_corpus_a_folder_and_lists(beir: Path, tmp_path: Path) -> None:
    assert list(read_documents(beir)) == list(read_documents(beir / "corpus.jsonl")) == ["d1", "d2", "d3", "d4"]
    lists = tmp_path / "lists.jsonl"
    docs = [{"docid": "a", "text": "one", "label": 2, "score": 3.0}, {"docid": "b", "text": "two", "title": "T"}]
    lines = [{"qid": "1", "query": "x", "docs": docs}, {"qid": "2", "query": "y", "docs": docs[:1]}]
    lists.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_documents(lists) == {"a": Passage("one", "a"), "b": Passage("two", "b", "T")}
    lines[1]["docs"] = [{"docid": "a", "text": "another"}]
    lists.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="the document 'a' has two texts"):
        read_documents(lists)


def test_the_draw_is_the_seeds_and_leaves_out_what_says_nothing() -> None:
    documents = corpus(50) | {"short": Passage("Home | Contact", "short")}
    assert len(worth(documents)) == 50
    one, same, other = (choose(documents, 10, seed) for seed in (1, 1, 2))
    assert one == same != other
    assert len({d.doc_id for d in one}) == 10
    assert {d.doc_id for d in choose(documents, 99, 0)} == set(documents) - {"short"}
    with pytest.raises(InputError, match="no document has 12 words"):
        choose({"short": documents["short"]}, 1, 0)


def test_each_cluster_gets_its_share() -> None:
    documents = corpus(100)
    names = [0] * 60 + [1] * 30 + [2] * 10
    of = dict(zip(documents, names, strict=True))
    groups = Clusters(tuple(names), (0.5,) * 100)
    # one each, 17 more by size: 10.2, 5.1 and 1.7, rounded down; the one that is left to the largest
    assert Counter(of[d.doc_id] for d in choose(documents, 20, 0, groups)) == {0: 12, 1: 6, 2: 2}
    assert Counter(of[d.doc_id] for d in choose(documents, 3, 0, groups)) == {0: 1, 1: 1, 2: 1}
    assert Counter(of[d.doc_id] for d in choose(documents, 2, 0, groups)) == {0: 2}
    assert Counter(of[d.doc_id] for d in choose(documents, 99, 0, groups)) == {0: 59, 1: 30, 2: 10}
    assert choose(documents, 20, 3, groups) == choose(documents, 20, 3, groups) != choose(documents, 20, 4, groups)


def test_within_a_cluster_documents_are_drawn_by_the_softmax_of_their_nearness() -> None:
    near = (0.9, 0.5, 0.1)
    weights = [math.exp(each / 0.4) for each in near]
    found = Counter(drawn(Clusters((0, 0, 0), near), 1, random.Random(seed), 0.4)[0] for seed in range(4000))
    for place, weight in enumerate(weights):
        share = weight / sum(weights)
        assert found[place] / 4000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))
    assert drawn(Clusters((0, 0, 0), near), 2, random.Random(0), 1e-6) in ([0, 1], [1, 0])  # cold: the nearest
    with pytest.raises(InputError, match="the temperature is 0"):
        drawn(Clusters((0,), (1.0,)), 1, random.Random(0), 0)


@pytest.mark.parametrize("without", [None, "sklearn"])
def test_clusters_are_found(without: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if without is None:
        pytest.importorskip("sklearn")
    else:
        monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    rng = np.random.default_rng(0)
    centres = np.eye(3, 8, dtype=np.float32) * 10
    rows = np.concatenate([centre + rng.normal(size=(20, 8)).astype(np.float32) for centre in centres])
    found = cluster(rows, 3, 0)
    assert found == cluster(rows, 3, 0)
    assert [len(set(found.names[i : i + 20])) for i in (0, 20, 40)] == [1, 1, 1]
    assert len(set(found.names)) == 3
    centre = rows[:20].mean(0)
    assert found.near[3] == pytest.approx(rows[3] @ centre / np.linalg.norm(rows[3]) / np.linalg.norm(centre), abs=1e-5)
    with pytest.raises(InputError, match="clusters is 61; give 1 to 60"):
        cluster(rows, 61, 0)


def test_words_alone_tell_topics_apart() -> None:
    topics = (["flea", "louse", "tick", "bite"], ["bond", "stock", "share", "yield"])
    texts = [" ".join(random.Random(seed).choices([*topics[seed % 2], "common"], k=12)) for seed in range(20)]
    rows = tfidf(texts, 0)
    assert rows.shape[0] == 20
    assert np.array_equal(rows, tfidf(texts, 0))
    found = cluster(rows, 2, 0)
    assert len({(i % 2, name) for i, name in enumerate(found.names)}) == 2
    with pytest.raises(InputError, match="share no word"):
        tfidf(["one two", "three four"], 0)


def test_the_folder_is_a_dataset(tmp_path: Path) -> None:
    documents = corpus(1) | {"d1": FLEA}
    written = [(documents["d0"], ["what is word0 about", ""]), (FLEA, ["how long does a flea live", "flea"])]
    passed, refused = write_folder(tmp_path, documents, written, rules())
    assert (passed, refused) == (2, {"empty or endless": 1, "too short or long": 1})
    dataset = load_dataset(f"{tmp_path}:train")
    assert {i: q.text for i, q in dataset.queries.items()} == {
        "d0-1": "what is word0 about",
        "d1-1": "how long does a flea live",
    }
    assert dataset.qrels == {"d0-1": {"d0": 1}, "d1-1": {"d1": 1}}
    assert dataset.corpus == documents
    with pytest.raises(InputError, match="none of the texts written passes as a query"):
        write_folder(tmp_path, documents, [(FLEA, ["flea"])], rules())


def test_a_query_that_does_not_lead_back_to_its_document_is_dropped(tmp_path: Path) -> None:
    documents = corpus(30)
    written = [(documents["d7"], ["where is word7 found", "where is common1 found", "where is word9 found"])]
    passed, refused = write_folder(tmp_path, documents, written, rules(), round_trip=5)
    assert (passed, refused) == (1, {"not found again": 2})
    assert list(load_dataset(f"{tmp_path}:train").queries) == ["d7-1"]


def test_a_notebook_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "queries.journal"
    Notebook(path, {"seed": 1}).add({"a": ["x", "y"], "b": []})
    with path.open("a") as file:
        file.write('{"doc_id": "c", "te')
    again = Notebook(path, {"seed": 1})
    assert again.texts == {"a": ["x", "y"], "b": []}
    again.add({"c": ["z"]})
    assert Notebook(path, {"seed": 1}).texts == {"a": ["x", "y"], "b": [], "c": ["z"]}
    with pytest.raises(CacheError, match=r"other settings \(seed: 1 there, 2 now\)"):
        Notebook(path, {"seed": 2})
    path.write_text("{broken}\n")
    with pytest.raises(CacheError, match=r"is damaged \(JSONDecodeError\)"):
        Notebook(path, {"seed": 1})


def test_the_command_goes_on_and_refuses_another_task(cli: Cli, tmp_path: Path, model: list[str]) -> None:
    """A random model writes no query worth keeping, so its texts are replaced in the journal."""
    folder, out = tmp_path / "corpus.jsonl", tmp_path / "out"
    records = [{"_id": d.doc_id, "text": d.text} for d in corpus(6).values()]
    folder.write_text("".join(json.dumps(record) + "\n" for record in records))
    prompt = tmp_path / "short.yaml"  # the tiny model's tokens are letters
    prompt.write_text(
        "{name: short, version: 1, source: here, answer: {kind: text, max_tokens: 3},"
        " messages: [{role: user, content: '{passage}'}]}"
    )
    asked = ("data", "queries", folder, "--out", out, "-n", 4, "--block", 3, "-p", prompt, *model)
    first = cli(*asked)
    assert first.status == 2, first
    assert "4 documents, 4 calls" in first.err
    assert "none of the texts written passes as a query (4 empty or endless)" in first.err
    journal = out / "queries.journal"
    head, *lines = map(json.loads, journal.read_text().splitlines())
    assert len(lines) == 4
    assert len({line["doc_id"] for line in lines}) == 4
    texts = [["tell me of alpha"], ["tell me of beta"], ["tell me of beta"]]
    done = [line | {"texts": text} for line, text in zip(lines[:3], texts, strict=True)]
    journal.write_text("".join(json.dumps(line) + "\n" for line in [head, *done]))
    again = cli(*asked, "--exclude", folder.parent / "test.tsv")
    assert_error(again, "test.tsv")
    (folder.parent / "test.tsv").write_text("1\tTell me of ALPHA!\n")
    again = cli(*asked, "--exclude", folder.parent / "test.tsv")
    assert again.status == 0, again
    assert "documents done: 3; going on from there" in again.err
    assert "1 a duplicate" in again.err
    assert "1 excluded" in again.err
    assert [q.text for q in load_dataset(f"{out}:train").queries.values()] == ["tell me of beta"]
    assert_error(cli(*asked, "--seed", 1), "was begun with other settings (seed: 0 there, 1 now)")
    journal.unlink()
    assert_error(cli(*asked), "holds a train split that was not made here")


def test_the_recipe_of_duqgen_takes_what_mining_leaves(tmp_path: Path) -> None:
    """Each query's document and its last candidates, beside the recipe as the guide's commands put them."""
    home = Path(__file__).parents[1]
    (tmp_path / "docs").mkdir()
    recipe_file = shutil.copy(home / "docs" / "duqgen.yaml", tmp_path / "docs")
    (tmp_path / "rerank").symlink_to(home / "rerank")
    with pytest.raises(InputError, match=r"made/lists.jsonl"):
        read_recipe(recipe_file)
    (tmp_path / "made").mkdir()
    queries = {f"q{i}": Query(f"what is said of {i}", f"q{i}") for i in range(3)}
    passages = [Passage(f"words on {i}", f"d{i}") for i in range(5)]
    mined = [Mined(Candidates(q, tuple(passages)), {f"d{i}": int(i == 0) for i in range(5)}) for q in queries.values()]
    assert write_lists(tmp_path / "made" / "lists.jsonl", mined) == {"queries": 3, "positives": 3, "negatives": 12}
    recipe = read_recipe(recipe_file)
    check_options(recipe)
    (source,) = recipe.data
    pools = read_pools(source, tmp_path / "docs")
    check_labels(recipe, [(source, pools)])
    assert [pool.query.query_id for pool in pools] == list(queries)
    for pool in pools:
        shown = draw(pool, source, np.random.default_rng(0))
        assert len(shown) == 5 and sorted(pool.labels[i] for i in shown) == [0, 0, 0, 0, 1]


NFCORPUS = Path(__file__).parents[2] / "shared" / "data" / "beir" / "nfcorpus"


@pytest.mark.skipif(not NFCORPUS.is_dir(), reason="NFCorpus is not there")
def test_duqgen_on_a_real_corpus(tmp_path: Path) -> None:
    """Clusters by words, a draw over them, scripted queries, and the last of BM25's candidates as negatives."""
    documents = {d.doc_id: d for d in islice(load_dataset(str(NFCORPUS)).corpus.values(), 400)}  # type: ignore[union-attr]
    known = worth(documents)
    groups = cluster(tfidf([d.full_text for d in known], 0), 20, 0)
    assert len(set(groups.names)) == 20
    chosen = choose(documents, 30, 0, groups)
    assert [d.doc_id for d in chosen] == [d.doc_id for d in choose(documents, 30, 0, groups)]
    of = dict(zip((d.doc_id for d in known), groups.names, strict=True))
    assert len({of[d.doc_id] for d in chosen}) == 20  # each of them is represented

    def script(call: Call) -> str:
        return f"what is said of {' '.join(call.dialogue.passages[0].full_text.split()[:5])}"

    backbone = ScriptedBackbone(script)
    rankings = Reranker(Writer((load_prompt("query-generation"),)), backbone).rank_many(map(request, chosen))
    passed, _ = write_folder(
        tmp_path, documents, ((d, r.reasoning) for d, r in zip(chosen, rankings, strict=True)), rules()
    )
    assert passed > 20
    made = load_dataset(f"{tmp_path}:train")
    mined = list(Miner(negatives=4, last=True).mine(made, made.candidates(100)))
    assert len(mined) == passed
    for one in mined:
        assert sum(one.labels.values()) == 1
        assert len(one.labels) == 5
    counts = write_lists(tmp_path / "lists.jsonl", mined)
    assert counts == {"queries": passed, "positives": passed, "negatives": 4 * passed}
