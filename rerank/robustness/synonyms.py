"""Synonyms: which words may stand for which, from a file, or from the words' own embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from rerank.data.dense import unit
from rerank.data.files import filled_lines, read_lines
from rerank.errors import InputError
from rerank.robustness.edits import WORD, recased
from rerank.types import Candidates

THRESHOLD = 0.8  # of the cosine. Below it all-MiniLM-L6-v2 has opposites and siblings: legal, criminal; upper, lower
MOST = 8  # synonyms of a word
LEAST_LETTERS = 3

Embed = Callable[[list[str]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Synonyms:
    """`sets[word]` are its synonyms without itself, nearest first; all in small letters, each a run of letters.

    The relation is symmetric, as it has to be for a certificate: who wrote the text may have begun at either word.
    """

    sets: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        for word, others in self.sets.items():
            for each in (word, *others):
                if not _usable(each):
                    raise InputError(f"{each!r} is no synonym: each is one word, of two small letters or more")
            if word in others or len(set(others)) < len(others):
                raise InputError(f"the synonyms of {word!r} hold it itself, or one of them twice")
            if missing := [each for each in others if word not in self.sets.get(each, ())]:
                raise InputError(f"{missing[0]!r} is a synonym of {word!r} and not the other way; give both")

    def of(self, word: str) -> tuple[str, ...]:
        return self.sets.get(word.lower(), ())

    def one(self, text: str, rng: Random) -> str:
        """A word that has synonyms becomes the nearest of them."""
        words = [word for word in WORD.finditer(text) if self.of(word[0])]
        if not words:
            return text
        word = rng.choice(words)
        return text[: word.start()] + recased(self.of(word[0])[0], word[0]) + text[word.end() :]

    def some(self, text: str, rng: Random, *, share: float) -> str:
        """So large a share of the words that have synonyms, at least one, become any of theirs."""
        words = [word for word in WORD.finditer(text) if self.of(word[0])]
        changed = rng.sample(words, min(len(words), max(1, round(share * len(words)))))
        for word in sorted(changed, key=lambda each: -each.end()):
            other = recased(rng.choice(self.of(word[0])), word[0])
            text = text[: word.start()] + other + text[word.end() :]
        return text

    @classmethod
    def read(cls, path: Path) -> Synonyms:
        """A file of lines `word<TAB>synonym synonym …`, nearest first, such as a dump of WordNet. What is said one way
        is taken to hold the other way as well."""
        pairs = []
        for where, line in filled_lines(read_lines(str(path)), str(path)):
            word, tab, others = line.partition("\t")
            if not tab or not others.split():
                raise InputError(f"{where}: {line!r}; expected 'word<TAB>synonym synonym'")
            pairs += [(word.strip().lower(), each.lower()) for each in others.split()]
        return cls.symmetric(pairs)

    @classmethod
    def symmetric(cls, pairs: Iterable[tuple[str, str]]) -> Synonyms:
        """Of pairs of words, those said first nearest."""
        found: dict[str, dict[str, None]] = {}
        for one, other in pairs:
            if one != other:
                found.setdefault(one, {})[other] = None
                found.setdefault(other, {})[one] = None
        return cls({word: tuple(others) for word, others in found.items()})

    @classmethod
    def embedded(
        cls, words: Sequence[str], embed: Embed, *, threshold: float = THRESHOLD, most: int = MOST
    ) -> Synonyms:
        """Words whose embeddings' cosine is `threshold` or more, each among the `most` nearest of the other."""
        if not words:
            return cls({})
        rows = unit(embed(list(words)))
        pairs = []
        near: list[set[int]] = []
        for row in rows:
            cosines = rows @ row
            best = np.argsort(-cosines, kind="stable")[: most + 1]
            near.append({int(i) for i in best if cosines[i] >= threshold})
        for i, others in enumerate(near):
            pairs += [(float(rows[i] @ rows[j]), words[i], words[j]) for j in others if i < j and i in near[j]]
        return cls.symmetric((one, other) for _, one, other in sorted(pairs, key=lambda pair: (-pair[0], pair[1:])))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.sets, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Synonyms:
        """What `save` wrote."""
        try:
            return cls({word: tuple(others) for word, others in json.loads(path.read_text(encoding="utf-8")).items()})
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{path} holds no synonyms ({error}); delete it to have it made again") from error


def vocabulary(requests: Iterable[Candidates]) -> list[str]:
    """The words of queries and passages that may have synonyms: of three letters and more, no stop words; sorted."""
    from rerank.data.bm25 import stop_words

    found = {
        word.lower()
        for request in requests
        for text in (request.query.text, *(passage.full_text for passage in request.passages))
        for word in WORD.findall(text)
        if len(word) >= LEAST_LETTERS
    }
    return sorted(word for word in found - stop_words() if _usable(word))


def _usable(word: str) -> bool:
    """One word whose capitals lead back to it, so that how it was written is known from any of its synonyms."""
    return len(word) > 1 and WORD.fullmatch(word) is not None and word.upper().lower() == word == word.lower()
