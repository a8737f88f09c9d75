"""Which loss trains a recipe best: it is trained once for each loss and seed, on the same lists with the same budget.

A seed says which lists are drawn, in which order, and where the adapter begins: with one seed all losses see the
same. Each run trains to its end, no checkpoint is chosen, and what comes out ranks the recipe's evaluation queries.

In the output folder a run lies in `LOSS/seed-N`, as `rerank train` leaves it, with its `figures.json`; beside them
are `comparison.json`, which says what is compared, and `untrained.json`. A comparison that was stopped goes on: what
has its figures is not done again. Losses and seeds may be added to it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import yaml
from pydantic import ValidationError

from rerank.bench.machine import Machine
from rerank.errors import InputError
from rerank.training.checks import check_labels, check_options
from rerank.training.development import Development, read_development
from rerank.training.output import claim, finished
from rerank.training.recipe import Recipe, read_recipe
from rerank.training.sources import Pool, Source, read_pools

if TYPE_CHECKING:
    from rerank.training.trainer import Watch

    Watching = Callable[[str], AbstractContextManager[Watch | None]]

LOSSES = (  # for graded labels; options as the library has them
    "ranknet",
    "weighted_ranknet",
    "pairwise_hinge",
    "lambda_rank",
    "lambda_loss",
    "softmax",
    "listnet",
    "listmle",
    "approx_ndcg",
    "neural_ndcg",
)


@dataclass(frozen=True, slots=True)
class Run:
    """One trained model: its measure, the tokens of its prompts in full, and the seconds of its steps, which are not
    known of one that was stopped after its last step."""

    value: float
    tokens: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One loss. `deviation` is the sample standard deviation over seeds, None of one seed; `change` is the mean's
    difference to the untrained model; `tokens` and `seconds` are means."""

    loss: str
    values: tuple[float, ...]
    mean: float
    deviation: float | None
    change: float
    tokens: float
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`rows` are in descending order of their means. `lists` are a run's."""

    machine: Machine
    recipe: str
    dataset: str
    queries: int
    measure: str
    lists: int
    seeds: tuple[int, ...]
    untrained: float
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class _Setup:
    recipe: Recipe
    base: Path
    out: Path
    pools: Sequence[tuple[Source, list[Pool]]]
    development: Development


def compare(
    path: str | Path,
    out: str | Path,
    losses: Sequence[str] = LOSSES,
    *,
    seeds: int = 3,
    lists: int | None = None,
    watching: Watching = lambda _: nullcontext(),
) -> Comparison:
    """`losses` are names, or `name:option=value,…`; `lists` is a run's budget where it is not the recipe's.

    All are checked before anything is trained: raises InputError for a loss that does not fit, for a recipe without
    an evaluation, and for a folder of another comparison. `watching` is asked for each run what should watch it.
    """
    path, out = Path(path), Path(out)
    recipe = read_recipe(path)
    evaluation = recipe.evaluation
    if evaluation is None:
        raise InputError(f"{path} has no evaluation; give it one, for the losses are compared on its queries")
    if recipe.clicks is not None:
        raise InputError(f"{path} learns from clicks, whose learner decides on the loss; take clicks out")
    if lists is not None:
        recipe = recipe.model_copy(update={"schedule": recipe.schedule.model_copy(update={"lists": lists})})
    variants = {text: variant(recipe, text) for text in losses}
    if not variants:
        raise InputError("there is no loss to compare; give one at least")
    for each in variants.values():
        check_options(each)
    base = path.resolve().parent
    pools = [(source, read_pools(source, base)) for source in recipe.data]
    for each in variants.values():
        check_labels(each, pools)
    setup = _Setup(recipe, base, out, pools, read_development(evaluation, base))
    _claim(setup)
    untrained = _untrained(setup)
    chosen = tuple(range(recipe.seed, recipe.seed + seeds))
    runs: dict[str, list[Run]] = {text: [] for text in variants}
    order = [(seed, text) for seed in chosen for text in variants]  # a first comparison of all comes first
    for number, (seed, text) in enumerate(order, start=1):
        with watching(f"{number} of {len(order)}: {text}, seed {seed}") as watch:
            runs[text].append(_run(setup, variants[text].model_copy(update={"seed": seed}), text, watch))
    rows = sorted((row(text, own, untrained) for text, own in runs.items()), key=lambda each: -each.mean)
    return Comparison(
        _machine(recipe),
        recipe.name,
        evaluation.dataset,
        len(setup.development.requests),
        evaluation.measure,
        recipe.schedule.lists or sum(len(own) for _, own in pools),
        chosen,
        untrained,
        tuple(rows),
    )


