"""The part of a recipe that says how a ranker learns from its own answers. No key of it is ignored.

Every option of TRL's trainer that changes the algorithm stands here with a default of ours, and is handed on whatever
TRL's own default is: those have changed, and are not the papers'.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from rerank.errors import UnknownNameError
from rerank.training.parts import Part
from rerank.training.reinforce.rewards import FITS, REWARDS

if TYPE_CHECKING:
    from rerank.training.recipe import Recipe

METHODS = ("lora", "rslora", "dora", "full")  # what TRL can keep a reference of, and vLLM be given


class RewardPart(Part):
    """`name` in rerank.training.reinforce.rewards, and the reward's own options beside it. `shaping` times the share of
    right tags is added."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str
    shaping: float = Field(0.0, ge=0)

    @property
    def options(self) -> dict[str, float]:
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in REWARDS:
            raise UnknownNameError("reward", self.name, REWARDS)
        takes = inspect.signature(REWARDS[self.name]).parameters.values()
        known = {p.name: p.default for p in takes if p.kind is p.KEYWORD_ONLY}
        for name, value in self.options.items():
            if name not in known:
                raise UnknownNameError(f"{self.name} option", name, {*known, "shaping"})
            whole = isinstance(known[name], int)
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or value < whole:
                wanted = "a whole number of at least 1" if whole else "a number of at least 0"
                raise ValueError(f"reward.{name} is {value!r}; give {wanted}")
        return self


class VllmPart(Part):
    """Answers are written by vLLM: `colocate` in this process, on the same GPU, or `server`, a `trl vllm-serve` that
    holds another copy of the model. After every step it is given the new weights.

    vLLM's probabilities differ a little from the trainer's; `correction` weighs answers by their ratio, cut at
    `correction_max`, as TRL's `vllm_importance_sampling_mode` says.
    """

    mode: Literal["colocate", "server"] = "colocate"
    memory: float = Field(0.3, gt=0, lt=1)
    tensor_parallel: int = Field(1, ge=1)
    max_length: int | None = Field(None, ge=64)
    base_url: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1)
    group_port: int = Field(51216, ge=1)
    timeout_s: float = Field(240.0, gt=0)
    correction: bool = True
    correction_mode: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "sequence_mask"
    correction_max: float = Field(3.0, gt=0)

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        other = {
            "server": ("memory", "tensor_parallel", "max_length"),
            "colocate": ("base_url", "host", "port", "group_port", "timeout_s"),
        }[self.mode]
        if lost := [name for name in other if name in self.model_fields_set]:
            raise ValueError(f"vllm.{lost[0]} has no effect with mode {self.mode}; take it out")
        if not self.correction and {"correction_mode", "correction_max"} & self.model_fields_set:
            raise ValueError("vllm.correction is off; take correction_mode and correction_max out")
        return self


