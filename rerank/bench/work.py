"""What is asked of every engine: the same calls in slices, rendered once, and the arithmetic that they take.

The calls are those that our rankers would make, passages cleaned and cut. Other engines are given their text, which
the model's tokenizer turns back into the very same ids (it is checked).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from types import MappingProxyType
from typing import Literal

from rerank.backbones.base import Prepared, by_length, common_prefix
from rerank.backbones.encoding import Encoder
from rerank.calls import Answer, Call, Constraint, Kind, LabelCall
from rerank.errors import BackboneError, CapabilityError, InputError
from rerank.jobs import Workshop
from rerank.strategies import First, Pointwise, Strategy
from rerank.types import Candidates

Task = Literal["pointwise", "first"]

WINDOW = 20  # passages in a FIRST window, as in the paper


@dataclass(frozen=True, slots=True)
class Rendered:
    """One call. `labels` are the tokens whose probability is asked for."""

    text: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """What an engine does in one go. For `pointwise` there is a prompt for every passage of every request, in their
    order; for `first` one for every request, which is a window."""

    task: Task
    requests: tuple[Candidates, ...]
    prompts: tuple[Rendered, ...]

    @property
    def tokens(self) -> int:
        return sum(len(prompt.ids) for prompt in self.prompts)


@dataclass(frozen=True, slots=True)
class Cost:
    """The useful arithmetic of a dense decoder: 2 FLOPs a token for each of its `parameters` (embeddings and output
    matrix left out), and in each of its `layers` 4 x `width` (heads x a head's width) for each token that a token looks
    at: 2 x width x layers x L^2 for L tokens."""

    parameters: int
    width: int
    layers: int

    def flops(self, length: int, known: int = 0) -> int:
        """Of a prompt of this many tokens, when the work for its first `known` is already there."""
        return 2 * self.parameters * (length - known) + 2 * self.width * self.layers * (length**2 - known**2)

    def in_full(self, part: Slice) -> int:
        return sum(self.flops(len(prompt.ids)) for prompt in part.prompts)

    def shared_once(self, part: Slice) -> int:
        """What prompts of the slice begin with in common is counted for one of them only."""
        ordered = sorted(prompt.ids for prompt in part.prompts)
        neighbours = zip([(), *ordered], ordered, strict=False)
        return sum(self.flops(len(ids), common_prefix(before, ids)) for before, ids in neighbours)


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of a model without its weights. `hidden` and `intermediate` are the sides of its matrices."""

    encoder: Encoder
    cost: Cost
    hidden: int
    intermediate: int

    @classmethod
    def read(cls, name: str, path: str) -> Model:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer, config = AutoTokenizer.from_pretrained(path), AutoConfig.from_pretrained(path)
            with torch.device("meta"):  # shapes only
                model = AutoModelForCausalLM.from_config(config)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise BackboneError(f"cannot read the model {name!r}: {' '.join(str(error).split())[:200]}") from error
        text = config.get_text_config()
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        everything = sum(parameter.numel() for parameter in model.get_decoder().parameters())
        inner = everything - model.get_input_embeddings().weight.numel()
        limits = [getattr(text, "max_position_embeddings", None), tokenizer.model_max_length]
        context = min((n for n in limits if isinstance(n, int) and 0 < n < 10**9), default=4096)
        cost = Cost(inner, head * text.num_attention_heads, text.num_hidden_layers)
        intermediate = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        return cls(Encoder(tokenizer, context, name), cost, text.hidden_size, intermediate)


def pointwise_work(
    requests: Iterable[Candidates], encoder: Encoder, *, slices: int, size: int, passage_tokens: int | None
) -> list[Slice]:
    """Slices of `size` pairs; passages of one query stay neighbours, and no pair comes twice."""
    flat = list(islice(((each.query, p) for each in requests for p in each.passages), slices * size))
    _enough("pairs", len(flat), slices, size)
    parts = [
        [
            Candidates(query, tuple(passage for _, passage in group))
            for query, group in groupby(flat[start : start + size], key=lambda pair: pair[0])
        ]
        for start in range(0, len(flat), size)
    ]
    strategy = Pointwise(passage_tokens=passage_tokens)
    return [Slice("pointwise", tuple(part), _rendered(part, strategy, encoder)) for part in parts]


def first_work(
    requests: Iterable[Candidates], encoder: Encoder, *, slices: int, size: int, passage_tokens: int | None
) -> list[Slice]:
    """Slices of `size` windows: of every query its best 20 passages, then of every query the next 20, and so on."""
    requests = list(requests)
    longest = max(map(len, requests), default=0)
    windows = [
        Candidates(each.query, each.passages[start : start + WINDOW])
        for start in range(0, longest, WINDOW)
        for each in requests
        if len(each) >= start + WINDOW
    ][: slices * size]
    _enough(f"windows of {WINDOW} passages", len(windows), slices, size)
    strategy = First(window=WINDOW, passage_tokens=passage_tokens)
    parts = [windows[start : start + size] for start in range(0, len(windows), size)]
    return [Slice("first", tuple(part), _rendered(part, strategy, encoder)) for part in parts]


WORK: Mapping[Task, Callable[..., list[Slice]]] = MappingProxyType({"pointwise": pointwise_work, "first": first_work})


def _enough(what: str, there: int, slices: int, size: int) -> None:
    if there < slices * size:
        raise InputError(
            f"the dataset has {there} {what} at this depth; {slices} slices of {size}, one of them to warm up, need "
            f"{slices * size}: ask for fewer, or give a larger dataset or depth"
        )


@dataclass(frozen=True, slots=True)
class _Renderer:
    """A backbone that encodes and answers nothing, so that the calls are made where rankers make theirs."""

    encoder: Encoder
    name: str = "renderer"
    kinds: frozenset[Kind] = frozenset({Kind.LABELS})
    constraints: frozenset[type[Constraint]] = frozenset()
    control_tokens: frozenset[str] = field(default=frozenset())

    def prepare(self, call: Call) -> Prepared:
        assert isinstance(call, LabelCall)
        ids, tail, cut = self.encoder.encode(call.dialogue, 1)
        return Prepared(call, ids, len(ids), cut, self.encoder.label_ids(tail, call.labels))

    def group(self, items: Sequence[Prepared]) -> list[list[int]]:
        return by_length(items, None)

    def answer(self, batch: Sequence[Prepared]) -> list[Answer]:
        raise CapabilityError(f"the renderer answers no calls; it was asked {len(batch)}")

    def close(self) -> None:
        pass


def _rendered(requests: Iterable[Candidates], strategy: Strategy, encoder: Encoder) -> tuple[Rendered, ...]:
    workshop = Workshop(strategy, _Renderer(encoder, control_tokens=encoder.control_tokens))
    prompts: list[Rendered] = []
    for index, request in enumerate(requests):
        job = workshop.start(index, request)
        if job.ranking is not None and job.ranking.error is not None:
            raise job.ranking.error
        prompts += (_as_text(item, encoder) for item in job.calls)
    return tuple(prompts)


def _as_text(item: Prepared, encoder: Encoder) -> Rendered:
    text = str(encoder.tokenizer.decode(item.token_ids))
    if encoder.continuation(text) != item.token_ids:
        raise InputError(
            "this model's tokenizer does not read its own text back as the same tokens, so engines that take text "
            "would be given other prompts; compare the engines on another model"
        )
    return Rendered(text, item.token_ids, item.targets)
