"""A recipe's `clicks:`, which clicks there are and who learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from rerank.clicks import CASCADE, EXAMINATION, ClickModel, DependentClick, PositionBased
from rerank.errors import InputError
from rerank.training.parts import Part
from rerank.training.sources import missing

if TYPE_CHECKING:
    from rerank.training.recipe import Recipe

LEARNERS = ("dla", "ipw", "regression-em", "naive")
_SOURCE_KEYS = {"dataset", "name", "corpus", "run", "exclude", "limit", "size"}


class Simulate(Part):
    """Users of `rerank.clicks.models`, who see each list as its first stage ranks it and want what is judged relevant.

    model        position, cascade or dependent-click
    noise        P(relevant to the user) of what is judged 0
    eta, drift   of position: examination^eta, and the eta that the last step has
    trust        of position: the bias towards what stands above
    examination  of position: of each position; default the paper's ten
    persistence  of dependent-click: P(reads on after a click), for each position, or one
    """

    model: Literal["position", "cascade", "dependent-click"] = "position"
    noise: float = Field(0.1, ge=0, lt=1)
    eta: float | None = Field(None, ge=0, allow_inf_nan=False)
    drift: float | None = Field(None, ge=0, allow_inf_nan=False)
    trust: float | None = Field(None, ge=0, le=1)
    examination: tuple[float, ...] | None = None
    persistence: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _of_its_model(self) -> Self:
        own = {"position": ("eta", "drift", "trust", "examination"), "dependent-click": ("persistence",)}
        for model, names in own.items():
            for name in names:
                if model != self.model and getattr(self, name) is not None:
                    raise ValueError(f"{name} is for model {model}; take it out")
        self.users()
        return self

    def users(self) -> ClickModel:
        if self.model == "cascade":
            return CASCADE
        if self.model == "dependent-click":
            return DependentClick() if self.persistence is None else DependentClick(self.persistence)
        eta = 1.0 if self.eta is None else self.eta
        examination = EXAMINATION if self.examination is None else self.examination
        return PositionBased(examination, eta, self.trust or 0.0, self.drift)


class Clicks(Part):
    """`learner` is what makes labels of clicks.

    dla            the dual learning algorithm: propensities are learnt beside the ranker, with a `learning_rate` of
                   their own, weights of at most `clip`
    ipw            given `propensities`, a list or a JSON file with one (a run of dla writes such), weights of at most
                   `clip`
    regression-em  expected relevance; the propensities are a moving average that moves by `rate` at each step
    naive          a click is a label

    Clicks come from a `log` (see rerank.clicks.log), or users are simulated, other ones at each step.
    """

    learner: Literal["dla", "ipw", "regression-em", "naive"]
    log: str | None = None
    simulate: Simulate | None = None
    propensities: str | tuple[float, ...] | None = None
    learning_rate: float | None = Field(None, gt=0)
    clip: float | None = Field(None, ge=1)
    rate: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="after")
    def _of_its_learner(self) -> Self:
        if (self.log is None) == (self.simulate is None):
            raise ValueError("give a log, or simulate, and not both")
        own = {
            "propensities": ("ipw",),
            "learning_rate": ("dla",),
            "clip": ("dla", "ipw"),
            "rate": ("regression-em",),
        }
        for name, learners in own.items():
            if getattr(self, name) is not None and self.learner not in learners:
                raise ValueError(f"{name} is for learner {' and '.join(learners)}; take it out")
        if self.learner == "ipw" and self.propensities is None:
            raise ValueError("learner ipw needs propensities, a list of each position's or a JSON file with one")
        if isinstance(self.propensities, tuple):
            checked_propensities(self.propensities, "propensities")
        return self

    def check_loss(self, loss: str | None) -> None:
        """Whether the ranker's loss reads what the learner makes. Raises ValueError."""
        wanted = {"dla": "click_softmax", "ipw": "click_softmax", "regression-em": "bce"}.get(self.learner)
        if wanted is not None and loss != wanted:
            raise ValueError(f"learner {self.learner} needs loss {wanted}, not {loss or 'none'}")

    def check_files(self, base: Path, shown: int | None) -> None:
        """Whether what it names is there, and has a propensity for each position that simulated users are `shown`; how
        far down a log goes is known when it is read (see `propensities.learner_of`). Raises InputError."""
        for name, given in (("log", self.log), ("propensities", self.propensities)):
            if isinstance(given, str) and not (base / given).is_file():
                raise InputError(missing(f"clicks.{name}:", given, base))
        if self.propensities is None:
            return
        known = len(self.given(base))
        if self.simulate is not None and shown is not None and known < shown:
            raise InputError(f"clicks.propensities has {known} positions, and {shown} are shown")

    def given(self, base: Path) -> tuple[float, ...]:
        """The propensities that ipw is given."""
        import json

        if not isinstance(self.propensities, str):
            return self.propensities or ()
        try:
            found = json.loads((base / self.propensities).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"clicks.propensities: {self.propensities} is not JSON: {error}") from error
        if not isinstance(found, list) or not all(isinstance(value, int | float) for value in found):
            raise InputError(f"clicks.propensities: {self.propensities} is not a list of numbers")
        try:
            return checked_propensities(found, self.propensities)
        except ValueError as error:
            raise InputError(f"clicks.propensities: {error}") from None


def checked_propensities(values: Sequence[float], name: str) -> tuple[float, ...]:
    if not values or not all(0 < value < float("inf") for value in values):
        raise ValueError(f"{name} {list(values)}: give a number above 0 for each position, from the first on")
    return tuple(float(value) for value in values)


def check_clicks(recipe: Recipe) -> None:
    """Whether a recipe of a language model can learn from clicks. Raises ValueError."""
    part = recipe.clicks
    if part is None:
        return
    if recipe.strategy in ("pairwise", "full-ranking"):
        raise ValueError(
            f"clicks need a score for each passage of a list, and {recipe.strategy} gives none; take pointwise, "
            "score-head, setwise or first"
        )
    part.check_loss(recipe.loss.name if recipe.loss is not None else None)
    if recipe.reference is not None:
        raise ValueError("reference compares what labels order, and clicks are none; take one of the two out")
    for name, given in (("write", recipe.write), ("curriculum", recipe.curriculum)):
        if given is not None:
            raise ValueError(f"{name} goes by labels, and clicks are none; take one of the two out")
    if recipe.fsdp is not None or recipe.deepspeed is not None:
        raise ValueError("clicks are learnt from in one process; take fsdp and deepspeed out")
    if part.log is not None and len(recipe.data) > 1:
        raise ValueError("clicks.log is of one dataset; give one source under data")
    for source in recipe.data:
        known = _SOURCE_KEYS - ({"run", "limit"} if part.log is not None else set())
        if ignored := sorted(source.model_fields_set - known):
            raise ValueError(
                f"{source.title}: {', '.join(ignored)} would be ignored with clicks: "
                + ("the log says what was shown" if part.log is not None else "the first `size` of the run are shown")
            )
    if part.simulate is not None:
        part.simulate.users().curve(max(source.size for source in recipe.data))  # says where there are too few
