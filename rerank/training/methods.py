"""Which weights are trained: PEFT's methods by name, every weight, or an adapter to go on with; and what is left of it.

PEFT knows some forty methods. Those with a name in papers and a setting of LoRA are in METHODS; any other of PEFT's
types is named as PEFT names it. The options are those of PEFT's configuration.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from rerank.errors import AdapterError, InputError, UnknownNameError

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

METHODS: Mapping[str, tuple[str | None, Mapping[str, object]]] = MappingProxyType(
    {
        "full": (None, {}),
        "lora": ("LORA", {}),
        "rslora": ("LORA", {"use_rslora": True}),
        "dora": ("LORA", {"use_dora": True}),
        "eva": ("LORA", {"init_lora_weights": "eva"}),
        "pissa": ("LORA", {"init_lora_weights": "pissa"}),
        "olora": ("LORA", {"init_lora_weights": "olora"}),
        "adalora": ("ADALORA", {}),
        "vera": ("VERA", {}),
        "randlora": ("RANDLORA", {}),
        "shira": ("SHIRA", {}),
        "miss": ("MISS", {}),
    }
)
_MOVES_THE_BASE = ("pissa", "olora")  # take a part of the weights out at the start: only with it the rest is whole
_NEEDS_MORE = ("corda", "loftq", "lora_ga")  # begin from something that a recipe cannot give
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def peft_types() -> dict[str, type[PeftConfig]]:
    """PEFT's methods that act on layers, by PEFT's names."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {
        kind.value: made
        for kind, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if "target_modules" in {f.name for f in fields(made)}
    }


def configuration(
    method: str,
    targets: str | tuple[str, ...],
    options: Mapping[str, object],
    *,
    head: bool = False,
    steps: int | None = None,
) -> PeftConfig:
    """PEFT's configuration. `head`: the model is a classifier. `steps`: all of training, which AdaLoRA must know."""
    kind, fixed = METHODS.get(method, (method.upper(), {}))
    types = peft_types()
    if kind not in types:
        raise UnknownNameError("adapter method", method, {*METHODS, *map(str.lower, types)})
    made = types[kind]
    own = {f.name for f in fields(made) if f.init} - {"peft_type", "task_type", "target_modules", "inference_mode"}
    for name in options:
        if name not in own:
            raise UnknownNameError(f"{method} option", name, own)
        if name in fixed:
            raise InputError(f"adapter method {method} sets {name} itself; leave it out, or say method: lora")
    if str(begins := options.get("init_lora_weights")).startswith(_NEEDS_MORE):
        raise InputError(f"init_lora_weights {begins} is not done here; leave it out, or give eva, pissa or olora")
    more = {"total_step": steps} if kind == "ADALORA" and "total_step" not in options else {}
    if isinstance(targets, str):  # to PEFT a string is a regular expression for a layer's whole path
        chosen: str | list[str] = [targets] if targets.isidentifier() else targets
    else:
        chosen = list(targets)
    task = "SEQ_CLS" if head else "CAUSAL_LM"
    try:
        with warnings.catch_warnings(action="ignore"):  # of defaults that nobody asked about
            return made(task_type=task, target_modules=chosen, **{**fixed, **more, **options})
    except (TypeError, ValueError) as error:
        raise InputError(f"adapter {method}: {' '.join(str(error).split())}") from error


def adapted(
    model: PreTrainedModel,
    method: str,
    config: PeftConfig,
    folder: Path,
    batches: Callable[[], Iterable[Mapping[str, Tensor]]],
) -> PeftModel:
    """The model with a fresh adapter. EVA looks at `batches`; PiSSA and OLoRA keep their beginning in `folder`."""
    from peft import get_peft_model

    try:
        found = get_peft_model(model, config)
        type(config)(**{f.name: getattr(config, f.name) for f in fields(config) if f.init})  # it will be read so
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"adapter {method} does not fit {model.config.model_type}: {error}") from error
    begins = _beginning(config)
    if begins == "eva":
        from peft import initialize_lora_eva_weights

        # every process is given the same batches: there is nothing to gather
        initialize_lora_eva_weights(found, list(batches()), gather_distributed_inputs=False, show_progress_bar=False)
    if begins.startswith(_MOVES_THE_BASE) and not (folder / _WEIGHTS).is_file():
        config.init_lora_weights = True  # as PEFT asks for, else loading would start anew
        found.save_pretrained(str(folder))
        config.init_lora_weights = begins
    return found


