"""The bi-encoder backbone, on tiny random models that sentence-transformers itself saved and loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from bi_encoders import CONTEXT, save, save_bert
from command import Cli, assert_error
from sentence_transformers import SentenceTransformer
from transformers import BertForSequenceClassification, BertModel

import rerank
from rerank.backbones import load_backbone
from rerank.backbones.bi_encoder import BiEncoderBackbone, Embeddings
from rerank.backbones.embedded import EMBEDDED_BI_ENCODER, MINILM, is_ready, resolve
from rerank.calls import Answer, Kind, LabelCall
from rerank.errors import BackboneError, CapabilityError, ContextError, InputError, PromptError
from rerank.prompts import load_prompt
from rerank.types import Candidates, Passage, Query

Make = Callable[..., Candidates]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a normalising layer, and with words before a query and a passage, as E5 has."""
    prompts = {"query": "find : ", "document": "passage : "}
    return save(tmp_path_factory.mktemp("prompted"), normalize=False, prompts=prompts)


@pytest.fixture
def backbone(plain: Path) -> BiEncoderBackbone:
    return load(plain)


def load(folder: Path, **options: object) -> BiEncoderBackbone:
    return BiEncoderBackbone.load(str(folder), device="cpu", **options)  # type: ignore[arg-type]


def by_hand(folder: Path, query: str, texts: Sequence[str], before: tuple[str, str] = ("", "")) -> list[float]:
    """The cosines, each text embedded alone, so without padding."""
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    q, *rows = (model.encode(text, prompt="") for text in (before[0] + query, *(before[1] + text for text in texts)))
    return [float(q @ row / np.linalg.norm(q) / np.linalg.norm(row)) for row in rows]


def ask(backbone: BiEncoderBackbone, query: str, *texts: str) -> list[Answer]:
    prompt = load_prompt("pointwise-pair")
    return backbone.answer([backbone.prepare(prompt.ask(Query(query), [Passage(t, "p")])) for t in texts])


def scores_of(ranking: rerank.Ranking) -> dict[str, float]:
    return {hit.passage.doc_id: hit.score for hit in ranking}


class Counting:
    """A model that notes the texts it is asked to embed."""

    def __init__(self, model: SentenceTransformer, most: int = 10**6) -> None:
        self.model, self.most = model, most
        self.embedded: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def encode_query(self, texts: list[str], **options: object) -> object:
        return self._encode(texts, **options)

    def encode_document(self, texts: list[str], **options: object) -> object:
        return self._encode(texts, **options)

    def _encode(self, texts: list[str], **options: object) -> object:
        if len(texts) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.embedded += texts
        return self.model.encode(texts, **options)  # type: ignore[call-overload]


def counting(backbone: BiEncoderBackbone, most: int = 10**6) -> tuple[BiEncoderBackbone, Counting]:
    model = Counting(backbone.model, most)
    return dataclasses.replace(backbone, model=model), model  # type: ignore[arg-type]


def test_scores_are_the_cosines(plain: Path, make_candidates: Make) -> None:
    """By the engine's name, its prompt comes by itself; a text scores in any batch as it does alone."""
    candidates = make_candidates(9, query="a query")
    for batch_tokens in ("1", "100000"):
        ranker = rerank.load(
            "pointwise", model=str(plain), backbone="bi-encoder", device="cpu",
            backbone_options={"batch_tokens": batch_tokens},
        )  # fmt: skip
        ranking = ranker.rank(candidates.query, candidates.passages)
        texts = [p.text for p in candidates.passages]
        ids = [p.doc_id for p in candidates.passages]
        expected = dict(zip(ids, by_hand(plain, "a query", texts), strict=True))
        assert scores_of(ranking) == pytest.approx(expected, abs=1e-5)
        assert ranking.doc_ids == sorted(expected, key=lambda doc_id: -expected[doc_id])
        assert np.ptp(list(expected.values())) > 0.05  # the model tells them apart
        assert ranking.outcomes.clean == 9


def test_what_the_model_was_saved_with_comes_before_query_and_passage(prompted: Path) -> None:
    """Without a layer that normalises, too, a score is a cosine."""
    texts = ("the flea lives", "days of rank")
    saved = [answer.score for answer in ask(load(prompted), "a query", *texts)]
    assert saved == pytest.approx(by_hand(prompted, "a query", texts, ("find : ", "passage : ")), abs=1e-5)
    other = [answer.score for answer in ask(load(prompted, instruction="rank "), "a query", *texts)]
    assert other == pytest.approx(by_hand(prompted, "a query", texts, ("rank ", "passage : ")), abs=1e-5)
    assert saved != pytest.approx(other, abs=1e-3)


