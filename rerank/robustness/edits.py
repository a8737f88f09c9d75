"""Edits of a text: pure functions `edit(text, rng) -> text`. Where nothing can be edited the text comes back as it is.

A word is a run of letters. An edit of one word or letter always changes the text, if any does.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Collection
from random import Random

WORD = re.compile(r"[^\W\d_]+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")

# Who lies beside whom on a QWERTY keyboard, by its three rows; a key's neighbours in the row above and below included.
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOURS: dict[str, str] = {
    key: "".join(
        other
        for r in (row - 1, row, row + 1)
        if 0 <= r < len(_ROWS)
        for c, other in enumerate(_ROWS[r])
        if other != key and -1 <= (c + 0.5 * r) - (column + 0.5 * row) <= 1
    )
    for row, keys in enumerate(_ROWS)
    for column, key in enumerate(keys)
}

Edit = Callable[[str, Random], str]


def swap_letters(text: str, rng: Random) -> str:
    """Two neighbouring letters of a word change places."""
    places = [
        i
        for word in WORD.finditer(text)
        for i in range(word.start(), word.end() - 1)
        if text[i].casefold() != text[i + 1].casefold()
    ]
    if not places:
        return text
    i = rng.choice(places)
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]


def press_neighbour(text: str, rng: Random) -> str:
    """A letter becomes one beside it on a QWERTY keyboard."""
    return _one_letter(text, rng, NEIGHBOURS.keys(), lambda letter: rng.choice(NEIGHBOURS[letter]))


def replace_letter(text: str, rng: Random) -> str:
    """A letter becomes any other."""
    letters = string.ascii_lowercase
    return _one_letter(text, rng, letters, lambda letter: rng.choice(letters.replace(letter, "")))


def _one_letter(text: str, rng: Random, known: Collection[str], other: Callable[[str], str]) -> str:
    places = [i for i, letter in enumerate(text) if letter.lower() in known]
    if not places:
        return text
    i = rng.choice(places)
    return text[:i] + recased(other(text[i].lower()), text[i]) + text[i + 1 :]


def capitals(text: str, rng: Random) -> str:
    return text.upper()


def swap_words(text: str, rng: Random) -> str:
    """Two words that differ change places; what is between them stays."""
    found = list(WORD.finditer(text))
    pairs = [(a, b) for i, a in enumerate(found) for b in found[i + 1 :] if a[0].casefold() != b[0].casefold()]
    if not pairs:
        return text
    a, b = rng.choice(pairs)
    return text[: a.start()] + b[0] + text[a.end() : b.start()] + a[0] + text[b.end() :]


def without(words: Collection[str]) -> Edit:
    """Leaves these words out; a text of nothing else stays as it is."""

    def edit(text: str, rng: Random) -> str:
        kept = " ".join(WORD.sub(lambda word: "" if word[0].casefold() in words else word[0], text).split())
        return kept if WORD.search(kept) else text

    return edit


def noisy(share: float) -> Edit:
    """So large a share of the words of four letters and more, at least one, get a typing error each."""

    def edit(text: str, rng: Random) -> str:
        words = [word for word in WORD.finditer(text) if len(word[0]) > 3]
        for word in sorted(
            rng.sample(words, min(len(words), max(1, round(share * len(words))))), key=lambda w: -w.end()
        ):
            wrong = rng.choice((swap_letters, press_neighbour, replace_letter))(word[0], rng)
            text = text[: word.start()] + wrong + text[word.end() :]
        return text

    return edit


def shuffle_sentences(text: str, rng: Random) -> str:
    """The sentences in another order."""
    sentences = _SENTENCE.split(text.strip())
    if len(set(sentences)) < 2:
        return text
    mixed = sentences
    while mixed == sentences:
        mixed = rng.sample(sentences, len(sentences))
    return " ".join(mixed)


def first_half(text: str, rng: Random) -> str:
    """The first half of the words."""
    words = text.split()
    return " ".join(words[: (len(words) + 1) // 2])


def scatter(text: str, words: list[str], rng: Random) -> str:
    """The text with these words put in, each at a place of its own drawing."""
    found = text.split()
    for word in words:
        found.insert(rng.randint(0, len(found)), word)
    return " ".join(found)


def recased(word: str, like: str) -> str:
    """In capitals, with a capital, or in small letters, as `like` is.

    >>> recased("large", "Big"), recased("large", "BIG"), recased("Large", "big")
    ('Large', 'LARGE', 'large')
    """
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[:1].upper() + word[1:].lower() if like[:1].isupper() else word.lower()
