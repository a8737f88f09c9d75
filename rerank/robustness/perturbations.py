"""Perturbations: what is done to a query's candidates to see whether a ranker's order stands.

Each is a name and a pure function of the request. What it draws depends on the seed, its name and the ids alone, so
that a query is disturbed alike whatever stands beside it, for every ranker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from rerank.errors import InputError, UnknownNameError
from rerank.robustness import edits
from rerank.robustness.edits import Edit
from rerank.robustness.synonyms import Synonyms
from rerank.types import Candidates, Passage, Query

Kind = Literal["query", "passages", "order", "injection", "distractors"]
PENHA = "Penha, Câmara and Hauff, ECIR 2022"


@dataclass(frozen=True, slots=True)
class Setting:
    """What perturbations may look at beside the request: judgments `labels[query_id][doc_id]`, the passages of all
    queries, and synonyms."""

    seed: int = 0
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    passages: tuple[Passage, ...] = ()
    synonyms: Synonyms | None = None

    def rng(self, *names: str) -> Random:
        return Random("\x1f".join((str(self.seed), *names)))


Change = Callable[[Candidates, Setting, Random], Candidates]


@dataclass(frozen=True, slots=True)
class Perturbation:
    """`about` defines it, `source` is where it comes from."""

    name: str
    kind: Kind
    about: str
    source: str
    change: Change
    needs_synonyms: bool = False


def perturbed(perturbation: Perturbation, request: Candidates, setting: Setting) -> Candidates:
    """The request as disturbed; itself where there is nothing to disturb, as a query of one word has no word order."""
    return perturbation.change(request, setting, setting.rng(perturbation.name, request.query.query_id))


def target(request: Candidates, setting: Setting) -> Passage | None:
    """The passage that injections are put into: any of those that are not relevant, the same for all injections and
    rankers. None where all are."""
    labels = setting.labels.get(request.query.query_id, {})
    poor = [passage for passage in request.passages if labels.get(passage.doc_id, 0) < 1]
    return setting.rng("target", request.query.query_id).choice(poor) if poor else None


def _query(edit: Edit) -> Change:
    def change(request: Candidates, setting: Setting, rng: Random) -> Candidates:
        return replace(request, query=Query(edit(request.query.text, rng), request.query.query_id))

    return change


def _passages(edit: Edit) -> Change:
    def change(request: Candidates, setting: Setting, rng: Random) -> Candidates:
        base = str(rng.random())
        edited = (replace(each, text=edit(each.text, Random(base + each.doc_id))) for each in request.passages)
        return replace(request, passages=tuple(edited))

    return change


def _query_synonym(request: Candidates, setting: Setting, rng: Random) -> Candidates:
    return _query(_known(setting).one)(request, setting, rng)


def _passage_synonyms(request: Candidates, setting: Setting, rng: Random) -> Candidates:
    return _passages(partial(_known(setting).some, share=0.5))(request, setting, rng)


def _known(setting: Setting) -> Synonyms:
    if setting.synonyms is None:
        raise InputError("this perturbation needs synonyms; give some")
    return setting.synonyms


def _no_stop_words(request: Candidates, setting: Setting, rng: Random) -> Candidates:
    from rerank.data.bm25 import stop_words

    return _query(edits.without(stop_words()))(request, setting, rng)


def _shuffled(request: Candidates, setting: Setting, rng: Random) -> Candidates:
    return replace(request, passages=tuple(rng.sample(request.passages, len(request))))


def _reversed(request: Candidates, setting: Setting, rng: Random) -> Candidates:
    return replace(request, passages=request.passages[::-1])


class Injections(BaseModel):
    """The file of texts that are put before a passage's own; `{query}` in one stands for the query."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    version: int
    source: str
    texts: dict[str, str]


@cache
def injections() -> Injections:
    path = Path(__file__).with_name("injections.v1.yaml")
    return Injections.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def _injected(name: str) -> Change:
    def change(request: Candidates, setting: Setting, rng: Random) -> Candidates:
        chosen = target(request, setting)
        text = injections().texts[name].replace("{query}", request.query.text)
        return replace(
            request,
            passages=tuple(
                replace(each, text=f"{text} {each.text}") if each is chosen else each for each in request.passages
            ),
        )

    return change


