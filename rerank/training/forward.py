"""One differentiable pass over questions: scores for the ranking loss, log-probabilities for what is written.

Sequences are packed as in inference (see `backbones.packing`): nothing is padded, and what the passages of a query
begin with in common is computed once, forwards and backwards. Where a model cannot be packed they are padded on the
left, and a classifier's on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rerank.backbones import packing
from rerank.losses.language import importance_lm
from rerank.prompts.answers import AnswerSpec, Binary, Graded, Likelihood
from rerank.training.objectives import Asked, Question

RankLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # scores, labels, mask [Q, n] -> [Q]


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised: `rank_weight` · rank loss + `write_weight` · language-model loss, as a mean over lists.

    A list's questions have equal parts of its loss, and its language-model loss is a mean over its own tokens (FIRST
    takes the mean over the batch's), so that the gradient of a batch is the mean of its lists' gradients however it
    is cut in pieces. `importance` weighs a token by its passage's rank, `separators` what stands between.
    """

    answer: AnswerSpec
    rank: RankLoss | None
    rank_weight: float = 1.0
    write_weight: float = 0.0
    importance: bool = False
    separators: float = 1.0

    def loss(self, lists: Sequence[Sequence[Question]], run: Run) -> Tensor:
        """The sum over the lists of their losses, float32."""
        questions = [question for each in lists for question in each]
        shares = torch.tensor([q.weight / len(each) for each in lists for q in each], device=run.device)  # [Q]
        logits = run.logits([asked for question in questions for asked in question.sequences])
        total = shares.new_zeros(())
        if self.rank is not None:
            scores = self._scores(questions, logits)
            padded = pad_sequence(scores, batch_first=True)
            labels = pad_sequence([torch.tensor(q.labels) for q in questions], batch_first=True).to(run.device)
            mask = _filled([len(s) for s in scores], run.device)
            total = total + self.rank_weight * (shares * self.rank(padded, labels, mask)).sum()
        if self.write_weight:
            total = total + self.write_weight * (shares * self._written(questions, logits)).sum()
        return total

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
