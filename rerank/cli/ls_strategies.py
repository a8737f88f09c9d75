"""`rerank ls strategies`: what each asks and costs, and the details of one.

Prompt tokens are measured: the strategy ranks passages of 100 words, whose relevances are drawn by a seed, on a
scripted backbone that has a word for a token and no chat template. Where the number of calls depends on the answers,
fewer are asked for these than the bound that is shown.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from typing import Literal, get_args, get_origin, get_type_hints

from rich.table import Table

from rerank.adapters import shipped_for
from rerank.backbones import ScriptedBackbone, oracle
from rerank.backbones.embedded import EMBEDDED
from rerank.calls import Call, Dialogue
from rerank.cli.options import bare_table
from rerank.errors import InputError, UnknownNameError
from rerank.reranker import Reranker
from rerank.strategies import STRATEGIES, Strategy, load_strategy, options_of
from rerank.types import Candidates, Passage, Query

SIZES = (20, 100)
WORDS = 100  # in a passage

_CAPTION = (
    f"calls: of {SIZES[0]} and of {SIZES[1]} passages, at most. tokens in: of their prompts, measured on passages of "
    f"{WORDS} tokens, for a word a token. random: 'seeded' draws what it asks by its option seed, '(seeded)' only "
    "where another option has it shuffle. More of one: rerank ls strategies NAME"
)


def table() -> Table:
    shown = bare_table("strategy", "needs", "calls", "tokens in", "random", "prompt; options (default)", "source")
    shown.caption, shown.caption_justify = _CAPTION, "left"
    for name, make in STRATEGIES.items():
        made = make()
        options = ", ".join(f"{option}={getattr(made, option)}" for option in options_of(make))
        shown.add_row(
            name,
            str(made.prompt.needs),
            ", ".join(f"{made.calls(n):,}" for n in SIZES),
            ", ".join(_thousands(measured(made, n)[0]) for n in SIZES),
            randomness(name),
            f"{made.prompt.name}; {options}" if options else made.prompt.name,
            source_of(make),
        )
    return shown


def formulas() -> Table:
    shown = bare_table("strategy", "calls for n passages")
    for name, make in STRATEGIES.items():
        shown.add_row(name, formula_of(make))
    return shown


def details(name: str) -> list[Table | str]:
    """One strategy: what it costs, its options, and what its class says of them."""
    if name not in STRATEGIES:
        raise UnknownNameError("strategy", name, STRATEGIES)
    make = STRATEGIES[name]
    made, folder = make(), shipped_for(name, EMBEDDED)
    facts = bare_table(name, "")
    facts.add_row("source", source_of(make))
    facts.add_row("prompt", f"{made.prompt.name}@{made.prompt.version}, unless another is given")
    facts.add_row("needs", f"a backbone that answers {made.prompt.needs} calls")
    facts.add_row("calls", formula_of(make))
    facts.add_row("random", randomness(name))
    facts.add_row("adapter that ships", "none" if folder is None else folder.name)
    costs = bare_table("passages", "calls", "measured", "prompt tokens")
    for n in (10, *SIZES):
        tokens, asked = measured(made, n)
        costs.add_row(str(n), f"at most {made.calls(n):,}", f"{len(asked):,}", f"{tokens:,}")
    options = bare_table("option", "default", "takes")
    types = get_type_hints(make)
    for option in options_of(make):
        options.add_row(option, str(getattr(made, option)), _takes(types[option]))
    told = [text for kind in make.__mro__ if (text := _own_doc(kind))]
    return [facts, costs, options, *told]


def measured(strategy: Strategy, n: int) -> tuple[int, list[Dialogue]]:
    """What n passages of `WORDS` words take in prompt tokens, and what is asked."""
    draw, asked = random.Random(0), list[Dialogue]()
    judge = oracle({f"d{i}": draw.random() for i in range(n)})

    def script(call: Call) -> str | Sequence[float]:
        asked.append(call.dialogue)
        return judge(call)

    passages = tuple(Passage(" ".join(["word"] * WORDS), f"d{i}") for i in range(n))
    request = Candidates(Query("what is asked here in eight words or so"), passages)
    (ranking,) = Reranker(strategy, ScriptedBackbone(script)).rank_many([request])
    return ranking.usage.prompt_tokens, asked


def randomness(name: str) -> str:
    """Whether a strategy draws at random what it asks, as it comes: then another seed has it ask something else. One
    that only shuffles where an option says so asks the same by any seed, or refuses it."""
    made = load_strategy(name)
    seed = {option: getattr(made, option) for option in options_of(type(made))}.get("seed")
    if seed is None:
        return "no"
    try:
        other = load_strategy(name, seed=seed + 1)
    except InputError:
        return "(seeded)"
    return "(seeded)" if measured(made, SIZES[0]) == measured(other, SIZES[0]) else "seeded"


def source_of(make: type[Strategy]) -> str:
    """Authors and venue, where the class says them."""
    return str(getattr(make, "source", ""))


def formula_of(make: type[Strategy]) -> str:
    """How many calls n passages take, where the class says it."""
    return str(getattr(make, "formula", ""))


def _takes(kind: object) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _own_doc(kind: type) -> str:
    """What a class says itself; not what `dataclass` writes where it says nothing."""
    text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    return "" if kind is object or text.startswith(f"{kind.__name__}(") else text


def _thousands(tokens: int) -> str:
    return f"{tokens / 1000:,.{tokens < 10_000:d}f}k"
