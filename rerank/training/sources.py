"""Where training lists come from: a dataset and, if wanted, teachers' runs, read into one pool a query.

A pool is everything known of one query: its candidates in the first stage's order and a label for each. Lists
are drawn from it, another one each time; see `mixture`. Passages are the corpus' own objects, so a passage that a
thousand queries share is held once.
"""

from __future__ import annotations

import logging
import math
import random
import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

from rerank.data import Corpus, Dataset, Run, load_dataset, read_corpus, read_lists, read_queries, read_run
from rerank.data.beir import is_beir
from rerank.data.files import filled_lines, nearby, read_lines
from rerank.errors import InputError, UnknownNameError
from rerank.types import Candidates, Passage, Query

log = logging.getLogger(__name__)

BM25 = "bm25"  # what `run` may say in place of a file


@dataclass(frozen=True, slots=True)
class Pool:
    """What is known of one query. `labels` stand beside `passages`; higher is more relevant.

    `ranked` says that the passages are in a first stage's order, which a teacher's own order is not. Of a click log,
    labels are clicks, and `positions` where each passage was shown (1-based).
    """

    query: Query
    passages: tuple[Passage, ...]
    labels: tuple[float, ...]
    source: str
    ranked: bool = True
    positions: tuple[int, ...] = ()


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]  # one name may stand without its list


class Source(BaseModel):
    """One entry under `data:` of a recipe. Paths are relative to the recipe's folder.

    dataset          what `load_dataset` takes; for BEIR 'folder:split'
    name             what logs call it; the dataset unless given
    corpus           a BEIR folder or corpus.jsonl, for lists whose docs have no text
    run              the first stage: a TREC run, or 'bm25'; without one the dataset's own lists or run, else the
                     teachers' documents where there are teachers, else BM25 over the corpus
    depth            candidates of each query, best of the first stage first
    teacher          TREC runs whose scores become the labels; candidates that a teacher did not score are dropped
    labels           'judgments'; 'teacher': of the runs, or without any of them the scores inside the lists;
                     'auto': the teachers' where there are any
    judgment_weight  the label is the teacher's score + this * the judgment
    grades           rising thresholds: the label is the number of them that it reaches, a grade
    unjudged         a candidate without a judgment has label 0, or is dropped
    exclude          datasets or query files whose queries are left out, compared by their words
    limit            so many queries at most, drawn at random (always the same ones)
    weight           the source's part of all lists drawn, relative to the other sources' weights
    size, sample, order   the passages of a list, how they are drawn from the pool, and the order they are shown in
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    name: str | None = None
    corpus: str | None = None
    run: str | None = None
    depth: int = Field(default=100, ge=2)
    teacher: Names = ()
    labels: Literal["auto", "judgments", "teacher"] = "auto"
    judgment_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    grades: tuple[FiniteFloat, ...] = ()
    unjudged: Literal["zero", "drop"] = "zero"
    exclude: Names = ()
    limit: int | None = Field(default=None, ge=1)
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    size: int = Field(default=8, ge=2)
    sample: Literal["spread", "top", "random"] = "spread"
    order: Literal["shuffled", "first-stage", "mixed"] = "shuffled"

    @property
    def title(self) -> str:
        return self.name or self.dataset

    @property
    def taught(self) -> bool:
        """Whether the labels come from a teacher's scores."""
        return self.labels == "teacher" or bool(self.teacher)

    @property
    def ungraded(self) -> bool:
        """Whether the labels are a teacher's scores as they are, which tell an order and no grade."""
        return self.taught and not self.grades

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.labels == "judgments" and self.teacher:
            raise ValueError("labels: judgments leaves the teacher unused; take out one of the two")
        if self.judgment_weight and not self.taught:
            raise ValueError("judgment_weight adds judgments to a teacher's scores; give a teacher")
        if self.grades and not self.taught:
            raise ValueError("grades are made of a teacher's scores, and judgments have theirs; give a teacher")
        if list(self.grades) != sorted(set(self.grades)):
            raise ValueError(f"grades {list(self.grades)} do not rise; give each threshold once, the lowest first")
        if self.unjudged == "drop" and self.taught and not self.judgment_weight:
            raise ValueError("unjudged: drop has no effect on a teacher's scores without judgment_weight")
        return self

    def check(self, base: Path) -> None:
        """Whether what it names is there, without reading it. Raises InputError."""
        _require_dataset(self.dataset, base)
        for spec in self.exclude:
            _require_dataset(spec, base)
        files = [*self.teacher, *([self.corpus] if self.corpus else [])]
        if self.run not in (None, BM25):
            files.append(self.run)
        for name in files:
            if not (base / name).exists():
                raise InputError(missing("the file", name, base))


