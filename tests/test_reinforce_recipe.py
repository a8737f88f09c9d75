"""A recipe with rewards: its mistakes are told before anything is loaded, and its options reach TRL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import Cli, assert_error
from training import recipe, save_lists, save_recipe

from rerank.errors import BackboneError, InputError
from rerank.training.checks import check_options
from rerank.training.recipe import read_recipe
from rerank.training.reinforce.checks import check_gold
from rerank.training.reinforce.options import options
from rerank.training.reinforce.part import ReinforcePart, VllmPart
from rerank.training.reinforce.reading import longest
from rerank.training.sources import read_pools

DATA = {"dataset": "lists.jsonl"}
REWARD = {"reward": "rank-r1"}
RANKS = {"reward": "reason-rank", "algorithm": "rank-grpo"}

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"reinforce": {}}, "reinforce.reward is missing"),
    ({"reinforce": REWARD | {"gruop": 4}}, "unknown key 'reinforce.gruop'; did you mean 'group'?"),
    ({"reinforce": {"reward": "rank-r2"}}, "unknown reward 'rank-r2'; did you mean 'rank-r1'?"),
    ({"reinforce": {"reward": {"name": "rank-r1", "shapping": 1}}}, "unknown rank-r1 option 'shapping'; did you mean"),
    ({"reinforce": {"reward": {"name": "reason-rank", "cutoff": 0.5}}, "strategy": "listwise"}, "reward.cutoff is 0.5"),
    ({"reinforce": {"reward": "reason-rank"}}, "reward reason-rank cannot read the answers of strategy rank-r1"),
    ({"reinforce": REWARD, "strategy": "pointwise"}, "strategy pointwise writes no answer to be rewarded"),
    ({"reinforce": REWARD, "loss": "ranknet"}, "loss ranknet needs scores, and rank-r1 only writes"),
    ({"reinforce": REWARD, "write": {}}, "write has no place beside reinforce: a cold start is a recipe of its own"),
    ({"reinforce": REWARD, "curriculum": 0.5}, "curriculum has no place beside reinforce"),
    ({"reinforce": REWARD, "fsdp": "full_shard"}, "fsdp has no place beside reinforce"),
    ({"reinforce": REWARD, "deepspeed": "d.json"}, "deepspeed has no place beside reinforce"),
    ({"reinforce": REWARD, "schedule": {"neftune": 5}}, "schedule.neftune has no place beside reinforce"),
    ({"reinforce": REWARD, "schedule": {"batch_tokens": 512}}, "batch_tokens has no place beside reinforce: give"),
    ({"reinforce": REWARD, "adapter": "adalora"}, "reinforce trains lora, rslora, dora, full, not adalora"),
    (
        {"reinforce": REWARD, "adapter": {"method": "lora", "init_lora_weights": "pissa_niter_4"}},
        "not with init_lora_weights pissa_niter_4; take it out",
    ),
    ({"reinforce": REWARD, "adapter": "full"}, "beta needs the model that training started from"),
    ({"reinforce": REWARD | {"group": 1}}, "reinforce.group: "),
    ({"reinforce": REWARD | {"answers_at_once": 6}}, "answers_at_once 6 does not divide the 64 answers of a batch"),
    (
        {"reinforce": REWARD | {"num_iterations": 3}, "schedule": {"save_every": 4}},
        "a checkpoint every 4 steps would come between the 3 steps",
    ),
    ({"reinforce": REWARD | {"loss_type": "ppo"}}, "unknown reinforce.loss_type 'ppo'; "),
    ({"reinforce": REWARD | {"vespo_k_pos": 2}}, "vespo_k_pos is for loss_type vespo"),
    ({"reinforce": REWARD | {"loss_type": "sapo", "epsilon": 0.1}}, "epsilon has no effect with loss_type sapo"),
    (
        {"reinforce": REWARD | {"loss_type": "vespo", "importance_sampling_level": "sequence"}},
        "loss_type vespo weighs whole answers by itself; take importance_sampling_level out",
    ),
    (
        {"reinforce": REWARD | {"loss_type": "vespo", "vllm": "colocate"}},
        "loss_type vespo takes vLLM's ratios by token; give vllm.correction_mode token_mask",
    ),
    ({"reinforce": REWARD | {"loss_type": "cispo"}}, "loss_type cispo cuts ratios at epsilon_high; give one"),
    ({"reinforce": REWARD | {"beta": 0, "use_bias_correction_kl": True}}, "use_bias_correction_kl has no effect"),
    ({"reinforce": REWARD | {"returns": "dcg"}}, "returns is for algorithm rank-grpo"),
    ({"reinforce": REWARD | {"algorithm": "rank-grpo"}}, "strategy rank-r1 writes none"),
    ({"reinforce": RANKS | {"importance_sampling_level": "token"}, "strategy": "listwise"}, "a ratio for each rank"),
    ({"reinforce": RANKS | {"loss_type": "dapo"}, "strategy": "listwise"}, "a mean over ranks, which loss_type dapo"),
    ({"reinforce": RANKS | {"scale_rewards": "batch"}, "strategy": "listwise"}, "scales by the group of a rank"),
    ({"reinforce": REWARD | {"vllm": {"mode": "server", "memory": 0.5}}}, "vllm.memory has no effect with mode server"),
    ({"reinforce": REWARD | {"vllm": {"host": "gpu1"}}}, "vllm.host has no effect with mode colocate"),
    (
        {"reinforce": REWARD | {"vllm": {"correction": False, "correction_max": 2}}},
        "vllm.correction is off; take correction_mode and correction_max out",
    ),
    ({"write": {"thought": "deep"}}, "unknown write.thought 'deep'; known: order, verdicts"),
    ({"write": {"importance": True}}, "write.importance and separators are for first and full-ranking, not rank-r1"),
    ({"write": {"top": 3}}, "write.top is for full-ranking"),
    ({"write": {"thought": "verdicts"}, "strategy": "full-ranking"}, "strategy full-ranking writes no thought"),
    (
        {"write": {"thought": "verdicts"}, "strategy": "listwise", "prompt": "listwise-permutation"},
        "prompt 'listwise-permutation' has no thought written; take write.thought out",
    ),
    ({}, "strategy rank-r1 only writes; give write: or reinforce:"),
    ({"write": {}, "reason_tokens": 9, "strategy": "elimination"}, "reason_tokens bounds a thought, and strategy elim"),
    (
        {"write": {}, "reason_tokens": 9, "strategy": "listwise", "prompt": "listwise-permutation"},
        "has no thought written; prompts that have",
    ),
    ({"write": {}, "strategy": "rank-r1", "prompt": "setwise"}, "strategy 'rank-r1' trains answers by"),
]


def saved(folder: Path, model: Path, changes: dict[str, Any]) -> Path:
    made = recipe(model, "rank-r1", loss=None) | changes
    return save_recipe(folder, {key: value for key, value in made.items() if value is not None})


@pytest.mark.parametrize(("changes", "why"), MISTAKES, ids=[str(changes)[:70] for changes, _ in MISTAKES])
def test_mistakes(tmp_path: Path, tiny_model: Path, cli: Cli, changes: dict[str, Any], why: str) -> None:
    done = cli("train", saved(tmp_path, tiny_model, changes), "--out", tmp_path / "out")
    assert_error(done, why)
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.util import find_spec

    read = read_recipe(saved(tmp_path, tiny_model, {"reinforce": REWARD | {"vllm": "colocate"}}))
    for absent, why in (("trl", r"reinforce needs trl: pip install 'rerank-llm\[reinforce\]'"), ("vllm", "needs vllm")):
        monkeypatch.setattr(
            "rerank.training.reinforce.checks.find_spec", lambda name, a=absent: None if name == a else find_spec("re")
        )
        with pytest.raises(BackboneError, match=why):
            check_options(read)


def test_what_is_learned_from_at_once_is_shared_by_the_processes(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6 by 4 processes would be 1 each: a step would have 16 answers of the recipe's 24."""
    part = REWARD | {"group": 2, "answers_at_once": 6}
    read = read_recipe(saved(tmp_path, tiny_model, {"reinforce": part, "schedule": {"batch": 12}}))
    for world, sound in (("1", True), ("3", True), ("4", False)):
        monkeypatch.setenv("WORLD_SIZE", world)
        if sound:
            check_options(read)
            continue
        with pytest.raises(InputError, match="answers_at_once 6 cannot be shared by 4 processes; give a multiple of 4"):
            check_options(read)