def test_a_model_that_was_trained_on_dot_products(tmp_path: Path) -> None:
    folder = save(tmp_path, normalize=False, similarity_fn_name="dot")
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    q, p = (model.encode(text) for text in ("a query", "the flea"))
    (answer,) = ask(load(folder), "a query", "the flea")
    assert answer.score == pytest.approx(float(q @ p), rel=1e-5)
    assert answer.score > 2  # so no cosine


def test_a_text_is_embedded_once(backbone: BiEncoderBackbone) -> None:
    counted, model = counting(backbone)
    first = ask(counted, "a query", "the flea", "the best", "the flea")
    assert sorted(model.embedded) == ["a query", "the best", "the flea"]
    assert first[0] == first[2]
    again = ask(counted, "best query", "the best", "the flea", "which word")
    assert sorted(model.embedded[3:]) == ["best query", "which word"]
    assert again[1].score == pytest.approx(ask(backbone, "best query", "the flea")[0].score, abs=1e-6)


def test_the_same_text_as_query_and_as_passage_is_two(prompted: Path) -> None:
    counted, model = counting(load(prompted))
    (answer,) = ask(counted, "the flea", "the flea")
    assert len(model.embedded) == 2
    expected = by_hand(prompted, "the flea", ["the flea"], ("find : ", "passage : "))[0]
    assert answer.score == pytest.approx(expected, abs=1e-5)


def test_what_is_kept_is_bounded_and_the_oldest_goes_first() -> None:
    def row(n: float) -> torch.Tensor:
        return torch.full((8,), n)

    kept = Embeddings(limit=10**9)
    kept.put("document", "a", row(0))
    one = kept.size
    assert one > 8 * 4  # the text counts too
    kept = Embeddings(limit=3 * one)
    for n, text in enumerate("abc"):
        kept.put("document", text, row(n))
    assert kept.get("document", "a") is not None  # used again, so 'b' is now the oldest
    kept.put("document", "d", row(3))
    assert [kept.get("document", text) is None for text in "abcd"] == [False, True, False, False]
    assert kept.size == 3 * one
    assert kept.get("query", "a") is None
    kept.put("document", "e" * 10_000, row(4))  # more than all the room there is
    assert (len(kept), kept.size) == (0, 0)


def test_without_room_for_embeddings_scores_are_the_same(plain: Path, make_candidates: Make) -> None:
    candidates = make_candidates(9)
    kept, model = counting(load(plain))
    none, other = counting(load(plain, cache_mb=0))
    for _ in range(2):
        rankings = [
            rerank.load("pointwise", prompt="pointwise-pair", backbone=each).rank(candidates.query, candidates.passages)
            for each in (kept, none)
        ]
        assert scores_of(rankings[0]) == pytest.approx(scores_of(rankings[1]), abs=1e-6)
    assert len(model.embedded) == 10
    assert len(other.embedded) >= 20


def test_only_the_passage_is_cut_and_it_is_counted(plain: Path, backbone: BiEncoderBackbone) -> None:
    """The model's own limit holds, not what its table of positions would."""
    ranker = rerank.load("pointwise", prompt="pointwise-pair", backbone=backbone)
    ranking = ranker.rank("a query", ["the flea", Passage("lives of days " * 40, "1", title="the title")])
    assert ranking.outcomes.cut == 1
    shown = " ".join(("the title " + "lives of days " * 40).split()[: CONTEXT - 2])
    expected = by_hand(plain, "a query", ["the flea", shown])
    assert [scores_of(ranking)[i] for i in "01"] == pytest.approx(expected, abs=1e-5)
    item = backbone.prepare(load_prompt("pointwise-pair").ask(Query("a"), [Passage("the " * 200, "p")]))
    assert (item.tokens, item.cut) == (CONTEXT, 1)
    with pytest.raises(ContextError, match="longer than the context"):
        rerank.load("pointwise", prompt="pointwise-pair", backbone=backbone, strict=True).rank("a", ["the " * 200])


def test_limits_that_the_user_sets(plain: Path) -> None:
    texts = ["the flea lives of days", "the flea"]
    expected = by_hand(plain, "a", ["the flea lives", "the flea"])
    short = rerank.load("pointwise", prompt="pointwise-pair", backbone=load(plain, max_length=5)).rank("a", texts)
    assert short.outcomes.cut == 1
    limited = rerank.load("pointwise", prompt="pointwise-pair", backbone=load(plain), passage_tokens=3).rank("a", texts)
    assert limited.outcomes.cut == 0  # it was asked for, so it is nothing to report
    for ranking in (short, limited):
        assert [scores_of(ranking)[i] for i in "01"] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match=f"max_length is {CONTEXT + 1}; .* takes from 1 to {CONTEXT} tokens"):
        load(plain, max_length=CONTEXT + 1)
    with pytest.raises(InputError, match="cache_mb is -1"):
        load(plain, cache_mb=-1)