def read_pools(source: Source, base: Path) -> list[Pool]:
    """The pools of a source, in the dataset's order. What is left out is counted in the log.

    Dropped are queries that are excluded, that have no judgment or teacher's score, and whose labels are all equal:
    they order nothing. Several teachers are fused as the mean of their z-scores over the candidates that all of
    them scored; one teacher's scores are taken as they are.
    """
    source.check(base)
    dataset = read_dataset(source, base)
    teachers = [read_run(base / name) for name in source.teacher]
    if not source.taught and dataset.qrels is None:
        raise InputError(
            f"{source.dataset} has no judgments to train on; give a teacher's run, "
            "or labels: teacher if the scores inside the lists are a teacher's"
        )
    if source.judgment_weight and dataset.qrels is None:
        raise InputError(f"{source.dataset} has no judgments; take judgment_weight out")
    for name, run in zip(source.teacher, teachers, strict=True):
        if run.keys().isdisjoint(dataset.queries):
            raise InputError(f"the teacher {name} and {source.dataset} share no query id; it is another dataset's")
    ranked, candidates = _candidates(source, base, dataset, teachers)
    if source.order != "shuffled" and not ranked:
        raise InputError(
            f"order: {source.order} needs a first stage, and {source.dataset} has only the teacher's order; "
            f"give its run, or run: {BM25}"
        )
    excluded = frozenset(words for spec in source.exclude for words in excluded_words(spec, base))
    dropped: Counter[str] = Counter()

    def pools() -> Iterator[Pool]:
        for asked in candidates:
            if normalised(asked.query.text) in excluded:
                dropped["excluded"] += 1
            elif isinstance(found := _pool(source, dataset, teachers, asked, ranked), str):
                dropped[found] += 1
            else:
                yield found

    kept = list(islice(pools(), source.limit))
    reasons = ", ".join(f"{count:,} {why}" for why, count in dropped.items()) or "none"
    log.info("%s: %s of %s queries; dropped: %s", source.title, f"{len(kept):,}", f"{len(dataset.queries):,}", reasons)
    if not kept:
        raise InputError(f"{source.title}: no query is left to train on (dropped: {reasons})")
    return kept


def normalised(text: str) -> str:
    """The words of a query, so that case, white space and punctuation do not hide that two are the same."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def fused(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Teachers' scores of one query's documents as one: the mean of z-scores over what all of them scored.

    z = (score - mean) / standard deviation (of the population), so that a teacher's scale does not count; a
    teacher that gives every document the same adds 0. A single teacher's scores are left as they are.
    """
    if len(scores) == 1:
        return dict(scores[0])
    shared = [doc_id for doc_id in scores[0] if all(doc_id in other for other in scores[1:])]
    if not shared:
        return {}
    table = np.array([[teacher[doc_id] for doc_id in shared] for teacher in scores])  # [teachers, documents]
    spread = table.std(axis=1, keepdims=True)
    centred = table - table.mean(axis=1, keepdims=True)
    z = np.divide(
        centred, spread, out=np.zeros_like(table), where=spread > 1e-12 * np.abs(table).max(axis=1, keepdims=True)
    )
    return dict(zip(shared, z.mean(axis=0).tolist(), strict=True))


def _pool(source: Source, dataset: Dataset, teachers: Sequence[Run], asked: Candidates, ranked: bool) -> Pool | str:
    """The pool of a query, or why there is none."""
    query_id, passages = asked.query.query_id, asked.passages
    judged: Mapping[str, int] = (dataset.qrels or {}).get(query_id, {})
    labels: dict[str, float]
    if source.taught:
        if teachers:
            found = fused(
                [{p.doc_id: run[p.doc_id] for p in passages if p.doc_id in run} for run in _of(teachers, query_id)]
            )
        else:
            found = {p.doc_id: p.score for p in passages if p.score is not None and math.isfinite(p.score)}
        if not found:
            return "without a teacher's scores"
        weight = source.judgment_weight
        labels = {doc_id: score + weight * max(0, judged.get(doc_id, 0)) for doc_id, score in found.items()}
        if source.grades:
            labels = {doc_id: float(bisect_right(source.grades, label)) for doc_id, label in labels.items()}
    elif not judged:
        return "without judgments"
    else:
        labels = {p.doc_id: float(max(0, judged.get(p.doc_id, 0))) for p in passages}  # TREC marks spam below 0
    if source.unjudged == "drop":
        labels = {doc_id: label for doc_id, label in labels.items() if doc_id in judged}
    if len(set(labels.values())) < 2:
        return "that order nothing"
    own: Corpus = dataset.corpus if isinstance(dataset.corpus, dict) else {}  # a store on disk is not read again
    kept = [p for p in passages if p.doc_id in labels]
    return Pool(
        asked.query,
        tuple(own.get(p.doc_id, p) for p in kept),
        tuple(labels[p.doc_id] for p in kept),
        source.title,
        ranked,
    )


