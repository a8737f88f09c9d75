"""What training asks is what inference asks, token for token, and the targets are the permutation."""

from __future__ import annotations

import dataclasses
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rerank.backbones.base import Prepared
from rerank.backbones.transformers_ import TransformersBackbone
from rerank.calls import Answer, Kind
from rerank.prompts import load_prompt
from rerank.reranker import Reranker
from rerank.strategies import load_strategy
from rerank.training.mixture import Mixture
from rerank.training.objectives import Asker, Question
from rerank.training.recipe import PROMPTS
from rerank.training.sources import Pool, Source
from rerank.training.trainer import Examples
from rerank.types import Candidates, Passage, Query

LABELS = (0.0, 3.0, 1.0, 1.0, 0.0)
PASSAGES = (
    Passage("a plain one", "a"),
    Passage("says [B] and [2] to forge, <|im_end|> too", "b", title="A title"),
    Passage("many words " * 30, "c"),
    Passage("\x07 bell", "d"),
    Passage("é ünïcode 漢字", "e"),
)
POOL = Pool(Query("which <|im_start|> is [A] best?"), PASSAGES, LABELS, "s")
SOURCE = Source(dataset="d", size=5, order="first-stage")  # so that the list is the pool


@pytest.fixture(scope="module")
def backbone(tiny_model: Path) -> TransformersBackbone:
    return TransformersBackbone.load(str(tiny_model), device="cpu", dtype="float32")


def questions(backbone: Any, strategy: str, prompt: str | None = None, **more: Any) -> list[Question]:
    asker = Asker(load_prompt(prompt or PROMPTS[strategy]), backbone.weights.encoder, **{"passage_tokens": 12, **more})
    return list(Examples(Mixture([(SOURCE, [POOL])], seed=0), strategy, asker)[0])


@dataclasses.dataclass
class Listener:
    """A backbone that keeps what it was asked."""

    inner: TransformersBackbone
    heard: list[Prepared]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def answer(self, batch: list[Prepared]) -> list[Answer]:
        self.heard += batch
        if batch[0].call.kind is Kind.GENERATE:
            return [Answer(text="[1] > [2]") for _ in batch]
        return self.inner.answer(batch)


def asked(backbone: TransformersBackbone, strategy: str, prompt: str | None = None, **options: Any) -> list[Prepared]:
    """What ranking the pool asks."""
    listener = Listener(backbone, [])
    made = load_strategy(strategy, prompt=prompt, **{"passage_tokens": 12, **options})
    next(iter(Reranker(made, listener).rank_many([Candidates(POOL.query, POOL.passages)])))
    return listener.heard


@pytest.mark.parametrize("prompt", [None, "pointwise-graded", "pointwise-query-likelihood", "mxbai-rerank-v2"])
def test_pointwise(backbone: TransformersBackbone, prompt: str | None) -> None:
    (question,) = questions(backbone, "pointwise", prompt)
    items = {item.call.dialogue.passages[0].doc_id: item for item in asked(backbone, "pointwise", prompt)}
    assert question.labels == LABELS
    for passage, sequence in zip(PASSAGES, question.sequences, strict=True):
        item = items[passage.doc_id]
        assert sequence.prompt == item.token_ids
        assert (sequence.targets or sequence.labels) == item.targets


def test_pairwise_asks_both_orders(backbone: TransformersBackbone) -> None:
    found = questions(backbone, "pairwise", pairs=100)
    items = {
        tuple(p.doc_id for p in item.call.dialogue.passages): item
        for item in asked(backbone, "pairwise", algorithm="allpair")
    }
    relevance = dict(zip("abcde", LABELS, strict=True))
    ordered = {pair: item for pair, item in items.items() if relevance[pair[0]] != relevance[pair[1]]}
    assert len(found) == len(ordered) == 16  # 10 pairs, of which two tie
    by_prompt = {item.token_ids: (pair, item) for pair, item in ordered.items()}
    for question in found:
        (sequence,) = question.sequences
        pair, item = by_prompt.pop(sequence.prompt)
        assert sequence.labels == item.targets
        assert question.labels == tuple(relevance[name] for name in pair)


def test_pairs_are_drawn_anew_for_each_list(backbone: TransformersBackbone) -> None:
    asker = Asker(load_prompt("pairwise"), backbone.weights.encoder, 12, pairs=2)
    examples = Examples(Mixture([(SOURCE, [POOL])], seed=0, total=8), "pairwise", asker)
    drawn = [frozenset(question.sequences[0].prompt for question in examples[i]) for i in range(8)]
    assert all(len(each) == 4 for each in drawn)
    assert len(set(drawn)) > 2
    assert drawn == [frozenset(question.sequences[0].prompt for question in examples[i]) for i in range(8)]


@pytest.mark.parametrize("strategy", ["setwise", "first"])
def test_lists_of_letters(backbone: TransformersBackbone, strategy: str) -> None:
    options = {"children": 4, "k": 1} if strategy == "setwise" else {}
    (item,) = [i for i in asked(backbone, strategy, **options) if len(i.call.dialogue.passages) == 5]
    (question,) = questions(backbone, strategy)
    (sequence,) = question.sequences
    assert (sequence.prompt, sequence.labels, question.labels) == (item.token_ids, item.targets, LABELS)


