"""The names of effectiveness measures, for what measures a run and for what learns from a measure.

Names are ir_measures': a measure, perhaps the lowest label that counts as relevant, perhaps a cutoff, as in
`nDCG@10`, `AP`, `RR(rel=2)@10`. `MRR`, `MAP` and `Recall` are other names of `RR`, `AP` and `R`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rerank.errors import InputError, UnknownNameError

_ALIASES = {"mrr": "RR", "map": "AP", "recall": "R", "precision": "P"}
_SPELLINGS = {name.lower(): name for name in ("nDCG", "RR", "AP", "R", "P")} | _ALIASES
_EXAMPLES = ("nDCG@10", "RR@10", "RR(rel=2)@10", "MRR@10", "AP", "AP@100", "MAP", "R@100", "P@10")
_PATTERN = re.compile(r"(?P<name>[A-Za-z]+)(\(\s*rel\s*=\s*(?P<rel>\d+)\s*\))?(@(?P<cutoff>\d+))?")


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure that was understood; `str()` gives ir_measures' spelling."""

    name: str
    cutoff: int | None = None
    rel: int | None = None

    @classmethod
    def parse(cls, text: str) -> Measure:
        match = _PATTERN.fullmatch(text.strip())
        if match is None or (name := _SPELLINGS.get(match["name"].lower())) is None:
            raise UnknownNameError("measure", text, _EXAMPLES)
        cutoff, rel = (int(match[part]) if match[part] else None for part in ("cutoff", "rel"))
        if cutoff == 0 or rel == 0:
            raise InputError(f"measure {text!r}: a cutoff and rel start at 1")
        if name in ("P", "R") and cutoff is None:
            raise InputError(f"measure {text!r} needs a cutoff, as in {name + '@10'!r}")
        if name == "nDCG" and rel is not None:
            raise InputError(f"measure {text!r}: nDCG uses the labels as gains, so rel does not apply to it")
        return cls(name, cutoff, rel)

    def __str__(self) -> str:
        rel = f"(rel={self.rel})" if self.rel is not None else ""
        return f"{self.name}{rel}" + (f"@{self.cutoff}" if self.cutoff is not None else "")
