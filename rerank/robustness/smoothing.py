"""Certified top-K robustness by randomised smoothing, for rankers that score each passage alone.

CertDR: Wu et al., "Certified Robustness to Word Substitution Ranking Attack for Neural Ranking Models", CIKM 2022, on
the bound of SAFER: Ye, Gong and Liu, ACL 2020.

Who attacks replaces words w of a passage x by synonyms w' in S_w, as many as `words` of them, to bring it among the
first K. The smoothed ranker does not score x but the mean of f in [0, 1] over texts z in which every word is drawn
evenly from its perturbation set P_w, w included:

    g(q, x) = E f(q, z),  z ~ Π_w uniform(P_w)

Whatever x' is made of x, the two distributions share at least Π q_w of their mass, q_w = min over w' in S_w of the
overlap of uniform(P_w) and uniform(P_w'), |P_w ∩ P_w'| / max(|P_w|, |P_w'|). f is within [0, 1], hence

    g(q, x') <= g(q, x) + 1 - Π q_w

and the list is certified where this bound of every passage behind the first K lies below g of the K-th: no attack, on
one of them or on all at once, brings one of them in.

Departures: CertDR holds the best g behind the K-th and the largest 1 - Π q_w together, though they may be of two
passages; here each passage has its own, which certifies more. SAFER's overlap divides by |P_w| and wants sets of
one size; divided by the larger of the two it needs no such thing. CertDR's allowance for sampling, 2 √(ln(2/.05)/2n),
is for two scores; here Hoeffding's bound holds for all passages of a query together with probability `confidence`,
√(ln(2 m/(1 - confidence))/2n) for m that are sampled. A passage of so few variants that `samples` would do for all
of them is not sampled: its g is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from random import Random

from rerank.errors import InputError
from rerank.robustness.edits import WORD, recased
from rerank.robustness.synonyms import Synonyms
from rerank.types import Candidates, Passage

PERTURBATION_SET = 100  # the most words of P_w, as in both papers
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Smoothing:
    """`words` is how many words of a passage are attacked at most, None for all. `sets[w]` is P_w of each word that
    has synonyms; `overlaps[w]` its q_w."""

    synonyms: Synonyms
    sets: Mapping[str, tuple[str, ...]]
    overlaps: Mapping[str, float]
    samples: int
    confidence: float
    words: int | None
    seed: int

    @classmethod
    def of(
        cls,
        synonyms: Synonyms,
        *,
        samples: int = 1000,
        confidence: float = 0.95,
        words: int | None = None,
        size: int = PERTURBATION_SET,
        seed: int = 0,
    ) -> Smoothing:
        """`size` bounds the perturbation sets. A group of words that are linked by synonyms and no more than `size` is
        the set of each of them, and no attack within it has any effect; of a larger one a word's set is itself, its
        synonyms, theirs, and so on, up to `size`."""
        if samples < 1:
            raise InputError(f"samples is {samples}; give at least 1")
        if not 0 < confidence < 1:
            raise InputError(f"the confidence is {confidence}; give a share between 0 and 1, as 0.95")
        if words is not None and words < 1:
            raise InputError(f"words is {words}; give how many may be replaced, at least 1, or none for all")
        if size < 1:
            raise InputError(f"a perturbation set of {size} words; give at least 1")
        sets = {word: tuple(sorted(_reached(synonyms, word, size))) for word in synonyms.sets}
        overlaps = {
            word: min((_overlap(sets[word], sets[other]) for other in others), default=1.0)
            for word, others in synonyms.sets.items()
        }
        return cls(synonyms, sets, overlaps, samples, confidence, words, seed)

    def slack(self, text: str) -> float:
        """1 - Π q_w: the most that an attack adds to g of this text."""
        overlaps = sorted(self.overlaps.get(word.lower(), 1.0) for word in WORD.findall(text))
        return 1.0 - math.prod(overlaps[: self.words])

    def variants(self, passage: Passage, query_id: str) -> Variants:
        """The texts to score for a passage, title included: all there are if these are no more than `samples`."""
        text = passage.full_text
        places = [word for word in WORD.finditer(text) if len(self.sets.get(word[0].lower(), ())) > 1]
        choices = [[recased(each, place[0]) for each in self.sets[place[0].lower()]] for place in places]
        drawn: Iterable[Sequence[str]]
        if exact := math.prod(map(len, choices)) <= self.samples:
            drawn = product(*choices)
        else:
            rng = Random(f"{self.seed}\x1f{query_id}\x1f{passage.doc_id}")
            drawn = ([rng.choice(each) for each in choices] for _ in range(self.samples))
        counts: dict[str, int] = {}
        for words in drawn:
            variant, end = [], 0
            for place, word in zip(places, words, strict=True):
                variant += [text[end : place.start()], word]
                end = place.end()
            whole = "".join([*variant, text[end:]])
            counts[whole] = counts.get(whole, 0) + 1
        return Variants(tuple(counts), tuple(counts.values()), exact, self.slack(text))

    def request(self, asked: Candidates) -> Candidates:
        """All variants of all passages as passages of one query; a passage's j-th is called `i.j` after its place i."""
        return replace(
            asked,
            passages=tuple(
                replace(passage, text=text, title="", doc_id=f"{i}.{j}", source=None)
                for i, passage in enumerate(asked.passages)
                for j, text in enumerate(self.variants(passage, asked.query.query_id).texts)
            ),
        )

    def smoothed(self, asked: Candidates, scores: Mapping[str, float]) -> Smoothed:
        """Of the scores f in [0, 1] that the passages of `request` got."""
        if bad := [name for name, score in scores.items() if not 0 <= score <= 1]:
            raise InputError(f"a score of query {asked.query.query_id!r} is {scores[bad[0]]}; f has to lie in [0, 1]")
        all_variants = [self.variants(passage, asked.query.query_id) for passage in asked.passages]
        sampled = sum(not each.exact for each in all_variants)
        allowance = math.sqrt(math.log(2 * max(1, sampled) / (1 - self.confidence)) / (2 * self.samples))
        means, errors = [], []
        for i, each in enumerate(all_variants):
            found = [scores[f"{i}.{j}"] for j in range(len(each.texts))]
            total = sum(count * score for count, score in zip(each.counts, found, strict=True))
            means.append(total / sum(each.counts))
            errors.append(0.0 if each.exact else allowance)
        slacks = tuple(each.slack for each in all_variants)
        return Smoothed(asked, tuple(means), tuple(errors), slacks)


