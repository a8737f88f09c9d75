"""Released rerankers: each is asked in its own form, to the character, and scores as its own code scores."""

from __future__ import annotations

import logging

import pytest
from released import FORMS, QUERY, SYSTEM, TEXTS, passages

import rerank
from rerank import ScriptedBackbone
from rerank.adapters import NONE
from rerank.backbones import engine_of
from rerank.backbones.openai_forms import Chat
from rerank.defaults import Asked, resolve, settle
from rerank.errors import CapabilityError, InputError, PromptError, UnknownNameError
from rerank.prompts import load_prompt
from rerank.released import RELEASED, released
from rerank.strategies import load_strategy
from rerank.types import Query


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_the_models_own_to_the_character(name: str) -> None:
    prompt = load_prompt(f"{name}@1")
    call = prompt.ask(Query(QUERY), passages(*TEXTS[: 2 if prompt.shows == "many" else 1]))
    written = ["".join(span.text for span in message.spans) for message in call.dialogue.messages]
    if prompt.pieces:
        assert "".join(written) == FORMS[name]
        assert call.dialogue.prefix == ""
    else:
        assert written == [SYSTEM, FORMS[name]]
        assert call.dialogue.prefix == ("[" if name == "first-mistral" else "")


def test_every_row_can_be_put_together() -> None:
    names = [name for row in RELEASED for name in row.names]
    assert len({name.lower() for name in names}) == len(names)
    for row in RELEASED:
        prompt = row.prompt or engine_of(row.backbone).prompt
        assert prompt is not None
        strategy = load_strategy(row.strategy, prompt=prompt, **row.options)
        assert strategy.prompt.needs in engine_of(row.backbone).kinds
        assert row.prompt is None or row.prompt == f"{strategy.prompt.name}@{strategy.prompt.version}"
        assert released(row.names[0]) == released(row.names[-1].upper()) == row
    assert {row.prompt for row in RELEASED} == {f"{name}@1" for name in FORMS} | {None}
    windows = {"window": 20, "step": 10}
    assert [row.options for row in RELEASED if row.strategy in ("listwise", "first")] == [windows, windows]


def test_a_name_brings_its_form(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rerank")
    for row in RELEASED:
        for name in row.names:
            asked = resolve(Asked(row.strategy, name, "transformers", {}))
            assert (asked.backbone, asked.engine_options) == (row.backbone, row.engine_options)
            made, adapter = settle(row.strategy, model=name, backbone=asked.backbone)
            assert made.prompt == load_prompt(row.prompt or "pointwise-pair")
            assert adapter is None
            assert resolve(Asked(name, None, "transformers", {})) == asked  # the name alone says the strategy
    own = [record.getMessage() for record in caplog.records]
    assert "Qwen/Qwen3-Reranker-8B is asked in its own form: strategy pointwise, prompt qwen3-reranker@1" in own
    assert len(own) == sum(len(row.names) for row in RELEASED if row.prompt)


def test_unknown_names_are_as_before() -> None:
    for name in (None, "Qwen/Qwen3-4B", "Qwen3-Reranker-0.6B", "someone/Qwen3-Reranker-0.6B", "no/such"):
        assert released(name) is None
        asked = Asked("pointwise", name, "transformers", {"batch_tokens": 9})
        assert resolve(asked) is asked
        assert settle("pointwise", model=name, adapter=NONE)[0] == load_strategy("pointwise")
    with pytest.raises(UnknownNameError, match="unknown strategy"):
        rerank.load("Qwen/Qwen3-4B")
    with pytest.raises(InputError, match="is a model, and model='other/one' another"):
        rerank.load("Qwen/Qwen3-Reranker-4B", model="other/one")


def test_what_is_given_counts(caplog: pytest.LogCaptureFixture) -> None:
    name = "Qwen/Qwen3-Reranker-0.6B"
    assert settle("pointwise", model=name, prompt="pointwise-graded")[0].prompt == load_prompt("pointwise-graded")
    assert settle("pointwise", model=name, options={"passage_tokens": 9})[0].passage_tokens == 9  # type: ignore[attr-defined]
    assert settle("first", model="castorini/first_mistral", options={"window": 5, "step": 2})[0].window == 5  # type: ignore[attr-defined]
    monot5 = Asked("pointwise", "castorini/monot5-base-msmarco", "transformers", {"max_length": 64})
    assert resolve(monot5).engine_options["max_length"] == 64
    assert resolve(Asked("pointwise", name, "vllm", {})).backbone == "vllm"
    assert settle("pointwise", model=name, backbone="vllm")[0].prompt.name == "qwen3-reranker"
    pair = "BAAI/bge-reranker-v2-m3"
    assert resolve(Asked("pointwise", pair, "bi-encoder", {})).backbone == "bi-encoder"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert settle("first", model=name)[0] == load_strategy("first")
    assert "was made for strategy 'pointwise'; 'first' asks it as it asks any model" in caplog.text


def test_a_ready_backbone_is_known_by_its_models_name() -> None:
    backbone = ScriptedBackbone(lambda call: [-1.0, -0.5], name="Qwen/Qwen3-Reranker-8B")
    ranker = rerank.load("pointwise", backbone=backbone)
    assert ranker.strategy.prompt.name == "qwen3-reranker"
    assert rerank.load("pointwise", backbone=ScriptedBackbone(lambda call: "")).strategy == load_strategy("pointwise")


def test_an_instruction_goes_where_the_prompt_has_a_place_for_it() -> None:
    name, told = "Qwen/Qwen3-Reranker-0.6B", "Find the court's ruling"
    made, _ = settle("pointwise", model=name, options={"instruction": told})
    call = made.prompt.ask(Query(QUERY), passages("x"))
    assert call.dialogue.messages[1].spans[1].text == told
    assert made.prompt.identity != load_prompt("qwen3-reranker").identity  # a run records it
    with pytest.raises(PromptError, match="prompt 'pointwise-yes-no' takes no instruction"):
        settle("pointwise", adapter=NONE, options={"instruction": told})
    for bad in ("", " \n"):
        with pytest.raises(PromptError, match="is empty"):
            settle("pointwise", model=name, options={"instruction": bad})
    with pytest.raises(InputError, match="instruction is 3; give a text"):
        settle("pointwise", model=name, options={"instruction": 3})


def test_pieces_go_through_no_chat_template_of_a_servers() -> None:
    call = load_prompt("qwen3-reranker").ask(Query(QUERY), passages("x"))
    with pytest.raises(CapabilityError, match=r"the model's own form.*give tokenizer="):
        Chat("m", vllm=True, top=20).prepare(call)
