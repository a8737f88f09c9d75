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
        rows = iter(logits)
        found = [[next(rows) for _ in question.sequences] for question in questions]
        total = shares.new_zeros(())
        if self.rank is not None:
            scores = [self._scores(q, own) for q, own in zip(questions, found, strict=True)]
            padded = pad_sequence(scores, batch_first=True)
            labels = pad_sequence([torch.tensor(q.labels) for q in questions], batch_first=True).to(run.device)
            lengths = torch.tensor([len(s) for s in scores], device=run.device)
            mask = torch.arange(padded.shape[1], device=run.device) < lengths[:, None]
            total = total + self.rank_weight * (shares * self.rank(padded, labels, mask)).sum()
        if self.write_weight:
            written = [(q.sequences[0], own[0]) for q, own in zip(questions, found, strict=True)]
            total = total + self.write_weight * (shares * self._written(written)).sum()
        return total

    def _scores(self, question: Question, logits: Sequence[Tensor]) -> Tensor:
        """One score for each label: `[n]`."""
        if question.sequences[0].labels:
            read = torch.stack(
                [own[0, list(asked.labels)] for asked, own in zip(question.sequences, logits, strict=True)]
            ).float()
            if isinstance(self.answer, Binary):
                return read[:, 0] - read[:, 1]
            if isinstance(self.answer, Graded):
                grades = torch.tensor(list(self.answer.grades.values()), device=read.device)
                return read.softmax(-1) @ grades
            return read[0]
        if isinstance(self.answer, Likelihood):
            return torch.stack(
                [_log_probabilities(asked, own).mean() for asked, own in zip(question.sequences, logits, strict=True)]
            )
        return torch.cat([own.reshape(1) for own in logits]).float()  # a head's own score

    def _written(self, written: Sequence[tuple[Asked, Tensor]]) -> Tensor:
        """The language-model loss of each question's one sequence: `[Q]`."""
        spoken = pad_sequence([_log_probabilities(asked, own) for asked, own in written], batch_first=True)
        ranks = pad_sequence([torch.tensor(asked.ranks) for asked, _ in written], batch_first=True).to(spoken.device)
        lengths = torch.tensor([len(asked.targets) for asked, _ in written], device=spoken.device)
        mask = torch.arange(spoken.shape[1], device=spoken.device) < lengths[:, None]
        if self.importance:
            return importance_lm(spoken, ranks, mask, separator_weight=self.separators, reduction="none")
        return -torch.where(mask, spoken, 0.0).sum(-1) / lengths


def _log_probabilities(asked: Asked, logits: Tensor) -> Tensor:
    """Of each target, in nats: `[len(targets)]`."""
    targets = torch.tensor(asked.targets, device=logits.device)
    return logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]


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
