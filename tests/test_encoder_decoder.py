"""The encoder-decoder backbone, on tiny random T5 models with T5's own tokenizer class."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from released import loaded, save_byte_level, save_model, save_t5_tokenizer

import rerank
from rerank.backbones import load_backbone
from rerank.backbones.encoder_decoder import EncoderDecoderBackbone
from rerank.calls import Call, Kind
from rerank.errors import BackboneError, CapabilityError, ContextError, InputError, UnknownNameError
from rerank.prompts import Prompt, load_prompt
from rerank.types import Candidates, Outcomes, Passage, Query

Make = Callable[..., Candidates]
LIKELIHOOD, LETTERS = "pointwise-query-likelihood", "first-identifier"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    return save_model(folder, "T5", save_t5_tokenizer(folder))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> EncoderDecoderBackbone:
    return load(folder)


def load(folder: Path, **options: object) -> EncoderDecoderBackbone:
    return EncoderDecoderBackbone.load(str(folder), **{"device": "cpu", "dtype": "float32", **options})  # type: ignore[arg-type]


def ask(prompt: str | Prompt, query: str, *texts: str) -> Call:
    made = load_prompt(prompt) if isinstance(prompt, str) else prompt
    return made.ask(Query(query), [Passage(text, f"d{i}") for i, text in enumerate(texts)])


def logits_by_hand(folder: Path, prompt: list[int], begun: list[int]) -> torch.Tensor:
    """Of one call alone: every position of a decoder that is fed its start token and these."""
    model, _ = loaded(folder, decoder_only=False)
    with torch.no_grad():
        start = model.config.decoder_start_token_id
        return model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[start, *begun]])).logits[0]


def test_a_likelihood_is_that_of_the_decoders_tokens(folder: Path, backbone: EncoderDecoderBackbone) -> None:
    """In a batch of other lengths, by teacher forcing."""
    queries = ["Query true", "a", "how long do fleas live"]
    items = [backbone.prepare(ask(LIKELIHOOD, query, "text " * i)) for i, query in enumerate(queries, start=1)]
    for query, item, answer in zip(queries, items, backbone.answer(items), strict=True):
        targets = loaded(folder, decoder_only=False)[1].encode(query, add_special_tokens=False)
        assert list(item.targets) == targets
        rows = logits_by_hand(folder, list(item.token_ids), targets[:-1]).log_softmax(-1)
        assert answer.logprobs == pytest.approx(rows[range(len(targets)), targets].tolist(), abs=1e-4)
        assert answer.prompt_tokens == len(item.token_ids) + len(targets)


def test_the_prefix_begins_the_decoders_answer(folder: Path, backbone: EncoderDecoderBackbone) -> None:
    """The letters are read after the bracket that the decoder was given, and the encoder does not see it."""
    item = backbone.prepare(ask(LETTERS, "which", "one", "two", "three"))
    tokenizer = loaded(folder, decoder_only=False)[1]
    bracket = tokenizer.encode("[", add_special_tokens=False)
    assert tokenizer.decode(item.token_ids).endswith("and nothing else.</s>")
    assert tokenizer.convert_ids_to_tokens(item.targets) == ["A", "B", "C"]
    (answer,) = backbone.answer([item])
    expected = logits_by_hand(folder, list(item.token_ids), bracket)[-1, list(item.targets)].log_softmax(-1)
    assert answer.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_scores_do_not_depend_on_the_batch(
    folder: Path, backbone: EncoderDecoderBackbone, make_candidates: Make
) -> None:
    requests = [make_candidates(n, f"q{n}") for n in (3, 9, 17)]
    alone, together = (
        rerank.load("pointwise", prompt="monot5", backbone=dataclasses.replace(backbone, batch_tokens=tokens))
        for tokens in (1, 10**6)
    )
    for one, other in zip(alone.rank_many(requests), together.rank_many(requests), strict=True):
        assert one.doc_ids == other.doc_ids
        assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=1e-4)


def test_batches_are_of_one_kind_and_like_lengths(backbone: EncoderDecoderBackbone) -> None:
    small = dataclasses.replace(backbone, batch_tokens=100)
    calls = [ask("monot5", "a", "b" * n) for n in (1, 60, 2, 59)] + [ask(LIKELIHOOD, "a", "b")]
    items = [small.prepare(call) for call in calls]
    batches = small.group(items)
    assert sorted(i for batch in batches for i in batch) == list(range(5))
    assert [sorted(batch) for batch in batches] == [[1], [3], [0, 2], [4]]


def test_every_prompt_of_one_token_can_be_asked(folder: Path, make_candidates: Make) -> None:
    """Strategies beyond the one that monoT5 was made for."""
    given = {"model": str(folder), "backbone": "encoder-decoder", "device": "cpu", "dtype": "float32"}
    for strategy in ("pairwise", "setwise", "first"):
        ranker = rerank.load(strategy, backbone_options={"max_length": 1024}, **given)  # type: ignore[arg-type]
        request = make_candidates(6)
        (ranking,) = ranker.rank_many([request])
        assert sorted(ranking.doc_ids) == [f"d{i}" for i in range(6)]
        assert ranking.outcomes.failed == 0 and ranking.outcomes.clean > 0


def test_the_last_product_is_in_float32(folder: Path) -> None:
    """Of what a bfloat16 decoder gives; its own product would be rounded, and passages tie."""
    backbone = load(folder, dtype="bfloat16")
    head = backbone.model.get_output_embeddings()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # what goes into the product, and what it gives
    item = backbone.prepare(ask("monot5", "a query", "some text"))
    watch = head.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
    (answer,) = backbone.answer([item])
    watch.remove()
    ((states, own),), rows = seen, list(item.targets)
    expected = (states[0, 0].float() @ head.weight[rows].float().T).log_softmax(-1)
    assert answer.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
    assert (own[0, 0, rows].float().log_softmax(-1) - expected).abs().max() > 1e-4
    assert not head._forward_hooks


def test_passages_are_cut_and_a_query_that_leaves_no_room_is_an_error(folder: Path) -> None:
    backbone = load(folder, max_length=64)
    ranker = rerank.load("pointwise", prompt="monot5", backbone=backbone)
    ranking = ranker.rank("which", ["short", "x" * 300])
    assert ranking.outcomes == Outcomes(clean=2, cut=1)
    with pytest.raises(ContextError, match="leave no room for passages in the 64 tokens"):
        ranker.rank("q" * 200, ["short"])
    assert load(folder).encoder.context == 512  # the tokenizer names no limit


def test_what_it_cannot_do_is_refused(folder: Path, backbone: EncoderDecoderBackbone) -> None:
    with pytest.raises(CapabilityError, match="the encoder-decoder backbone does not answer generate calls"):
        rerank.load("listwise", model=str(folder), backbone="encoder-decoder")
    with pytest.raises(CapabilityError, match="does not answer generate calls; it says how probable a token is"):
        backbone.prepare(ask("listwise-permutation", "q", "a", "b"))
    with pytest.raises(InputError, match="the encoder-decoder backbone takes no adapter"):
        load_backbone("encoder-decoder", needs=Kind.LABELS, model=str(folder), adapter="mine")
    for option, words in (("max_length", "max_length is 0"), ("batch_tokens", "batch_tokens is 0")):
        with pytest.raises(InputError, match=words):
            load(folder, **{option: 0})
    with pytest.raises(InputError, match="needs a model, such as"):
        EncoderDecoderBackbone.load()


def test_models_that_cannot_be_loaded_say_why(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory, which has none"):
        load(folder, revision="refs/pr/1")
    with pytest.raises(InputError, match=r"has no config\.json"):
        load(tmp_path)
    causal = tmp_path / "causal"
    save_model(causal, "Qwen2", save_byte_level(causal, ("<pad>", "<eos>")))
    with pytest.raises(CapabilityError, match="has no encoder and decoder; ask it by backbone='transformers'"):
        load(causal)
    with pytest.raises(UnknownNameError, match="unknown model 'nobody/no-such-model'"):
        load(Path("nobody/no-such-model"))


def test_a_bin_file_is_not_read_and_the_way_out_is_told(folder: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(folder, tmp_path / "old"))
    (old / "model.safetensors").unlink()
    torch.save(loaded(folder, decoder_only=False)[0].state_dict(), old / "pytorch_model.bin")
    with pytest.raises(BackboneError) as caught:
        load(old)
    for words in ("has no safetensors", "revision=refs/pr/1", "save_pretrained(FOLDER)"):
        assert words in str(caught.value)
