"""Imports go down only: types <- losses, eval, data <- prompts, backbones, strategies <- reranker <- cli."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rerank

ROOT = Path(rerank.__file__).parent
FLOORS = {
    "cancellation": 0, "errors": 0, "types": 0, "calls": 0, "released": 0,
    "aggregation": 1, "feedback": 1, "options": 1, "measure": 1,
    "losses": 1, "eval": 1, "data": 1,
    "adapters": 1, "clicks": 2, "prompts": 2, "strategies": 3, "backbones": 3,
    "defaults": 4, "jobs": 4, "continuous": 4, "scheduler": 4, "merging": 5, "reranker": 5, "fusion": 6, "runs": 6,
    "sharded": 6, "ray_pool": 6,
    "bench": 6, "training": 6,
    "integrations": 7, "robustness": 7, "server": 7, "cli": 8, "__main__": 9,
}  # fmt: skip
APART = {("data", "eval"), ("data", "losses"), ("eval", "losses"), ("strategies", "backbones")}


def modules() -> list[tuple[str, Path]]:
    files = sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)
    for mapped in ("losses", "eval", "data"):  # rglob does not follow their links
        files += sorted((ROOT / mapped).rglob("*.py"))
    found = {path.relative_to(ROOT).parts[0].removesuffix(".py"): path for path in files}
    assert set(found) - {"__init__"} == set(FLOORS), "a new module or folder needs a floor"
    return [(path.relative_to(ROOT).parts[0].removesuffix(".py"), path) for path in dict.fromkeys(files)]


@pytest.mark.parametrize(("room", "path"), modules(), ids=lambda value: str(value).removeprefix(f"{ROOT}/"))
def test_imports_go_down(room: str, path: Path) -> None:
    if room == "__init__":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            top, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if top != "rerank" or not other or other == room:
                continue
            assert FLOORS[other] <= FLOORS[room], f"{path} imports {name}, which lies higher"
            assert (room, other) not in APART | {pair[::-1] for pair in APART}, f"{path} imports {name}"
