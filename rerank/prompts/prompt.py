"""The prompt file: its schema, its loader, and rendering. See the package's docstring for the format."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from string import Formatter
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rerank.calls import (
    Answer,
    Call,
    Dialogue,
    GenerateCall,
    Kind,
    LabelCall,
    LikelihoodCall,
    LogitCall,
    Message,
    ScoreCall,
    Span,
)
from rerank.errors import InputError, PromptError, UnknownNameError
from rerank.prompts.answers import (
    LETTERS,
    AnswerSpec,
    Binary,
    Graded,
    GradedEach,
    Identifier,
    Identifiers,
    Likelihood,
    Logit,
    Permutation,
    ReasonedIdentifier,
    Score,
    Scores,
    Text,
    name_passages,
    names,
    read_reasoning,
    read_scores,
)
from rerank.prompts.read import Order, Scored, read_labels
from rerank.prompts.template import Each, Turn, fields, fill
from rerank.prompts.thoughts import read_said
from rerank.types import Outcome, Outcomes, Passage, Query

_FOLDER = Path(__file__).parent
_FILE = re.compile(r"(.+)\.v(\d+)\.yaml")  # a file's name says the prompt's: to load one prompt, one file is read


class Prompt(BaseModel):
    """One version of one prompt. `ask` renders a call; `answer` (see `answers`) reads what comes back."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    version: int = Field(ge=1)
    source: str = Field(min_length=1)
    answer: AnswerSpec
    messages: tuple[Turn | Each, ...] = ()
    pieces: tuple[str, ...] = ()
    special_tokens: bool = False
    instruction: str | None = Field(default=None, min_length=1)
    each_passage: str | None = None
    prefix: str = ""

    @model_validator(mode="after")
    def _placeholders_fit(self) -> Prompt:
        if bool(self.messages) == bool(self.pieces):
            raise ValueError("a prompt has 'messages', for the model's chat template, or 'pieces', which go round it")
        if self.pieces and (self.prefix or not all(self.pieces)):
            raise ValueError("pieces are the whole prompt, the answer's beginning included, and none is empty")
        if self.special_tokens and not self.pieces:
            raise ValueError("special_tokens are for pieces; a chat template has its own")
        inner = {"label", "passage"}
        outer, repeated = set[str]().union(fields(self.prefix), *map(fields, self.pieces)), set[str]()
        for turn in self.messages:
            if isinstance(turn, Each):
                repeated.update(*(fields(t.content) for t in turn.each))
            else:
                outer |= fields(turn.content)
        if self.each_passage is not None:
            repeated |= fields(self.each_passage)
        if ("passages" in outer) != (self.each_passage is not None):
            raise ValueError("{passages} and 'each_passage' need one another")
        if self.shows == "one":
            allowed, needed = {"query", "passage"}, {"passage"}
            needed |= set() if isinstance(self.answer, Likelihood | Text) else {"query"}
            if repeated:
                raise ValueError(f"a {self.answer.kind} prompt shows one passage; it has no repeated block")
            if isinstance(self.answer, Likelihood) and "query" in outer:
                raise ValueError("a likelihood prompt must not show the query: it is the continuation")
            if isinstance(self.answer, Text) and "query" in outer:
                raise ValueError("a text prompt must not show a query: it has one written")
        else:
            allowed, needed = {"query", "count", "passages"}, {"query"}
            allowed |= {"top"} if isinstance(self.answer, Permutation) else set()
            if isinstance(self.answer, GradedEach):
                allowed, needed = allowed | {"asked"}, needed | {"asked"}
            if repeated != inner:
                raise ValueError(
                    "a listwise prompt repeats {label} and {passage}, and only these, for every passage; "
                    f"found {sorted(repeated)}"
                )
        if (self.instruction is not None) != ("instruction" in outer):
            raise ValueError("{instruction} and 'instruction', which it says unless another is given, need one another")
        if unknown := outer - allowed - {"instruction"}:
            raise ValueError(f"unknown placeholders {sorted(unknown)}; allowed here: {sorted(allowed)}")
        if absent := needed - outer:
            raise ValueError(f"placeholders {sorted(absent)} are missing")
        if isinstance(self.answer, Permutation | Scores) and self.answer.constrained and self.prefix:
            raise ValueError("a constrained answer is the whole answer; it has no prefix")
        return self

    @property
    def identity(self) -> str:
        """What a run records: name, version, and a hash of the content."""
        # fields that came later are hashed where they are used only: what older runs recorded stays true
        later = {"least_first", "reason_tokens"} if isinstance(self.answer, Identifier | Permutation) else set()
        answer = {name for name in later if not getattr(self.answer, name, None)}
        own = {name for name in ("pieces", "special_tokens", "instruction") if not getattr(self, name)}
        content = self.model_dump_json(exclude=dict.fromkeys(own, True) | {"answer": answer})
        return f"{self.name}@{self.version}#{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    @property
    def shows(self) -> Literal["one", "many"]:
        """Whether a call shows one passage or a list."""
        return "one" if self.identifiers is None else "many"

    @property
    def needs(self) -> Kind:
        """What a backbone must be able to answer."""
        match self.answer:
            case Likelihood():
                return Kind.LIKELIHOOD
            case Permutation() | ReasonedIdentifier() | Scores() | Text():
                return Kind.GENERATE
            case Score():
                return Kind.SCORE
            case Logit():
                return Kind.LOGIT
            case _:
                return Kind.LABELS

    @property
    def ranks(self) -> bool:
        """Whether what it asks for scores or orders passages."""
        return not isinstance(self.answer, Text)

    @property
    def scores_each(self) -> bool:
        """Whether it has each of several passages given a score, in place of their order."""
        return isinstance(self.answer, Scores | GradedEach)

    @property
    def names_best(self) -> bool:
        """Whether it has the best of several passages named, in place of their order."""
        return isinstance(self.answer, ReasonedIdentifier)

    @property
    def begun(self) -> str:
        """What the answer begins with, as it is shown: the prefix, its braces no longer doubled."""
        return "".join(literal for literal, *_ in Formatter().parse(self.prefix))

    @property
    def reasons(self) -> bool:
        """Whether it has a thought written before the answer."""
        return getattr(self.answer, "reason_tokens", None) is not None

    def calls_each(self, n: int) -> int:
        """How many calls `ask_each` makes of n passages."""
        return n if isinstance(self.answer, GradedEach) else 1

    @property
    def identifiers(self) -> Identifiers | None:
        """How passages are named in the prompt; passages must not be able to forge these."""
        match self.answer:
            case Identifier() | Permutation() | ReasonedIdentifier() | Scores() | GradedEach():
                return self.answer.identifiers
            case _:
                return None

    @property
    def least_first(self) -> bool:
        """Whether it asks for the least relevant first. Its answers are read into an order with the best first."""
        return isinstance(self.answer, Identifier | Permutation) and self.answer.least_first

    @property
    def max_passages(self) -> int | None:
        """The most passages that one call can name."""
        return len(LETTERS) if self.identifiers == "letters" else None

    def names(self, n: int) -> tuple[str, ...]:
        """The identifiers of n passages, in the order in which they are shown. Raises InputError for too many."""
        if self.max_passages is not None and n > self.max_passages:
            raise InputError(f"prompt {self.name!r} can name {self.max_passages} passages, not {n}")
        return names(self.identifiers or "numbers", n)

    @property
    def asks_top(self) -> bool:
        """Whether the prompt can ask for the best few of the passages only: it says `{top}`."""
        return self._says_top and not self.least_first

    @property
    def asks_bottom(self) -> bool:
        """Whether the prompt can ask for the least relevant few only: `{top}` is how many of them come first."""
        return self._says_top and self.least_first

    @property
    def _says_top(self) -> bool:
        turns = [turn for turn in self.messages if isinstance(turn, Turn)]
        return any("top" in fields(text) for text in (self.prefix, *self.pieces, *(turn.content for turn in turns)))

    def instructed(self, instruction: str) -> Prompt:
        """The same prompt with another instruction. Raises PromptError where it has no place for one."""
        if self.instruction is None:
            raise PromptError(f"prompt {self.name!r} takes no instruction: it has no {{instruction}}")
        if not instruction.strip():
            raise PromptError(f"the instruction of prompt {self.name!r} is empty; leave it out, or give it some text")
        return self.model_copy(update={"instruction": instruction})

    def ask_each(self, query: Query, passages: Sequence[Passage], passage_tokens: int | None = None) -> list[Call]:
        """The calls that have each of these passages given a score: one for all, or one each, as `calls_each` says."""
        if not isinstance(self.answer, GradedEach):
            return [self.ask(query, passages, passage_tokens)]
        return [self.ask(query, passages, passage_tokens, asked=i) for i in range(len(passages))]

    def ask(
        self,
        query: Query,
        passages: Sequence[Passage],
        passage_tokens: int | None = None,
        top: int | None = None,
        asked: int | None = None,
    ) -> Call:
        """The call that shows these passages, in this order.

        Where the answer is an identifier it is a LabelCall whose labels are in the order of the passages: label
        i names passage i, so that training may set a relevance beside each label's logit. `top` asks for so many
        only, the best of a prompt that `asks_top`, the least relevant of one that `asks_bottom`; None for all.
        `asked` is the position of the one passage asked about, of a prompt that says `{asked}`; None for the first.
        """
        labels = self.names(len(passages))
        if top is not None and not self._says_top:
            raise PromptError(f"prompt {self.name!r} asks for all passages; for the top {top} it must say {{top}}")
        if asked is not None and not isinstance(self.answer, GradedEach):
            raise PromptError(
                f"prompt {self.name!r} asks about all that it shows; for one of them it must say {{asked}}"
            )
        n = len(passages)
        wanted = n if top is None else min(top, n)
        common: dict[str, list[Span]] = {
            "query": [Span(query.text)],
            "count": [Span(str(n))],
            "top": [Span(str(wanted))],
            "asked": [Span(labels[asked or 0])],
            "instruction": [Span(self.instruction or "")],
        }
        items = [
            {"label": [Span(label)], "passage": [Span(passage.full_text, passage=True)]}
            for label, passage in zip(labels, passages, strict=True)
        ]
        if self.each_passage is not None:
            common["passages"] = [span for item in items for span in fill(self.each_passage, item)]
        if self.shows == "one":
            common["passage"] = items[0]["passage"]
        messages: list[Message] = []
        for turn in self.messages:
            if isinstance(turn, Each):
                messages += [Message(t.role, fill(t.content, item)) for item in items for t in turn.each]
            else:
                messages.append(Message(turn.role, fill(turn.content, common)))
        messages += [Message("user", fill(piece, common)) for piece in self.pieces]
        prefix = "".join(span.text for span in fill(self.prefix, common))
        about = (asked or 0) if isinstance(self.answer, GradedEach) else None
        form: Literal["bare", "special"] | None = "special" if self.special_tokens else "bare" if self.pieces else None
        shown = tuple(passages)
        dialogue = Dialogue(tuple(messages), prefix, query, shown, passage_tokens, about, self.least_first, form)
        match self.answer:
            case Binary() | Graded() | GradedEach():
                return LabelCall(dialogue, self.answer.labels)
            case Likelihood():
                return LikelihoodCall(dialogue, query.text)
            case Identifier():
                return LabelCall(dialogue, labels)
            case Permutation():
                bound, constraint = self.answer.max_tokens(wanted), self.answer.constraint(n, wanted)
                return GenerateCall(dialogue, bound, self.answer.stop, constraint)
            case ReasonedIdentifier():
                return GenerateCall(dialogue, self.answer.max_tokens, self.answer.stop)
            case Scores():
                bound, constraint = self.answer.max_tokens(n), self.answer.constraint(n)
                return GenerateCall(dialogue, bound, self.answer.stop, constraint)
            case Score():
                return ScoreCall(dialogue)
            case Logit():
                return LogitCall(dialogue, self.answer.label)
            case Text():
                return GenerateCall(dialogue, self.answer.max_tokens, self.answer.stop)

    def score(self, answer: Answer) -> tuple[float, Outcomes]:
        """The relevance of the one passage asked about; NaN, and failed, where the model gave no number."""
        match self.answer:
            case Binary() | Graded() | GradedEach() | Likelihood() if answer.logprobs:
                score = self.answer.score(answer.logprobs)
                return score, read_labels(answer) if math.isfinite(score) else Outcomes.of(Outcome.FAILED)
            case Score() | Logit() if answer.score is not None and math.isfinite(answer.score):
                return answer.score, Outcomes.of(Outcome.CLEAN)
            case Binary() | Graded() | GradedEach() | Likelihood() | Score() | Logit():
                return math.nan, Outcomes.of(Outcome.FAILED)
        raise PromptError(f"prompt {self.name!r} shows several passages; it does not score one")

    def order(self, answer: Answer, n: int, top: int | None = None, *, passages: Sequence[Passage] = ()) -> Order:
        """The order of the n passages shown, as positions; the given order, and failed, where unreadable.

        `top` is how many were asked for; the others keep the given order, behind the best or before the least
        relevant. With the `passages` themselves a thought names them by their ids.
        """
        match self.answer:
            case Identifier() if len(answer.logprobs) == n and all(map(math.isfinite, answer.logprobs)):
                values = [-value if self.least_first else value for value in answer.logprobs]
                positions = sorted(range(n), key=lambda i: -values[i])
                return Order(positions, tuple(values[i] for i in positions), read_labels(answer))
            case Identifier():
                return Order(list(range(n)), None, Outcomes.of(Outcome.FAILED))
            case Permutation() | ReasonedIdentifier():
                said = read_said(self.prefix + answer.text, tagged=self.reasons, truncated=answer.truncated)
                positions, outcomes = self.answer.read(said.text, n, top)
                if outcomes.clean and not said.exact:
                    outcomes = Outcomes.of(Outcome.REPAIRED)
                thought = name_passages(said.thought, [p.doc_id for p in passages], self.answer.identifiers)
                return Order(positions, None, outcomes, (thought,) if thought else ())
        raise PromptError(f"prompt {self.name!r} gives scores; it does not order several")

    def scores(self, answers: Sequence[Answer], passages: Sequence[Passage]) -> Scored:
        """The scores of the passages shown, in their order, by the answers to `ask_each`; None where unreadable."""
        if isinstance(self.answer, GradedEach):
            read = [self.score(answer) for answer in answers]
            outcomes = sum((outcome for _, outcome in read), Outcomes())
            return Scored([score if math.isfinite(score) else None for score, _ in read], "", outcomes)
        if not isinstance(self.answer, Scores):
            raise PromptError(f"prompt {self.name!r} does not ask for the scores of several passages")
        (answer,) = answers
        text, identifiers = self.begun + answer.text, self.answer.identifiers
        values, outcomes = read_scores(text, len(passages), self.answer.highest, identifiers)
        reasoning = read_reasoning(text, [passage.doc_id for passage in passages], identifiers)
        return Scored(values, reasoning, outcomes)


def list_prompts() -> list[Prompt]:
    """Every prompt that ships, every version."""
    return [_read(path) for path in sorted(_FOLDER.glob("*.yaml"))]


def load_prompt(name: str | Path) -> Prompt:
    """A prompt that ships, by `name` (its newest version) or `name@version`, or a YAML file by its path."""
    if isinstance(name, Path) or name.endswith((".yaml", ".yml")):
        return _read(Path(name))
    wanted, _, version = name.partition("@")
    shipped = [(path, match) for path in _FOLDER.iterdir() if (match := _FILE.fullmatch(path.name))]
    found = [(int(m[2]), path) for path, m in shipped if m[1] == wanted and version in ("", m[2])]
    if not found:
        raise UnknownNameError("prompt", name, {f"{m[1]}@{m[2]}" if version else m[1] for _, m in shipped})
    return _read(max(found)[1])


def _read(path: Path) -> Prompt:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PromptError(f"cannot read prompt file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PromptError(f"prompt file {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise PromptError(f"prompt file {path} must be a mapping with name, version, source, answer, messages")
    try:
        return Prompt.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "prompt"
        raise PromptError(f"prompt file {path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
