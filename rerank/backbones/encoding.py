"""From a dialogue to token ids, for one tokenizer: the chat template, cutting, and labels in their context.

Only passages are ever shortened, from their end, on token boundaries, the longest first; the instruction,
the query and the answer prefix are never touched.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rerank.backbones.base import Prepared
from rerank.calls import Call, Dialogue, GenerateCall, LabelCall, LikelihoodCall, LogitCall
from rerank.errors import CapabilityError, ContextError, LabelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# How much of the prompt's end a label is read after. A token never spans more.
_TAIL_CHARACTERS = 48


class Encoder:
    """One tokenizer and one context length, in tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int, model: str) -> None:
        self.tokenizer, self.context, self._model = tokenizer, context, model
        self.control_tokens = frozenset(
            {str(token) for token in tokenizer.all_special_tokens}
            | {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special or "|" in str(t)}
        )
        self._label_ids = functools.lru_cache(maxsize=1024)(self._find_label_ids)

    def ids(self, text: str) -> list[int]:
        """The ids of a text. A chat template writes its own first token; without one the tokenizer adds it."""
        ids: list[int] = self.tokenizer.encode(
            text, add_special_tokens=self.tokenizer.chat_template is None, verbose=False
        )
        return ids

    def continuation(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def encode(self, dialogue: Dialogue, reserve: int) -> tuple[tuple[int, ...], str, int]:
        """The prompt's ids, the end of its text ("" for pieces: nothing melts into the last), and how many passages
        were shortened to leave `reserve` tokens of the context free. Raises ContextError when there is no room even for
        a token of each."""
        texts = [span.text for message in dialogue.messages for span in message.spans if span.passage]
        if dialogue.passage_tokens is not None:
            texts = [self.cut(text, dialogue.passage_tokens) for text in texts]
        whole = texts
        text, ids = self._render(dialogue, texts)
        limit = self.context - reserve
        lengths: list[int] = []
        room = 0
        while len(ids) > limit:
            if not lengths:
                lengths = [len(self.continuation(t)) for t in texts]
                room = sum(lengths)
            room -= len(ids) - limit
            if room < sum(length > 0 for length in lengths):
                raise ContextError(
                    f"query {dialogue.query.query_id!r}: the instruction, the query and the answer leave no room for "
                    f"passages in the {self.context} tokens of {self._model}; shorten the query"
                    + (" or show fewer passages at once" if len(texts) > 1 else "")
                )
            cap = _level(lengths, room)
            texts = [self.cut(t, cap) if length > cap else t for t, length in zip(whole, lengths, strict=True)]
            text, ids = self._render(dialogue, texts)
        return tuple(ids), text[-_TAIL_CHARACTERS:], sum(a != b for a, b in zip(texts, whole, strict=True))

    def prepare(self, call: Call) -> Prepared:
        """A call about text, with the tokens that its answer takes left free. Raises CapabilityError for one that
        wants a head that scores a pair."""
        if isinstance(call, GenerateCall):
            ids, _, cut = self.encode(call.dialogue, call.max_tokens)
            return Prepared(call, ids, len(ids) + call.max_tokens, cut)
        if isinstance(call, LikelihoodCall):
            targets = self.continuation(call.continuation)
            ids, _, cut = self.encode(call.dialogue, len(targets))
            return Prepared(call, ids, len(ids) + len(targets), cut, targets)
        if not isinstance(call, LabelCall | LogitCall):
            raise CapabilityError(f"{self._model} has no head that scores a pair")
        labels = call.labels if isinstance(call, LabelCall) else (call.label,)
        ids, tail, cut = self.encode(call.dialogue, 1)
        return Prepared(call, ids, len(ids), cut, self.label_ids(tail, labels))

    def written(self, tail: str, pieces: Sequence[tuple[str, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """An answer that should follow `tail`, given in pieces, each with a mark: its tokens, and for each token the
        mark of the first piece with a mark that it has a part of, or 0. Where its beginning melts into a token of the
        tail they are the tokens of the answer by itself. Raises LabelError where these cannot follow the tail."""
        before, text = self.continuation(tail), "".join(piece for piece, _ in pieces)
        encoded = self.tokenizer(tail + text, add_special_tokens=False, return_offsets_mapping=True)
        ids, position, start = tuple(encoded["input_ids"]), len(tail), len(before)
        if ids[:start] != before:
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            joined, ids, position, start = ids, tuple(encoded["input_ids"]), 0, 0
            if not self._can_follow(tail, text, ids, joined):
                raise LabelError(f"{text[:16]!r} does not begin with a token of its own after {tail[-16:]!r}")
        spans: list[tuple[int, int, int]] = []
        for piece, mark in pieces:
            spans.append((position, position + len(piece), mark))
            position += len(piece)
        marks = [
            next((mark for first, last, mark in spans if mark and first < right and left < last), 0)
            for left, right in encoded["offset_mapping"][start:]
        ]
        return ids[start:], tuple(marks)

    def label_ids(self, tail: str, labels: tuple[str, ...]) -> tuple[int, ...]:
        """The token of each label as it stands after `tail`, or by itself where it melts into a token of the tail: the
        model is asked what comes after the tail's own tokens, "[" say, though the two together are one, "[A"."""
        return self._label_ids(tail, labels)

    def _find_label_ids(self, tail: str, labels: tuple[str, ...]) -> tuple[int, ...]:
        before = self.continuation(tail)
        found: dict[int, str] = {}
        for label in labels:
            after = self.continuation(tail + label)
            token = after[-1:]
            if after[:-1] != before:
                token = self.continuation(label)
                if len(token) != 1 or not self._can_follow(tail, label, token, after):
                    pieces = self.tokenizer.convert_ids_to_tokens(after)[-3:]
                    raise LabelError(
                        f"label {label!r} is not one token of its own after {tail[-16:]!r} for {self._model} (it ends "
                        f"in {pieces}); use a prompt with other labels or another prefix"
                    )
            if token[0] in found:
                raise LabelError(
                    f"labels {found[token[0]]!r} and {label!r} are the same token {token[0]} for {self._model}"
                )
            found[token[0]] = label
        return tuple(found)

    def _can_follow(self, tail: str, text: str, alone: tuple[int, ...], joined: tuple[int, ...]) -> bool:
        """Whether a text's tokens by itself can follow those of the tail, where the two together are `joined`.

        Not where they bring a space along, as a sentencepiece tokenizer's "▁A" after "[". Nor where the tail ends in
        a space that belongs to the text's first token, as in "Passage A": no model has seen the two apart.
        """
        if tail[-1:].isspace() and joined[-len(alone) :] != alone:
            return False
        before = self.continuation(tail)
        plain = self.tokenizer.decode(before, clean_up_tokenization_spaces=False)
        whole = self.tokenizer.decode([*before, *alone], clean_up_tokenization_spaces=False)
        return bool(whole == f"{plain}{text}")

    def _render(self, dialogue: Dialogue, passages: Sequence[str]) -> tuple[str, list[int]]:
        fill = iter(passages)
        messages = [
            {"role": message.role, "content": "".join(next(fill) if s.passage else s.text for s in message.spans)}
            for message in dialogue.messages
        ]
        if dialogue.pieces is not None:
            inner = [token for message in messages for token in self.continuation(message["content"])]
            first, last = self._around if dialogue.pieces == "special" else ((), ())
            return "", [*first, *inner, *last]
        text = self._template(messages) + dialogue.prefix
        return text, self.ids(text)

    @functools.cached_property
    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens that the tokenizer itself puts before a text and after it."""
        bare = self.continuation("a")
        whole = tuple(self.tokenizer.encode("a", add_special_tokens=True, verbose=False))
        start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), None)
        if start is None:
            raise CapabilityError(
                f"the tokenizer of {self._model} puts no tokens of its own around a text, but into it"
            )
        return whole[:start], whole[start + len(bare) :]

    def _template(self, messages: list[dict[str, str]]) -> str:
        if self.tokenizer.chat_template is None:
            return "\n\n".join(message["content"] for message in messages) + "\n\n"
        from jinja2 import TemplateError

        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        try:
            return str(self.tokenizer.apply_chat_template(messages, **options))
        except TemplateError:  # some templates know no system turn: its text then heads the user's
            if messages[0]["role"] != "system" or len(messages) < 2:
                raise
            head, first, *rest = messages
            merged = {"role": first["role"], "content": f"{head['content']}\n\n{first['content']}"}
            return str(self.tokenizer.apply_chat_template([merged, *rest], **options))

    def cut(self, text: str, tokens: int) -> str:
        """The longest beginning of the text that holds at most this many tokens."""
        if len(text.encode()) <= tokens:  # a token is a byte at least
            return text
        if not self.tokenizer.is_fast:  # without offsets the text is put together again from its tokens
            ids = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
            return text if len(ids) <= tokens else str(self.tokenizer.decode(ids[:tokens])).rstrip("\ufffd")
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets: list[tuple[int, int]] = encoded["offset_mapping"]
        return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1]]


def _level(lengths: Sequence[int], room: int) -> int:
    """The highest cap for which the lengths, cut to it, take at most `room`.

    >>> _level([10, 2, 8], 12)
    5
    """

    def caps() -> Iterator[int]:
        left, rest = room, sorted(lengths)
        for position, length in enumerate(rest):
            share = left // (len(rest) - position)
            if length > share:
                yield share
                return
            left -= length
        yield max(lengths)

    return max(1, next(caps()))
