"""The training lists as the prompts that their strategy asks, and the rewards of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from rerank.calls import Answer, GenerateCall
from rerank.prompts.neutralise import control_token_pattern
from rerank.training.mixture import Mixture, TrainingList
from rerank.training.objectives import Asker, neutralised
from rerank.training.reinforce.part import RewardPart
from rerank.training.reinforce.rewards import REWARDS, Reward, shaped
from rerank.training.written import asked_for

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, slots=True)
class Posed:
    """A list as it is asked about: the call, and the prompt's token ids."""

    item: TrainingList
    call: GenerateCall
    ids: tuple[int, ...]


class Poser:
    """What list i of the mixture asks depends on i alone, and is what a ranker asks, token for token."""

    def __init__(self, mixture: Mixture, asker: Asker, reward: RewardPart) -> None:
        self.mixture, self.asker, self._reward = mixture, asker, reward
        self._control = control_token_pattern(asker.encoder.control_tokens)
        self.posed = lru_cache(maxsize=4096)(self._pose)

    def __len__(self) -> int:
        return len(self.mixture)

    def _pose(self, index: int) -> Posed:
        asker = self.asker
        item = neutralised(self.mixture[index], self._control, asker.prompt.identifiers)
        call = asker.prompt.ask(item.query, item.passages, asker.passage_tokens, asked_for(asker.prompt))
        assert isinstance(call, GenerateCall)
        return Posed(item, call, asker.encoder.prepare(call).token_ids)

    def dataset(self) -> Dataset:
        """For TRL: rows of a prompt's token ids and its number, made when they are asked for."""
        from datasets import Dataset

        def rows(batch: Mapping[str, Sequence[int]]) -> dict[str, list[object]]:
            return {"index": list(batch["index"]), "prompt": [list(self.posed(i).ids) for i in batch["index"]]}

        return Dataset.from_dict({"index": list(range(len(self)))}).with_transform(rows)

    def answer(self, index: int, text: str, truncated: bool) -> Answer:
        """What a ranker is handed: the text up to where generation stops."""
        marks = self.posed(index).call.stop
        end = min((text.index(mark) for mark in marks if mark in text), default=None)
        return Answer(text=text[:end], truncated=truncated)

    def reward(self, index: int, answer: Answer) -> Reward:
        part = self._reward
        found = REWARDS[part.name](self.asker.prompt, answer, self.posed(index).item.labels, **part.options)
        return shaped(found, part.shaping)
