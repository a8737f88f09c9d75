"""Groups of a corpus, and a draw of documents that represents all of them (DUQGen, Chandradevan et al., NAACL 2024).

Documents are embedded and grouped by k-means. Every group gives one document, and the others to be drawn are shared
out by size; within a group a document d is drawn with probability softmax(cos(d, centre) / temperature), none twice.

Departure: the authors' code draws five times and keeps those of the union that are nearest to the document nearest the
centre, which takes back much of the draw; here one draw is the sample.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rerank.errors import InputError

Rows = NDArray[np.float32]

TEMPERATURE = 1.0  # DUQGen's
_DIMENSIONS = 128  # of the latent semantic analysis, where the texts hold as many
_WORD = re.compile(r"\w\w+")


@dataclass(frozen=True, slots=True)
class Clusters:
    """The group of each document, and the cosine of its embedding to the group's centre."""

    names: tuple[int, ...]
    near: tuple[float, ...]


def cluster(embeddings: Rows, clusters: int, seed: int) -> Clusters:
    """By k-means: scikit-learn's on mini-batches where it is installed, else scipy's."""
    if not 1 <= clusters <= len(embeddings):
        raise InputError(f"clusters is {clusters}; give 1 to {len(embeddings)}, the number of documents")
    names = _labels(embeddings, clusters, seed)
    near = np.zeros(len(names))
    for name in np.unique(names):
        own = embeddings[names == name]
        centre = own.mean(0)
        sizes = np.linalg.norm(own, axis=1) * np.linalg.norm(centre)
        near[names == name] = own @ centre / np.where(sizes > 0, sizes, 1)
    return Clusters(tuple(map(int, names)), tuple(map(float, near)))


def _labels(embeddings: Rows, clusters: int, seed: int) -> NDArray[np.int64]:
    try:
        from sklearn.cluster import MiniBatchKMeans  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        from scipy.cluster.vq import kmeans2

        _, labels = kmeans2(embeddings, clusters, iter=50, minit="points", missing="warn", seed=seed)
    else:
        labels = MiniBatchKMeans(clusters, random_state=seed, n_init=3).fit_predict(embeddings)
    return np.asarray(labels, dtype=np.int64)


def tfidf(texts: Sequence[str], seed: int) -> Rows:
    """Embeddings without a model: tf-idf, (1 + log tf) log(N / df), of words in two texts or more, and its first
    singular vectors (latent semantic analysis)."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import svds

    counts = [Counter(_WORD.findall(text.lower())) for text in texts]
    of_texts = Counter(word for each in counts for word in each)
    column = {word: i for i, word in enumerate(sorted(word for word, df in of_texts.items() if df > 1))}
    entries = [
        (row, column[word], (1 + math.log(tf)) * math.log(len(texts) / of_texts[word]))
        for row, each in enumerate(counts)
        for word, tf in each.items()
        if word in column
    ]
    if not any(value for _, _, value in entries):
        raise InputError("the texts share no word that tells them apart, so tf-idf finds no clusters in them")
    rows, columns, values = zip(*entries, strict=True)
    matrix = csr_matrix((values, (rows, columns)), shape=(len(texts), len(column)), dtype=np.float64)
    dimensions = min(_DIMENSIONS, min(matrix.shape) - 1)
    if dimensions < 1:
        return np.asarray(matrix.toarray(), dtype=np.float32)
    start = np.random.default_rng(seed).normal(size=min(matrix.shape))
    left, sizes, _ = svds(matrix, k=dimensions, v0=start)
    return np.asarray(left * sizes, dtype=np.float32)


def drawn(clusters: Clusters, count: int, rng: random.Random, temperature: float = TEMPERATURE) -> list[int]:
    """The places of `count` documents, in random order."""
    if not temperature > 0:
        raise InputError(f"the temperature is {temperature}; give a number above 0")
    groups: dict[int, list[int]] = {}
    for place, name in enumerate(clusters.names):
        groups.setdefault(name, []).append(place)
    quotas = shared_out({name: len(group) for name, group in groups.items()}, count)
    found: list[int] = []
    for name, group in sorted(groups.items()):
        # Gumbel's trick: the largest of logits with such noise are draws by their softmax, none twice
        keys = {place: clusters.near[place] / temperature - math.log(rng.expovariate(1)) for place in group}
        found += sorted(group, key=lambda place: -keys[place])[: quotas[name]]
    rng.shuffle(found)
    return found


def shared_out(sizes: Mapping[int, int], count: int) -> dict[int, int]:
    """`count` over groups of these sizes: one for each where there is one for each, the others by size, rounded down,
    and what rounding leaves to the largest.

    >>> shared_out({0: 50, 1: 30, 2: 20}, 9)
    {0: 5, 1: 2, 2: 2}
    >>> shared_out({0: 50, 1: 30, 2: 20}, 2)
    {0: 2, 1: 0, 2: 0}
    """
    total, base = sum(sizes.values()), 1 if count >= len(sizes) else 0
    if count > total:
        raise InputError(f"{count} documents are to be drawn of {total}")
    rest = count - base * len(sizes)
    quotas = {name: base + rest * size // total for name, size in sizes.items()}
    left = count - sum(quotas.values())
    while left:
        for name in sorted(sizes, key=lambda each: (-sizes[each], each)):
            if left and quotas[name] < sizes[name]:
                quotas[name] += 1
                left -= 1
    return quotas
