"""From a recipe to an adapter: what `rerank train` does.

In the output folder lie the recipe, `checkpoint-N` folders, `curve.jsonl` and `curve.png`, TensorBoard's files, and
at the end `adapter` (or `model`, where every weight was trained). A run that was stopped goes on where its newest
whole checkpoint stands: the lists, the schedule and the random numbers are those of an uninterrupted run.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rerank.training.checks import check_labels, check_options
from rerank.training.development import read_development
from rerank.training.output import Trained, claim, finished
from rerank.training.recipe import read_recipe
from rerank.training.reinforce.checks import check_gold
from rerank.training.reinforce.session import ReinforceSession
from rerank.training.session import Session, quiet
from rerank.training.sessions import read_shown
from rerank.training.sources import read_pools

if TYPE_CHECKING:
    from rerank.training.trainer import Watch

log = logging.getLogger(__name__)


def train(path: str | Path, out: str | Path, *, fresh: bool = False, watch: Watch | None = None) -> Trained:
    """Trains what the recipe says, or goes on with it.

    Raises InputError for a mistake in the recipe, before a model is loaded; for an output folder of another recipe,
    unless `fresh` empties it.
    """
    path, out = Path(path), Path(out)
    recipe = read_recipe(path)
    check_options(recipe)
    claim(out, recipe, fresh)
    if not fresh and (found := finished(out, recipe)) is not None:
        log.info("%s is finished; give --fresh to train it anew", out)
        return found
    base = path.resolve().parent
    development = read_development(recipe.evaluation, base) if recipe.evaluation is not None else None
    read = read_pools if recipe.clicks is None else partial(read_shown, recipe.clicks)
    pools = [(source, read(source, base)) for source in recipe.data]
    check_labels(recipe, pools)
    check_gold(recipe, pools)
    made = Session if recipe.reinforce is None else ReinforceSession
    with quiet():
        return made(recipe, base, out, pools, development, watch).run()
