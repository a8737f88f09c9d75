"""What a caller leaves open: the adapter that ships for a strategy, and what an adapter was trained with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rerank import ScriptedBackbone
from rerank.adapters import NONE, Purpose, purpose_of, shipped
from rerank.backbones.adapters import folder_of
from rerank.backbones.embedded import EMBEDDED
from rerank.defaults import settle
from rerank.errors import AdapterError, UnknownNameError
from rerank.prompts import load_prompt
from rerank.strategies import First, Pairwise, Pointwise, Setwise

NAME = "smollm2-135m-pointwise"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A copy of the one that ships."""
    return Path(shutil.copytree(shipped()[NAME], tmp_path / "adapter"))


@pytest.mark.parametrize("name", sorted(shipped()))
def test_what_ships_is_small_and_says_what_it_is(name: str) -> None:
    folder = shipped()[name]
    assert {file.name for file in folder.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "rerank.json",
    }
    assert sum(file.stat().st_size for file in folder.iterdir()) < 6e6
    purpose = purpose_of(folder)
    assert purpose is not None
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == purpose.model
    assert settle(purpose.strategy)[1] == name
    assert folder_of(name) == folder


def test_a_strategy_alone_gets_the_adapter_with_its_prompt_and_options() -> None:
    strategy, adapter = settle("pointwise")
    assert adapter == NAME
    assert strategy == Pointwise(load_prompt("pointwise-query-likelihood@1"), passage_tokens=160)
    assert settle("pointwise", model=EMBEDDED)[1] == NAME


def test_what_is_given_counts() -> None:
    strategy, adapter = settle("pointwise", options={"passage_tokens": 7})
    assert (strategy, adapter) == (Pointwise(load_prompt("pointwise-query-likelihood"), passage_tokens=7), NAME)
    assert settle("pointwise", prompt="pointwise-query-likelihood")[1] == NAME


@pytest.mark.parametrize(
    "given",
    [
        {"adapter": NONE},
        {"prompt": "pointwise-graded"},
        {"model": "another/model"},
        {"backbone": "openai"},
        {"backbone": ScriptedBackbone(lambda call: "")},
    ],
    ids=lambda given: next(iter(given)),
)
def test_elsewhere_no_adapter_comes_by_itself(given: dict[str, object]) -> None:
    strategy, adapter = settle("pointwise", **given)  # type: ignore[arg-type]
    assert adapter is None
    assert strategy == Pointwise(load_prompt(str(given.get("prompt", "pointwise-yes-no"))))


def test_an_adapter_of_ones_own_brings_its_prompt_and_options(adapter: Path) -> None:
    Purpose("m", "pointwise", "pointwise-graded@1", {"passage_tokens": 9, "of_another_version": 1}).write(adapter)
    strategy, given = settle("pointwise", model="m", adapter=str(adapter))
    assert given == str(adapter)
    assert strategy == Pointwise(load_prompt("pointwise-graded"), passage_tokens=9)


def test_an_adapter_goes_before_the_form_of_a_released_model(adapter: Path) -> None:
    """It was trained in the form that it names; one that does not say has the model's own."""
    model = "mixedbread-ai/mxbai-rerank-base-v2"
    Purpose(model, "pointwise", "pointwise-graded@1", {"passage_tokens": 9}).write(adapter)
    assert settle("pointwise", model=model, adapter=str(adapter))[0] == Pointwise(load_prompt("pointwise-graded"), 9)
    (adapter / "rerank.json").unlink()
    made, given = settle("pointwise", model=model, adapter=str(adapter))
    assert (made, given) == (Pointwise(load_prompt("mxbai-rerank-v2")), str(adapter))
    assert settle("pointwise", model=model, adapter=NONE)[0] == made


def test_an_adapter_of_another_strategy_brings_nothing(adapter: Path) -> None:
    Purpose("m", "first", "first-identifier@1", {"passage_tokens": 9}).write(adapter)
    assert settle("pointwise", adapter=str(adapter)) == (Pointwise(), str(adapter))


def test_an_adapter_may_serve_several_strategies(adapter: Path) -> None:
    Purpose("m", "first", "first-query-last@1", {"passage_tokens": 9, "window": 10, "step": 5}, ("setwise",)).write(
        adapter
    )
    prompt = load_prompt("first-query-last")
    assert settle("setwise", adapter=str(adapter))[0] == Setwise(prompt, passage_tokens=9)
    assert settle("first", adapter=str(adapter))[0] == First(prompt, passage_tokens=9, window=10, step=5)
    assert settle("pairwise", adapter=str(adapter))[0] == Pairwise()


def test_a_prompt_that_lies_beside_the_adapter(adapter: Path) -> None:
    prompt = load_prompt("pointwise-graded")
    file = Path(__file__).parents[1] / "rerank" / "prompts" / "pointwise-graded.v1.yaml"
    (adapter / "prompt.yaml").write_text(file.read_text().replace("name: pointwise-graded", "name: mine"))
    Purpose("m", "pointwise", "prompt.yaml", {}).write(adapter)
    strategy, _ = settle("pointwise", adapter=str(adapter))
    assert strategy.prompt.name == "mine" and strategy.prompt.messages == prompt.messages


def test_an_adapter_from_elsewhere_says_nothing(adapter: Path) -> None:
    (adapter / "rerank.json").unlink()
    assert purpose_of(adapter) is None
    assert settle("pointwise", adapter=str(adapter)) == (Pointwise(), str(adapter))


@pytest.mark.parametrize("text", ["{", "[]", '{"model": "m"}'])
def test_a_damaged_note_is_an_error(adapter: Path, text: str) -> None:
    (adapter / "rerank.json").write_text(text)
    with pytest.raises(AdapterError, match="damaged"):
        settle("pointwise", adapter=str(adapter))


def test_an_unknown_strategy_is_told_before_an_adapter_is_looked_for() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'pointwise'"):
        settle("pointwize", adapter="no/such")
