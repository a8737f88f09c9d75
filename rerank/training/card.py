"""The card of a trained adapter: what it is, what it was made from, and how to make it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rerank.runs import installed
from rerank.training.recipe import Recipe

_LIBRARIES = ("rerank-llm", "torch", "transformers", "peft")


def write_card(
    folder: Path, recipe: Recipe, model: str, sources: Sequence[tuple[str, int]], figures: Mapping[str, object]
) -> None:
    """`README.md` in the folder, in the hub's form. `sources` are titles with their number of queries."""
    prompt = recipe.asked
    shown = json.dumps(recipe.model_dump(mode="json", exclude_defaults=True), indent=1)
    data = "\n".join(f"| {title} | {queries:,} |" for title, queries in sources)
    told = "\n".join(f"| {name} | {value} |" for name, value in figures.items() if value is not None)
    made = ", ".join(f"{name} {version}" for name, version in installed(_LIBRARIES).items())
    text = f"""---
base_model: {model}
library_name: peft
tags: [reranking, {recipe.strategy}]
---

# {recipe.name}

{recipe.about or f"A reranker: {recipe.strategy}, trained with the prompt {prompt.name}@{prompt.version}."}

```
ranker = rerank.load("{recipe.strategy}", model="{model}", adapter="THIS FOLDER")
```

Training data (queries that order something, after exclusions):

| source | queries |
|---|---|
{data}

The recipe, run with `rerank train`:

```json
{shown}
```

| | |
|---|---|
{told}
| made with | {made} |
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
