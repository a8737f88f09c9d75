"""Texts as vectors of their words, for retrievers of other frameworks: deterministic, and no model."""

from __future__ import annotations

import math
import re
import zlib

DIMENSIONS = 256


def embedded(text: str) -> list[float]:
    """How often each word is there, in a place by its checksum; of length 1."""
    vector = [0.0] * DIMENSIONS
    for word in re.findall(r"\w+", text.lower()):
        vector[zlib.crc32(word.encode()) % DIMENSIONS] += 1.0
    length = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [value / length for value in vector]
