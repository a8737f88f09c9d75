"""What each strategy finds, asks and takes: the rows of a spec, each over a sample of one judged dataset.

A sample is the first `queries` judged queries and the first `depth` candidates of each. The given order of every sample
stands before its rows, since rows compare with it and with one another within a sample only.

A row is a run as `rerank run` leaves it, in the output folder under a name that says what it is. A comparison that was
stopped goes on: a row that is done is read, and one that was begun goes on at its block. A row that fails stands in the
table with its reason, does not hold up the others, and is tried again the next time.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rerank.adapters import NONE
from rerank.backbones import engine_of, load_backbone
from rerank.backbones.base import Backbone
from rerank.backbones.embedded import EMBEDDED
from rerank.bench.machine import Machine
from rerank.bench.strategies_table import GIVEN, Comparison, Row, markdown
from rerank.bench.watching import Unwatched, Watching
from rerank.calls import Kind
from rerank.data import Qrels, load_dataset, read_qrels, read_run
from rerank.defaults import settle
from rerank.errors import CapabilityError, InputError, RerankError
from rerank.eval import Measure, evaluate
from rerank.reranker import Reranker
from rerank.runs import Journal, Totals, is_complete, journal_path, only_process, resumable_run, totals_of
from rerank.strategies import Strategy, options_of
from rerank.training.sources import placed
from rerank.types import Candidates, Ranking

_log = logging.getLogger(__name__)


class Entry(BaseModel):
    """One row, as `rerank run` would be told. `adapter: none` is the bare model; without it one that ships is taken.
    `queries` is how many, None for all that are judged; a kill loses no more than `block` of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    strategy: str
    options: dict[str, object] = {}
    prompt: str | None = None
    adapter: str | None = None
    queries: int | None = Field(None, ge=1)
    depth: int = Field(100, ge=1)
    block: int = Field(16, ge=1)


class Spec(BaseModel):
    """What is compared on what, by whom. Paths are relative to the spec's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[\w.-]+$")
    about: str = ""
    dataset: str
    qrels: str | None = None
    measure: str = "nDCG@10"
    model: str | None = None
    backbone: str = "transformers"
    backbone_options: dict[str, object] = {}
    device: str | None = None
    dtype: str | None = None
    rows: tuple[Entry, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A row that is known to fit together, with its sample."""

    row: Row
    strategy: Strategy
    adapter: str | None
    requests: Sequence[Candidates]
    settings: Mapping[str, object]
    block: int

    @property
    def name(self) -> str:
        row = self.row
        words = (row.strategy, row.options, row.prompt, row.adapter or NONE, f"{row.queries}x{row.depth}")
        return re.sub(r"[^\w.=+@-]+", "-", " ".join(filter(None, words)))


def read_spec(path: str | Path) -> Spec:
    """The spec of a YAML file. Raises InputError."""
    path = Path(path)
    try:
        spec = Spec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"cannot read the spec {str(path)!r}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the spec {path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from None
    Measure.parse(spec.measure)
    if spec.model is not None and (own := path.resolve().parent / spec.model).is_dir():
        spec = spec.model_copy(update={"model": str(own)})
    return spec


def plan(spec: Spec, entry: Entry, requests: Sequence[Candidates] = ()) -> _Plan:
    """Puts a row together. Raises InputError for a strategy, prompt, option or adapter that does not fit."""
    made, adapter = settle(
        entry.strategy,
        model=spec.model,
        adapter=entry.adapter,
        prompt=entry.prompt,
        backbone=spec.backbone,
        options=entry.options,
    )
    if made.prompt.needs not in engine_of(spec.backbone).kinds:
        raise CapabilityError(f"the {spec.backbone} backbone does not answer {made.prompt.needs!s} calls")
    options = {name: getattr(made, name) for name in options_of(type(made))}
    usual = type(made)()
    told = ", ".join(f"{name}={value}" for name, value in options.items() if value != getattr(usual, name))
    asked = f"{made.prompt.name}@{made.prompt.version}"
    row = Row(entry.strategy, adapter or "", asked, told, len(requests), entry.depth)
    settings = {
        "dataset": spec.dataset,
        "queries": len(requests),
        "depth": entry.depth,
        "strategy": entry.strategy,
        "options": options,
        "prompt": made.prompt.identity,
        "model": spec.model,
        "adapter": adapter,
        "backbone": spec.backbone,
        "backbone_options": {name: value for name, value in spec.backbone_options.items() if not name.endswith("key")},
        "device": spec.device,
        "dtype": spec.dtype,
        "block": entry.block,
    }
    return _Plan(row, made, adapter, requests, settings, entry.block)


