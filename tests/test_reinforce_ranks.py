"""Rank-GRPO's pieces against their definitions, and its loss against the paper's objective written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rerank.prompts import load_prompt
from rerank.training.reinforce.ranks import advantages, evened, named, places, returns, spread

LISTWISE = load_prompt("listwise-reasoning")


def test_named() -> None:
    text = "<think>[3] or [1]</think> <answer>[2] > [1]</answer>"
    assert [position for position, _ in named(LISTWISE, text)] == [1, 0]
    assert [text[:end][-3:] for _, end in named(LISTWISE, text)] == ["[2]", "[1]"]
    assert named(LISTWISE, "nothing") == []


def test_a_bracket_that_the_prompt_writes_is_the_first_identifiers() -> None:
    """Else the second one would be rank 1, and the first a part of the thought."""
    text = "C] > [A]"
    chain = named(load_prompt("first-permutation"), text)
    assert chain == [(2, 2), (0, 8)]
    ids = list(range(len(text)))
    assert places(ids, lambda own: text[: len(own)], [end for _, end in chain]) == [1] * 2 + [2] * 6


def test_returns() -> None:
    labels = [0.0, 2.0, 1.0]
    ideal = 2 + 1 / math.log2(3)
    tails = [(1 + 2 / math.log2(3)) / ideal, (2 / math.log2(3)) / ideal, 0]
    assert returns([2, 1, 0], labels, "dcg") == pytest.approx(tails)
    assert returns([2, 1, 0], labels, "relevance") == [0.5, 1.0, 0.0]
    assert returns([1, 1, 7, -1], labels, "relevance") == [1.0, 0.0, 0.0, 0.0]  # repeated, foreign, [0]
    assert returns([], labels, "dcg") == []
    assert returns([0, 1], [0.0, 0.0], "dcg") == returns([0, 1], [0.0, 0.0], "relevance") == [0.0, 0.0]


def letters(ids: list[int]) -> str:
    return "".join("ab[1]>"[i] for i in ids)


def test_places() -> None:
    """a token a character: the thought, then each identifier with what stands before it, and the end."""
    ids = [0, 1, 2, 3, 4, 5, 2, 3, 4, 1]  # ab[1]>[1]b
    assert places(ids, letters, [5, 9]) == [0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert places(ids, letters, []) == [0] * 10


def test_places_of_tokens_that_are_longer_than_a_character() -> None:
    pieces = ["<answer>", "[", "2", "] >", " [", "1", "]</", "answer>"]

    def decode(ids: list[int]) -> str:
        return "".join(pieces[i] for i in ids)

    text = "".join(pieces)
    ends = [end for _, end in named(LISTWISE, text)]
    assert places(list(range(8)), decode, ends) == [0, 1, 1, 1, 2, 2, 2, 2]


def test_advantages() -> None:
    earned = [[1.0, 0.5], [0.0], [0.2, 0.2], [0.2, 0.2]]
    plain = advantages(earned, 2, scale=False)
    assert plain.tolist() == [[0.5, 0.25], [-0.5, -0.25], [0, 0], [0, 0]]
    scaled = advantages(earned, 2, scale=True)
    assert scaled[0].tolist() == pytest.approx([0.5 / (0.5**0.5 + 1e-4), 0.25 / (0.125**0.5 + 1e-4)])
    assert advantages([[], []], 2, scale=True).shape == (2, 0)


def test_a_mean_over_tokens_is_a_mean_over_ranks() -> None:
    ranks = torch.tensor([[0, 0, 0, 1, 2, 2, 0], [0, 0, 0, 0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0, 0]])
    whole, by_rank = torch.tensor([0.3, -0.7]), torch.tensor([[1.0, -2.0], [5.0, 5.0]])
    found = spread(ranks, mask, whole, by_rank)
    means = (found * mask).sum(1) / mask.sum(1)
    assert means.tolist() == pytest.approx([(0.3 + 1 - 2) / 3, -0.7])


def test_evened_is_the_logarithm_of_a_geometric_mean() -> None:
    ranks, mask = torch.tensor([[0, 1, 1, 1]]), torch.tensor([[1, 1, 1, 0]])
    new, old = torch.tensor([[-1.0, -2.0, -4.0, 9.0]]), torch.tensor([[-1.5, -3.0, -3.5, 7.0]])
    ratio = (evened(new, ranks, mask) - evened(old, ranks, mask)).exp()
    geometric = math.sqrt(math.exp(1.0) * math.exp(-0.5))
    assert ratio[0, :3].tolist() == pytest.approx([math.exp(0.5), geometric, geometric])


def objective(new: Tensor, old: Tensor, ranks: Tensor, gains: Tensor, epsilon: float) -> Tensor:
    """J of one answer: the mean over its actions of min(w A, clip(w) A), w the geometric mean over its tokens."""
    terms = []
    for k, gain in enumerate(gains):
        own = ranks == k
        ratio = (new[own] - old[own]).mean().exp()
        terms.append(torch.minimum(ratio * gain, ratio.clamp(1 - epsilon, 1 + epsilon) * gain))
    return torch.stack(terms).mean()


def test_the_loss_is_the_papers() -> None:
    """What TRL makes of our advantages and log-probabilities: a mean over tokens, clipped token by token."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 2, 2]])
    mask = torch.ones(2, 6, dtype=torch.long)
    old = -torch.rand(2, 6, generator=generator)
    new = (old + 0.6 * torch.randn(2, 6, generator=generator)).requires_grad_()
    whole, by_rank = torch.tensor([0.4, -1.1]), torch.tensor([[1.2, -0.3], [-0.8, 0.9]])
    given = spread(ranks, mask, whole, by_rank)
    ratio = (evened(new, ranks, mask) - evened(old, ranks, mask)).exp()
    ours = torch.minimum(ratio * given, ratio.clamp(0.8, 1.2) * given).mean(1).mean()
    gains = torch.cat([whole[:, None], by_rank], 1)
    papers = torch.stack([objective(*row, 0.2) for row in zip(new, old, ranks, gains, strict=True)]).mean()
    assert ours.item() == pytest.approx(papers.item(), rel=1e-5)
    (one,) = torch.autograd.grad(ours, new, retain_graph=True)
    (other,) = torch.autograd.grad(papers, new)
    assert torch.allclose(one, other, atol=1e-6)
    assert (ratio.detach() - 1).abs().max() > 0.2  # some of it is clipped
