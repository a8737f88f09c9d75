"""Edits, perturbations and synonyms: what each does to which text, by the seed and the ids alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.errors import InputError, UnknownNameError
from rerank.eval.stability import kendall_tau, rbo
from rerank.robustness import Setting, Synonyms, chosen, edits, perturbations, perturbed
from rerank.robustness.perturbations import injections, target
from rerank.robustness.synonyms import vocabulary
from rerank.types import Candidates, Passage, Query

SYNONYMS = Synonyms.symmetric([("flea", "louse"), ("flea", "tick"), ("long", "lengthy")])
TEXT = "How long does a Flea live? It lives a hundred days. On its host, that is."


def request(query_id: str = "q1", n: int = 5) -> Candidates:
    passages = [Passage(f"{TEXT} Number {i} of them.", f"{query_id}-d{i}", score=10.0 - i) for i in range(n)]
    return Candidates(Query("how long does a flea live", query_id), tuple(passages))


def setting(**more: object) -> Setting:
    others = [passage for name in ("q1", "q2", "q3") for passage in request(name).passages]
    labels = {"q1": {"q1-d0": 2, "q1-d1": 1, "q1-d2": 0}}
    return Setting(0, labels, tuple(others), SYNONYMS, **more)  # type: ignore[arg-type]


@given(st.text(alphabet="ab Cd.", max_size=12), st.integers(0, 99))
def test_an_edit_of_one_thing_changes_it_where_it_can(text: str, seed: int) -> None:
    letters = [letter for letter in text if letter.isalpha()]
    for edit in (edits.press_neighbour, edits.replace_letter):
        changed = edit(text, Random(seed))
        assert len(changed) == len(text)
        assert sum(a != b for a, b in zip(text, changed, strict=True)) == min(1, len(letters))
    swapped = edits.swap_letters(text, Random(seed))
    assert Counter(swapped) == Counter(text)
    assert sum(a != b for a, b in zip(text, swapped, strict=True)) in (0, 2)
    moved = edits.swap_words(text, Random(seed))
    assert Counter(edits.WORD.findall(moved)) == Counter(edits.WORD.findall(text))
    assert (moved == text) == (len({word.casefold() for word in edits.WORD.findall(text)}) < 2)


def test_keys_lie_beside_their_neighbours() -> None:
    assert set(edits.NEIGHBOURS["g"]) == set("fhtyvb")
    assert set(edits.NEIGHBOURS["q"]) == set("wa")
    assert all(key in edits.NEIGHBOURS[other] for key, others in edits.NEIGHBOURS.items() for other in others)


def test_edits_of_passages() -> None:
    rng = Random(1)
    sentences = edits.shuffle_sentences(TEXT, rng)
    assert sentences != TEXT
    assert Counter(sentences.split()) == Counter(TEXT.split())
    assert edits.shuffle_sentences("One sentence only.", rng) == "One sentence only."
    assert edits.first_half("a b c d e", rng) == "a b c"
    noisy = edits.noisy(0.5)(TEXT, rng)
    longer = [word for word in edits.WORD.findall(TEXT) if len(word) > 3]
    wrong = [a != b for a, b in zip(TEXT.split(), noisy.split(), strict=True)]
    assert sum(wrong) == round(0.5 * len(longer))
    assert edits.without({"how", "a"})("How a flea", rng) == "flea"
    assert edits.without({"how", "a"})("How a", rng) == "How a"
    assert sorted(edits.scatter("x y", ["p", "q"], rng).split()) == ["p", "q", "x", "y"]


@pytest.mark.parametrize("name", list(perturbations()))
def test_what_is_drawn_depends_on_the_seed_and_the_ids_alone(name: str) -> None:
    one = perturbations()[name]
    asked = request()
    first = perturbed(one, asked, setting())
    assert first != asked
    assert perturbed(one, asked, setting()) == first
    assert len({p.doc_id for p in first.passages}) == len(first)
    assert first.query.query_id == "q1"
    fixed = {"capitals", "no-stop-words", "first-half", "reversed"}
    if one.kind != "injection" and name not in fixed:
        seeds = {
            str(perturbed(one, asked, Setting(s, setting().labels, setting().passages, SYNONYMS))) for s in range(8)
        }
        assert len(seeds) > 1
    if one.kind == "passages":  # a passage is disturbed alike whatever stands beside it
        shorter = perturbed(one, Candidates(asked.query, asked.passages[:2]), setting())
        assert shorter.passages == first.passages[:2]


def test_queries_lists_and_distractors() -> None:
    made = {name: perturbed(each, request(), setting()) for name, each in perturbations().items()}
    assert made["capitals"].query.text == "HOW LONG DOES A FLEA LIVE"
    assert made["no-stop-words"].query.text == "how long does flea live"
    assert made["query-synonym"].query.text in {"how lengthy does a flea live", "how long does a louse live"}
    assert made["reversed"].passages == request().passages[::-1]
    assert sorted(made["shuffled"].passages, key=lambda p: p.doc_id) == list(request().passages)
    for name in ("distractors", "lexical-decoys"):
        kept, added = made[name].passages[:5], made[name].passages[5:]
        assert kept == request().passages
        assert len(added) == 3
        assert {p.score for p in added} == {6.0}  # the lowest of the first stage's
        assert not any(p.doc_id.startswith("q1") for p in added)
    for decoy in made["lexical-decoys"].passages[5:]:
        assert Counter(["how", "long", "does", "a", "flea", "live"]) <= Counter(decoy.text.split())
    alone = Setting(0, {}, request().passages, SYNONYMS)
    with pytest.raises(InputError, match="distractors are passages of other queries, and there are 0"):
        perturbed(perturbations()["distractors"], request(), alone)


def test_injections_go_into_one_passage_that_is_not_relevant() -> None:
    chosen_one = target(request(), setting())
    assert chosen_one is not None
    assert chosen_one.doc_id not in {"q1-d0", "q1-d1"}
    for name, text in injections().texts.items():
        made = perturbed(perturbations()[f"injected-{name}"], request(), setting())
        changed = [new for old, new in zip(request().passages, made.passages, strict=True) if old != new]
        assert [p.doc_id for p in changed] == [chosen_one.doc_id]
        assert changed[0].text == f"{text.replace('{query}', request().query.text)} {chosen_one.text}"
    good = Setting(0, {"q1": {f"q1-d{i}": 1 for i in range(5)}})
    assert target(request(), good) is None
    assert perturbed(perturbations()["injected-command"], request(), good) == request()


def test_what_cannot_be_disturbed_stays() -> None:
    asked = Candidates(Query("flea", "q"), (Passage("Flea.", "d"),))
    assert perturbed(perturbations()["word-order"], asked, setting()) == asked
    assert perturbed(perturbations()["sentence-order"], asked, setting()) == asked
    with pytest.raises(InputError, match="needs synonyms"):
        perturbed(perturbations()["query-synonym"], asked, Setting())


def test_perturbations_are_chosen_by_name_and_kind() -> None:
    assert [each.name for each in chosen(None)] == list(perturbations())
    assert [each.name for each in chosen(["order", "capitals"])] == ["capitals", "shuffled", "reversed"]
    assert chosen(["none"]) == []
    with pytest.raises(UnknownNameError, match="unknown perturbation 'capitls'; did you mean 'capitals'"):
        chosen(["capitls"])


def test_synonyms_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "s.tsv"
    file.write_text("Flea\tlouse tick\nlong\tlengthy\n")
    assert Synonyms.read(file) == SYNONYMS
    assert SYNONYMS.of("FLEA") == ("louse", "tick")
    assert SYNONYMS.of("louse") == ("flea",)
    assert SYNONYMS.one("A Flea!", Random(0)) == "A Louse!"
    assert SYNONYMS.some("flea FLEA x", Random(0), share=1.0).split()[1] in {"LOUSE", "TICK"}
    SYNONYMS.save(tmp_path / "s.json")
    assert Synonyms.load(tmp_path / "s.json") == SYNONYMS
    for bad, why in [("flea\n", "expected 'word<TAB>synonym"), ("flea\tbed-bug\n", "'bed-bug' is no synonym")]:
        file.write_text(bad)
        with pytest.raises(InputError, match=why):
            Synonyms.read(file)
    with pytest.raises(InputError, match="and not the other way"):
        Synonyms({"a" * 3: ("b" * 3,)})
    (tmp_path / "s.json").write_text("[1]")
    with pytest.raises(InputError, match=r"holds no synonyms .* delete it"):
        Synonyms.load(tmp_path / "s.json")


def test_synonyms_of_embeddings_are_near_both_ways() -> None:
    angles = {"flea": 0.0, "louse": 0.1, "tick": 0.2, "stock": 1.5, "share": 1.55}
    rows = {word: [np.cos(angle), np.sin(angle)] for word, angle in angles.items()}
    embed = lambda words: 3 * np.array([rows[w] for w in words], dtype=np.float32)  # noqa: E731
    found = Synonyms.embedded(list(angles), embed, threshold=0.99)
    assert found.sets == {
        "share": ("stock",),
        "stock": ("share",),
        "flea": ("louse",),
        "louse": ("flea", "tick"),
        "tick": ("louse",),
    }
    assert Synonyms.embedded([], embed).sets == {}


def test_the_vocabulary_has_words_that_may_be_exchanged() -> None:
    asked = Candidates(Query("The Fleas of x9", "q"), (Passage("straße and it, don't", "d", "A Title"),))
    assert vocabulary([asked]) == ["don", "fleas", "title"]


def test_stability_of_orders() -> None:
    assert kendall_tau("abcd", "abcd") == 1
    assert kendall_tau("abcd", "dcba") == -1
    assert kendall_tau("abc", "xacy") == kendall_tau("ac", "ac") == 1  # what only one has is left out
    p = 0.9
    by_hand = (1 - p) / p * (0 * p + 1 / 2 * 2 * p**2 + 1 * p**3) + 1 * p**3
    assert rbo("abc", "bac") == pytest.approx(by_hand)  # overlaps 0, 1, 1 at depths 1, 2, 3
    assert rbo("abc", "abc") == pytest.approx(1)
    assert rbo("abcdef", "bacdef") < rbo("abcdef", "abcdfe")  # the head counts most
    with pytest.raises(InputError, match="twice"):
        rbo("aab", "ab")
    with pytest.raises(InputError, match="between 0 and 1"):
        rbo("ab", "ab", p=1)
