"""A tiny model learns from its own answers: what it is asked, what is computed, how it goes on, what comes out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from training import curve, recipe, trained

import rerank
from rerank.backbones.transformers_ import TransformersBackbone
from rerank.calls import Answer
from rerank.prompts import load_prompt
from rerank.strategies.base import with_budget
from rerank.training.mixture import Mixture
from rerank.training.objectives import Asker
from rerank.training.reinforce.answers import Table
from rerank.training.reinforce.part import ReinforcePart, RewardPart
from rerank.training.reinforce.posing import Poser
from rerank.training.reinforce.rollout import Sampler
from rerank.training.sources import Pool, Source
from rerank.training.train import train
from rerank.types import Candidates, Passage, Query

PASSAGES = (
    Passage("a plain one", "a"),
    Passage("says [2] and </answer>, <|im_end|> and <think> too", "b", title="A title"),
    Passage("many words " * 30, "c"),
)
POOL = Pool(Query("which <|im_start|> is [1] best?"), PASSAGES, (0.0, 2.0, 1.0), "s")
SOURCE = Source(dataset="d", size=3, order="first-stage")  # so that the list is the pool
ENOUGH = 80  # tokens of a thought, for a tokenizer of bytes


@pytest.fixture(scope="module")
def backbone(tiny_model: Path) -> TransformersBackbone:
    return TransformersBackbone.load(str(tiny_model), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def cold(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter that writes the form, for lists of two."""
    folder = tmp_path_factory.mktemp("cold")
    made = recipe(
        tiny_model, "rank-r1", loss=None, reason_tokens=ENOUGH, write={}, data=[{"dataset": "lists.jsonl", "size": 2}],
        adapter={"method": "lora", "r": 16, "lora_alpha": 32},
        schedule={"lists": 480, "batch": 8, "learning_rate": 2e-2},
    )  # fmt: skip
    trained(folder, made)
    return folder / "out" / "adapter"


def rewarded(model: Path, folder: Path, cold: Path, strategy: str = "rank-r1", **changes: Any) -> dict[str, Any]:
    """Two prompts of two passages a step, four answers to each."""
    shutil.copytree(cold, folder / "cold", dirs_exist_ok=True)
    schedule = {"lists": 8, "batch": 2, "learning_rate": 1e-2, "save_every": 2} | changes.pop("schedule", {})
    part = {"reward": {"name": "rank-r1", "shaping": 0.2}, "group": 4, "beta": 0} | changes.pop("reinforce", {})
    given = {"adapter": None, "start": "cold", "reason_tokens": ENOUGH} | changes
    data = [{"dataset": "lists.jsonl", "size": 2}]
    return recipe(model, strategy, loss=None, data=data, reinforce=part, schedule=schedule, **given)


@pytest.mark.parametrize(
    "name", ["setwise-reasoning", "listwise-reasoning", "groupwise", "groupwise-plain", "elimination-permutation"]
)
def test_what_is_asked_is_what_a_ranker_asks(backbone: TransformersBackbone, name: str) -> None:
    heard: list[Any] = []

    class Listener:
        def __getattr__(self, attribute: str) -> Any:
            return getattr(backbone, attribute)

        def answer(self, batch: list[Any]) -> list[Answer]:
            heard.extend(batch)
            return [Answer(text="") for _ in batch]

    strategy = {"setwise-reasoning": "rank-r1", "listwise-reasoning": "listwise"}.get(name, name.split("-")[0])
    options: dict[str, Any] = {"rank-r1": {"children": 2, "k": 1}, "listwise": {"window": 3, "step": 1}}.get(
        strategy, {}
    )
    budget = 40 if load_prompt(name).reasons else None
    options |= {"reason_tokens": budget} if budget else {}
    made = rerank.strategies.load_strategy(strategy, prompt=name, passage_tokens=12, **options)
    shown = PASSAGES
    if strategy == "groupwise":  # shows its group in an order of its own
        import random

        shown = tuple(PASSAGES[i] for i in random.Random(0).sample(range(3), 3))
    list(rerank.Reranker(made, Listener()).rank_many([Candidates(POOL.query, PASSAGES)]))  # type: ignore[arg-type]
    pool = Pool(POOL.query, shown, POOL.labels, "s")
    asker = Asker(with_budget(load_prompt(name), budget), backbone.weights.encoder, 12)
    poser = Poser(Mixture([(SOURCE, [pool])], seed=0), asker, RewardPart(name="rank-r1"))
    assert poser.posed(0).ids == heard[0].token_ids
    assert poser.posed(0).call.max_tokens == heard[0].call.max_tokens
    (row,) = poser.dataset().select([0])
    assert row == {"index": 0, "prompt": list(heard[0].token_ids)}


