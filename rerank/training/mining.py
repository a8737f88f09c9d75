"""Hard negatives: passages that a first stage or a teacher ranks high for a query and that are not its positives.

Who mines finds unjudged positives as well. With a teacher's run a negative that scores about as high as the
positives is taken for one and left out (positive-aware mining; Moreira et al., "NV-Retriever", 2024).
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rerank.data import Corpus, Dataset, Run, open_text
from rerank.data.files import appearing_whole
from rerank.errors import InputError
from rerank.training.sources import normalised
from rerank.types import Candidates, Passage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mined:
    """A query's positives and hard negatives, in the first stage's order; positives that it missed come last."""

    candidates: Candidates
    labels: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Miner:
    """`negatives` of each query, the hardest first: by the teacher's scores if there is a run of it, else as the first
    stage has them. With `last` they are the least hard of the candidates, as DUQGen takes the last 4 of 100: where one
    document of a query is known, what a first stage has at its head is often an answer too. A judgment of `relevant` or
    more makes a positive; `positives` is the most that are kept, best judged first.

    With a teacher, `share` leaves out negatives that score more than this share of what the query's positives
    score in the mean (the paper's TopK-PercPos, best at 0.95; for scores above 0), and `margin` those that score
    more than that mean less the margin (TopK-MarginPos; for any scores). The paper compares with one positive.
    """

    negatives: int = 20
    positives: int | None = None
    relevant: int = 1
    teacher: Run | None = None
    share: float | None = None
    margin: float | None = None
    last: bool = False

    def __post_init__(self) -> None:
        if self.negatives < 1 or self.relevant < 1 or (self.positives is not None and self.positives < 1):
            raise InputError(
                f"negatives {self.negatives}, positives {self.positives}, relevant {self.relevant}: give at least 1"
            )
        if self.share is not None and self.margin is not None:
            raise InputError("share and margin are two forms of one limit; give one of them")
        if self.teacher is None and (self.share is not None or self.margin is not None):
            raise InputError("share and margin compare a teacher's scores; give a teacher's run")
        if self.share is not None and not self.share > 0:
            raise InputError(f"share is {self.share}; give a number above 0, such as 0.95")

    def mine(self, dataset: Dataset, candidates: Iterable[Candidates]) -> Iterator[Mined]:
        """Lists of the queries that have a positive and a negative; the others are counted in the log.

        A candidate with the very words of a positive is not a negative. Positives need not be among the candidates.
        """
        if dataset.qrels is None:
            raise InputError(f"{dataset.name} has no judgments, and so no positives to mine negatives for")
        dropped: Counter[str] = Counter()
        for asked in candidates:
            found = self._one(asked, dataset.qrels.get(asked.query.query_id, {}), _texts(dataset, asked))
            if isinstance(found, str):
                dropped[found] += 1
            else:
                yield found
        if dropped:
            log.info("queries left out: %s", ", ".join(f"{count:,} {why}" for why, count in dropped.items()))

    def _one(self, asked: Candidates, judged: Mapping[str, int], texts: Corpus) -> Mined | str:
        ranked = {passage.doc_id: passage for passage in asked.passages}
        best = sorted((doc_id for doc_id, label in judged.items() if label >= self.relevant), key=lambda d: -judged[d])
        positives = {}
        for doc_id in best:
            passage = ranked.get(doc_id) or texts.get(doc_id)
            if passage is not None:
                positives[doc_id] = passage
        if not positives:
            return "without a positive"
        taken = set(best) | {normalised(passage.full_text) for passage in positives.values()}
        negatives = [p for p in asked.passages if p.doc_id not in taken and normalised(p.full_text) not in taken]
        if self.teacher is not None:
            scores = self.teacher.get(asked.query.query_id, {})
            limit = self._limit([scores[doc_id] for doc_id in positives if doc_id in scores])
            if limit is None:
                return "whose positives the teacher did not score"
            negatives = [p for p in negatives if p.doc_id in scores and scores[p.doc_id] <= limit]
            negatives.sort(key=lambda p: -scores[p.doc_id])
        if not negatives:
            return "without a negative"
        mined = negatives[-self.negatives :] if self.last else negatives[: self.negatives]
        kept = {p.doc_id for p in mined} | set(list(positives)[: self.positives])
        missed = [passage for doc_id, passage in positives.items() if doc_id in kept and doc_id not in ranked]
        passages = [p for p in asked.passages if p.doc_id in kept] + missed
        labels = {p.doc_id: max(0, judged.get(p.doc_id, 0)) for p in passages}
        return Mined(Candidates(asked.query, tuple(passages)), labels)

    def _limit(self, positives: list[float]) -> float | None:
        """The highest score that a negative may have; None where it cannot be told."""
        if self.share is None and self.margin is None:
            return float("inf")
        if not positives:
            return None
        mean = sum(positives) / len(positives)
        if self.margin is not None:
            return mean - self.margin
        if mean <= 0:
            raise InputError(
                f"the teacher gives the positives of a query {mean:g} in the mean; a share of that means nothing: "
                "give a margin"
            )
        return mean * (self.share or 1.0)


def _texts(dataset: Dataset, asked: Candidates) -> Corpus:
    """Where a positive that is no candidate is found."""
    if dataset.corpus is not None:
        return dataset.corpus
    own = (dataset.lists or {}).get(asked.query.query_id)
    return {p.doc_id: p for p in own.passages} if own else {}


def write_lists(path: str | Path, mined: Iterable[Mined]) -> Counter[str]:
    """Lists with texts, labels and the first stage's scores, a query a line, as `load_dataset` reads them.

    Counts `queries`, `positives` (labels above 0) and `negatives`. The file appears when it is whole.
    """
    counts: Counter[str] = Counter()
    with appearing_whole(path) as partial, open_text(partial, "w") as stream:
        for one in mined:
            query, passages = one.candidates.query, one.candidates.passages
            docs = [_doc(passage, one.labels[passage.doc_id]) for passage in passages]
            record = {"qid": query.query_id, "query": query.text, "docs": docs}
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            above = sum(label > 0 for label in one.labels.values())
            counts.update(queries=1, positives=above, negatives=len(docs) - above)
    return counts


def _doc(passage: Passage, label: int) -> dict[str, object]:
    doc: dict[str, object] = {"docid": passage.doc_id, "text": passage.text, "label": label}
    if passage.title:
        doc["title"] = passage.title
    if passage.score is not None:
        doc["score"] = passage.score
    return doc