@dataclass(frozen=True, slots=True)
class Variants:
    """The texts that were drawn and how often; `exact` says that they are all there are."""

    texts: tuple[str, ...]
    counts: tuple[int, ...]
    exact: bool
    slack: float


@dataclass(frozen=True, slots=True)
class Smoothed:
    """The smoothed ranker's answer for one query; all beside `asked.passages`. g is within `errors` of `means`, for
    all passages together at the confidence; an attack adds `slacks` at most."""

    asked: Candidates
    means: tuple[float, ...]
    errors: tuple[float, ...]
    slacks: tuple[float, ...]

    @property
    def order(self) -> list[int]:
        """Places in the given order, best first, ties as given."""
        return sorted(range(len(self.means)), key=lambda i: -self.means[i])

    def certified(self, k: int) -> bool | None:
        """Whether no attack brings another passage among the first k. None where there is no other."""
        margin = self.margin(k)
        return None if margin is None else margin > _ROUNDING

    def margin(self, k: int) -> float | None:
        """By how much the worst of the first k stays above the best that any other can be made."""
        first, others = self.order[:k], self.order[k:]
        if not others:
            return None
        held = min(max(0.0, self.means[i] - self.errors[i]) for i in first)
        return held - max(min(1.0, self.means[i] + self.errors[i] + self.slacks[i]) for i in others)


def _reached(synonyms: Synonyms, word: str, size: int) -> list[str]:
    """The words that synonyms lead to from this one, nearest first, itself the first; no more than `size`."""
    found = [word]
    known = {word}
    for each in found:  # which grows meanwhile
        for other in synonyms.sets[each]:
            if other not in known and len(found) < size:
                found.append(other)
                known.add(other)
    return found


def _overlap(one: Sequence[str], other: Sequence[str]) -> float:
    return len(set(one) & set(other)) / max(len(one), len(other))