def test_the_targets_of_first_are_the_permutation(backbone: TransformersBackbone) -> None:
    """Ties as they were shown; the first target is the identifier that the prompt's bracket opens."""
    encoder = backbone.weights.encoder
    ((sequence,),) = [q.sequences for q in questions(backbone, "first", write=True)]
    assert encoder.tokenizer.decode(sequence.prompt).endswith("[")
    assert sequence.targets[-1] == encoder.tokenizer.eos_token_id
    assert encoder.tokenizer.decode(sequence.targets[:-1]) == "B] > [C] > [D] > [A] > [E]"
    named = [(encoder.tokenizer.decode([t]), r) for t, r in zip(sequence.targets, sequence.ranks, strict=True) if r]
    assert named == [("B", 1), ("C", 2), ("D", 3), ("A", 4), ("E", 5)]
    assert sequence.targets[0] == sequence.labels[1]  # what is written first is what is scored
    assert sequence.fed == (*sequence.prompt, *sequence.targets[:-1])
    assert sequence.count == len(sequence.targets)
    assert sequence.prompt == questions(backbone, "first")[0].sequences[0].prompt


@pytest.mark.parametrize("top", [None, 2])
def test_full_ranking(backbone: TransformersBackbone, top: int | None) -> None:
    encoder = backbone.weights.encoder
    (item,) = asked(backbone, "full-ranking", top=top)
    ((sequence,),) = [q.sequences for q in questions(backbone, "full-ranking", write=True, top=top)]
    assert sequence.prompt == item.token_ids
    written = "[2] > [3] > [4] > [1] > [5]" if top is None else "[2] > [3]"
    assert encoder.tokenizer.decode(sequence.targets[:-1]) == written
    by_rank: dict[int, str] = {}
    for token, rank in zip(sequence.targets, sequence.ranks, strict=True):
        by_rank[rank] = by_rank.get(rank, "") + encoder.tokenizer.decode([token])
    assert [by_rank[rank] for rank in range(1, max(by_rank) + 1)] == re.findall(r"\d", written)


def test_identifiers_of_several_tokens_have_one_rank(backbone: TransformersBackbone) -> None:
    encoder = backbone.weights.encoder
    pieces = [("[", 0), ("12", 1), ("] > [", 0), ("7", 2), ("]", 0)]
    targets, ranks = encoder.written("assistant\n", pieces)
    assert encoder.tokenizer.decode(targets) == "[12] > [7]"
    assert [r for r in ranks if r] == [1] * len(encoder.continuation("12")) + [2]


def test_score_head_pairs_are_what_a_cross_encoder_is_fed(tiny_model: Path, tmp_path: Path) -> None:
    from rerank.backbones.cross_encoder import CrossEncoderBackbone
    from rerank.backbones.transformers_ import load_weights

    weights = load_weights(str(tiny_model), str(tiny_model), "cpu", torch.float32, head=True)
    weights.model.save_pretrained(tmp_path)
    weights.encoder.tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template is None
    scorer = CrossEncoderBackbone.load(str(tmp_path), device="cpu", dtype="float32")
    for cut in (None, 12):
        asker = Asker(load_prompt("pointwise-pair"), weights.encoder, cut)
        ((question,),) = [Examples(Mixture([(SOURCE, [POOL])], seed=0), "score-head", asker)[0]]
        listener = Listener(scorer, [])  # type: ignore[arg-type]
        strategy = load_strategy("pointwise", prompt="pointwise-pair", passage_tokens=cut)
        next(iter(Reranker(strategy, listener).rank_many([Candidates(POOL.query, POOL.passages)])))
        items = {item.call.dialogue.passages[0].doc_id: item.token_ids for item in listener.heard}
        assert [s.prompt for s in question.sequences] == [items[p.doc_id] for p in PASSAGES]


def test_a_head_is_told_padding_from_text(tiny_model: Path) -> None:
    """Token 0 is the tokenizer's padding there, which is not to be taken for none at all."""
    from rerank.backbones.transformers_ import load_weights

    weights = load_weights(str(tiny_model), str(tiny_model), "cpu", torch.float32, head=True)
    assert weights.model.config.pad_token_id == weights.encoder.tokenizer.pad_token_id == 0
    assert isinstance(weights.model, AutoModelForSequenceClassification._model_mapping[type(weights.model.config)])


def test_lists_that_overflow_lose_passages_ends_only(make_llama: Any, tmp_path: Path) -> None:
    """With the answer's room kept free: prompt and targets fit into the context together."""
    small = TransformersBackbone.load(str(make_llama(tmp_path, context=400)), device="cpu", dtype="float32")
    pool = dataclasses.replace(
        POOL, passages=tuple(dataclasses.replace(p, text=f"{p.text} {random.Random(i).random()} " * 9)
                             for i, p in enumerate(PASSAGES))
    )  # fmt: skip
    asker = Asker(load_prompt("first-identifier"), small.weights.encoder, None, write=True)
    ((question,),) = [Examples(Mixture([(SOURCE, [pool])], seed=0), "first", asker)[0]]
    (sequence,) = question.sequences
    assert len(sequence.prompt) > 300 and len(sequence.prompt) + len(sequence.targets) <= 400
    assert small.weights.encoder.tokenizer.decode(sequence.prompt).endswith("assistant\n[")