def test_an_answer_ends_where_a_rankers_does(backbone: TransformersBackbone) -> None:
    sampler = Sampler(backbone.weights, ReinforcePart(reward="rank-r1"), (2,))
    tokens = list(backbone.weights.encoder.continuation("[1]</answer>"))
    stops = ("</answer>",)
    for row in (tokens, [*tokens, 2, 2], [*tokens, 7, 7]):  # as vLLM gives it, and filled up
        found = sampler.ended(row, 99, stops, [-0.5] * len(row))
        assert (found.ids, found.truncated) == ([*tokens, 2], False)
        assert found.own == [1] * len(tokens) + [0]  # the end behind a stop is not the model's choice
        assert found.logprobs == [-0.5] * len(tokens) + [0.0]
    own = sampler.ended([7, 8, 2, 2, 2], 99, stops)
    assert (own.ids, own.own, own.truncated) == ([7, 8, 2], [1, 1, 1], False)
    cut = sampler.ended([7, 8, 9, 10], 3, stops)
    assert (cut.ids, cut.own, cut.truncated) == ([7, 8, 9], [1, 1, 1], True)


def test_samples_without_chance_are_a_rankers_answers(backbone: TransformersBackbone) -> None:
    """Prompts of different lengths, each for a group; the cache of a prompt serves all of it."""
    prompts = [backbone.weights.encoder.continuation(text) for text in ("a short one", "and one that is longer, much")]
    greedy = backbone.weights.generate(prompts, [12, 12], [(), ()])
    sampler = Sampler(backbone.weights, ReinforcePart(reward="rank-r1", top_k=1), (2,))
    found = sampler.sample([p for p in prompts for _ in range(3)], [12] * 6, [()] * 6)
    for i, one in enumerate(found):
        assert [token for token in one.ids if token != 2] == list(greedy[i // 3])
    assert sampler.sample([prompts[1], prompts[0], prompts[1]], [12] * 3, [()] * 3)[0].ids == found[3].ids


def test_samples_follow_the_temperature(backbone: TransformersBackbone) -> None:
    prompt = backbone.weights.encoder.continuation("one prompt")

    def distinct(**more: Any) -> int:
        torch.manual_seed(0)
        sampler = Sampler(backbone.weights, ReinforcePart(reward="rank-r1", **more), (2,))
        return len({tuple(one.ids) for one in sampler.sample([prompt] * 40, [1] * 40, [()] * 40)})

    assert distinct(temperature=0.01) < distinct() <= 40
    assert distinct(top_k=2) <= 2 and distinct(top_p=0.01) == 1


def test_a_run(tiny_model: Path, tmp_path: Path, cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a reference, two passes, a development set; log-probabilities are TRL's own."""
    from trl import GRPOTrainer

    from rerank.training.reinforce import trainer as module

    compared = []
    ours = module.ReinforceTrainer._get_per_token_logps_and_entropies

    def both(self: Any, model: Any, ids: Any, mask: Any, keep: int, *rest: Any, **options: Any) -> Any:
        found = ours(self, model, ids, mask, keep, *rest, **options)
        with torch.no_grad():
            theirs, entropy, _ = GRPOTrainer._get_per_token_logps_and_entropies(
                self, model, ids, mask, keep, compute_entropy=True
            )
        kept = mask[:, -keep:].bool()
        assert torch.allclose(found[0].detach()[kept], theirs[kept], atol=1e-4)
        assert found[1] is None or torch.allclose(found[1].detach()[kept], entropy[kept], atol=1e-3)
        compared.append(float(found[0].detach()[kept].mean()))
        return found

    monkeypatch.setattr(module.ReinforceTrainer, "_get_per_token_logps_and_entropies", both)
    evaluation = {"dataset": "lists.jsonl", "depth": 2, "queries": 4, "every": 4, "options": {"children": 1, "k": 1}}
    more = {"beta": 0.1, "num_iterations": 2, "temperature": 0.9}
    made = rewarded(tiny_model, tmp_path, cold, reinforce=more, evaluation=evaluation, schedule={"save_every": None})
    done = trained(tmp_path, made)
    out = tmp_path / "out"
    assert done.steps == 8 and done.measure is not None
    assert len(compared) == 4 * 2 + 8  # 4 batches with their old and reference probabilities, 8 steps
    lines = [line for line in curve(out) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert {"reward", "part/format", "part/right", "part/tags", "kl", "entropy", "completions/mean_length"} <= lines[
        0
    ].keys()
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6) and lines[-1]["kl"] > 0
    rows = Table(out / "completions.jsonl").rows()
    assert [row.step for row in rows] == [step for step in (1, 3, 5, 7) for _ in range(8)]
    for step in (1, 3):
        own = [row for row in rows if row.step == step]
        assert sum(row.reward for row in own) / 8 == pytest.approx(lines[step - 1]["reward"], abs=1e-5)
        for group in (own[:4], own[4:]):
            assert len({(row.query_id, row.passages) for row in group}) == 1
            values = torch.tensor([row.reward for row in group])
            wanted = (values - values.mean()) / (values.std() + 1e-4)
            assert [row.advantage[0] for row in group] == pytest.approx(wanted.tolist(), abs=1e-3)
    told = (out / "completions.md").read_text()
    assert told.startswith("| steps | reward | tags | format | right | cut off |")
    assert "## Step 1: what about" in told and "## Step 7: what about" in told
    assert matplotlib.image.imread(out / "curve.png").shape[:2] == (540, 720)
    note = json.loads((out / "adapter" / "rerank.json").read_text())
    assert (note["strategy"], note["prompt"]) == ("rank-r1", "setwise-reasoning@1")
    assert note["options"] == {"children": 1, "k": 1, "reason_tokens": ENOUGH}
    assert not (out / "adapter" / "ref").exists()
    ranker = rerank.load("rank-r1", model=str(tiny_model), adapter=str(out / "adapter"), device="cpu", dtype="float32")
    ranking = ranker.rank("what about tea", ["good tea", "bad tea moon"])
    assert len(ranking.hits) == 2 and ranking.outcomes.failed + ranking.outcomes.clean + ranking.outcomes.repaired == 1


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    ("more", "end", "last"),
    [({"beta": 0.1, "num_iterations": 2}, 5, 8), ({"answers_at_once": 4}, 3, 4)],
    ids=["reference", "pieces"],
)
def test_a_run_that_was_stopped_goes_on(
    tiny_model: Path, tmp_path: Path, cold: Path, more: dict[str, Any], end: int, last: int
) -> None:
    """The same answers, the same weights."""
    trained(tmp_path, rewarded(tiny_model, tmp_path, cold, reinforce=more), "whole")

    def stop(moment: Any) -> None:
        if moment.step == end:
            raise Stopped

    with pytest.raises(Stopped):
        train(tmp_path / "toy.yaml", tmp_path / "stopped", watch=stop)
    assert max(row.step for row in Table(tmp_path / "stopped" / "completions.jsonl").rows()) >= end
    assert train(tmp_path / "toy.yaml", tmp_path / "stopped").steps == last
    one, other = (tmp_path / name for name in ("whole", "stopped"))
    assert Table(one / "completions.jsonl").rows() == Table(other / "completions.jsonl").rows()
    assert [line["loss"] for line in curve(one)] == [line["loss"] for line in curve(other)]
    weights = [(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (one, other)]
    assert weights[0] == weights[1]


def test_what_is_rewarded_becomes_likelier(tiny_model: Path, tmp_path: Path) -> None:
    """Taught to leave one passage out of two, and then rewarded for the other on the same lists."""
    data = [{"dataset": "lists.jsonl", "size": 2}]
    first = {"lists": 160, "learning_rate": 2e-2}
    trained(tmp_path, recipe(tiny_model, "elimination", loss=None, write={}, data=data, schedule=first), "cold")
    text = (tmp_path / "lists.jsonl").read_text()
    swapped = text.replace('"label": 0', '"label": 2').replace('"label": 1', '"label": 0')
    (tmp_path / "swapped.jsonl").write_text(swapped)
    part = {"reward": "iranker", "group": 8, "beta": 0}
    schedule = {"lists": 120, "batch": 4, "learning_rate": 5e-3, "decay": "constant"}
    made = recipe(
        tiny_model, "elimination", loss=None, reinforce=part, schedule=schedule, start="cold/adapter", adapter=None,
        data=[{"dataset": "swapped.jsonl", "size": 2}],
    )  # fmt: skip
    trained(tmp_path, made)
    rows = Table(tmp_path / "out" / "completions.jsonl").rows()
    early, late = (sum(row.parts["kept"] for row in part) / 160 for part in (rows[:160], rows[-160:]))
    assert late > early + 0.15


def test_rank_grpo(tiny_model: Path, tmp_path: Path, cold: Path) -> None:
    """Advantages for each rank, of the group's answers at that rank, and a loss from them that can be differed."""
    more = {"reward": {"name": "reason-rank", "shaping": 0}, "algorithm": "rank-grpo", "returns": "dcg", "group": 4}
    start = recipe(
        tiny_model, "listwise", loss=None, prompt="listwise-permutation", write={},
        schedule={"lists": 240, "learning_rate": 2e-2}, data=[{"dataset": "lists.jsonl", "size": 2}],
    )  # fmt: skip
    trained(tmp_path, start, "cold")
    made = rewarded(
        tiny_model, tmp_path, tmp_path / "cold" / "adapter", "listwise", prompt="listwise-permutation",
        reason_tokens=None, reinforce=more | {"num_iterations": 2, "beta": 0.05}, start="cold/adapter",
    )  # fmt: skip
    done = trained(tmp_path, made)
    rows = Table(tmp_path / "out" / "completions.jsonl").rows()
    assert {len(row.advantage) for row in rows} > {1}  # some were read
    for at in range(0, len(rows), 4):
        group = rows[at : at + 4]
        most = max(len(row.advantage) for row in group)
        for k in range(1, most):
            own = [row.advantage[k] if len(row.advantage) > k else None for row in group]
            if None not in own:
                assert sum(own) == pytest.approx(0, abs=1e-2)  # type: ignore[arg-type]
    assert done.loss is not None
    weights = [folder / "adapter_model.safetensors" for folder in (tmp_path / "cold" / "adapter", done.folder)]
    assert weights[0].read_bytes() != weights[1].read_bytes()


@pytest.mark.parametrize(("strategy", "reward"), [("groupwise", "group-rank"), ("elimination", "iranker")])
def test_the_other_strategies_learn_too(tiny_model: Path, tmp_path: Path, strategy: str, reward: str) -> None:
    """From nothing, in one step, answers as long as a ranker lets them be."""
    prompt = {"groupwise": "groupwise-plain"}.get(strategy)
    made = recipe(
        tiny_model, strategy, loss=None, reinforce={"reward": reward, "group": 2}, schedule={"lists": 1, "batch": 1},
        **({"prompt": prompt} if prompt else {}),
    )  # fmt: skip
    trained(tmp_path, made)
    rows = Table(tmp_path / "out" / "completions.jsonl").rows()
    assert len(rows) == 2 and all(-0.5 <= row.reward <= 1.3 for row in rows)
    assert json.loads((tmp_path / "out" / "adapter" / "rerank.json").read_text())["strategy"] == strategy


def test_a_mixture_of_experts_learns_too(tiny_model: Path, tmp_path: Path) -> None:
    """By rewards alone: TRL would add the router's own loss, which our forward pass does not give."""
    from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=600, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=32, moe_intermediate_size=16, num_experts=2, num_experts_per_tok=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    assert config.router_aux_loss_coef > 0
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "moe")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "moe")
    part = {"reward": "iranker", "group": 2}
    adapter = {"method": "lora", "targets": ["q_proj", "v_proj"]}
    made = recipe(
        tmp_path / "moe", "elimination", loss=None, reinforce=part, adapter=adapter, schedule={"lists": 2, "batch": 1}
    )
    assert trained(tmp_path, made).steps == 2


def test_a_table_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    table = Table(tmp_path / "completions.jsonl")
    assert table.rows() == []
    table.tell()
    assert (tmp_path / "completions.md").read_text() == "No answers yet.\n"
    from rerank.training.reinforce.answers import Row, shown

    text = "[1]\u2028and\x85more\r\n"  # what other than \n ends a line for Python ends no row
    row = Row(1, "q", "é?", (shown("d", 1.0, "a " * 200),), text, False, 1.0, {"format": 1.0}, (0.5,))
    table.add([row, Row(3, "q", "x", (), "", True, 0.0, {"format": 0.0}, (-0.5, 0.1))])
    with table.file.open("a") as stream:
        stream.write('{"step": 4, "que')
    assert [one.step for one in table.rows()] == [1, 3]
    table.cut(2)
    assert table.rows() == [row]
    assert len(row.passages[0][2]) == 160
