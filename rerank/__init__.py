"""rerank: put retrieved passages in the right order with a large language model.

    import rerank
    ranker = rerank.load("first")
    for hit in ranker.rank("how long do fleas live", passages): print(hit.rank, hit.score, hit.passage.text)

Names are loaded when they are first used; importing this package imports no model library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rerank.backbones.scripted import ScriptedBackbone
    from rerank.errors import RerankError
    from rerank.fusion import fuse
    from rerank.reranker import FirstStage, Ranker, Reranker, load
    from rerank.types import Candidates, Hit, Outcome, Outcomes, Passage, Query, Ranking, Usage

_HOMES = {
    "load": "reranker",
    "fuse": "fusion",
    "FirstStage": "reranker",
    "Ranker": "reranker",
    "Reranker": "reranker",
    "ScriptedBackbone": "backbones.scripted",
    "RerankError": "errors",
    **dict.fromkeys(["Candidates", "Hit", "Outcome", "Outcomes", "Passage", "Query", "Ranking", "Usage"], "types"),
}

__all__ = [
    "Candidates",
    "FirstStage",
    "Hit",
    "Outcome",
    "Outcomes",
    "Passage",
    "Query",
    "Ranker",
    "Ranking",
    "RerankError",
    "Reranker",
    "ScriptedBackbone",
    "Usage",
    "fuse",
    "load",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'rerank' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rerank.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
