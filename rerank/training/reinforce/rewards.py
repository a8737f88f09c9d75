"""What a written answer is worth: each function takes a prompt, an answer to it, and the labels of the passages that
were shown, in the order shown, and gives a value with its named parts.

Higher labels are more relevant. The gold passages of a list are those with its highest label. Values are rewards as
the papers have them, not scaled or centred: GRPO does that over a group. `tags`, which every reward has, is the share
of the form's tags that are right; `shaping` in a recipe adds so much of it to the value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rerank.calls import Answer
from rerank.errors import InputError
from rerank.prompts import Prompt
from rerank.training.reinforce.reading import read

_RBO = 0.9  # RBO's persistence


@dataclass(frozen=True, slots=True)
class Reward:
    """`value` is what is learned from; `parts` are what it was made of, for people to follow."""

    value: float
    parts: Mapping[str, float]


RewardFunction = Callable[..., Reward]  # (prompt, answer, labels, *, options)


def rank_r1(prompt: Prompt, answer: Answer, labels: Sequence[float]) -> Reward:
    """1 where the whole answer has the form and names a gold passage, else 0 (Zhuang et al., arXiv 2503.06034, 2025,
    section 3). The paper's lists have one gold passage, ours may have several."""
    said = read(prompt, answer, len(labels))
    right = said.order is not None and labels[said.order[0]] == max(labels)
    return Reward(
        float(said.formed and right), {"tags": said.tags, "format": float(said.formed), "right": float(right)}
    )


def group_rank(
    prompt: Prompt,
    answer: Answer,
    labels: Sequence[float],
    *,
    recall: float = 0.2,
    distribution: float = 0.1,
    cutoff: int = 10,
    relevant: float = 1.0,
) -> Reward:
    """-0.5 where the tags are wrong, -0.1 where the scores in them are not one for each passage, else nDCG@10 + 0.2
    Recall@10 + 0.1 (1 - JS(P||Q)) (GroupRank; Sun et al., arXiv 2511.11653, 2025).

    P and Q are the predicted and the true scores, each divided by its sum; where all are 0 it is taken as uniform. JS
    has the base 2, so that it is at most 1: the paper does not say its base. Labels of at least `relevant` count for
    the recall. Of equal scores the passage shown first comes first, as with the strategy, which shows a group in random
    order.
    """
    said = read(prompt, answer, len(labels))
    parts = {"tags": said.tags, "format": float(said.formed)}
    if not said.formed:
        return Reward(-0.5, parts | _NOTHING | {"distribution": 0.0})
    if said.order is None or said.scores is None or not said.outcomes.clean:
        return Reward(-0.1, parts | _NOTHING | {"distribution": 0.0})
    parts |= _gained(said.order, labels, cutoff, relevant)
    parts["distribution"] = 1 - divergence([score or 0.0 for score in said.scores], labels)
    return Reward(parts["ndcg"] + recall * parts["recall"] + distribution * parts["distribution"], parts)


def reason_rank(
    prompt: Prompt,
    answer: Answer,
    labels: Sequence[float],
    *,
    recall: float = 0.2,
    overlap: float = 0.1,
    cutoff: int = 10,
    relevant: float = 1.0,
) -> Reward:
    """-1 where the form is wrong, 0 where the answer in it is not each passage once, else nDCG@10 + 0.2 Recall@10 + 0.1
    RBO (ReasonRank's multi-view reward; Liu et al., arXiv 2508.07050, 2025).

    RBO is to the order by labels; the paper's is a teacher's whole order, without ties, and ours takes tied passages
    in the answer's own order. Its persistence is 0.9, the usual one: we are not sure that it is the authors'.
    """
    said = read(prompt, answer, len(labels))
    parts = {"tags": said.tags, "format": float(said.formed)}
    if not said.formed:
        return Reward(-1.0, parts | _NOTHING | {"rbo": 0.0})
    if said.order is None or not said.outcomes.clean:
        return Reward(0.0, parts | _NOTHING | {"rbo": 0.0})
    parts |= _gained(said.order, labels, cutoff, relevant)
    parts["rbo"] = rank_biased_overlap(said.order, sorted(said.order, key=lambda i: -labels[i]))
    return Reward(parts["ndcg"] + recall * parts["recall"] + overlap * parts["rbo"], parts)


