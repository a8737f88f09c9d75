"""How much a ranker's order is worth when its input is disturbed; see docs/robustness.md."""

from rerank.robustness.perturbations import Perturbation, Setting, chosen, perturbations, perturbed
from rerank.robustness.smoothing import Smoothed, Smoothing
from rerank.robustness.synonyms import Synonyms

__all__ = [
    "Perturbation",
    "Setting",
    "Smoothed",
    "Smoothing",
    "Synonyms",
    "chosen",
    "perturbations",
    "perturbed",
]
