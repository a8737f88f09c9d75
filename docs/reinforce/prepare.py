"""The lists that the recipes here are developed on: `python prepare.py JUDGED HELD OUT`.

JUDGED has judged passages, HELD the queries that are not trained on, a line each. Of each come three lists of a passage
with a label of 2 or 3 and two with 0, drawn by chance: one is right, so that chance is a third.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from rerank.training.sources import normalised


def main(judged: str, held: str, out: str) -> None:
    kept = {normalised(line) for line in Path(held).read_text("utf-8").splitlines()}
    drawn, lines = random.Random(0), []
    for line in Path(judged).read_text("utf-8").splitlines():
        pool = json.loads(line)
        if normalised(pool["query"]) not in kept:
            continue
        good = [doc for doc in pool["docs"] if doc["label"] >= 2]
        bad = [doc for doc in pool["docs"] if doc["label"] == 0]
        for number in range(min(3, len(good), len(bad) // 2)):
            docs = [drawn.choice(good), *drawn.sample(bad, 2)]
            drawn.shuffle(docs)
            lines.append(json.dumps({"qid": f"{pool['qid']}-{number}", "query": pool["query"], "docs": docs}) + "\n")
    Path(out).write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} lists")


if __name__ == "__main__":
    main(*sys.argv[1:])