def iranker(prompt: Prompt, answer: Answer, labels: Sequence[float]) -> Reward:
    """1 where the passage to be left out is not gold, 0 where it is, -0.5 where none of the list is named (IRanker;
    Feng et al., arXiv 2506.21638, 2025). The paper's terms for the form of a thought are `shaping`."""
    said = read(prompt, answer, len(labels))
    named = said.order is not None
    kept = said.order is not None and labels[said.order[-1]] != max(labels)
    parts = {"tags": said.tags, "format": float(said.formed), "named": float(named), "kept": float(kept)}
    return Reward(float(kept) if named else -0.5, parts)


_NOTHING = {"ndcg": 0.0, "recall": 0.0}

REWARDS: Mapping[str, RewardFunction] = MappingProxyType(
    {"rank-r1": rank_r1, "group-rank": group_rank, "reason-rank": reason_rank, "iranker": iranker}
)
FITS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"rank-r1": ("rank-r1",), "listwise": ("reason-rank",), "groupwise": ("group-rank",), "elimination": ("iranker",)}
)
GAINS = ("group-rank", "reason-rank")  # take labels for gains, which must not be negative


def shaped(reward: Reward, shaping: float) -> Reward:
    """With `shaping` times the share of right tags added, so that a model that writes no form yet has a way there."""
    return Reward(reward.value + shaping * reward.parts["tags"], reward.parts) if shaping else reward


def dcg(gains: Sequence[float], cutoff: int | None = None) -> float:
    """Σ gain / log2(1 + rank), the gain being the label, as trec_eval has it.

    >>> dcg([3.0, 0.0, 1.0])
    3.5
    """
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains[:cutoff], start=1))


def _gained(order: Sequence[int], labels: Sequence[float], cutoff: int, relevant: float) -> dict[str, float]:
    """nDCG and recall of an order; 0 where nothing is relevant."""
    ideal = dcg(sorted(labels, reverse=True), cutoff)
    wanted = [i for i, label in enumerate(labels) if label >= relevant]
    found = sum(i in order[:cutoff] for i in wanted)
    return {
        "ndcg": dcg([labels[i] for i in order], cutoff) / ideal if ideal else 0.0,
        "recall": found / len(wanted) if wanted else 0.0,
    }


def divergence(given: Sequence[float], true: Sequence[float]) -> float:
    """The Jensen-Shannon divergence of two rows of scores, each divided by its sum, in bits: 0 to 1.

    >>> divergence([1, 0], [2, 0]), divergence([1, 0], [0, 1])
    (0.0, 1.0)
    """
    p, q = _normalised(given), _normalised(true)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (_relative(p, middle) + _relative(q, middle)) / 2


def _normalised(scores: Sequence[float]) -> list[float]:
    total = sum(scores)
    return [score / total for score in scores] if total > 0 else [1 / len(scores)] * len(scores)


def _relative(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log2(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def rank_biased_overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """RBO of two orders of the same n things (Webber et al., TOIS 2010, eq. 4, summed to depth n and divided by its
    greatest value there, so that equal orders have 1).

    >>> rank_biased_overlap([2, 0, 1], [2, 0, 1])
    1.0
    """
    n = len(one)
    weights = [_RBO ** (depth - 1) for depth in range(1, n + 1)]
    shares = [len({*one[:depth]} & {*other[:depth]}) / depth for depth in range(1, n + 1)]
    return sum(w * share for w, share in zip(weights, shares, strict=True)) / sum(weights)


def check_labels(name: str, title: str, labels: Sequence[float]) -> None:
    """Whether a reward can read these labels. Raises InputError."""
    if name in GAINS and min(labels) < 0:
        raise InputError(
            f"{title}: reward {name} takes labels for gains and was given {min(labels):g}; give judgments, or a reward "
            "that needs an order only, such as rank-r1"
        )
