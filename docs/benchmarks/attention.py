"""Which attention is the quickest for which shape: the two kernels of `rerank.backbones.packing`, and torch's own.

    python docs/benchmarks/attention.py [THREADS]

Milliseconds for one layer of the embedded model (9 query heads, 3 key heads of 64), best of 5, for a batch of prompts
that share their first 50 tokens, and for one of prompts that share nothing. Constants of `packing` come from here.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from rerank.backbones import packing

CPU = torch.device("cpu")
SHAPES = {
    "50 pairs": (50, 50, 50, 100),
    "32 alone": (32, 0, 124, 124),
    "8 of 500": (8, 50, 450, 460),
    "2 of 1,950": (2, 50, 1880, 1920),
}


def best(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    draw = random.Random(0)
    for dtype in (torch.bfloat16, torch.float32):
        for name, (n, common, low, high) in SHAPES.items():
            prefix = [draw.randrange(10_000) for _ in range(common)]
            prompts = [prefix + [draw.randrange(10_000) for _ in range(draw.randint(low, high))] for _ in range(n)]
            longest = max(map(len, prompts))
            q, k = (torch.randn(n, heads, longest, 64, dtype=dtype) for heads in (9, 3))
            own = best(lambda q=q, k=k: scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True))
            shown = [f"{str(dtype).removeprefix('torch.')}, {name}: padded, torch's own {own:.1f}"]
            for chunk in (2**14, 2**16, 2**18):
                packing._CHUNK = chunk
                for label, long in (("products", 10**9), ("by shape", 1024)):
                    packing._LONG = long
                    pack = packing.pack(prompts, device=CPU, dtype=dtype)
                    total = pack.ids.shape[1]
                    q, k = (torch.randn(1, total, heads, 64, dtype=dtype).transpose(1, 2) for heads in (9, 3))
                    took = best(lambda q=q, k=k, pack=pack: packing.attention(None, q, k, k, None, pack=pack))
                    shown.append(f"{label}, chunk {chunk}: {took:.1f}")
            print("; ".join(shown), flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
