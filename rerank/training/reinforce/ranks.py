"""Rank-GRPO: each rank of a written order is an action (Zhu et al., arXiv 2510.20150, 2025).

An answer's rank k has a return of its own, its advantage is over what the group's answers got at rank k, and its
importance ratio is the geometric mean of its tokens' ratios; the objective is the mean over ranks. Tokens before the
first identifier, a thought above all, are an action too, rank 0, whose reward is the whole answer's: the paper's
answers are lists alone. So are all tokens of an answer that cannot be read. What follows the last identifier belongs
to its rank.

Shapes: `B` answers, groups of `G` following one another, `T` tokens, `K` ranks. `ranks` is `[B, T]`, whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from rerank.prompts import Prompt
from rerank.prompts.answers import identified
from rerank.training.reinforce.rewards import dcg

if TYPE_CHECKING:
    from torch import Tensor

Ids = Sequence[int]
Decode = Callable[[Ids], str]
_ANSWER = "<answer>"


def named(prompt: Prompt, text: str) -> list[tuple[int, int]]:
    """The identifiers of an answer, as positions, each with where its text ends. What the prompt begins the answer
    with, a bracket say, belongs to the first."""
    assert prompt.identifiers is not None
    whole = prompt.begun + text
    start = whole.rfind(_ANSWER) + len(_ANSWER) if _ANSWER in whole else 0
    found = identified(whole[start:], prompt.identifiers)
    return [(position, start + end - len(prompt.begun)) for position, end in found]


def returns(order: Sequence[int], labels: Sequence[float], kind: Literal["dcg", "relevance"]) -> list[float]:
    """What each rank of an order earns: `dcg` what it and those behind it add to the DCG, Σ_{j>=k} gain_j / log2(j + 1)
    (DCG@k:N, section 4.2), over the ideal DCG, so that the first rank's is nDCG; `relevance` its own gain, over the
    highest (the paper's exp∞). A passage that is not in the list, or was named before, gains nothing.

    >>> returns([1, 0], [0.0, 1.0], "dcg"), returns([1, 1], [0.0, 1.0], "relevance")
    ([1.0, 0.0], [1.0, 0.0])
    """
    first = {position: rank for rank, position in reversed(list(enumerate(order)))}
    gains = [
        labels[position] if 0 <= position < len(labels) and first[position] == rank else 0.0
        for rank, position in enumerate(order)
    ]
    if kind == "relevance":
        highest = max(labels)
        return [gain / highest if highest > 0 else 0.0 for gain in gains]
    ideal = dcg(sorted(labels, reverse=True))
    tails = [dcg([0.0] * k + gains[k:]) for k in range(len(gains))]
    return [tail / ideal if ideal else 0.0 for tail in tails]


def places(ids: Ids, decode: Decode, ends: Sequence[int]) -> list[int]:
    """The rank of each token, 0 before the first: a token belongs to the first identifier that ends with it or behind
    it. `ends` are in characters."""
    if not ends:
        return [0] * len(ids)
    found, start = [0] * len(ids), _reaching(ids, decode, _opened(decode(ids), ends[0]))
    for rank, end in enumerate(ends, start=1):
        stop = len(ids) if rank == len(ends) else _reaching(ids, decode, end)
        found[start:stop] = [rank] * (stop - start)
        start = stop
    return found


def _opened(text: str, end: int) -> int:
    """Where the bracket of the identifier that ends here is, which is the end of what comes before it."""
    return text.rfind("[", 0, end)


def _reaching(ids: Ids, decode: Decode, characters: int) -> int:
    """The least number of tokens whose text has so many characters."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(decode(ids[:middle])) >= characters:
            high = middle
        else:
            low = middle + 1
    return low


def advantages(earned: Sequence[Sequence[float]], group: int, *, scale: bool) -> Tensor:
    """Each rank's return less the mean of its group at that rank, with `scale` over the standard deviation: `[B, K]`.

    Where an answer has fewer ranks than others of its group it earned 0 there. The standard deviation is the sample's,
    with 1e-4 added, as TRL has it.
    """
    import torch

    most = max(map(len, earned), default=0)
    filled = [[*row, *[0.0] * (most - len(row))] for row in earned]
    table = torch.tensor(filled).reshape(len(earned) // group, group, most)  # [B/G, G, K]
    centred = table - table.mean(1, keepdim=True)
    if scale and most:
        centred = centred / (table.std(1, keepdim=True) + 1e-4)
    return centred.reshape(len(earned), most)


def spread(ranks: Tensor, mask: Tensor, whole: Tensor, by_rank: Tensor) -> Tensor:
    """Advantages for tokens, `[B, T]`: `whole` `[B]` at rank 0, `by_rank` `[B, K]` at the others, times
    T_i / (K_i T_ik), the answer's tokens over its actions' number and this one's tokens.

    A mean over an answer's tokens is then a mean over its actions, in which each has an equal part.
    """
    import torch

    all_ranks = torch.cat([whole[:, None], by_rank.to(whole)], 1)  # [B, 1 + K]
    counts = torch.zeros_like(all_ranks).scatter_add_(1, ranks, mask.to(all_ranks))
    actions = (counts > 0).sum(1, keepdim=True).clamp(min=1)
    share = mask.sum(1, keepdim=True) / (actions * counts.clamp(min=1))  # [B, 1 + K]
    return (all_ranks * share).gather(1, ranks)


def evened(values: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """Each token's log-probability replaced by the mean over its action: exp of a difference of these is the geometric
    mean of the tokens' ratios. `[B, T]`."""
    import torch

    size = int(ranks.max()) + 1
    kept = mask.to(values)
    empty = torch.zeros(len(values), size, dtype=values.dtype, device=values.device)
    total = empty.scatter_add(1, ranks, values * kept)
    counts = empty.scatter_add(1, ranks, kept)
    return (total / counts.clamp(min=1)).gather(1, ranks)
