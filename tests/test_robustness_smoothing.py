"""Certificates: by hand, against every attack there is, and by the rate at which sampled ones may fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from random import Random

import pytest

from rerank.errors import InputError
from rerank.robustness import Smoothing, Synonyms
from rerank.robustness.edits import WORD
from rerank.types import Candidates, Passage, Query

Score = Callable[[str], float]


def scored(smoothing: Smoothing, asked: Candidates, score: Score) -> dict[str, float]:
    return {passage.doc_id: score(passage.full_text) for passage in smoothing.request(asked).passages}


def of_texts(*texts: str) -> Candidates:
    return Candidates(Query("q"), tuple(Passage(text, f"d{i}") for i, text in enumerate(texts)))


def exact(smoothing: Smoothing, text: str, score: Score) -> float:
    """g of a text: the mean over every choice from the perturbation sets."""
    sets = [smoothing.sets.get(word, (word,)) for word in text.split()]
    texts = [" ".join(words) for words in product(*sets)]
    return sum(map(score, texts)) / len(texts)


def attacks(synonyms: Synonyms, text: str, words: int | None = None) -> list[str]:
    """Every text that an attacker may make, of at most so many words."""
    own = text.split()
    choices = product(*[(word, *synonyms.of(word)) for word in own])
    most = len(own) if words is None else words
    return [" ".join(each) for each in choices if sum(a != b for a, b in zip(each, own, strict=True)) <= most]


def test_a_case_by_hand() -> None:
    """A chain big - large - huge, sets of two words: P_big = {big, large}, P_large = {large, big},
    P_huge = {huge, large}. q_big = |P_big ∩ P_large| / 2 = 1; q_large = min(1, |P_large ∩ P_huge| / 2) = 1/2."""
    synonyms = Synonyms.symmetric([("big", "large"), ("large", "huge")])
    smoothing = Smoothing.of(synonyms, size=2, samples=100)
    assert smoothing.sets == {"big": ("big", "large"), "large": ("big", "large"), "huge": ("huge", "large")}
    assert smoothing.overlaps == {"big": 1.0, "large": 0.5, "huge": 0.5}
    asked = of_texts("big dog", "a large huge cat", "no word")
    assert smoothing.slack("big dog") == 0
    assert smoothing.slack("a Large huge cat") == pytest.approx(1 - 0.5 * 0.5)
    value = {"big": 0.9, "large": 0.7, "huge": 0.2}

    def score(text: str) -> float:
        return sum(value.get(word, 0.0) for word in text.split()) / 2

    found = smoothing.smoothed(asked, scored(smoothing, asked, score))
    big, cat = (0.9 + 0.7) / 2 / 2, ((0.9 + 0.7) / 2 + (0.7 + 0.2) / 2) / 2
    assert found.means == pytest.approx((big, cat, 0.0))
    assert found.errors == (0.0, 0.0, 0.0)  # 2, 4 and 1 texts: all were scored
    assert found.order == [1, 0, 2]
    # behind the first: 'big dog' with g .4 and no slack, and the last with 0: the first has .625
    assert found.margin(1) == pytest.approx(cat - big)
    assert found.margin(2) == pytest.approx(big)
    assert (found.certified(1), found.certified(2), found.certified(3)) == (True, True, None)


def test_one_attacked_word_costs_less_than_all() -> None:
    synonyms = Synonyms.symmetric([("big", "large"), ("large", "huge")])
    assert Smoothing.of(synonyms, size=2, words=1).slack("large huge huge") == pytest.approx(0.5)
    assert Smoothing.of(synonyms, size=2).slack("large huge huge") == pytest.approx(1 - 0.5**3)


def test_a_group_no_larger_than_the_sets_is_beyond_attack() -> None:
    synonyms = Synonyms.symmetric([("big", "large"), ("large", "huge")])
    smoothing = Smoothing.of(synonyms, size=3)
    assert set(smoothing.overlaps.values()) == {1.0}
    score = {"big": 0.1, "large": 0.6, "huge": 1.0}.__getitem__
    assert len({round(exact(smoothing, word, score), 12) for word in synonyms.sets}) == 1


def toy(seed: int) -> tuple[Synonyms, Candidates, Score]:
    """A random graph of synonyms over nine words, four passages of three, and a score that is a random function."""
    rng = Random(seed)
    words = [f"w{letter}" for letter in "abcdefghi"]
    pairs = [(a, b) for i, a in enumerate(words) for b in words[i + 1 :] if rng.random() < 0.2]
    centre = {word: rng.random() for word in words}
    known: dict[str, float] = {}

    def score(text: str) -> float:
        mean = sum(centre.get(word, 0.0) for word in WORD.findall(text)) / 3
        if text not in known:
            known[text] = min(1.0, max(0.0, 1.6 * mean - 0.3 + Random(f"{seed}{text}").uniform(-0.3, 0.3)))
        return known[text]

    texts = {" ".join(rng.choices(words, k=3)) for _ in range(4)}
    return Synonyms.symmetric(pairs), of_texts(*sorted(texts)), score


@pytest.mark.parametrize("words", [None, 1])
def test_no_attack_breaks_a_certificate(words: int | None) -> None:
    """Every attack on every passage behind the first k, for 150 rankers and lists; g is exact on both sides."""
    certified = broken_without = 0
    for seed in range(150):
        synonyms, asked, score = toy(seed)
        smoothing = Smoothing.of(synonyms, size=2 + seed % 3, samples=10_000, words=words)
        found = smoothing.smoothed(asked, scored(smoothing, asked, score))
        texts = [passage.text for passage in asked.passages]
        assert found.means == pytest.approx([exact(smoothing, text, score) for text in texts])
        for k in range(1, len(texts)):
            held = min(found.means[i] for i in found.order[:k])
            attacked = max(
                exact(smoothing, other, score) for i in found.order[k:] for other in attacks(synonyms, texts[i], words)
            )
            if found.certified(k):
                certified += 1
                assert attacked < held
            broken_without += attacked >= held
    assert certified > 40
    assert broken_without > 40  # there are lists that attacks do change, and none of them is certified


def test_what_is_sampled_fails_no_more_often_than_it_says() -> None:
    """With 60 samples of up to 4³ texts: a certificate is wrong where an attack, on the exact g, gets through."""
    certified = wrong = 0
    for seed in range(300):
        synonyms, asked, score = toy(seed)
        smoothing = Smoothing.of(synonyms, size=4, samples=60, confidence=0.8, seed=seed)
        found = smoothing.smoothed(asked, scored(smoothing, asked, score))
        texts = [passage.text for passage in asked.passages]
        for k in range(1, len(texts)):
            if found.certified(k):
                certified += 1
                held = min(exact(smoothing, texts[i], score) for i in found.order[:k])
                best = max(
                    exact(smoothing, other, score) for i in found.order[k:] for other in attacks(synonyms, texts[i])
                )
                wrong += best >= held
    assert certified > 20
    assert wrong <= 0.2 * certified


def test_the_allowance_is_hoeffdings_for_all_that_are_sampled() -> None:
    synonyms = Synonyms.symmetric([("big", "large")])
    asked = of_texts("big big big big", "big", "large large large big")
    smoothing = Smoothing.of(synonyms, samples=8, confidence=0.95)
    found = smoothing.smoothed(asked, scored(smoothing, asked, lambda text: 0.5))
    allowance = math.sqrt(math.log(2 * 2 / 0.05) / (2 * 8))  # 2 of 3 are sampled: 16 texts each, and 2
    assert found.errors == pytest.approx((allowance, 0.0, allowance))
    assert found.certified(1) is False


def test_variants_are_the_seeds_and_keep_how_words_are_written() -> None:
    synonyms = Synonyms.symmetric([("big", "large"), ("dog", "hound")])
    passage = Passage("a big DOG.", "d", "Big news")
    every = Smoothing.of(synonyms).variants(passage, "q")
    assert set(every.texts) == {
        f"{one} news a {two} {three}."
        for one in ("Big", "Large")
        for two in ("big", "large")
        for three in ("DOG", "HOUND")
    }
    assert every.exact
    few = [Smoothing.of(synonyms, samples=3, seed=seed).variants(passage, "q") for seed in (0, 0, 1, 2, 3)]
    assert few[0] == few[1]
    assert len({each.texts for each in few}) > 1
    assert all(sum(each.counts) == 3 and not each.exact for each in few)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"confidence": 1.0}, "between 0 and 1"),
        ({"words": 0}, "words is 0"),
        ({"size": 0}, "set of 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, float], why: str) -> None:
    with pytest.raises(InputError, match=why):
        Smoothing.of(Synonyms({}), **options)  # type: ignore[arg-type]


def test_scores_outside_the_bounds_are_refused() -> None:
    asked = of_texts("one", "two")
    with pytest.raises(InputError, match=r"a score of query 'q' is 1\.5; f has to lie in \[0, 1\]"):
        Smoothing.of(Synonyms({})).smoothed(asked, {"0.0": 0.5, "1.0": 1.5})
