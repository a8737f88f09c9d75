"""The cross-encoder backbone, on tiny random models that sentence-transformers itself saved and loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from command import Cli, assert_error
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import rerank
from rerank.backbones import load_backbone
from rerank.backbones.cross_encoder import CrossEncoderBackbone
from rerank.calls import Answer, Kind, LabelCall
from rerank.errors import BackboneError, CapabilityError, ContextError, InputError, PromptError
from rerank.prompts import Prompt, load_prompt
from rerank.types import Candidates, Passage, Query

Make = Callable[..., Candidates]
TEXT = "which is best passage number word query a the flea lives days of rank relevant answer"
PAIR = "pointwise-pair"  # a ready backbone is given its prompt by name; by the engine's name it comes by itself
CONTEXT = 64
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def save_tokenizer(folder: Path) -> int:
    """WordPiece with BERT's `[CLS] query [SEP] passage [SEP]` and its two segments. Returns its size."""
    letters = [f"{mark}{c}" for c in "abcdeghilnprstuwy0123456789" for mark in ("", "##")]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *TEXT.split(), *letters]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    return len(vocabulary)


def save_bert(
    folder: Path,
    kind: type[PreTrainedModel] = BertForSequenceClassification,
    *,
    labels: int = 1,
    context: int = CONTEXT,
) -> Path:
    size, roberta = save_tokenizer(folder), kind is RobertaForSequenceClassification
    make = RobertaConfig if roberta else BertConfig
    config = make(
        vocab_size=size, num_labels=labels, max_position_embeddings=context, pad_token_id=0,
        initializer_range=0.5, type_vocab_size=2, **SMALL,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def backbone(bert: Path) -> CrossEncoderBackbone:
    return load(bert)


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A random causal model saved as sentence-transformers saves Qwen3-Reranker: chat template and LogitScore."""
    folder = tmp_path_factory.mktemp("causal")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokens = [tokenizer.encode(text)[0] for text in ("Yes", "No")]
    inner = Transformer(
        str(tiny_model), transformer_task="text-generation", processor_kwargs={"chat_template": TEMPLATE}
    )
    prompts = {"web": "judge it"}
    CrossEncoder(
        modules=[inner, LogitScore(*tokens)], device="cpu", prompts=prompts, default_prompt_name="web"
    ).save_pretrained(str(folder))
    return folder


def load(folder: Path, **options: object) -> CrossEncoderBackbone:
    given = {"device": "cpu", "dtype": "float32"} | options
    return CrossEncoderBackbone.load(str(folder), **given)  # type: ignore[arg-type]


def by_hand(folder: Path, pairs: Sequence[tuple[str, str]], **options: object) -> list[float]:
    """One pair at a time, so without padding."""
    model = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity(), local_files_only=True)
    return [float(model.predict([pair], **options)[0]) for pair in pairs]


def ask(backbone: CrossEncoderBackbone, query: str, *texts: str) -> list[Answer]:
    prompt = load_prompt(PAIR)
    return backbone.answer([backbone.prepare(prompt.ask(Query(query), [Passage(t, "p")])) for t in texts])


@pytest.mark.parametrize("which", ["bert", "causal"])
def test_scores_are_the_models_own(request: pytest.FixtureRequest, which: str, make_candidates: Make) -> None:
    """Every pair in a batch with others scores as sentence-transformers scores it alone, before activation."""
    folder = request.getfixturevalue(which)
    candidates = make_candidates(9, query="a query")
    ranking = rerank.load("pointwise", prompt=PAIR, backbone=load(folder)).rank(candidates.query, candidates.passages)
    texts = [p.text for p in candidates.passages]
    expected = dict(
        zip([p.doc_id for p in candidates.passages], by_hand(folder, [("a query", t) for t in texts]), strict=True)
    )
    assert {hit.passage.doc_id: hit.score for hit in ranking} == pytest.approx(expected, abs=1e-4)
    assert ranking.doc_ids == sorted(expected, key=lambda doc_id: -expected[doc_id])
    assert np.ptp(list(expected.values())) > 0.1  # the model tells them apart
    assert ranking.outcomes.clean == 9
    assert ranking.usage.calls == 9


@pytest.mark.parametrize("which", ["bert", "causal"])
def test_scores_do_not_depend_on_the_batch(request: pytest.FixtureRequest, which: str, make_candidates: Make) -> None:
    backbone = load(request.getfixturevalue(which))
    requests = [make_candidates(n, f"q{n}") for n in (3, 9, 17)]
    alone = rerank.load("pointwise", prompt=PAIR, backbone=dataclasses.replace(backbone, batch_tokens=1))
    together = rerank.load("pointwise", prompt=PAIR, backbone=dataclasses.replace(backbone, batch_tokens=10**6))
    for one, other in zip(alone.rank_many(requests), together.rank_many(requests), strict=True):
        assert one.doc_ids == other.doc_ids
        assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=1e-3)


def test_tokens_are_those_that_the_model_sees(backbone: CrossEncoderBackbone) -> None:
    item = backbone.prepare(load_prompt(PAIR).ask(Query("a query"), [Passage("the flea lives", "p")]))
    assert backbone.encoder.tokenizer.convert_ids_to_tokens(item.token_ids) == (
        ["[CLS]", "a", "query", "[SEP]", "the", "flea", "lives", "[SEP]"]
    )
    assert item.tokens == 8
    assert ask(backbone, "a query", "the flea lives")[0].prompt_tokens == 8


def test_batches_are_of_like_lengths_within_the_budget(backbone: CrossEncoderBackbone) -> None:
    small = dataclasses.replace(backbone, batch_tokens=60)
    prompt = load_prompt(PAIR)
    items = [small.prepare(prompt.ask(Query("a"), [Passage("the " * n, "p")])) for n in (1, 20, 2, 19, 3, 18)]
    batches = [[items[i].tokens for i in batch] for batch in small.group(items)]
    assert batches == [[24, 23], [22, 7], [6, 5]]
    assert all(max(batch) * len(batch) <= 60 for batch in batches)


def test_only_the_passage_is_cut_and_it_is_counted(bert: Path, backbone: CrossEncoderBackbone) -> None:
    query = "which is best " * 6  # 18 tokens; 3 more are special, so 43 are left
    ranking = rerank.load("pointwise", prompt=PAIR, backbone=backbone).rank(query, ["the flea", "the flea lives " * 40])
    assert ranking.outcomes.cut == 1
    shown = ("the flea lives " * 40).split()[: CONTEXT - 21]
    expected = by_hand(bert, [(query, "the flea"), (query, " ".join(shown))])
    assert [{h.passage.doc_id: h.score for h in ranking}[i] for i in "01"] == pytest.approx(expected, abs=1e-4)
    (long,) = (backbone.prepare(load_prompt(PAIR).ask(Query(query), [Passage("the " * 200, "p")])),)
    assert long.tokens == CONTEXT
    with pytest.raises(ContextError, match="longer than the context"):
        rerank.load("pointwise", prompt=PAIR, backbone=backbone, strict=True).rank(query, ["the " * 200])


def test_a_passage_is_cut_within_a_word(backbone: CrossEncoderBackbone) -> None:
    """Where the cut falls between the pieces of a word, the rest of it may fall into more pieces than before."""
    text = "fleadays " * 3 + "passagenumber " * 30
    item = backbone.prepare(load_prompt(PAIR).ask(Query("which " * 40), [Passage(text, "p")]))
    assert item.cut == 1
    assert CONTEXT - 3 <= item.tokens <= CONTEXT


def test_a_limit_on_passages(bert: Path, backbone: CrossEncoderBackbone) -> None:
    ranker = rerank.load("pointwise", prompt=PAIR, backbone=backbone, passage_tokens=4)
    ranking = ranker.rank("a query", [Passage("flea lives of days", "p", title="the"), "the flea"])
    assert ranking.outcomes.cut == 0  # it was asked for, so it is nothing to report
    expected = by_hand(bert, [("a query", "the flea lives of"), ("a query", "the flea")])
    assert [{h.passage.doc_id: h.score for h in ranking}[i] for i in "p1"] == pytest.approx(expected, abs=1e-4)


def test_a_lower_max_length_cuts_earlier(bert: Path) -> None:
    ranking = rerank.load(
        "pointwise", model=str(bert), backbone="cross-encoder", device="cpu", dtype="float32",
        backbone_options={"max_length": "12", "batch_tokens": "24"},
    ).rank("a query", ["the flea lives " * 9, "the flea"])  # fmt: skip
    expected = by_hand(bert, [("a query", "the flea lives the flea lives the"), ("a query", "the flea")])
    assert [{h.passage.doc_id: h.score for h in ranking}[i] for i in "01"] == pytest.approx(expected, abs=1e-4)
    assert ranking.outcomes.cut == 1
    with pytest.raises(InputError, match=f"max_length is {CONTEXT + 1}; .* takes from 1 to {CONTEXT} tokens"):
        load(bert, max_length=CONTEXT + 1)


def test_a_query_that_leaves_no_room_is_an_error(backbone: CrossEncoderBackbone) -> None:
    ranker = rerank.load("pointwise", prompt=PAIR, backbone=backbone)
    for passage in ("the flea", ""):
        with pytest.raises(ContextError, match="leaves no room for a passage in the 64 tokens"):
            ranker.rank("which " * 100, [passage])
    kept = list(ranker.rank_many([("which " * 100, ["a"]), ("a query", ["b"])], on_error="keep"))
    assert [ranking.error is None for ranking in kept] == [False, True]


def test_positions_that_begin_after_the_padding(tmp_path: Path) -> None:
    """RoBERTa's table of 66 rows holds 65 tokens here (514 and 512 there, where the padding is row 1)."""
    backbone = load(save_bert(tmp_path, RobertaForSequenceClassification, context=66))
    assert backbone.encoder.context == 65
    (answer,) = ask(backbone, "a query", "the " * 200)
    assert answer.prompt_tokens == 65
    assert answer.score == pytest.approx(by_hand(tmp_path, [("a query", "the " * 60)])[0], abs=1e-4)


def test_instructions(causal: Path, bert: Path) -> None:
    """The saved one by default; another one in its place; and words before the query where there is no template."""
    pair = ("a query", "a passage")
    (saved,) = ask(load(causal), *pair)
    (other,) = ask(load(causal, instruction="rank it"), *pair)
    assert saved.score == pytest.approx(by_hand(causal, [pair], prompt="judge it")[0], abs=1e-4)
    assert other.score == pytest.approx(by_hand(causal, [pair], prompt="rank it")[0], abs=1e-4)
    assert saved.score != other.score
    (plain,) = ask(load(bert, instruction="rank "), *pair)
    assert plain.score == pytest.approx(by_hand(bert, [("rank a query", "a passage")])[0], abs=1e-4)


def test_a_template_is_kept_whole_when_a_passage_is_cut(causal: Path) -> None:
    backbone = load(causal, max_length=100)
    call = load_prompt(PAIR).ask(Query("a query"), [Passage("word " * 200, "p")])
    item = backbone.prepare(call)
    text = backbone.encoder.tokenizer.decode(item.token_ids)
    assert item.cut == 1
    assert 96 <= item.tokens <= 100
    assert text.startswith("<|im_start|>system\njudge it<|im_end|>\n<|im_start|>query\na query<|im_end|>")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant")  # Jinja leaves out a template's last line break


def test_a_head_in_bfloat16_still_tells_passages_apart(bert: Path, make_candidates: Make) -> None:
    scores = [a.score for a in ask(load(bert, dtype="bfloat16"), "a", *(p.text for p in make_candidates(17).passages))]
    rounded = torch.tensor(scores).bfloat16().float().tolist()
    assert scores != rounded
    exact = [a.score for a in ask(load(bert), "a", *(p.text for p in make_candidates(17).passages))]
    assert scores == pytest.approx(exact, abs=0.5)


def test_special_tokens_in_a_passage_stay_text(backbone: CrossEncoderBackbone) -> None:
    seen = []

    class Spy:
        def __getattr__(self, name: str) -> object:
            return getattr(backbone, name)

        def prepare(self, call: object) -> object:
            seen.append(backbone.prepare(call))  # type: ignore[arg-type]
            return seen[-1]

    ranking = rerank.load("pointwise", prompt=PAIR, backbone=Spy()).rank("a query", ["the flea [SEP] lives"])  # type: ignore[arg-type]
    assert seen[0].token_ids.count(3) == 2
    assert ranking.outcomes.neutralised == 1


def test_in_a_cascade(backbone: CrossEncoderBackbone, make_candidates: Make) -> None:
    """Of the cross-encoder's 12 another ranker orders the first 5; both are counted."""
    candidates = make_candidates(12)
    cross = rerank.load("pointwise", prompt=PAIR, backbone=backbone)
    longest = rerank.ScriptedBackbone(lambda call: [float(len(p.text)) for p in call.dialogue.passages])
    first = cross.rank(candidates.query, candidates.passages).doc_ids
    ranking = (cross % 5 >> rerank.load("first", backbone=longest)).rank(candidates.query, candidates.passages)
    lengths = {p.doc_id: len(p.text) for p in candidates.passages}
    assert ranking.doc_ids == sorted(first[:5], key=lambda doc_id: -lengths[doc_id]) + first[5:]
    assert ranking.usage.calls == 12 + 1


def test_a_batch_that_does_not_fit_is_halved(backbone: CrossEncoderBackbone, make_candidates: Make) -> None:
    class Small:
        """The same model on a device with room for `most` pairs."""

        def __init__(self, most: int) -> None:
            self.most = most

        def __getattr__(self, name: str) -> object:
            return getattr(backbone.model, name)

        def predict(self, pairs: list[tuple[str, str]], **options: object) -> object:
            if len(pairs) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return backbone.model.predict(pairs, **options)

    texts = [p.text for p in make_candidates(7).passages]
    whole = ask(backbone, "a", *texts)
    halved = ask(dataclasses.replace(backbone, model=Small(2)), "a", *texts)  # type: ignore[arg-type]
    assert [a.score for a in halved] == pytest.approx([a.score for a in whole], abs=1e-4)
    with pytest.raises(BackboneError, match="out of memory on a pair"):
        ask(dataclasses.replace(backbone, model=Small(0)), "a", *texts)  # type: ignore[arg-type]


def test_what_it_cannot_do(bert: Path, backbone: CrossEncoderBackbone) -> None:
    with pytest.raises(CapabilityError, match="the cross-encoder backbone does not answer labels calls"):
        rerank.load("pointwise", prompt="pointwise-yes-no", backbone="cross-encoder", model=str(bert))
    with pytest.raises(CapabilityError, match="needs a backbone that answers labels calls"):
        rerank.load("first", prompt="first-identifier", backbone=backbone)
    with pytest.raises(PromptError, match="shows one passage in a call"):
        rerank.load("first", backbone=backbone)
    with pytest.raises(PromptError, match="shows one passage in a call"):
        rerank.load("first", backbone="cross-encoder", model=str(bert))
    with pytest.raises(InputError, match="takes no adapter"):
        rerank.load("pointwise", backbone="cross-encoder", model=str(bert), adapter="a")
    with pytest.raises(CapabilityError, match="does not answer labels calls"):
        backbone.prepare(LabelCall(load_prompt(PAIR).ask(Query("q"), [Passage("t", "p")]).dialogue, ("a",)))


def test_a_prompt_with_other_words_is_refused(backbone: CrossEncoderBackbone) -> None:
    pair = load_prompt(PAIR)
    turn = pair.messages[0].model_dump() | {"content": "Find evidence for: {query}\n{passage}"}
    prompt = Prompt.model_validate(pair.model_dump() | {"name": "mine", "messages": [turn]})
    with pytest.raises(CapabilityError, match="a prompt with other words has no effect"):
        rerank.load("pointwise", prompt=prompt, backbone=backbone).rank("q", ["a"])


def test_models_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs a model; a small one is model='cross-encoder/ms-marco-MiniLM-L6-v2'"):
        rerank.load("pointwise", backbone="cross-encoder")
    with pytest.raises(InputError, match=r"has no config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(BackboneError, match="cannot load the cross-encoder"):
        load(tmp_path)
    with pytest.raises(BackboneError, match="no such directory, and the hub says"):
        load_backbone("cross-encoder", needs=Kind.SCORE, model="nobody/no-such-model", device="cpu")
    with pytest.raises(InputError, match="device 'gpu'"):
        load(tmp_path, device="gpu")


def test_models_that_do_not_score_a_pair(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(CapabilityError, match="gives 3 labels for a pair, not one score; give a cross-encoder, as cr"):
        load(save_bert(tmp_path / "nli", labels=3))
    with pytest.raises(CapabilityError, match=r"has no head that scores a pair \(BertModel\)"):
        load(save_bert(tmp_path / "headless", BertModel))
    with pytest.raises(BackboneError, match="does not have 'yes' and/or 'no' tokens"):
        load(tiny_model)
    size = save_tokenizer(tmp_path)
    LlamaForSequenceClassification(LlamaConfig(vocab_size=size, num_labels=1, **SMALL)).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="does not score pairs: Cannot handle batch sizes > 1"):
        load(tmp_path)


def test_only_safetensors_are_read(tmp_path: Path, bert: Path) -> None:
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").unlink()
    torch.save(BertForSequenceClassification.from_pretrained(bert).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="cannot load the cross-encoder"):
        load(tmp_path)


def test_the_command(cli: Cli, bert: Path) -> None:
    common = ("-s", "pointwise", "-b", "cross-encoder", "--device", "cpu", "--dtype", "float32")
    done = cli("rank", "a query", *common, "-m", bert, "--json", stdin="the flea\nlives of days\n")
    assert done.status == 0, done
    assert done.out.count('"score"') == 2
    assert_error(cli("rank", "a query", *common, stdin="the flea\n"), "the cross-encoder backbone needs a model")
    assert "cross-encoder" in cli("ls", "backbones").out