class ReinforcePart(Part):
    """Group relative policy optimisation: `group` answers are sampled to each prompt, and an answer's advantage is its
    reward less the group's mean, over the group's standard deviation (`scale_rewards: group`; DeepSeekMath, Shao et
    al., arXiv 2402.03300, 2024, section 4.1).

    The defaults are Rank-R1's where we know them (a group of 8) and DeepSeekMath's else: `beta` 0.04, the weight of the
    divergence from where training started, `loss_type` grpo, a mean over each answer's tokens, and one pass over each
    batch. Those that the papers leave out are TRL's. `temperature`, `top_p`, `top_k`, `min_p` and
    `repetition_penalty` are for sampling; how long an answer may be is `reason_tokens`, as in ranking.

    `algorithm: rank-grpo` takes each rank of the answer for an action, with an advantage and a ratio of its own, by
    `returns`; see `ranks`. `answers_at_once` bounds how many answers are learned from at once, for memory's sake: a
    batch of more is done in pieces.
    """

    algorithm: Literal["grpo", "rank-grpo"] = "grpo"
    reward: RewardPart
    returns: Literal["dcg", "relevance"] | None = None
    group: int = Field(8, ge=2)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"] = "grpo"
    beta: float = Field(0.04, ge=0)
    use_bias_correction_kl: bool = False
    scale_rewards: Literal["group", "batch", "none"] = "group"
    num_iterations: int = Field(1, ge=1)
    epsilon: float = Field(0.2, gt=0)
    epsilon_high: float | None = Field(None, gt=0)
    delta: float | None = Field(None, gt=0)
    importance_sampling_level: Literal["token", "sequence"] | None = None
    mask_truncated_completions: bool = False
    top_entropy_quantile: float = Field(1.0, gt=0, le=1)
    entropy_coef: float = Field(0.0, ge=0)
    off_policy_mask_threshold: float | None = Field(None, gt=0)
    sapo_temperature_pos: float | None = Field(None, gt=0)
    sapo_temperature_neg: float | None = Field(None, gt=0)
    vespo_k_pos: float | None = Field(None, ge=0)
    vespo_lambda_pos: float | None = Field(None, ge=0)
    vespo_k_neg: float | None = Field(None, ge=0)
    vespo_lambda_neg: float | None = Field(None, ge=0)
    vllm: VllmPart | None = None
    answers_at_once: int | None = Field(None, ge=2)

    @field_validator("reward", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("vllm", mode="before")
    @classmethod
    def _by_mode(cls, value: object) -> object:
        return {"mode": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        given = self.model_fields_set
        for kind in ("sapo", "vespo"):
            lost = sorted(name for name in given if name.startswith(f"{kind}_"))
            if lost and self.loss_type != kind:
                raise ValueError(f"{lost[0]} is for loss_type {kind}; take it out")
        clipped = self.loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
        for name in ("epsilon", "epsilon_high", "delta"):
            if name in given and not clipped and not (name == "epsilon_high" and self.loss_type == "cispo"):
                raise ValueError(f"{name} has no effect with loss_type {self.loss_type}; take it out")
        if self.loss_type == "cispo" and self.epsilon_high is None:
            raise ValueError("loss_type cispo cuts ratios at epsilon_high; give one, such as 5.0")
        if self.loss_type == "vespo":
            self._fits_vespo()
        if self.use_bias_correction_kl and not self.beta:
            raise ValueError("use_bias_correction_kl has no effect with beta 0; take it out")
        if self.algorithm == "rank-grpo":
            self._fits_ranks()
        elif self.returns is not None:
            raise ValueError("returns is for algorithm rank-grpo")
        return self

    def _fits_vespo(self) -> None:
        if self.importance_sampling_level is not None and not self.use_bias_correction_kl:
            raise ValueError("loss_type vespo weighs whole answers by itself; take importance_sampling_level out")
        if self.vllm is not None and self.vllm.correction and self.vllm.correction_mode.startswith("sequence"):
            raise ValueError(
                f"loss_type vespo takes vLLM's ratios by token; give vllm.correction_mode token_mask or token_truncate "
                f"in place of {self.vllm.correction_mode}"
            )

    def _fits_ranks(self) -> None:
        if self.importance_sampling_level is not None:
            raise ValueError("algorithm rank-grpo has a ratio for each rank; take importance_sampling_level out")
        if self.loss_type != "grpo":
            raise ValueError(
                f"algorithm rank-grpo is a mean over ranks, which loss_type {self.loss_type} is not; give grpo"
            )
        if self.scale_rewards == "batch":
            raise ValueError("algorithm rank-grpo scales by the group of a rank; give scale_rewards group or none")

    @property
    def level(self) -> str:
        """TRL's level of importance ratios. Rank-GRPO's are made the same within a rank before TRL takes them."""
        return self.importance_sampling_level or "token"


def fits(recipe: Recipe) -> None:
    """What does not go together with learning from answers. Raises ValueError."""
    part = recipe.reinforce
    if part is None:
        return
    if recipe.strategy not in FITS:
        raise ValueError(
            f"strategy {recipe.strategy} writes no answer to be rewarded; reinforce is for {', '.join(FITS)}"
        )
    if part.reward.name not in FITS[recipe.strategy]:
        raise ValueError(
            f"reward {part.reward.name} cannot read the answers of strategy {recipe.strategy}; "
            f"give {' or '.join(FITS[recipe.strategy])}"
        )
    if part.algorithm == "rank-grpo" and recipe.strategy != "listwise":
        raise ValueError(f"algorithm rank-grpo needs an answer of ranks, and strategy {recipe.strategy} writes none")
    schedule = recipe.schedule
    for name, given, instead in (
        ("write", recipe.write is not None, "a cold start is a recipe of its own, which this one starts from"),
        ("loss", recipe.loss is not None, "the reward takes its place"),
        ("reference", recipe.reference is not None, "give reinforce.beta"),
        ("rankings", recipe.rankings is not None, "the answers are sampled"),
        ("clicks", recipe.clicks is not None, "rewards go by labels, and clicks are none"),
        ("curriculum", recipe.curriculum is not None, "a list's weight would be divided out again"),
        ("deepspeed", recipe.deepspeed is not None, "use processes without it"),
        ("fsdp", recipe.fsdp is not None, "use processes without it"),
        ("schedule.neftune", schedule.neftune is not None, "noise would make what is sampled another model's"),
        ("schedule.batch_tokens", schedule.batch_tokens is not None, "give reinforce.answers_at_once"),
    ):
        if given:
            raise ValueError(f"{name} has no place beside reinforce: {instead}")
    if recipe.adapter.method not in METHODS and recipe.start is None:
        raise ValueError(f"reinforce trains {', '.join(METHODS)}, not {recipe.adapter.method}")
    begins = str(recipe.adapter.options.get("init_lora_weights", ""))
    if begins.startswith(("pissa", "olora", "eva")):  # as the methods of these names: a copy would begin once more
        raise ValueError(f"reinforce trains {', '.join(METHODS)}, not with init_lora_weights {begins}; take it out")
    if recipe.adapter.method == "full" and part.beta:
        raise ValueError(
            "beta needs the model that training started from, and method full does not keep it; give beta: 0"
        )
    answers = schedule.batch * part.group
    if part.answers_at_once is not None and (answers % part.answers_at_once or part.answers_at_once > answers):
        raise ValueError(f"answers_at_once {part.answers_at_once} does not divide the {answers} answers of a batch")
    saved = schedule.save_every or (recipe.evaluation.every if recipe.evaluation is not None else 100)
    if saved % part.num_iterations:
        raise ValueError(
            f"a checkpoint every {saved} steps would come between the {part.num_iterations} steps that share a batch "
            "of answers, and a run could not go on from it; give a multiple"
        )
