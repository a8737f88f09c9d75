"""The tables of docs/scale.md's plan, by its formulas: `python docs/benchmarks/plan.py`."""

from __future__ import annotations

TOKENS, HOST_S, PEAK, USE = 127, 110e-6, 989e12, 0.4  # a pair's; the host's for a pair; an H100's, bfloat16, of it
DEPTH, LOAD_S = 1000, 120
JSONL, PARQUET, RUN = 457, 129, 65  # bytes a pair
HOURS, SPOT_HOURS = 1000, 24  # between two failures of a machine
RATES = {"135M": 6.85} | {f"{b}B": 1 / (2 * b * 1e9 * TOKENS / (PEAK * USE) + HOST_S) for b in (0.6, 4, 8)}
PLANS = {
    "MS MARCO dev, 6,980 queries": (6980, {"135M": 100, "0.6B": 1, "4B": 8, "8B": 8}),
    "A billion pairs, a million queries": (1_000_000, {"135M": 1000, "0.6B": 16, "4B": 64, "8B": 128}),
}


def row(model: str, pairs: int, workers: int) -> str:
    core, r = model == "135M", RATES[model]
    queries, between_s = (8, HOURS * 3600) if core else (64, SPOT_HOURS * 3600)  # of a shard; of a block at most 32
    waste = (min(queries, 32) * DEPTH / r / 2 + LOAD_S) / between_s
    clock, hours, shard = pairs / (r * workers) * (1 + waste), pairs / r / 3600, queries * DEPTH / r / 60
    deaths = workers * clock / between_s
    speed = f"{r:.2f}" if core else f"{r:,.0f}"
    return (
        f"| {'CPU core' if core else 'H100'} | {model} | {speed} | {workers:,} | {clock / 3600:.1f} h | {hours:,.0f} "
        f"| {queries} queries: {shard:.0f} min | {deaths:.1f} ({100 * waste:.2f} %) |"
    )


for title, (queries, workers) in PLANS.items():
    pairs = queries * DEPTH
    sizes = (f"{pairs * each / 1e9:,.3g} GB" for each in (JSONL, PARQUET, RUN))
    print("{}: candidates {} in JSONL, {} in Parquet; run {}".format(title, *sizes))
    for model, count in workers.items():
        print(row(model, pairs, count))
