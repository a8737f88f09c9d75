"""Queries written by a language model for documents of a collection that has none (InPars, Bonifacio et al., SIGIR
2022; DUQGen, Chandradevan et al., NAACL 2024).

A document is shown, its query is asked for, and what comes is kept only if it passes as one: see `Rules`. The
document is then the query's one relevant document, whatever else in the collection answers it as well.
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from rerank.calls import Answer
from rerank.data import BM25, read_lists
from rerank.data.files import read_lines
from rerank.errors import CacheError, InputError, PromptError
from rerank.prompts import Prompt
from rerank.prompts.answers import Text
from rerank.strategies.base import Steps, Verdict
from rerank.training.clusters import TEMPERATURE, Clusters, drawn
from rerank.training.sources import load_corpus, normalised
from rerank.types import Candidates, Outcome, Outcomes, Passage, Query

log = logging.getLogger(__name__)

LEAST_WORDS = 12  # of a document that is asked about: shorter ones are headings and menus


@dataclass(frozen=True, slots=True)
class Writer:
    """A strategy that orders nothing: it asks every prompt about one document; the answers are its `reasoning`,
    one for each prompt, empty where it was cut at `max_tokens`, which greedy writing is when it goes in circles."""

    prompts: tuple[Prompt, ...]
    passage_tokens: int | None = 120

    def __post_init__(self) -> None:
        for prompt in self.prompts:
            if not isinstance(prompt.answer, Text):
                raise PromptError(f"prompt {prompt.name!r} has no query written; give query-generation, or one like it")

    @property
    def prompt(self) -> Prompt:
        return self.prompts[0]

    def calls(self, n: int) -> int:
        return len(self.prompts)

    def rank(self, candidates: Candidates) -> Steps:
        answers = yield [
            prompt.ask(candidates.query, candidates.passages, self.passage_tokens) for prompt in self.prompts
        ]
        read = [_read(answer) for answer in answers]
        return Verdict((0,), outcomes=sum((o for _, o in read), Outcomes()), reasoning=tuple(text for text, _ in read))


def _read(answer: Answer) -> tuple[str, Outcomes]:
    """The first line without its quotation marks. A model without the stop in its text may go on after it."""
    lines = answer.text.strip().splitlines()
    text = "" if answer.truncated or not lines else lines[0].strip().strip("\"'“”").strip()
    return text, Outcomes.of(Outcome.CLEAN if text else Outcome.FAILED)


def request(document: Passage) -> Candidates:
    """What a `Writer` is asked; the query is a stand-in that no text prompt shows."""
    return Candidates(Query("a query to be written", document.doc_id), (document,))


@dataclass(slots=True)
class Rules:
    """Which texts pass as queries; it remembers those that did, so that none comes twice.

    `most_copied` is the most words that may stand in the document in the same order without a gap: more is a sentence
    of it. `excluded` are queries in their normalised words, such as those of the test set.
    """

    prompts: Sequence[Prompt]
    least_words: int = 3
    most_words: int = 20
    most_copied: int = 10
    excluded: Collection[str] = frozenset()
    _seen: set[str] = field(default_factory=set)
    _examples: frozenset[str] = frozenset()
    _labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        turns = [turn for prompt in self.prompts for turn in prompt.model_dump()["messages"] if "role" in turn]
        self._examples = frozenset(normalised(turn["content"]) for turn in turns if turn["role"] == "assistant")
        shown = [line for turn in turns if turn["role"] == "user" for line in turn["content"].splitlines()]
        heads = {line.partition(":")[0] for line in shown if re.match(r"\w+:", line)}
        self._labels = tuple(sorted(f"{head.casefold()}:" for head in heads))

    def refuse(self, text: str, document: Passage) -> str | None:
        """Why this is no query for the document; None takes it in."""
        words = normalised(text)
        count = len(words.split())
        if not words:
            return "empty or endless"
        if not self.least_words <= count <= self.most_words:
            return "too short or long"
        if words in self._examples or any(label in text.casefold() for label in self._labels):
            return "leaked from the prompt"
        if count > self.most_copied and f" {words} " in f" {normalised(document.full_text)} ":
            return "copied"
        if words in self.excluded:
            return "excluded"
        if words in self._seen:
            return "a duplicate"
        self._seen.add(words)
        return None


def read_documents(path: Path) -> dict[str, Passage]:
    """A BEIR folder, a corpus.jsonl, or lists .jsonl, whose distinct passages are the documents then."""
    if path.is_dir():
        return load_corpus(path)
    first = next(iter(read_lines(path)), "")
    if '"docs"' not in first:
        return load_corpus(path)
    documents: dict[str, Passage] = {}
    for candidates, _ in read_lists(read_lines(path), str(path)):
        for passage in candidates.passages:
            known = documents.setdefault(passage.doc_id, Passage(passage.text, passage.doc_id, passage.title))
            if known.full_text != passage.full_text:
                raise InputError(f"{path}: the document {passage.doc_id!r} has two texts; ids must be distinct")
    return documents


def choose(
    documents: Mapping[str, Passage],
    count: int,
    seed: int,
    clusters: Clusters | None = None,
    temperature: float = TEMPERATURE,
) -> list[Passage]:
    """So many of the documents that have something to ask about, drawn at random and in random order, so that what is
    written first is a sample too.

    `clusters` are of these documents (see `worth`): the draw is `rerank.training.clusters.drawn` then.
    """
    known = worth(documents)
    if not known:
        raise InputError(f"no document has {LEAST_WORDS} words or more to ask about")
    rng = random.Random(seed)
    if clusters is None or count >= len(known):
        return rng.sample(known, min(count, len(known)))
    return [known[place] for place in drawn(clusters, count, rng, temperature)]


def worth(documents: Mapping[str, Passage]) -> list[Passage]:
    """The documents long enough to be asked about."""
    return [document for document in documents.values() if len(document.full_text.split()) >= LEAST_WORDS]


class Notebook:
    """What was written so far, a line for each document, in `queries.journal`: a sitting that died loses one block.

    Its first line holds the settings; another sitting must have the same.
    """

    def __init__(self, path: Path, settings: Mapping[str, object]) -> None:
        self.path = path
        self.texts: dict[str, list[str]] = {}
        settings = json.loads(json.dumps(settings))
        if path.exists():
            self._read(settings)
        else:
            path.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")

    def _read(self, settings: Mapping[str, object]) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]  # a kill may have cut the last
        try:
            head, *records = map(json.loads, whole)
            before = head["settings"]
            changed = next(
                (f"{k}: {before.get(k)!r} there, {v!r} now" for k, v in settings.items() if before.get(k) != v), None
            )
            self.texts = {record["doc_id"]: list(record["texts"]) for record in records}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CacheError(f"{self.path} is damaged ({type(error).__name__}); delete it to start afresh") from error
        if changed is not None:
            raise CacheError(f"{self.path} was begun with other settings ({changed}); delete it, or give another --out")
        with self.path.open("r+b") as file:
            file.truncate(sum(map(len, whole)))

    def add(self, written: Mapping[str, Sequence[str]]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"doc_id": name, "texts": texts}) + "\n" for name, texts in written.items())
        self.texts |= {name: list(texts) for name, texts in written.items()}


def write_folder(
    folder: Path,
    documents: Mapping[str, Passage],
    written: Iterable[tuple[Passage, Sequence[str]]],
    rules: Rules,
    round_trip: int | None = None,
) -> tuple[int, Counter[str]]:
    """The BEIR folder: all documents, so that negatives can be mined, and the queries that pass, as split 'train'.

    Returns how many passed, and how many did not for each reason. A query's id is its document's and the place of its
    prompt. With `round_trip` BM25 over the documents has to find a query's own among its first so many (round-trip
    consistency, Dai et al., "Promptagator", ICLR 2023, there with a trained retriever and the very first): that drops
    what is made up, and what is asked so broadly that any document answers it.
    qrels/train.tsv comes last: where it is, all is.
    """
    refused: Counter[str] = Counter()
    kept: list[tuple[str, str, str]] = []
    for document, texts in written:
        for place, text in enumerate(texts, start=1):
            if (why := rules.refuse(text, document)) is None:
                kept.append((f"{document.doc_id}-{place}", document.doc_id, text))
            else:
                refused[why] += 1
    if round_trip is not None:
        found = BM25(documents).search((Query(text, query_id) for query_id, _, text in kept), round_trip)
        before = len(kept)
        kept = [(query_id, doc_id, text) for query_id, doc_id, text in kept if doc_id in found[query_id]]
        refused["not found again"] += before - len(kept)
    if not kept:
        raise InputError(f"none of the texts written passes as a query ({told(refused)}); another model or prompt?")
    (folder / "qrels").mkdir(exist_ok=True)
    _write(
        folder / "corpus.jsonl",
        ({"_id": d.doc_id, "title": d.title, "text": d.text} for d in documents.values()),
    )
    _write(folder / "queries.jsonl", ({"_id": query_id, "text": text} for query_id, _, text in kept))
    judged = chain(["query-id\tcorpus-id\tscore\n"], (f"{query_id}\t{doc_id}\t1\n" for query_id, doc_id, _ in kept))
    (folder / "qrels" / "train.tsv").write_text("".join(judged), encoding="utf-8")
    return len(kept), refused


def _write(path: Path, records: Iterable[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def told(refused: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in sorted(refused.items()) if count) or "none"
