"""How a training list becomes what the model is asked, by strategy: the prompts that inference asks, token for token.

A question is asked in one or several sequences, gives a score for each of `labels`, and may say what should be
written as well:

    pointwise     one question a list, a sequence for each passage
    score-head    the same, read by a head of the model's own
    pairwise      a question for each order of each drawn pair, one sequence, a score for A and for B
    setwise       one question, one sequence, a score for each letter
    first         the same, and the permutation that should be written (Reddy et al., EMNLP 2024, section 3.2)
    full-ranking  the permutation alone; or several, a sequence and a score for each (see `preferences`)
    rank-r1, listwise, groupwise, elimination   the answer alone, with its thought; see `written`
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from types import MappingProxyType

from rerank.backbones.encoding import Encoder
from rerank.calls import GenerateCall, LabelCall, LikelihoodCall
from rerank.errors import InputError, PromptError
from rerank.measure import Measure
from rerank.prompts import Prompt
from rerank.prompts.answers import LETTERS
from rerank.prompts.neutralise import neutralise
from rerank.training.mixture import TrainingList
from rerank.training.preferences import RankingsPart
from rerank.training.written import WRITERS, asked_for, target
from rerank.types import Passage


@dataclass(frozen=True, slots=True)
class Asked:
    """Token ids of a prompt, which of the next token's logits are read as scores, and what should be written next.

    `ranks` has for each target the rank of the passage whose identifier it is a part of, 0 for what stands between.
    """

    prompt: tuple[int, ...]
    labels: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()

    @property
    def fed(self) -> tuple[int, ...]:
        """What the model reads: a last target is only predicted."""
        return self.prompt + self.targets[:-1]

    @property
    def count(self) -> int:
        """At how many positions, from the end of what is fed, something is predicted."""
        return max(1, len(self.targets))


@dataclass(frozen=True, slots=True)
class Question:
    """`labels` are the relevance of what is scored, or the clicks on it at `positions`; `weight` multiplies its loss.
    The questions of a list have equal parts of the list's loss. `index` is the list's place in the run, which random
    numbers go by."""

    sequences: tuple[Asked, ...]
    labels: tuple[float, ...]
    weight: float = 1.0
    positions: tuple[int, ...] = ()
    index: int = 0


@dataclass(frozen=True, slots=True)
class Asker:
    """What all strategies need to ask: `write` says that the answer's text is trained too, `pairs` how many pairs are
    drawn from a list, `top` how many identifiers are written, `rankings` that several are compared, `thought` what kind
    of a thought is written."""

    prompt: Prompt
    encoder: Encoder
    passage_tokens: int | None
    write: bool = False
    pairs: int = 4
    top: int | None = None
    rankings: RankingsPart | None = None
    thought: str = "verdicts"
    seed: int = 0

    def label(self, item: TrainingList, passages: Sequence[Passage]) -> tuple[tuple[int, ...], str, tuple[int, ...]]:
        """The prompt's tokens, the end of its text, and the tokens of its labels."""
        call = self.prompt.ask(item.query, passages, self.passage_tokens)
        ids, tail, _ = self.encoder.encode(call.dialogue, 1 + self.room(len(passages)))
        return ids, tail, self.encoder.label_ids(tail, call.labels) if isinstance(call, LabelCall) else ()

    def room(self, n: int) -> int:
        return 8 * n if self.write else 0

    def permutation(
        self, tail: str, labels: Sequence[float], names: Sequence[str]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Targets and their ranks: identifiers by descending label, ties as given, and the end of the turn."""
        return self.ranking(tail, sorted(range(len(labels)), key=lambda i: -labels[i])[: self.top], names)

    def ranking(self, tail: str, order: Sequence[int], names: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The same of any order."""
        opened = tail.endswith("[")
        pieces: list[tuple[str, int]] = []
        for rank, i in enumerate(order, start=1):
            between = "" if rank == 1 and opened else "[" if rank == 1 else " > ["
            pieces += [(between, 0), (names[i], rank), ("]", 0)]
        targets, ranks = self.encoder.written(tail, pieces)
        end = self.encoder.tokenizer.eos_token_id
        if end is not None:
            targets, ranks = (*targets, end), (*ranks, 0)
        return targets, ranks


def neutralised(item: TrainingList, control: re.Pattern[str], identifiers: str | None) -> TrainingList:
    """The list as a ranker shows it: nothing in it passes for the prompt's own words."""
    return replace(
        item,
        query=replace(item.query, text=neutralise(item.query.text, control, identifiers)),
        passages=tuple(Passage(neutralise(p.full_text, control, identifiers), p.doc_id) for p in item.passages),
    )


def _pointwise(item: TrainingList, asker: Asker, index: int) -> list[Question]:
    sequences = []
    for passage in item.passages:
        call = asker.prompt.ask(item.query, [passage], asker.passage_tokens)
        if isinstance(call, LikelihoodCall):
            prepared = asker.encoder.prepare(call)
            sequences.append(Asked(prepared.token_ids, (), prepared.targets))
        else:
            ids, _, labels = asker.label(item, [passage])
            sequences.append(Asked(ids, labels))
    return [Question(tuple(sequences), item.labels, item.weight, item.positions)]


def _score_head(item: TrainingList, asker: Asker, index: int) -> list[Question]:
    """Query and passage as a tokenizer joins a pair: so a cross-encoder reads them."""
    sequences = []
    for passage in item.passages:
        text = passage.full_text
        if asker.passage_tokens is not None:
            text = asker.encoder.cut(text, asker.passage_tokens)
        pair = asker.encoder.tokenizer(
            item.query.text, text, truncation="only_second", max_length=asker.encoder.context
        )
        sequences.append(Asked(tuple(pair["input_ids"])))
    return [Question(tuple(sequences), item.labels, item.weight, item.positions)]


def _pairwise(item: TrainingList, asker: Asker, index: int) -> list[Question]:
    """Pairs that the labels order, drawn anew for each list, each in both orders, as it is asked."""
    ordered = [(i, j) for i, j in combinations(range(len(item.labels)), 2) if item.labels[i] != item.labels[j]]
    drawn = random.Random(f"{asker.seed}/{index}").sample(ordered, min(asker.pairs, len(ordered)))
    questions = []
    for i, j in (both for pair in drawn for both in (pair, pair[::-1])):
        ids, _, labels = asker.label(item, [item.passages[i], item.passages[j]])
        questions.append(Question((Asked(ids, labels),), (item.labels[i], item.labels[j]), item.weight))
    return questions


def _listed(item: TrainingList, asker: Asker, index: int) -> list[Question]:
    ids, tail, labels = asker.label(item, item.passages)
    names = LETTERS[: len(item.passages)]
    targets, ranks = asker.permutation(tail, item.labels, names) if asker.write else ((), ())
    return [Question((Asked(ids, labels, targets, ranks),), item.labels, item.weight, item.positions)]


def _full(item: TrainingList, asker: Asker, index: int) -> list[Question]:
    n = len(item.passages)
    top = min(asker.top, n) if asker.top is not None and asker.prompt.asks_top else None
    dialogue = asker.prompt.ask(item.query, item.passages, asker.passage_tokens, top).dialogue
    ids, tail, _ = asker.encoder.encode(dialogue, 1 + asker.room(n))
    if asker.rankings is not None:
        drawn = random.Random(f"rankings/{asker.seed}/{index}")
        orders = asker.rankings.draw(item.labels, drawn)
        written = [asker.ranking(tail, order, asker.prompt.names(n)) for order in orders]
        values = tuple(_measured(asker.rankings.measure, [item.labels[i] for i in order]) for order in orders)
        return [Question(tuple(Asked(ids, (), *each) for each in written), values, item.weight)]
    targets, ranks = asker.permutation(tail, item.labels, asker.prompt.names(n))
    return [Question((Asked(ids, (), targets, ranks),), (), item.weight)]


def _measured(measure: str, labels: Sequence[float]) -> float:
    """The measure of a ranking, of which there are the labels from the first place on."""
    import torch

    from rerank.losses.metrics import earned

    return float(earned(Measure.parse(measure), torch.tensor(labels, dtype=torch.float64)).sum())


def _answered(item: TrainingList, asker: Asker, index: int) -> list[Question]:
    prompt = asker.prompt
    call = prompt.ask(item.query, item.passages, asker.passage_tokens, asked_for(prompt))
    assert isinstance(call, GenerateCall)
    ids, tail, _ = asker.encoder.encode(call.dialogue, call.max_tokens)
    text = target(prompt, item.labels, asker.thought)
    targets, ranks = asker.encoder.written(tail, [(text, 0)])
    if len(targets) > call.max_tokens:
        raise InputError(
            f"the answer that {prompt.name} should be given takes {len(targets)} tokens, and a ranker lets it have "
            f"{call.max_tokens}; give more reason_tokens, or lists of fewer passages"
        )
    end = asker.encoder.tokenizer.eos_token_id
    targets, ranks = ((*targets, end), (*ranks, 0)) if end is not None else (targets, ranks)
    return [Question((Asked(ids, (), targets, ranks),), (), item.weight)]


ASKS: Mapping[str, Callable[[TrainingList, Asker, int], list[Question]]] = MappingProxyType(
    {
        "pointwise": _pointwise,
        "score-head": _score_head,
        "pairwise": _pairwise,
        "setwise": _listed,
        "first": _listed,
        "full-ranking": _full,
        "rank-r1": _answered,
        "listwise": _answered,
        "groupwise": _answered,
        "elimination": _answered,
    }
)


def check_prompt(strategy: str, prompt: Prompt) -> None:
    """Whether the prompt is one that this strategy trains. Raises PromptError."""
    fits = {
        "pointwise": ("binary", "graded", "likelihood"),
        "score-head": ("score",),
        "pairwise": ("identifier",),
        "setwise": ("identifier",),
        "first": ("identifier",),
        **WRITERS,
    }[strategy]
    if prompt.answer.kind not in fits:
        raise PromptError(
            f"prompt {prompt.name!r} is answered by {prompt.answer.kind}; strategy {strategy!r} trains answers by "
            f"{' or '.join(fits)}"
        )
    writes_all = strategy in WRITERS and strategy != "full-ranking"
    if prompt.reasons and not writes_all:
        raise PromptError(
            f"prompt {prompt.name!r} has a thought written before the answer, and training writes the answer only; "
            "give a prompt without one"
        )
    if prompt.least_first and not writes_all:
        raise PromptError(
            f"prompt {prompt.name!r} asks for the least relevant passage, and training puts the highest logit on the "
            "most relevant one; give a prompt that asks for that"
        )
