"""A suite: datasets by rankers, as a YAML file says it; see docs/benchmarks/suites.md.

    name: mine
    datasets: [dl19, {dataset: beir/scifact, path: data/scifact, queries: 40}, data/our-own-folder]
    rankers: [pointwise, 'pointwise % 20 >> first(window=10)']

It is checked as a whole, names and paths included, before anything is read.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rerank.data import catalogue, check_dataset, list_samples
from rerank.data.catalogue import Entry, LeaveOut
from rerank.data.files import require_file
from rerank.data.irds import is_irds
from rerank.errors import InputError, RerankError, UnknownNameError
from rerank.eval import Prices
from rerank.eval.significance import Correction, Test
from rerank.measure import Measure
from rerank.training.recipe import told

FIRST_STAGE = "first-stage"  # the candidates as they come, which every suite measures
BM25, BM25S = "bm25", "bm25s"
_LARGEST = 1_000_000  # bytes of a suite's file

Name = Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=80)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PricesPart(_Part):
    """Of a million tokens, in what money you like."""

    prompt: float = Field(ge=0)
    generated: float = Field(ge=0)

    @property
    def told(self) -> Prices:
        return Prices(self.prompt, self.generated)


class DatasetPart(_Part):
    """`dataset` is a name of the catalogue, or what `rerank run` takes; `path` is where a dataset of the catalogue lies
    here. `run` is `bm25` or a TREC run; `first_stage` is the name that published figures give these candidates."""

    dataset: str
    name: str | None = None
    path: str | None = None
    qrels: str | None = None
    run: str | None = None
    first_stage: str | None = None
    queries: int | None = Field(None, ge=1)
    depth: int | None = Field(None, ge=1)
    measures: tuple[str, ...] | None = Field(None, min_length=1)


class RankerPart(_Part):
    """As `rerank run` would be told."""

    strategy: str
    name: str | None = None
    prompt: str | None = None
    options: dict[str, object] = {}
    model: str | None = None
    adapter: str | None = None
    backbone: str = "transformers"
    backbone_options: dict[str, object] = {}
    device: str | None = None
    dtype: str | None = None
    prices: PricesPart | None = None

    @property
    def title(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return self.name or (f"{self.strategy}({options})" if options else self.strategy)


class Suite(_Part):
    """`queries`, `depth` and `measures` are for the datasets that do not say otherwise; a sample of queries is drawn by
    `seed`. A kill loses at most the `block` of queries that is being ranked."""

    name: Name
    about: str = ""
    datasets: tuple[Annotated[DatasetPart, BeforeValidator(lambda v: _named("dataset", v))], ...] = Field(min_length=1)
    rankers: tuple[Annotated[RankerPart, BeforeValidator(lambda v: _named("strategy", v))], ...] = Field(min_length=1)
    baseline: str = FIRST_STAGE
    queries: int | None = Field(None, ge=1)
    depth: int | None = Field(None, ge=1)
    seed: int = 0
    measures: tuple[str, ...] | None = Field(None, min_length=1)
    test: Test = "randomisation"
    correction: Correction | None = None
    level: float = Field(0.95, gt=0, lt=1)
    block: int = Field(8, ge=1)

    @property
    def told(self) -> dict[str, object]:
        """For a record. A key is nobody else's to read."""

        def open_only(part: RankerPart) -> RankerPart:
            options = {name: each for name, each in part.backbone_options.items() if not name.endswith("key")}
            return part.model_copy(update={"backbone_options": options})

        rankers = tuple(map(open_only, self.rankers))
        return self.model_copy(update={"rankers": rankers}).model_dump(mode="json", exclude_defaults=True)

    @property
    def corrected_by(self) -> Correction:
        return self.correction or ("none" if self.test == "tukey" else "holm")


def _named(key: str, value: object) -> object:
    """A part that is written as its name alone."""
    return {key: value} if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Trial:
    """A dataset as a suite has it; `spec` is what `load_dataset` takes, and `entry` what the catalogue knows."""

    name: str
    spec: str
    depth: int
    measures: tuple[str, ...]
    queries: int | None = None
    qrels: str | None = None
    run: str | None = None
    first_stage: str | None = None
    entry: Entry | None = None

    @property
    def leave_out(self) -> LeaveOut | None:
        return None if self.entry is None else self.entry.leave_out