def _strangers(request: Candidates, setting: Setting, rng: Random) -> list[Passage]:
    """Passages of other queries, half as many as the request has, that nobody judged for this one."""
    own = {each.doc_id for each in request.passages} | setting.labels.get(request.query.query_id, {}).keys()
    others = [each for each in setting.passages if each.doc_id not in own]
    count = (len(request) + 1) // 2
    if len(others) < count:
        raise InputError(
            f"distractors are passages of other queries, and there are {len(others)} for query "
            f"{request.query.query_id!r}; give more queries, or leave them out"
        )
    return rng.sample(others, count)


def _joined(request: Candidates, added: Iterable[Passage]) -> Candidates:
    """They come last; where passages have scores of the first stage they have the lowest of these."""
    scores = [each.score for each in request.passages if each.score is not None]
    least = min(scores) if scores else None
    return replace(request, passages=(*request.passages, *(replace(each, score=least) for each in added)))


def _distracted(request: Candidates, setting: Setting, rng: Random) -> Candidates:
    return _joined(request, _strangers(request, setting, rng))


def _decoys(request: Candidates, setting: Setting, rng: Random) -> Candidates:
    words = edits.WORD.findall(request.query.text)
    return _joined(
        request,
        [
            replace(each, doc_id=f"decoy-{each.doc_id}", text=edits.scatter(each.text, words, rng))
            for each in _strangers(request, setting, rng)
        ],
    )


def _all() -> Iterable[Perturbation]:
    def query(name: str, about: str, edit: Edit, source: str = PENHA) -> Perturbation:
        return Perturbation(name, "query", about, source, _query(edit))

    def passages(name: str, about: str, edit: Edit) -> Perturbation:
        return Perturbation(name, "passages", about, "", _passages(edit))

    yield query("swapped-letters", "two neighbouring letters of the query change places", edits.swap_letters)
    yield query("keyboard-typo", "a letter of the query becomes its neighbour on the keyboard", edits.press_neighbour)
    yield query("random-letter", "a letter of the query becomes any other", edits.replace_letter)
    yield query("capitals", "the query in capitals", edits.capitals, "")
    yield Perturbation("no-stop-words", "query", "the query without its stop words", PENHA, _no_stop_words)
    yield query("word-order", "two words of the query change places", edits.swap_words)
    yield Perturbation(
        "query-synonym", "query", "a word of the query becomes its nearest synonym", PENHA, _query_synonym, True
    )
    yield passages("passage-typos", "a tenth of every passage's longer words get a typing error", edits.noisy(0.1))
    yield passages("sentence-order", "the sentences of every passage are shuffled", edits.shuffle_sentences)
    yield passages("first-half", "the first half of every passage", edits.first_half)
    about = "half of every passage's words that have synonyms become one"
    yield Perturbation("passage-synonyms", "passages", about, "Wu et al., CIKM 2022", _passage_synonyms, True)
    yield Perturbation("shuffled", "order", "the candidates in random order", "", _shuffled)
    yield Perturbation("reversed", "order", "the candidates from last to first", "", _reversed)
    for name, text in injections().texts.items():
        shown = text if len(text) < 40 else f"{' '.join(text.split())[:36]} …"
        about = f"a passage that is not relevant begins with: {shown}"
        yield Perturbation(f"injected-{name}", "injection", about, "Greshake et al., AISec 2023", _injected(name))
    about = "half as many passages of other queries are added"
    yield Perturbation("distractors", "distractors", about, "", _distracted)
    about = "likewise, and the words of the query are scattered in each"
    yield Perturbation("lexical-decoys", "distractors", about, "", _decoys)


KINDS: tuple[Kind, ...] = ("query", "passages", "order", "injection", "distractors")


@cache
def perturbations() -> Mapping[str, Perturbation]:
    """By name, in the order of the table."""
    return {each.name: each for each in _all()}


def chosen(names: Iterable[str] | None) -> list[Perturbation]:
    """Those of these names or kinds, in the order of the table; None is all, "none" is none."""
    known = perturbations()
    asked = list(names) if names is not None else list(known)
    if asked == ["none"]:
        return []
    for name in asked:
        if name not in known and name not in KINDS:
            raise UnknownNameError("perturbation", name, [*known, *KINDS, "none"])
    return [each for each in known.values() if each.name in asked or each.kind in asked]
