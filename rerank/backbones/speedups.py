"""What a loaded model can be turned into for speed, by choice: int8 linear layers, compiled layers.

Both change the last digits of a score and neither changes what is asked; the bounds that the tests hold them to, and
what int8 gave, stand in tests/test_speedups.py and docs/log.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rerank.backbones.hardware import cpu_multiplies_int8
from rerank.errors import BackboneError, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Int8Linear(nn.Module):
    """W8A8: y = (round(x / s) W8ᵀ) * s * w, with a scale s for each token and w for each output.

    Both are symmetric and taken from the largest absolute value (Dettmers et al., NeurIPS 2022, "LLM.int8()", eq. 5,
    without its outlier columns). A scale a token, and not one for the whole batch as torch's dynamic quantisation
    has, keeps a score independent of what else is in the batch. Where the processor has no product of int8 the same
    numbers are multiplied as float32 (exact up to 1,040 inputs, and rounded in the eighth digit beyond): the memory
    of int8, the speed of float32.
    """

    weight8: Tensor  # [in, out]
    scale: Tensor  # [out]
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()  # [out, in]
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        self.register_buffer("weight8", (weight / scale[:, None]).round().to(torch.int8).t().contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())
        self.fast = cpu_multiplies_int8()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        scale = flat.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / 127  # [tokens, 1]
        rounded = (flat / scale).round()
        product = torch._int_mm(rounded.to(torch.int8), self.weight8) if self.fast else rounded @ self.weight8.float()
        y = product * scale * self.scale
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], -1)


def quantise(model: PreTrainedModel) -> None:
    """Replaces every linear layer of the decoder by its int8 form; the embeddings and the head stay as they are."""
    if model.device.type != "cpu":
        raise InputError(f"int8 is for the CPU, not {model.device}; on a GPU load a checkpoint that is quantised")
    for parent in list(model.get_decoder().modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))


def compile_layers(model: PreTrainedModel) -> None:
    """Has torch.compile fuse what stands between a layer's matrix products.

    One layer is compiled and its code serves all of them, for any number of tokens. It needs a C++ compiler, and some
    10 to 60 seconds at the first call; later starts find the code in torch's cache.
    """
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        if model.device.type == "cpu":
            get_cpp_compiler()
    except Exception as error:
        raise BackboneError(
            "compile=True needs a C++ compiler, and none was found; install g++ or leave it out"
        ) from error
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None:
        raise BackboneError(f"{type(model).__name__} has no list of layers that could be compiled")
    for layer in layers:
        layer.compile(dynamic=True)