def compare(
    path: str | Path,
    out: str | Path,
    *,
    queries: int | None = None,
    load: Callable[..., Backbone] = load_backbone,
    watching: Watching = lambda *_: nullcontext(Unwatched()),
) -> Comparison:
    """Runs what is not done yet. After each row `strategies.md` and `strategies.json` in `out` have the table so far.

    `queries` is the most of every row. All rows are put together before anything is loaded: raises InputError for one
    that does not fit. `load` is called as `load_backbone` is, and `watching` with a title, the number of queries, what
    n passages cost, and how many queries are done.
    """
    path, out = Path(path), Path(out)
    spec = read_spec(path)
    candidates, judged = _judged(spec, path.resolve().parent)
    plans: dict[tuple[int, int], list[_Plan]] = {}  # by sample
    for number, entry in enumerate(spec.rows, start=1):
        sample = candidates[: min(entry.queries or len(candidates), queries or len(candidates))]
        cut = [replace(each, passages=each.passages[: entry.depth]) for each in sample]
        try:
            made = plan(spec, entry, cut)
        except RerankError as error:
            raise InputError(f"{path}: row {number}: {error}") from error
        plans.setdefault((len(cut), entry.depth), []).append(made)
    names = [made.name for same in plans.values() for made in same]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path}: two rows are the same run, {twice[0]}; leave one out")
    machine = _machine(spec)
    model = spec.model or (EMBEDDED if spec.backbone == "transformers" else f"{spec.backbone}'s default")
    out.mkdir(parents=True, exist_ok=True)
    backbones = _Backbones(spec, load)
    rows: list[Row] = []

    def kept(row: Row) -> Comparison:
        rows.append(row)
        found = Comparison(spec.name, spec.dataset, spec.measure, model, machine, tuple(rows))
        (out / "strategies.json").write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
        (out / "strategies.md").write_text(markdown(found), encoding="utf-8")
        return found

    for same in plans.values():
        kept(_given(same[0], judged, spec.measure))
        for made in same:
            found = kept(_row(made, out / f"{made.name}.trec", judged, spec.measure, backbones, watching))
    backbones.drop()
    return found


class _Backbones:
    """The one that is loaded serves the next row too, if that has the same adapter."""

    def __init__(self, spec: Spec, load: Callable[..., Backbone]) -> None:
        self._spec, self._load = spec, load
        self._ready: Backbone | None = None
        self._adapter: str | None = None

    def get(self, adapter: str | None, needs: Kind) -> Backbone:
        if self._ready is None or self._adapter != adapter:
            self.drop()
            spec = self._spec
            self._ready = self._load(
                spec.backbone,
                needs=needs,
                model=spec.model,
                adapter=adapter,
                device=spec.device,
                dtype=spec.dtype,
                options=spec.backbone_options,
            )
            self._adapter = adapter
        return self._ready

    def drop(self) -> None:
        if self._ready is not None:
            self._ready.close()
        self._ready = None


def _judged(spec: Spec, base: Path) -> tuple[list[Candidates], Qrels]:
    """The judged queries with the most candidates that a row asks for, and their judgments."""
    dataset = load_dataset(placed(spec.dataset, base))
    qrels = dataset.qrels if spec.qrels is None else read_qrels(base / spec.qrels)
    if qrels is None:
        raise InputError(f"dataset {spec.dataset!r} has no judgments; name a file with 'qrels'")
    found = [each for each in dataset.candidates(max(e.depth for e in spec.rows)) if each.query.query_id in qrels]
    if not found:
        raise InputError(f"no query of {spec.dataset} has both judgments and candidates")
    return found, qrels


def _given(made: _Plan, judged: Qrels, measure: str) -> Row:
    given = [Ranking.of(each, range(len(each)), map(float, range(len(each), 0, -1))) for each in made.requests]
    own = {each.query.query_id: judged[each.query.query_id] for each in made.requests}
    value = evaluate(given, own, (measure,)).mean[measure]
    return Row(GIVEN, "", "", "", made.row.queries, made.row.depth, value)


def _row(made: _Plan, output: Path, judged: Qrels, measure: str, backbones: _Backbones, watching: Watching) -> Row:
    try:
        totals = _totals(made, output, backbones, watching)
        own = {each.query.query_id: judged[each.query.query_id] for each in made.requests}
        value = evaluate(read_run(output), own, (measure,)).mean[measure]
    except Exception as error:  # whatever it is: hours of other rows must not go with it
        unforeseen = not isinstance(error, RerankError)
        _log.warning("%s failed: %s", made.name, error, exc_info=unforeseen)
        if unforeseen:
            backbones.drop()  # it may be what broke
        reason = f"{type(error).__name__}: {error}" if unforeseen else str(error)
        return replace(made.row, answers=f"failed: {' '.join(reason.split())}")
    n, usage = totals.queries, totals.usage
    return replace(
        made.row,
        value=value,
        calls=usage.calls / n,
        prompt_tokens=usage.prompt_tokens / n,
        generated_tokens=usage.generated_tokens / n,
        seconds=usage.seconds / n,
        answers=str(totals.outcomes) + (f"; {len(totals.errors)} queries not asked" if totals.errors else ""),
    )


def _totals(made: _Plan, output: Path, backbones: _Backbones, watching: Watching) -> Totals:
    """Of the row's run, which is done before if it is not there."""
    with only_process(output):
        if is_complete(output, made.settings):
            return totals_of(output)
        journal = Journal(journal_path(output), made.settings)
        backbone = backbones.get(made.adapter, made.strategy.prompt.needs)
        with watching(made.name, len(made.requests), made.strategy.calls, journal.totals.queries) as watch:
            ranker = Reranker(made.strategy, backbone, on_progress=watch.show)
            requests, tag = watch.watch(made.requests), f"rerank-{made.row.strategy}"
            return resumable_run(ranker, requests, output, tag=tag, block=made.block, journal=journal)


def _machine(spec: Spec) -> Machine | None:
    if not {"torch", "vllm"} & set(engine_of(spec.backbone).requires):
        return None
    from rerank.backbones.hardware import choose_device, choose_dtype

    place = choose_device(spec.device)
    numbers = spec.dtype or str(choose_dtype(None, place)).removeprefix("torch.")
    return Machine.here(str(place), numbers)