def test_labels_that_the_reward_cannot_read(tmp_path: Path, tiny_model: Path) -> None:
    save_lists(tmp_path / "lists.jsonl")
    text = (tmp_path / "lists.jsonl").read_text()
    (tmp_path / "lists.jsonl").write_text(text.replace('"label": 0', '"score": -1.5').replace('"label"', '"score"'))
    data = [DATA | {"labels": "teacher"}]
    changes = {"reinforce": {"reward": "reason-rank"}, "strategy": "listwise", "data": data}
    read = read_recipe(saved(tmp_path, tiny_model, changes))
    with pytest.raises(InputError, match=r"lists.jsonl: reward reason-rank takes labels for gains and was given -1\.5"):
        check_gold(read, [(source, read_pools(source, tmp_path)) for source in read.data])


CHANGED: dict[str, Any] = {  # no value is TRL's or our default
    "group": 6, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1,
    "loss_type": "dapo", "beta": 0.01, "use_bias_correction_kl": True, "scale_rewards": "none", "num_iterations": 2,
    "epsilon": 0.15, "epsilon_high": 0.28, "delta": 4.0, "importance_sampling_level": "sequence",
    "mask_truncated_completions": True, "top_entropy_quantile": 0.2, "entropy_coef": 0.001,
    "off_policy_mask_threshold": 0.5, "answers_at_once": 12,
}  # fmt: skip
NAMES = {"group": "num_generations", "answers_at_once": "per_device_train_batch_size"}


