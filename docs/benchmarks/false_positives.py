"""How often systems that do not differ are found to differ, and systems that do: `false_positives.py [--trials N]`.

A query's value is its own difficulty, drawn from Beta(2, 2) and the same for all systems, and noise of each system with
standard deviation .1; 50 queries. `any of 15` is the chance of at least one finding among all pairs of six equal
systems. Seeds are 0, 1, …, so the figures come out the same.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rerank.eval.significance import corrected, paired_t, randomisation, tukey_hsd

QUERIES, NOISE, BETTER, SAMPLES = 50, 0.1, 0.05, 1000
Values = NDArray[np.float64]


def systems(differences: list[float], seed: int) -> Values:
    """[systems, queries]"""
    drawn = np.random.default_rng(seed)
    own = drawn.beta(2, 2, QUERIES)
    return own + np.array(differences)[:, None] + NOISE * drawn.standard_normal((len(differences), QUERIES))


def rates(test: Callable[[Values, Values], float], difference: float, trials: int) -> list[float]:
    """Of findings at .05 and at .01."""
    found = np.array([test(*systems([0.0, difference], seed)) for seed in range(trials)])
    return [float((found < level).mean()) for level in (0.05, 0.01)]


def together(trials: int) -> dict[str, float]:
    """Of any finding at .05 among the pairs of six equal systems."""
    found: dict[str, list[bool]] = {"t, not corrected": [], "t, Holm": [], "randomised Tukey HSD": []}
    for seed in range(trials):
        values = systems([0.0] * 6, seed)
        alone = [paired_t(a, b) for a, b in itertools.combinations(values, 2)]
        found["t, not corrected"].append(min(alone) < 0.05)
        found["t, Holm"].append(min(corrected(alone, "holm")) < 0.05)
        found["randomised Tukey HSD"].append(bool(tukey_hsd(values, samples=SAMPLES, seed=seed).min() < 0.05))
    return {name: float(np.mean(each)) for name, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=2000)
    trials = parser.parse_args().trials
    print(f"| {trials:,} trials | equal: p < .05 | p < .01 | {BETTER} apart: p < .05 | p < .01 |")
    print("|---|---:|---:|---:|---:|")
    for name, test in (("t", paired_t), ("randomisation", lambda a, b: randomisation(a, b, samples=SAMPLES))):
        print(f"| {name} |" + "".join(f" {r:.1%} |" for d in (0.0, BETTER) for r in rates(test, d, trials)))
    fewer = max(1, trials // 4)
    for name, rate in together(fewer).items():
        print(f"| any of 15 pairs, {fewer:,} trials: {name} | {rate:.1%} | | | |")


if __name__ == "__main__":
    main()