def _of(teachers: Iterable[Run], query_id: str) -> list[Mapping[str, float]]:
    return [run.get(query_id, {}) for run in teachers]


def _candidates(
    source: Source, base: Path, dataset: Dataset, teachers: Sequence[Run]
) -> tuple[bool, Iterator[Candidates]]:
    """Every query's candidates, and whether they come in a first stage's order."""
    if source.run is not None and dataset.corpus is not None:
        dataset = replace(dataset, lists=None)  # else only the passages of the lists would be looked up
    if source.run == BM25:
        if dataset.corpus is None:
            raise InputError(f"run: {BM25} needs a corpus to search, and {source.dataset} has none")
        return True, dataset.candidates(source.depth, queries=dataset.queries.values())
    if source.run is not None:
        return True, dataset.candidates(source.depth, run=read_run(base / source.run))
    if teachers and dataset.lists is None and dataset.first_stage is None:
        run = teachers[0]
        if len(teachers) > 1:
            shared = {query_id: fused(_of(teachers, query_id)) for query_id in dataset.queries}
            run = {query_id: docs for query_id, docs in shared.items() if docs}
        return False, dataset.candidates(source.depth, run=run)
    return True, dataset.candidates(source.depth)


def read_dataset(source: Source, base: Path) -> Dataset:
    """What the source names; with `limit` its queries are in random order."""
    if source.corpus is None:
        dataset = load_dataset(placed(source.dataset, base))
    else:
        folder = base / source.corpus
        dataset = _joined(base / source.dataset, load_corpus(folder))
    if source.limit is None:
        return dataset
    names = list(dataset.queries)
    random.Random(0).shuffle(names)  # the first queries of a file are often of one kind
    lists = None if dataset.lists is None else {name: dataset.lists[name] for name in names}
    return replace(dataset, queries={name: dataset.queries[name] for name in names}, lists=lists)


def load_corpus(path: Path) -> dict[str, Passage]:
    """The passages of a BEIR folder, or of one corpus.jsonl."""
    if not path.is_dir():
        return read_corpus(path)
    found = sorted(path.glob("corpus.jsonl*"))
    if not found:
        raise InputError(f"the folder {str(path)!r} has no corpus.jsonl")
    return read_corpus(found[0])


def _joined(path: Path, corpus: Corpus) -> Dataset:
    """Lists with their texts from the corpus."""
    if ".jsonl" not in path.suffixes:
        raise InputError(f"a corpus serves lists '….jsonl' only, and the dataset is {str(path)!r}; take it out")
    lists: dict[str, Candidates] = {}
    qrels: dict[str, dict[str, int]] = {}
    for candidates, labels in read_lists(read_lines(path), str(path), corpus=corpus):
        query_id = candidates.query.query_id
        if query_id in lists:
            raise InputError(f"{path}: query {query_id!r} is there twice; ids must be distinct")
        lists[query_id] = candidates
        if labels:
            qrels[query_id] = labels
    queries = {query_id: candidates.query for query_id, candidates in lists.items()}
    return Dataset(str(path), queries, corpus, qrels or None, lists=lists)


def excluded_words(spec: str, base: Path) -> Iterator[str]:
    """The words of the queries of a dataset, or of a file of queries."""
    path = base / spec
    queries: Iterable[Query]
    if path.is_file() and (path.suffix in (".tsv", ".txt") or not _has_lists(path)):
        queries = read_queries(read_lines(path), str(path))
    else:
        queries = load_dataset(placed(spec, base)).queries.values()
    return (normalised(query.text) for query in queries)


def _has_lists(path: Path) -> bool:
    if ".jsonl" not in path.suffixes:
        return True
    first = next((line for _, line in filled_lines(read_lines(path), str(path))), "")
    return '"docs"' in first or '"candidates"' in first or '"hits"' in first


def _named(spec: str) -> bool:
    return spec.startswith(("sample:", "irds:"))


def placed(spec: str, base: Path) -> str:
    return spec if _named(spec) else str(base / spec)


def _require_dataset(spec: str, base: Path) -> None:
    path = base / spec
    if _named(spec) or path.exists():
        return
    folder, colon, split = spec.rpartition(":")
    if not colon:
        folder, _, split = spec.rstrip("/").rpartition("/")
    if not is_beir(base / folder):
        raise InputError(missing("the dataset", folder if colon else spec, base))
    splits = {file.name.partition(".")[0] for file in (base / folder).glob("qrels/*.tsv*")}
    if split not in splits:
        raise UnknownNameError(f"split of {folder}", split, splits)


def missing(what: str, given: str, base: Path) -> str:
    """What an error says of a recipe's path that leads nowhere; `what` it is, or its key."""
    path = base / given
    advice = nearby(path, given) or "; paths in a recipe are relative to the recipe's folder"
    return f"{what} {given!r} is not there (looked for {str(path)!r}){advice}"