def _beginning(config: PeftConfig) -> str:
    """How a LoRA's weights begin, by PEFT's name, where that is more than random numbers."""
    return str(getattr(config, "init_lora_weights", "")).lower()


def export(
    model: PeftModel, folder: Path, started: Path, base: str, rank: int | None, whole: dict[str, Tensor] | None = None
) -> float:
    """Writes the adapter for the untouched model whose name is `base`; returns how much of it a lower rank keeps.

    `whole` are the model's weights where the processes share them.
    """
    begins = _beginning(model.peft_config["default"])
    if begins.startswith(_MOVES_THE_BASE):
        model.save_pretrained(str(folder), path_initial_model_for_weight_conversion=str(started), state_dict=whole)
    else:
        model.save_pretrained(str(folder), state_dict=whole)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty form; the card is written by who knows
    named = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    named["base_model_name_or_path"] = base
    (folder / _CONFIG).write_text(json.dumps(named, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return compress(folder, rank) if rank is not None else 1.0


def compress(folder: Path, rank: int) -> float:
    """Brings a LoRA adapter to a lower rank in its folder, in bfloat16: for every layer the best one in least squares,
    the truncated SVD of s·B·A (LoRA-Squeeze trains a high rank first, and so do recipes with `compress`).

    Returns the share of the sum of squares that is kept. Raises AdapterError for what is not plain LoRA.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from torch.nn.functional import pad

    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    weights = load_file(folder / _WEIGHTS)
    more = [option for option in ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias") if config.get(option)]
    if config.get("peft_type") != "LORA" or more or any("lora_embedding" in name for name in weights):
        kind = f"{config.get('peft_type')} with {', '.join(more) or 'embeddings'}"
        raise AdapterError(f"only a LoRA adapter of linear layers can be compressed; {folder} is {kind}")
    r, alpha = config["r"], config["lora_alpha"]
    scale = alpha / r**0.5 if config.get("use_rslora") else alpha / r
    rank = min(rank, r)
    kept = total = 0.0
    made: dict[str, Tensor] = {}
    for name, a in weights.items():
        if not name.endswith(".lora_A.weight"):
            if not name.endswith(".lora_B.weight"):
                made[name] = a
            continue
        other = name.removesuffix("lora_A.weight") + "lora_B.weight"
        qb, rb = torch.linalg.qr(weights[other].float())
        qa, ra = torch.linalg.qr(a.float().T)
        u, s, v = torch.linalg.svd(scale * rb @ ra.T, full_matrices=False)
        total += float(s.square().sum())
        u, s, v = u[:, :rank], s[:rank], v[:rank]
        kept += float(s.square().sum())
        lacking = rank - len(s)  # a layer may be narrower than the rank
        made[name] = pad(s.sqrt()[:, None] * (v @ qa.T), (0, 0, 0, lacking)).bfloat16().contiguous()
        made[other] = pad(qb @ u * s.sqrt(), (0, lacking)).bfloat16().contiguous()
    config.update(r=rank, lora_alpha=rank, use_rslora=False)
    save_file(made, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return kept / total if total else 1.0


def unorthogonal(model: PeftModel) -> Tensor:
    """What AdaLoRA adds to the loss: how far its factors are from orthogonal (Zhang et al., ICLR 2023, eq. 4), as PEFT
    computes it, which adds it only where the model itself computes a loss."""
    import torch

    found = []
    for name, p in model.named_parameters():
        if "lora_A.default" in name or "lora_B.default" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            found.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=p.device)))
    return torch.stack(found).mean() * float(model.peft_config["default"].orth_reg_weight)


def averaged(folders: list[Path], target: Path) -> None:
    """The mean of several checkpoints of one adapter, element by element, into `target`."""
    import torch
    from safetensors.torch import load_file, save_file

    target.mkdir(parents=True, exist_ok=True)
    parts = [load_file(folder / _WEIGHTS) for folder in folders]
    mean = {name: torch.stack([part[name].float() for part in parts]).mean(0).contiguous() for name in parts[0]}
    save_file(mean, target / _WEIGHTS, metadata={"format": "pt"})
    shutil.copy(folders[-1] / _CONFIG, target / _CONFIG)
