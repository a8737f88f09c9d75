"""Every way to train: what is exported gives, on the untouched model, the scores of the trained one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training import losses, recipe, save_recipe, trained

import rerank
from rerank.backbones.cross_encoder import CrossEncoderBackbone
from rerank.data import load_dataset
from rerank.errors import AdapterError, InputError, UnknownNameError
from rerank.training import development
from rerank.training.forward import Run
from rerank.training.methods import METHODS, compress, configuration, export
from rerank.training.session import Session
from rerank.training.train import train
from rerank.types import Ranking

EVALUATION = {"dataset": "lists.jsonl", "every": 2, "queries": 4}
SMALL: dict[str, dict[str, object]] = {  # what the tiny model's narrow layers ask for
    "full": {},
    "adalora": {"init_r": 6, "target_r": 2},
    "shira": {"r": 4},
    "miss": {"r": 8},
    "vera": {"r": 8},
    "randlora": {"r": 4},
    "ia3": {"targets": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
}
FURTHER = ("loha", "ia3")  # by PEFT's own names


def method(name: str) -> dict[str, object]:
    return {"method": name, **SMALL.get(name, {"r": 4})}


def requests(folder: Path) -> list[Any]:
    return list(load_dataset(str(folder / "lists.jsonl")).candidates())[:4]


def scores(rankings: list[Ranking]) -> list[dict[str, float]]:
    return [{hit.passage.doc_id: hit.score for hit in ranking} for ranking in rankings]


@pytest.fixture
def last(monkeypatch: pytest.MonkeyPatch) -> list[Ranking]:
    """The rankings of the last evaluation."""
    found: list[Ranking] = []
    real = development.evaluate

    def evaluate(rankings: list[Ranking], *more: Any) -> Any:
        found[:] = rankings
        return real(rankings, *more)

    monkeypatch.setattr(development, "evaluate", evaluate)
    return found


def assert_exported(model: Path, folder: Path, adapter: dict[str, object], last: list[Ranking]) -> Path:
    schedule = {"lists": 16, "learning_rate": 0.1 if adapter["method"] in ("adalora", "ia3") else 1e-2}
    result = trained(folder, recipe(model, adapter=adapter, evaluation=EVALUATION, schedule=schedule))
    where = {"model": str(result.folder)} if adapter["method"] == "full" else {"adapter": str(result.folder)}
    ranker = rerank.load("pointwise", device="cpu", dtype="float32", **({"model": str(model)} | where))
    for one, other in zip(scores(list(ranker.rank_many(requests(folder)))), scores(last), strict=True):
        assert one == pytest.approx(other, abs=2e-4)
    bare = rerank.load("pointwise", model=str(model), device="cpu", dtype="float32")
    plain = scores(list(bare.rank_many(requests(folder))))
    assert any(abs(a[name] - b[name]) > 1e-2 for a, b in zip(plain, scores(last), strict=True) for name in a)
    return result.folder


@pytest.mark.parametrize("name", [*METHODS, *FURTHER])
def test_a_method_trains_and_what_it_exports_gives_the_same_scores(
    tiny_model: Path, tmp_path: Path, last: list[Ranking], name: str
) -> None:
    assert_exported(tiny_model, tmp_path, method(name), last)


@pytest.mark.parametrize("begins", ["pissa_niter_4", "eva"])
def test_a_beginning_may_be_an_option_of_lora(
    tiny_model: Path, tmp_path: Path, last: list[Ranking], begins: str
) -> None:
    adapter = {"method": "lora", "r": 4, "init_lora_weights": begins, "use_rslora": begins == "pissa_niter_4"}
    folder = assert_exported(tiny_model, tmp_path, adapter, last)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_model)


def test_targets_are_the_layers_that_are_named(tiny_model: Path, tmp_path: Path) -> None:
    for targets in ("q_proj", r".*\.q_proj"):
        adapter = {"method": "lora", "r": 2, "targets": targets}
        result = trained(tmp_path, recipe(tiny_model, adapter=adapter, schedule={"lists": 8}), str(len(targets)))
        names = load_file(result.folder / "adapter_model.safetensors")
        assert len(names) == 4 and all("q_proj" in name for name in names)


def test_what_does_not_fit_the_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    for number, (adapter, why) in enumerate(
        [
            ({"method": "miss", "r": 64}, "adapter miss does not fit llama: .*64"),
            ({"method": "lora", "targets": "no_such_layer"}, "adapter lora does not fit llama: .*no_such_layer"),
            ({"method": "ia3"}, "adapter ia3 does not fit llama: `feedforward_modules` should be"),  # saved, unreadable
        ]
    ):
        with pytest.raises(InputError, match=why):
            trained(tmp_path, recipe(tiny_model, adapter=adapter), f"out{number}")


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("lorra", {}, "unknown adapter method 'lorra'; did you mean 'lora'"),
        ("lora", {"rank": 4}, "unknown lora option 'rank'; "),
        ("lora", {"lora_alhpa": 4}, "unknown lora option 'lora_alhpa'; did you mean 'lora_alpha'"),
        ("lora", {"peft_type": "VERA"}, "unknown lora option 'peft_type'"),
        ("dora", {"use_dora": False}, "dora sets use_dora itself"),
        ("lora", {"init_lora_weights": "loftq"}, "loftq is not done here"),
        ("adalora", {"tinit": 50, "tfinal": 60, "total_step": 100}, "adapter adalora: .*schedule"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, object], why: str) -> None:
    with pytest.raises(InputError, match=why):
        configuration(name, "all-linear", options)
    assert issubclass(UnknownNameError, InputError)


def test_adalora_gives_up_the_least_important_directions(tiny_model: Path, tmp_path: Path) -> None:
    """Of 14 layers with 6 directions each, 2 a layer are left on average: the others have the singular value 0."""
    adapter = {"method": "adalora", "init_r": 6, "target_r": 2, "tfinal": 2}
    result = trained(tmp_path, recipe(tiny_model, adapter=adapter, schedule={"lists": 64}))
    values = [v for name, v in load_file(result.folder / "adapter_model.safetensors").items() if "lora_E" in name]
    assert len(values) == 14 and all(v.shape == (6, 1) for v in values)
    left = sum(int(torch.count_nonzero(v)) for v in values)
    assert abs(left - 2 * 14) <= 1


def test_adalora_is_kept_orthogonal(tiny_model: Path, tmp_path: Path) -> None:
    found = []
    for weight in (0.0, 0.5):
        adapter = {"method": "adalora", "init_r": 6, "target_r": 5, "orth_reg_weight": weight}
        trained(tmp_path, recipe(tiny_model, adapter=adapter, schedule={"lists": 8}), f"out{weight}")
        found.append(losses(tmp_path / f"out{weight}")[0])
    assert found[1] > found[0] + 0.1  # new factors are far from orthogonal


def test_a_finished_adapter_is_gone_on_with(tiny_model: Path, tmp_path: Path) -> None:
    made = recipe(tiny_model, schedule={"lists": 48})
    trained(tmp_path, made, "one")
    del made["adapter"]
    trained(tmp_path, made | {"start": "one/adapter", "seed": 1}, "two")
    assert losses(tmp_path / "two")[0] < 0.8 * losses(tmp_path / "one")[0]


def test_a_score_head_gives_a_cross_encoder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passages of different lengths in one batch: the head must look past the padding."""
    sessions: list[Session] = []
    real = Session.run
    monkeypatch.setattr(Session, "run", lambda self: (sessions.append(self), real(self))[1])
    result = trained(tmp_path, recipe(tiny_model, "score-head", schedule={"lists": 64}))
    found = losses(tmp_path / "out")
    assert found[-1] < 0.5 * found[0]
    (session,) = sessions
    scorer = CrossEncoderBackbone.load(str(result.folder), device="cpu", dtype="float32")
    ranker = rerank.load("pointwise", backbone=dataclasses.replace(scorer, batch_tokens=10_000))
    rankings = list(ranker.rank_many(requests(tmp_path)))
    assert sum(ranking.hits[0].passage.doc_id.endswith("best") for ranking in rankings) >= 3
    run = Run(session.weights.model.eval(), torch.device("cpu"), torch.float32, packs=False, head=True, pad=0)
    for index in range(3):
        shown = session.mixture[index]
        (question,) = session._examples()[index]
        with torch.inference_mode():
            own = [round(float(score), 3) for score in run.logits(question.sequences)]
        found = {h.passage.doc_id: h.score for h in ranker.rank(shown.query, shown.passages)}
        assert own == pytest.approx([found[p.doc_id] for p in shown.passages], abs=2e-3)