def test_a_long_query_is_an_error_of_that_query(backbone: BiEncoderBackbone) -> None:
    ranker = rerank.load("pointwise", prompt="pointwise-pair", backbone=backbone)
    kept = list(ranker.rank_many([("which " * 31, ["a"]), ("which " * 30, ["b"])], on_error="keep"))
    assert [ranking.error is None for ranking in kept] == [False, True]
    with pytest.raises(ContextError, match=r"takes 33 tokens of the 32 of .*; shorten the query"):
        ranker.rank("which " * 31, ["a"])


def test_a_batch_that_does_not_fit_is_halved(backbone: BiEncoderBackbone, make_candidates: Make) -> None:
    texts = [p.text for p in make_candidates(7).passages]
    whole = ask(backbone, "a", *texts)
    halved = ask(counting(dataclasses.replace(backbone, embeddings=Embeddings(0)), most=2)[0], "a", *texts)
    assert [a.score for a in halved] == pytest.approx([a.score for a in whole], abs=1e-5)
    with pytest.raises(BackboneError, match="out of memory on one text"):
        ask(counting(dataclasses.replace(backbone, embeddings=Embeddings(0)), most=0)[0], "a", *texts)


def test_what_it_cannot_do(plain: Path, backbone: BiEncoderBackbone) -> None:
    with pytest.raises(CapabilityError, match="the bi-encoder backbone does not answer labels calls"):
        rerank.load("pointwise", prompt="pointwise-yes-no", backbone="bi-encoder", model=str(plain))
    with pytest.raises(PromptError, match="shows one passage in a call"):
        rerank.load("first", backbone="bi-encoder", model=str(plain))
    with pytest.raises(InputError, match="takes no adapter"):
        rerank.load("pointwise", backbone="bi-encoder", model=str(plain), adapter="a")
    dialogue = load_prompt("pointwise-pair").ask(Query("q"), [Passage("t", "p")]).dialogue
    with pytest.raises(CapabilityError, match="does not answer labels calls"):
        backbone.prepare(LabelCall(dialogue, ("a",)))


def test_models_that_are_not_there_or_embed_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        load(tmp_path)
    with pytest.raises(BackboneError, match="no such directory, and the hub says"):
        load_backbone("bi-encoder", needs=Kind.SCORE, model="nobody/no-such-model", device="cpu")
    with pytest.raises(CapabilityError, match=r"classifies \(BertForSequenceClassification\).*cross-encoder backbone"):
        load(save_bert(tmp_path / "cross", BertForSequenceClassification))


def test_only_safetensors_are_read(tmp_path: Path) -> None:
    folder = save(tmp_path)
    torch.save(BertModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="cannot load the bi-encoder"):
        load(folder)


def test_the_command(cli: Cli, plain: Path) -> None:
    common = ("-s", "pointwise", "-b", "bi-encoder", "--device", "cpu", "-m", plain)
    done = cli("rank", "a query", *common, "--json", stdin="the flea\nlives of days\n")
    assert done.status == 0, done
    assert done.out.count('"score"') == 2
    assert_error(cli("rank", "a query", *common, "-B", "cache_md=3", stdin="a\n"), "cache_mb")
    assert "bi-encoder" in cli("ls", "backbones").out


@pytest.mark.model
def test_the_embedded_model_comes_out_of_its_wheel_and_ranks() -> None:
    folder = resolve(recipe=MINILM)
    assert is_ready(MINILM)
    assert {path.name for path in folder.iterdir()} >= {"model.safetensors", "modules.json", "1_Pooling"}
    backbone = BiEncoderBackbone.load(device="cpu")
    assert backbone.name == EMBEDDED_BI_ENCODER
    assert backbone.encoder.context == 256
    ranking = rerank.load("pointwise", backbone=backbone).rank(
        "how long does a flea live",
        ["Bone density is measured with X-rays.", "An adult flea survives for about a hundred days on its host."],
    )
    assert ranking.doc_ids == ["1", "0"]
    scores = scores_of(ranking)
    assert scores["1"] > 0.5 > 0.2 > scores["0"]
    assert scores["1"] == pytest.approx(
        by_hand(folder, "how long does a flea live", [ranking[0].passage.text])[0], abs=1e-5
    )


def test_its_identity_is_all_that_an_embedding_depends_on(plain: Path, prompted: Path, tmp_path: Path) -> None:
    backbone = load(plain)
    backbone.embed("document", ["the flea lives"])
    others = [load(plain, max_length=16), load(plain, instruction="find"), load(plain, dtype="float16")]
    others += [load(prompted), load(save(tmp_path, seed=1))]
    assert backbone.identity == load(plain).identity
    assert len({one.identity for one in [backbone, *others]}) == 1 + len(others)
    assert backbone.similarity == "cosine"
    assert load(save(tmp_path / "dot", similarity_fn_name="dot")).similarity == "dot"
