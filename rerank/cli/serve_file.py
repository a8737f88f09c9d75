"""`rerank serve --config FILE.yaml`: several rankers in one service, sharing what they have in common.

model: Qwen/Qwen3-4B-Instruct-2507
limits: {documents: 200, timeout_s: 30}
keys: keys.txt
rankers:
  - {name: fast, strategy: pointwise, aliases: [rerank-v3.5]}
  - {name: best, strategy: "pointwise % 20 >> first(window=10)"}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rerank.cli.cascade import Plan, plan
from rerank.cli.options import Engine, words
from rerank.errors import InputError
from rerank.server.scores import ScoreMap
from rerank.server.settings import Limits

Name = Annotated[str, Field(pattern=r"^\S+$", max_length=200)]


def _words(value: object) -> object:
    return words(value) if isinstance(value, dict) else value


Pairs = Annotated[list[str], BeforeValidator(_words)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RankerPart(_Part):
    """`name` and `aliases` are what clients ask for; `scores` how scores come into 0..1, None for what fits."""

    name: Name
    strategy: str = "pointwise"
    aliases: list[Name] = []
    prompt: str | None = None
    options: Pairs = []
    scores: ScoreMap | None = None


class ServeFile(_Part):
    """What is at the top holds for every ranker whose strategy does not say otherwise."""

    rankers: list[RankerPart] = Field(min_length=1)
    model: str | None = None
    adapter: str | None = None
    backbone: str = "transformers"
    backbone_options: Pairs = []
    device: str | None = None
    dtype: str | None = None
    keys: str | None = None
    limits: Limits = Limits()
    log_text: bool = False
    page: bool = True

    @property
    def engine(self) -> Engine:
        return Engine(self.model, self.adapter, self.backbone, self.backbone_options or None, self.device, self.dtype)

    def plans(self) -> list[Plan]:
        return [plan(each.strategy, self.engine, each.prompt, each.options) for each in self.rankers]


def read(path: str) -> ServeFile:
    """Checked whole, before anything is loaded. A path in it is beside it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = ServeFile.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {where or 'the file'}: {first['msg']}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if found.keys is None:
        return found
    return found.model_copy(update={"keys": str(Path(path).parent / found.keys)})


def limits_of(values: dict[str, object]) -> Limits:
    """Of `--limit NAME=VALUE`."""
    try:
        return Limits.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        known = f"; limits are {', '.join(Limits.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise InputError(f"--limit {name}: {first['msg']}{known}") from None