def read_suite(path: str | Path) -> tuple[Suite, tuple[Trial, ...]]:
    """The suite and its datasets. Raises InputError, with the nearest name for what is not known or not there."""
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"the suite {path} has more than {_LARGEST:,} bytes; is it one?")
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        require_file("suite", path)
        raise
    except OSError as error:
        raise InputError(f"cannot read the suite {str(path)!r}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the suite {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise InputError(f"the suite {path} must be a mapping, with name, datasets and rankers")
    try:
        suite = Suite.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{path}: {told(error, Suite)}") from None
    base = path.resolve().parent
    trials: list[Trial] = []
    for number, part in enumerate(suite.datasets, start=1):
        try:
            trials += _trials(part, suite, base)
        except RerankError as error:
            raise InputError(f"{path}: dataset {number}: {error}") from error
    _check(suite, trials, path)
    return _placed(suite, base), tuple(trials)


def file_name(name: str) -> str:
    """What a file that is called after it may be called."""
    return re.sub(r"[^\w.=+-]+", "-", name).strip("-.") or "ranker"


def _check(suite: Suite, trials: list[Trial], path: Path) -> None:
    titles = [part.title for part in suite.rankers]
    for what, names in (("datasets", [trial.name for trial in trials]), ("rankers", [FIRST_STAGE, *titles])):
        counts = Counter(file_name(name).casefold() for name in names)
        if twice := [name for name in names if counts[file_name(name).casefold()] > 1]:
            called = " and ".join(map(repr, twice[:2]))
            raise InputError(f"{path}: {what} need names that differ in letters, not {called}; give one a 'name'")
    if suite.baseline not in (FIRST_STAGE, *titles):
        raise InputError(f"{path}: {UnknownNameError('baseline', suite.baseline, [FIRST_STAGE, *titles])}")
    if suite.test == "tukey" and suite.corrected_by != "none":
        raise InputError(f"{path}: tukey is for all pairs together and takes no correction; leave it out")


def _trials(part: DatasetPart, suite: Suite, base: Path) -> list[Trial]:
    """One, or those of a group of the catalogue."""
    found = catalogue()
    if part.dataset not in found:
        if part.path is not None:
            raise UnknownNameError("dataset of the catalogue", part.dataset, [*found.datasets, *found.groups])
        spec = _spec(part.dataset, base)
        entry = next((each for each in found.datasets.values() if spec == f"irds:{each.irds}"), None)
        return [_trial(part, spec, entry, part.dataset, suite, base)]
    names = found.names(part.dataset)
    own = [key for key in ("name", "path", "qrels", "run", "first_stage") if getattr(part, key) is not None]
    if len(names) > 1 and own:
        raise InputError(f"{part.dataset} is {len(names)} datasets, and {own[0]!r} is for one; name them one by one")
    trials = []
    for name in names:
        entry = found.datasets[name]
        if part.path is None and entry.irds is None:
            raise InputError(f"{name} cannot be downloaded; {entry.get}; then give its 'path'")
        spec = f"irds:{entry.irds}" if part.path is None else _spec(part.path, base)
        trials.append(_trial(part, spec, entry, name, suite, base))
    return trials


def _spec(given: str, base: Path) -> str:
    """What `load_dataset` takes. A path is beside the suite; an id of ir_datasets needs no `irds:`."""
    if given.startswith(("sample:", "irds:")):
        check_dataset(given)
        return given
    try:
        check_dataset(str(base / given))
    except UnknownNameError:
        if is_irds(given):
            return f"irds:{given}"
        if (base / given).parent.is_dir() and Path(given).suffix:
            require_file("dataset", base / given)
        known = [*catalogue().datasets, *catalogue().groups, *(f"sample:{name}" for name in list_samples())]
        raise UnknownNameError("dataset", given, known, f"(and there is no folder {str(base / given)!r})") from None
    return str(base / given)


def _trial(part: DatasetPart, spec: str, entry: Entry | None, name: str, suite: Suite, base: Path) -> Trial:
    measures = part.measures or suite.measures or (entry.measures if entry else ("nDCG@10",))
    for measure in measures:
        Measure.parse(measure)
    run = part.run or (entry.run if entry is not None and part.path is None else None)
    for what, file in (("qrels", part.qrels), ("run", run if run != BM25 else None)):
        if file is not None:
            require_file(what, base / file)
    return Trial(
        part.name or name,
        spec,
        part.depth or suite.depth or (entry.depth if entry else 100),
        tuple(measures),
        part.queries or suite.queries,
        None if part.qrels is None else str(base / part.qrels),
        run if run in (None, BM25) else str(base / run),
        part.first_stage,
        entry,
    )


def _placed(suite: Suite, base: Path) -> Suite:
    """Models, adapters and prompts that are paths are beside the suite too."""

    def own(part: RankerPart) -> RankerPart:
        there: dict[str, str] = {}
        for key in ("model", "adapter"):
            if (given := getattr(part, key)) is not None and (base / given).is_dir():
                there[key] = str(base / given)
        if part.prompt is not None and part.prompt.endswith((".yaml", ".yml")):
            there["prompt"] = str(base / part.prompt)
        return part.model_copy(update=there)

    return suite.model_copy(update={"rankers": tuple(map(own, suite.rankers))})
