"""Ranking losses `loss(scores, labels, mask)`: the place is kept, the losses are not there yet."""

if __name__ != "rerank.losses":
    raise ImportError("import this package as rerank.losses")
