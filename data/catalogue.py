"""The catalogue of benchmarks: what each dataset is called, how it is measured, and what others found on it.

It is data, `catalogue.yaml`. A name is a dataset or a group of them. Published figures come with their source, first
stage and depth, since they say nothing about candidates that are not those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from rerank.errors import UnknownNameError

_FILE = Path(__file__).with_name("catalogue.yaml")

LeaveOut = Literal["query", "negative"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Frozen):
    title: str
    url: str


class FirstStageFigure(_Frozen):
    """What a first stage itself measures over all queries, in the dataset's first measure."""

    source: str
    value: float


class Published(_Frozen):
    """Figures of rerankers, in the dataset's first measure, over all queries and the best `depth` of `first_stage`."""

    source: str
    first_stage: str
    depth: int = Field(ge=1)
    values: dict[str, float]


class Entry(_Frozen):
    """A dataset. `irds` is its ir_datasets id; where there is none `get` says where its files are.

    `measures` are as the literature reports them, the main one first. `run` is `bm25` where candidates are searched,
    else they are the dataset's own. `leave_out` names what may not be a candidate: the document that is the `query`
    itself, or those with a `negative` label. Datasets that are `part_of` one count as one in a mean over datasets.
    """

    about: str
    irds: str | None = None
    get: str = ""
    part_of: str | None = None
    queries: int = Field(ge=1)
    measures: tuple[str, ...] = Field(min_length=1)
    run: Literal["bm25"] | None = None
    depth: int = Field(100, ge=1)
    leave_out: LeaveOut | None = None
    licence: str
    first_stages: dict[str, FirstStageFigure] = {}
    published: tuple[Published, ...] = ()


class _File(_Frozen):
    sources: dict[str, Source]
    licences: dict[str, str]
    groups: dict[str, tuple[str, ...]]
    datasets: dict[str, Entry]


@dataclass(frozen=True, slots=True)
class Catalogue:
    sources: Mapping[str, Source]
    groups: Mapping[str, tuple[str, ...]]
    datasets: Mapping[str, Entry] = field(repr=False)

    def __contains__(self, name: object) -> bool:
        return name in self.datasets or name in self.groups

    def names(self, name: str) -> tuple[str, ...]:
        """The datasets of that name: itself, or those of a group. Raises UnknownNameError."""
        if name in self.datasets:
            return (name,)
        if name not in self.groups:
            raise UnknownNameError("dataset of the catalogue", name, [*self.datasets, *self.groups])
        return tuple(each for member in self.groups[name] for each in self.names(member))


@cache
def catalogue() -> Catalogue:
    """What `catalogue.yaml` holds."""
    found = _File.model_validate(yaml.safe_load(_FILE.read_text(encoding="utf-8")))
    licensed = {
        name: entry.model_copy(update={"licence": found.licences.get(entry.licence, entry.licence)})
        for name, entry in found.datasets.items()
    }
    return Catalogue(found.sources, found.groups, licensed)