def variant(recipe: Recipe, text: str) -> Recipe:
    """The recipe with the loss of `name:option=value,…`, without an evaluation while it trains."""
    name, _, rest = text.partition(":")
    options: dict[str, object] = {}
    for part in filter(None, rest.split(",")):
        option, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"loss {text!r}: {part!r} is not of the form option=value")
        options[option.strip()] = yaml.safe_load(value)
    try:
        return Recipe.model_validate(
            {**recipe.model_dump(), "loss": {"name": name.strip(), **options}, "evaluation": None}
        )
    except ValidationError as error:
        raise InputError(f"loss {text!r}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def row(text: str, runs: Sequence[Run], untrained: float) -> Row:
    values = tuple(run.value for run in runs)
    seconds = [run.seconds for run in runs if run.seconds is not None]
    mean = fmean(values)
    return Row(
        text,
        values,
        mean,
        stdev(values) if len(values) > 1 else None,
        mean - untrained,
        fmean(run.tokens for run in runs),
        fmean(seconds) if seconds else None,
    )


def _claim(setup: _Setup) -> None:
    """Makes the folder this comparison's."""
    told = setup.recipe.model_dump(mode="json", exclude={"loss", "seed"})
    file = setup.out / "comparison.json"
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        if changed := sorted(key for key in {*told, *known} if told.get(key) != known.get(key)):
            raise InputError(
                f"{setup.out} holds a comparison on another recipe (they differ in {', '.join(changed)}); give "
                "another --out"
            )
    elif setup.out.is_dir() and any(setup.out.iterdir()):
        raise InputError(f"{setup.out} is not empty and holds no comparison; give another --out")
    setup.out.mkdir(parents=True, exist_ok=True)
    _keep(file, told)


def _untrained(setup: _Setup) -> float:
    file = setup.out / "untrained.json"
    if not file.is_file():
        start = setup.recipe.start
        _keep(file, {"value": _value(setup, None, None if start is None else str(setup.base / start))})
    return float(json.loads(file.read_text(encoding="utf-8"))["value"])


def _run(setup: _Setup, recipe: Recipe, text: str, watch: Watch | None) -> Run:
    """Trains and measures, or goes on with it, or reads what came out."""
    from rerank.training.session import Session, quiet

    folder = setup.out / re.sub(r"[^\w.=+-]+", "-", text) / f"seed-{recipe.seed}"
    claim(folder, recipe, fresh=False)
    file = folder / "figures.json"
    if not file.is_file():
        with quiet():
            session = Session(recipe, setup.base, folder, list(setup.pools), None, watch)
            done = finished(folder, recipe) or session.run()
            examples = session._examples()
            tokens = sum(len(a.fed) for i in range(len(examples)) for q in examples[i] for a in q.sequences)
        del session, examples  # the model, before it is loaded again
        model, adapter = (str(done.folder), None) if recipe.whole else (None, str(done.folder))
        seconds = tokens / done.tokens_per_s if done.tokens_per_s else None
        _keep(file, asdict(Run(_value(setup, model, adapter), tokens, seconds)))
    return Run(**json.loads(file.read_text(encoding="utf-8")))


def _value(setup: _Setup, model: str | None, adapter: str | None) -> float:
    """The measure of a model, None for the recipe's, with an adapter or without."""
    from rerank.backbones import load_backbone
    from rerank.training.session import quiet

    recipe, strategy = setup.recipe, setup.recipe.ranker()
    if model is None and recipe.model is not None:
        own = setup.base / recipe.model
        model = str(own) if own.is_dir() else recipe.model
    with quiet():
        backbone = load_backbone(
            "transformers", needs=strategy.prompt.needs, model=model, adapter=adapter, dtype=recipe.dtype
        )
    return setup.development.value(strategy, backbone)


def _machine(recipe: Recipe) -> Machine:
    from rerank.backbones.hardware import choose_device, choose_dtype

    place = choose_device(None)
    return Machine.here(str(place), str(choose_dtype(recipe.dtype, place)).removeprefix("torch."))


def _keep(file: Path, told: Mapping[str, object]) -> None:
    """Whole or not at all: a kill leaves no half of it."""
    made = file.with_suffix(".part")
    made.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(made, file)


HEADERS = ("loss", "mean", "deviation", "change", "seconds", "tokens")


def cells(one: Row) -> tuple[str, ...]:
    """As `HEADERS` name them."""
    deviation = "" if one.deviation is None else f"{one.deviation:.4f}"
    seconds = "" if one.seconds is None else f"{one.seconds:,.1f}"
    return one.loss, f"{one.mean:.4f}", deviation, f"{one.change:+.4f}", seconds, f"{one.tokens:,.0f}"


def markdown(found: Comparison) -> str:
    lines = [
        f"{found.measure} on {found.queries} queries of {found.dataset}; recipe {found.recipe}, {found.lists} lists a "
        f"run, seeds {', '.join(map(str, found.seeds))}. Untrained: {found.untrained:.4f}.",
        "",
        f"| {' | '.join(HEADERS)} |",
        f"|---|{'---:|' * (len(HEADERS) - 1)}",
        *(f"| {' | '.join(cells(each))} |" for each in found.rows),
        "",
        f"Mean and sample standard deviation over seeds, change to the untrained model, seconds of training steps and "
        f"prompt tokens of a run. {found.machine}",
    ]
    return "\n".join(lines) + "\n"


def draw(found: Comparison, target: str | Path) -> None:
    """The losses, best at the top: each seed, their mean and standard deviation, and the untrained model as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.6 + 0.36 * len(found.rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(found.untrained, color="#c44e52", ls="--", lw=1.2, label=f"untrained, {found.untrained:.3f}")
    for place, each in enumerate(found.rows):
        axes.plot(each.values, [place] * len(each.values), "o", ms=4, color="#4c72b0", alpha=0.35, mew=0)
    axes.errorbar(
        [each.mean for each in found.rows],
        range(len(found.rows)),
        xerr=[each.deviation or 0.0 for each in found.rows],
        fmt="D",
        ms=5,
        capsize=3,
        color="#2f4b7c",
        label="mean and standard deviation" if len(found.seeds) > 1 else "one seed",
    )
    axes.set_yticks(range(len(found.rows)), [each.loss for each in found.rows])
    axes.set_ylim(len(found.rows) - 0.5, -0.5)
    axes.set_xlabel(f"{found.measure}, {found.queries} queries of {Path(found.dataset).name}")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(target, dpi=150)
