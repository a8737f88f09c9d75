"""Every error that a user can cause. The command line shows its text in one line and exits with 2."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RerankError(Exception):
    """The root of the library's errors."""


class InputError(RerankError, ValueError):
    """A query, a passage, a file or an option is not usable as given."""


class UnknownNameError(InputError):
    """A strategy, prompt, model, dataset or option of that name does not exist."""

    def __init__(self, kind: str, given: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        near = get_close_matches(given, names, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
        super().__init__(f"unknown {kind} {given!r}; {advice}{' ' + hint if hint else ''}")


class PromptError(InputError):
    """A prompt file breaks the format."""


class LabelError(InputError):
    """A label is not one distinct token in the place where its probability is asked for."""


class ContextError(InputError):
    """The instruction, the query and the answer prefix alone exceed the model's context."""


class CapabilityError(RerankError):
    """The backbone cannot answer what the strategy asks."""


class BackboneError(RerankError):
    """A model could not be loaded or failed while it answered."""


class AdapterError(BackboneError):
    """An adapter is missing, unreadable, or was trained for another model."""


class CancelledError(RerankError):
    """Nobody waits for this query's ranking any more, so it was given up."""


class BusyError(RerankError):
    """More is waiting than may wait, or what takes requests is closing; ask again later."""


class CacheError(RerankError):
    """A cached or resumable file is damaged or belongs to something else."""
