"""One differentiable pass over questions: scores for the ranking loss, log-probabilities for what is written.

Sequences are packed as in inference (see `backbones.packing`): nothing is padded, and what the passages of a query
begin with in common is computed once, forwards and backwards. Where a model cannot be packed they are padded on the
left, and a classifier's on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rerank.backbones import packing
from rerank.losses.language import importance_lm
from rerank.prompts.answers import AnswerSpec, Binary, Graded, Likelihood, Permutation
from rerank.training.gauges import Draws, Gauges
from rerank.training.learners import Learner
from rerank.training.objectives import Asked, Question

if TYPE_CHECKING:
    from rerank.training.reference import Reference

RankLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # scores, labels, mask [Q, n] -> [Q]


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised: `rank_weight` · rank loss + `write_weight` · language-model loss, as a mean over lists.

    A list's questions have equal parts of its loss, and its language-model loss is a mean over its own tokens (FIRST
    takes the mean over the batch's), so that the gradient of a batch is the mean of its lists' gradients however it
    is cut in pieces. `importance` weighs a token by its passage's rank, `separators` what stands between. `draws`
    gives a rank loss that samples its random numbers, `gauges` look at what it is given. With `reference` that is not
    the score but beta · the log-ratio to the reference. `clicks` makes the
    rank loss's labels where lists have clicks.
    """

    answer: AnswerSpec
    rank: RankLoss | None
    rank_weight: float = 1.0
    write_weight: float = 0.0
    importance: bool = False
    separators: float = 1.0
    draws: Draws | None = None
    reference: Reference | None = None
    gauges: Gauges = field(default_factory=Gauges)
    clicks: Learner | None = None

    def loss(self, lists: Sequence[Sequence[Question]], run: Run) -> Tensor:
        """The sum over the lists of their losses, float32."""
        questions = [question for each in lists for question in each]
        shares = torch.tensor([q.weight / len(each) for each in lists for q in each], device=run.device)  # [Q]
        sequences = [asked for question in questions for asked in question.sequences]
        # the reference first: it must not find a graph whose parameters it exchanges
        before = self.reference.logits(sequences, run) if self.reference is not None else None
        logits = run.logits(sequences)
        total = shares.new_zeros(())
        if self.rank is not None:
            if self.reference is None or before is None:
                ranked = self._ranked(questions, self._scores(questions, logits))
            else:
                old = self._log_probs(questions, before)
                ratios = zip(self._log_probs(questions, logits), old, strict=True)
                ranked = self._ranked(questions, [self.reference.beta * (new - own) for new, own in ratios], old)
            total = total + self.rank_weight * (shares * ranked).sum()
        if self.write_weight:
            total = total + self.write_weight * (shares * self._written(questions, logits)).sum()
        return total

    def _ranked(
        self, questions: Sequence[Question], scores: Sequence[Tensor], before: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The rank loss of each question `[Q]`; one that samples is given list after list, each with its own draws."""
        assert self.rank is not None
        places = range(len(questions))
        groups = [list(places)]
        if self.draws is not None:
            groups = [list(own) for _, own in groupby(places, lambda i: questions[i].index)]
        found = []
        for group in groups:
            own = [scores[i] for i in group]
            labels = pad_sequence([torch.tensor(questions[i].labels) for i in group], batch_first=True)
            mask = _filled([len(s) for s in own], own[0].device)
            padded, labels = pad_sequence(own, batch_first=True), labels.to(mask.device)
            if self.clicks is not None:
                positions = pad_sequence([torch.tensor(questions[i].positions) for i in group], batch_first=True)
                labels = self.clicks.targets(padded.detach(), labels, mask, positions.to(mask.device))
            given = padded, labels, mask
            old = pad_sequence([before[i] for i in group], batch_first=True) if before is not None else None
            for name in self.gauges.known:
                self._begin(questions[group[0]])
                self.gauges.look(name, *given, old)
            self._begin(questions[group[0]])
            found.append(self.rank(*given))
        return torch.cat(found)

    def _begin(self, question: Question) -> None:
        if self.draws is not None:
            self.draws.begin(question.index)

    def _scores(self, questions: Sequence[Question], logits: Sequence[Tensor]) -> list[Tensor]:
        """For each question a score for each of its labels: `[n]`."""
        sequences = [asked for question in questions for asked in question.sequences]
        if isinstance(self.answer, Likelihood):
            spoken, mask = _spoken(sequences, logits)
            return list(torch.split(spoken.sum(-1) / mask.sum(-1), [len(q.sequences) for q in questions]))
        rows = iter(zip(sequences, logits, strict=True))
        return [self._read([next(rows) for _ in question.sequences]) for question in questions]

    def _read(self, answers: Sequence[tuple[Asked, Tensor]]) -> Tensor:
        """The scores of one question from the labels of its sequences, or from a head's: `[n]`."""
        if not answers[0][0].labels:
            return torch.cat([own.reshape(1) for _, own in answers]).float()
        read = torch.stack([own[0, list(asked.labels)] for asked, own in answers]).float()
        if isinstance(self.answer, Binary):
            return read[:, 0] - read[:, 1]
        if isinstance(self.answer, Graded):
            return read.softmax(-1) @ torch.tensor(list(self.answer.grades.values()), device=read.device)
        return read[0]

    def _log_probs(self, questions: Sequence[Question], logits: Sequence[Tensor]) -> list[Tensor]:
        """For each question log π(y_i|x) of each of its labels: `[n]`. A letter's, and that of yes, are among the
        prompt's labels, as they are read; a grade counts as a share of the highest; a text's is over its tokens."""
        assert self.reference is not None
        sequences = [asked for question in questions for asked in question.sequences]
        if isinstance(self.answer, Likelihood | Permutation):
            spoken, mask = _spoken(sequences, logits)
            total = spoken.sum(-1) / mask.sum(-1) if self.reference.mean else spoken.sum(-1)
            return list(torch.split(total, [len(q.sequences) for q in questions]))
        rows = iter(zip(sequences, logits, strict=True))
        return [self._chosen([next(rows) for _ in question.sequences]) for question in questions]

    def _chosen(self, answers: Sequence[tuple[Asked, Tensor]]) -> Tensor:
        logs = torch.stack([own[0, list(asked.labels)] for asked, own in answers]).float().log_softmax(-1)
        if isinstance(self.answer, Binary):
            return logs[:, 0]
        if isinstance(self.answer, Graded):
            grades = torch.tensor(list(self.answer.grades.values()), device=logs.device)
            return (logs + (grades / grades.max()).log()).logsumexp(-1)
        return logs[0]

    def _written(self, questions: Sequence[Question], logits: Sequence[Tensor]) -> Tensor:
        """The language-model loss of each question's one sequence: `[Q]`."""
        sequences = [question.sequences[0] for question in questions]
        spoken, mask = _spoken(sequences, logits)
        if self.importance:
            ranks = pad_sequence([torch.tensor(asked.ranks) for asked in sequences], batch_first=True)
            weights = ranks.to(spoken.device)
            return importance_lm(spoken, weights, mask, separator_weight=self.separators, reduction="none")
        return -spoken.sum(-1) / mask.sum(-1)


def _spoken(sequences: Sequence[Asked], logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The targets' log-probabilities in nats, 0 where there are none, and where there are: both `[S, most targets]`.

    All at once: a GPU does nothing while it waits for the many small steps of one sequence after the other.
    """
    counts = [len(asked.targets) for asked in sequences]
    targets = torch.tensor([token for asked in sequences for token in asked.targets], device=logits[0].device)
    found = torch.cat(list(logits)).float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    mask = _filled(counts, found.device)
    return found.new_zeros(mask.shape).masked_scatter(mask, found), mask


def _filled(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Which places of padded rows hold something: `[rows, longest]`."""
    return torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]


@dataclass(slots=True)
class Run:
    """How the model is called. `model` may be wrapped for many processes: it is only ever called.

    `packs` says that sequences can be packed, `share` that shared beginnings are computed once, `head` that the model
    has a head that gives one score. `noise` is NEFTune's alpha and the embeddings that it is added to.
    """

    model: nn.Module
    device: torch.device
    dtype: torch.dtype
    packs: bool
    share: bool = True
    head: bool = False
    pad: int = 0
    noise: tuple[float, nn.Module] | None = None

    def logits(self, sequences: Sequence[Asked]) -> list[Tensor]:
        """For each sequence the logits at its last `count` positions `[count, V]`; with a head its score `[1]`."""
        if self.head:
            return list(self._scored(sequences))
        counts = [asked.count for asked in sequences]
        if self.packs:
            pack = packing.pack([a.fed for a in sequences], device=self.device, dtype=self.dtype, share=self.share)
            kept = torch.cat([rows[-count:] for rows, count in zip(pack.rows, counts, strict=True)])
            if self.noise is not None:  # alpha / sqrt(length * width), and transformers takes the pack for one sequence
                alpha, embeddings = self.noise
                length = sum(len(a.fed) for a in sequences) / len(sequences)
                embeddings.neftune_noise_alpha = alpha * (pack.ids.shape[1] / length) ** 0.5
            # the mask of four dimensions keeps transformers from making one; the pack says who looks at whom
            logits = self.model(
                input_ids=pack.ids,
                position_ids=pack.positions,
                attention_mask=torch.empty(1, 1, 1, 1, device=self.device),
                use_cache=False,
                logits_to_keep=kept,
                pack=pack,
            ).logits[0]
            return list(torch.split(logits, counts))
        keep = max(counts)
        ids, mask = self._padded(sequences, left=True)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=keep
        ).logits
        return [logits[i, keep - count :] for i, count in enumerate(counts)]

    def _scored(self, sequences: Sequence[Asked]) -> Tensor:
        ids, mask = self._padded(sequences, left=False)
        scores: Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return scores

    def _padded(self, sequences: Sequence[Asked], *, left: bool) -> tuple[Tensor, Tensor]:
        longest = max(len(asked.fed) for asked in sequences)
        ids = torch.full((len(sequences), longest), self.pad)
        mask = torch.zeros_like(ids)
        for i, asked in enumerate(sequences):
            place = slice(longest - len(asked.fed), None) if left else slice(len(asked.fed))
            ids[i, place] = torch.tensor(asked.fed)
            mask[i, place] = 1
        return ids.to(self.device), mask.to(self.device)
