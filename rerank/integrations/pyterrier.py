"""PyTerrier: a transformer from result frames to result frames.

pipeline = bm25 % 100 >> pt.text.get_text(dataset, "text") >> RerankTransformer("first")
"""

from __future__ import annotations

from collections.abc import Sequence

from rerank.integrations.common import Document, Line, arguments_of, explain_missing
from rerank.reranker import Ranker

try:
    import pandas as pd
    import pyterrier as pt
except ImportError as missing:
    explain_missing(missing, "the PyTerrier component", "pyterrier", "pandas", "pyterrier")


class RerankTransformer(pt.Transformer):  # type: ignore[misc]  # its types are not read
    """Queries' results in the ranker's order, with its `score` and the `rank`, from 0; other columns stay as they were.

    It wants the columns qid, query, docno and `text_field`, and takes the column score for the first stage's. The given
    order is that of the column rank, or of score where there is none: PyTerrier's operators leave rows as they lie. All
    queries of a frame are one batch. Rows without text come last, 1 below the one before. How many come back is for `%`
    to say. `arguments` are those of `rerank.integrations.common.RankerArguments`; of a query that fails under
    `on_error="keep"` the rows come back as they are, with a warning in the log.
    """

    def __init__(self, ranker: str | Ranker = "pointwise", *, text_field: str = "text", **arguments: object) -> None:
        self.ranker, self.text_field, self.arguments = ranker, text_field, arguments
        self._given = arguments_of(ranker, arguments)

    def __repr__(self) -> str:
        more = {"text_field": self.text_field} if self.text_field != "text" else {}
        words = [repr(self.ranker), *(f"{name}={value!r}" for name, value in {**more, **self.arguments}.items())]
        return f"RerankTransformer({', '.join(words)})"

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        pt.validate.result_frame(inp, extra_columns=["query", self.text_field])
        inp = _in_order(inp)
        groups = list(inp.groupby("qid", sort=False).indices.values())
        texts = [text if isinstance(text, str) else "" for text in inp[self.text_field]]
        found = inp["score"].tolist() if "score" in inp.columns else [None] * len(inp)
        queries = inp["query"].tolist()
        asked = [(str(queries[rows[0]]), [Document(texts[row], found[row]) for row in rows]) for rows in groups]
        places: list[int] = []
        scores: list[float] = []
        ranks: list[int] = []
        for rows, order in zip(groups, self._given.ordered_many(asked), strict=True):
            places += [int(rows[line.index]) for line in order.lines]
            scores += _descending(order.lines)
            ranks += range(pt.model.FIRST_RANK, pt.model.FIRST_RANK + len(order.lines))
        result = inp.iloc[places].reset_index(drop=True)
        return result.assign(score=pd.Series(scores, dtype=float), rank=pd.Series(ranks, dtype=int))


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    for column, ascending in (("rank", True), ("score", False)):
        if column in frame.columns:
            return frame.sort_values(column, ascending=ascending, kind="stable")
    return frame


def _descending(lines: Sequence[Line]) -> list[float]:
    """Their scores; a line that has none lies 1 below the one before."""
    scores: list[float] = []
    for line in lines:
        below = scores[-1] - 1 if scores else 0.0
        scores.append(below if line.score is None else float(line.score))
    return scores
