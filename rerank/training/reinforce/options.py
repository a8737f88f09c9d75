"""A recipe's `reinforce:` as the arguments of TRL's trainer."""

from __future__ import annotations

import os

from rerank.training.recipe import Recipe
from rerank.training.reinforce.part import VllmPart

_SAME = (  # ours have TRL's names
    "temperature", "top_p", "min_p", "repetition_penalty", "loss_type", "beta", "use_bias_correction_kl",
    "scale_rewards", "num_iterations", "epsilon", "epsilon_high", "delta", "mask_truncated_completions",
    "top_entropy_quantile", "entropy_coef", "off_policy_mask_threshold",
)  # fmt: skip
_OF_A_LOSS = (
    "sapo_temperature_pos", "sapo_temperature_neg", "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"
)  # fmt: skip


def options(recipe: Recipe, most_tokens: int, stop: tuple[str, ...]) -> dict[str, object]:
    """What GRPOConfig is told beside the schedule. An answer has `most_tokens` at most, and ends at `stop`."""
    part = recipe.reinforce
    assert part is not None
    answers = recipe.schedule.batch * part.group
    at_once = part.answers_at_once or answers
    world = int(os.environ.get("WORLD_SIZE", "1"))
    told: dict[str, object] = {name: getattr(part, name) for name in _SAME}
    told |= {name: value for name in _OF_A_LOSS if (value := getattr(part, name)) is not None}
    return told | {
        "num_generations": part.group,
        "per_device_train_batch_size": at_once // world,
        "per_device_eval_batch_size": part.group,  # checked by TRL, though it is the strategy that evaluates
        "gradient_accumulation_steps": answers // at_once,
        "max_completion_length": most_tokens,
        "top_k": part.top_k or 0,
        "importance_sampling_level": part.level,
        "multi_objective_aggregation": "sum_then_normalize",  # there is one reward, of several parts
        "router_aux_loss_coef": 0.0,  # of experts: as in supervised training the loss is ours alone
        "shuffle_dataset": False,  # the mixture is in random order, and resumes by index
        "gradient_checkpointing": False,  # the schedule has it
        "log_completions": False,  # ours are in completions.jsonl
        **(_vllm(part.vllm, stop) if part.vllm is not None else {}),
    }


def _vllm(part: VllmPart, stop: tuple[str, ...]) -> dict[str, object]:
    return {
        "use_vllm": True,
        "vllm_mode": part.mode,
        "vllm_gpu_memory_utilization": part.memory,
        "vllm_tensor_parallel_size": part.tensor_parallel,
        "vllm_max_model_length": part.max_length,
        "vllm_server_base_url": part.base_url,
        "vllm_server_host": part.host,
        "vllm_server_port": part.port,
        "vllm_group_port": part.group_port,
        "vllm_server_timeout": part.timeout_s,
        "vllm_importance_sampling_correction": part.correction,
        "vllm_importance_sampling_mode": part.correction_mode,
        "vllm_importance_sampling_clip_max": part.correction_max,
        "generation_kwargs": {"stop": list(stop), "include_stop_str_in_output": True} if stop else None,
    }