def config(read: Any, tmp_path: Path) -> Any:
    from trl import GRPOConfig

    from rerank.training.arguments import arguments

    more = options(read, *longest(read.asked, 4))
    return arguments(read, tmp_path, tmp_path / "out", 10, GRPOConfig, **more)


def test_every_option_reaches_trl(tmp_path: Path, tiny_model: Path) -> None:
    changes = {"reinforce": REWARD | CHANGED, "reason_tokens": 17, "schedule": {"batch": 4, "save_every": 2}}
    args = config(read_recipe(saved(tmp_path, tiny_model, changes)), tmp_path)
    assert {name: getattr(args, NAMES.get(name, name)) for name in CHANGED} == CHANGED
    assert args.gradient_accumulation_steps == 2  # 4 prompts, 6 answers to each, 12 at once
    assert args.steps_per_generation == 2  # all of a step are written together
    assert args.max_completion_length == 17 + 32
    assert not args.use_vllm and not args.shuffle_dataset and not args.gradient_checkpointing


def test_the_options_of_a_loss_reach_trl(tmp_path: Path, tiny_model: Path) -> None:
    sapo = {"sapo_temperature_pos": 1.2, "sapo_temperature_neg": 1.4}
    vespo = {"vespo_k_pos": 1.5, "vespo_lambda_pos": 2.5, "vespo_k_neg": 3.5, "vespo_lambda_neg": 1.1}
    for kind, given in (("sapo", sapo), ("vespo", vespo)):
        read = read_recipe(saved(tmp_path, tiny_model, {"reinforce": REWARD | given | {"loss_type": kind}}))
        args = config(read, tmp_path)
        assert {name: getattr(args, name) for name in given} == given
    assert set(CHANGED) | set(sapo) | set(vespo) | {"algorithm", "reward", "returns", "vllm"} == set(
        ReinforcePart.model_fields
    ), "a new option needs a test that it arrives"


def test_the_defaults_are_ours_and_not_trls(tmp_path: Path, tiny_model: Path) -> None:
    args = config(read_recipe(saved(tmp_path, tiny_model, {"reinforce": REWARD})), tmp_path)
    told = {name: getattr(args, name) for name in ("loss_type", "beta", "scale_rewards", "num_generations", "top_k")}
    assert told == {"loss_type": "grpo", "beta": 0.04, "scale_rewards": "group", "num_generations": 8, "top_k": 0}
    assert args.importance_sampling_level == "token" and not args.use_bias_correction_kl


def test_vllms_options_reach_trl(tmp_path: Path, tiny_model: Path) -> None:
    server = {"base_url": "http://gpu1:8000", "host": "gpu1", "port": 9000, "group_port": 51000, "timeout_s": 60.0}
    shared = {"correction": True, "correction_mode": "token_truncate", "correction_max": 2.0}
    colocate = {"memory": 0.4, "tensor_parallel": 2, "max_length": 2048}
    assert {"mode", *server, *shared, *colocate} == set(VllmPart.model_fields)
    names = {
        "base_url": "vllm_server_base_url", "host": "vllm_server_host", "port": "vllm_server_port",
        "group_port": "vllm_group_port", "timeout_s": "vllm_server_timeout", "memory": "vllm_gpu_memory_utilization",
        "tensor_parallel": "vllm_tensor_parallel_size", "max_length": "vllm_max_model_length",
        "correction": "vllm_importance_sampling_correction", "correction_mode": "vllm_importance_sampling_mode",
        "correction_max": "vllm_importance_sampling_clip_max",
    }  # fmt: skip
    for mode, own in (("server", server), ("colocate", colocate)):
        given = shared | own
        read = read_recipe(saved(tmp_path, tiny_model, {"reinforce": REWARD | {"vllm": {"mode": mode} | given}}))
        args = config(read, tmp_path)
        assert args.use_vllm and args.vllm_mode == mode
        assert {name: getattr(args, names[name]) for name in given} == given
        assert args.generation_kwargs == {"stop": ["</answer>"], "include_stop_str_in_output": True}