def test_a_new_head_is_the_seeds(tiny_model: Path, tmp_path: Path) -> None:
    made = recipe(tiny_model, "score-head", adapter="full", schedule={"lists": 8})
    found = []
    for number in range(2):
        torch.manual_seed(number)
        result = trained(tmp_path, made, f"out{number}")
        found.append((result.folder / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def lora(folder: Path, r: int, shapes: dict[str, tuple[int, int]], **config: object) -> dict[str, torch.Tensor]:
    """Saves an adapter with random factors; returns what each layer adds."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    made, added = {}, {}
    for name, (out, into) in shapes.items():
        a, b = torch.randn(r, into, generator=generator), torch.randn(out, r, generator=generator)
        made |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        added[name] = b @ a
    said = {"peft_type": "LORA", "r": r, "lora_alpha": 2 * r, **config}
    scale = 2 * r / (r**0.5 if said.get("use_rslora") else r)
    (folder / "adapter_config.json").write_text(json.dumps(said))
    save_file(made, folder / "adapter_model.safetensors")
    return {name: scale * delta for name, delta in added.items()}


def added(folder: Path, name: str) -> torch.Tensor:
    weights = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config["use_rslora"]
    a, b = weights[f"{name}.lora_A.weight"].float(), weights[f"{name}.lora_B.weight"].float()
    assert a.shape[0] == b.shape[1] == config["r"]
    return b @ a * config["lora_alpha"] / config["r"]


def test_an_adapter_is_written_from_weights_that_processes_share(tiny_model: Path, tmp_path: Path) -> None:
    """As fsdp hands them on: what the model itself holds is not looked at."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=2, target_modules=["q_proj"]))
    whole = {name: torch.full_like(value, 0.5) for name, value in model.state_dict().items()}
    export(model, tmp_path / "a", tmp_path / "none", "base", None, whole)
    written = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert len(written) == 2 * 2 and all((value == 0.5).all() for value in written.values())


SHAPES = {"wide": (40, 24), "narrow": (5, 24)}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rank", [3, 8, 99])
def test_compression_keeps_the_best_of_its_rank(tmp_path: Path, rank: int, rslora: bool) -> None:
    deltas = lora(tmp_path / "a", 8, SHAPES, use_rslora=rslora)
    kept = compress(tmp_path / "a", rank)
    expected = total = 0.0
    for name, delta in deltas.items():
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
        best = u[:, :rank] * s[:rank] @ v[:rank]
        assert torch.allclose(added(tmp_path / "a", name), best, atol=0.02 * float(s[0]))  # it is in bfloat16
        expected, total = expected + float(s[:rank].square().sum()), total + float(s.square().sum())
    assert kept == pytest.approx(expected / total, rel=1e-4)
    assert (kept > 0.9999) == (rank >= 8)


@pytest.mark.parametrize("config", [{"use_dora": True}, {"rank_pattern": {"q": 3}}, {"peft_type": "VERA"}], ids=str)
def test_what_is_no_plain_lora_is_not_compressed(tmp_path: Path, config: dict[str, object]) -> None:
    lora(tmp_path / "a", 4, SHAPES, **config)
    before = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(AdapterError, match="only a LoRA adapter of linear layers can be compressed"):
        compress(tmp_path / "a", 2)
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == before


def test_a_compressed_adapter_is_loaded(tiny_model: Path, tmp_path: Path, last: list[Ranking]) -> None:
    adapter = {"method": "rslora", "r": 20, "compress": 16}  # more than a layer of 16 outputs holds
    result = trained(tmp_path, recipe(tiny_model, adapter=adapter, evaluation=EVALUATION, schedule={"lists": 16}))
    assert 0.9 < result.kept < 1
    ranker = rerank.load("pointwise", model=str(tiny_model), adapter=str(result.folder), device="cpu", dtype="float32")
    for one, other in zip(scores(list(ranker.rank_many(requests(tmp_path)))), scores(last), strict=True):
        assert one == pytest.approx(other, abs=0.3)
    assert json.loads((result.folder / "adapter_config.json").read_text())["r"] == 16


def test_nothing_asks_the_network(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where an adapter is saved whose model has a hub's name."""
    import socket

    import huggingface_hub.constants

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("pissa", "lora"):
        trained(tmp_path, recipe(tiny_model, adapter=method(name), schedule={"lists": 8}), name)


def test_an_evaluation_does_not_stop_what_is_trained(tiny_model: Path, tmp_path: Path) -> None:
    """The adapter is switched on for it, which must leave the same weights trainable."""
    found = []
    for number, more in enumerate(({}, {"evaluation": {"dataset": "lists.jsonl", "every": 1, "queries": 2}})):
        made = recipe(tiny_model, adapter=method("vera"), schedule={"lists": 32, "learning_rate": 1e-3}, **more)
        trained(tmp_path, made, f"out{number}")
        found.append(losses(tmp_path / f"out{number}"))
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert train(save_recipe(tmp_path, made), tmp_path / "out1").steps == 4
