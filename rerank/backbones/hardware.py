"""Where a model runs, and in which numbers, when the user does not say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank.errors import InputError

if TYPE_CHECKING:
    import torch

DTYPES = ("bfloat16", "float16", "float32")


def choose_device(device: str | None) -> torch.device:
    """The named device, or the first of CUDA, Apple's MPS, and the CPU that is there."""
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return chosen


def choose_dtype(dtype: str | None, device: torch.device, *, int8: bool = False) -> torch.dtype:
    """The named dtype, or bfloat16 where the processor multiplies it fast, else float16 (GPU) or float32.

    `int8` allows that name too. It is for linear layers only: what is beside them gets what no name would get.
    """
    import torch

    if dtype is None or (int8 and dtype == "int8"):
        if device.type == "cpu":
            dtype = "bfloat16" if _cpu_multiplies_bfloat16() else "float32"
        elif device.type == "cuda":
            dtype = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        else:
            dtype = "float16"
    if dtype not in DTYPES:
        known = (*DTYPES, "int8") if int8 else DTYPES
        raise InputError(f"dtype {dtype!r} is not known; give one of {', '.join(known)}")
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen


def set_threads(threads: int | None) -> None:
    """Has torch compute with this many threads; it is one setting for the whole process."""
    import torch

    if threads is not None:
        if threads < 1:
            raise InputError(f"threads is {threads}; give at least 1")
        torch.set_num_threads(threads)


def _cpu_multiplies_bfloat16() -> bool:
    import torch

    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # x86; both in torch.cpu
    if any(getattr(torch.cpu, check, bool)() for check in checks):
        return True
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as info:  # Arm's flag
            return any(line.startswith("Features") and " bf16" in line for line in info)
    except OSError:
        return False


def cpu_multiplies_int8() -> bool:
    """Whether torch has a fast product of int8 matrices here; elsewhere its own is some forty times float32's time."""
    import torch

    return bool(getattr(torch.cpu, "_is_vnni_supported", bool)())


def default_batch_tokens(device: torch.device) -> int:
    """Tokens in a batch, padding included: what fills the device without filling its memory or its caches."""
    return 2048 if device.type == "cpu" else 32768
