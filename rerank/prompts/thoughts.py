"""Thoughts before an answer, `<think>…</think> <answer>…</answer>`, and where in such a text the answer is."""

from __future__ import annotations

import re
from typing import NamedTuple

_FORM = re.compile(  # possessive, since a model that runs on may write thousands of blanks
    r"(?:(?:<think>)?(?:(?!</?think>).)*+</think>\s*+)?<answer>(?:(?!</?(?:think|answer)>).)*+(?:</answer>)?", re.DOTALL
)


class Said(NamedTuple):
    """`text` is where the answer is to be looked for; nothing is there if all may be thought. `exact` says that the
    form was kept, as far as it was asked for."""

    thought: str
    text: str
    exact: bool


def read_said(text: str, *, tagged: bool, truncated: bool) -> Said:
    """What is said after `</think>`, and where `tagged` between `<answer>` and `</answer>`; the thought beside it.

    Nothing in a thought is an answer. One that was not closed says nothing, and since templates may open it, neither
    does what lacks both `</think>` and `<answer>`, or lacks `</think>` and ran into the limit. The papers' patterns,
    which reward training, match the whole form and take the first answer; here, as no repair, the thought may lack
    (an engine may keep it to itself) and so may `</answer>` (generation stops there); and, as a repair, there may be
    words beside the tags, and no `<answer>` after `</think>`. Two answers that differ say nothing.

    >>> read_said("<think>[1]?</think> <answer>[3]</answer>", tagged=True, truncated=False)
    Said(thought='[1]?', text='[3]', exact=True)
    >>> read_said("<think>[1]? <answer>[3]</answer>", tagged=True, truncated=True)
    Said(thought='[1]? <answer>[3]</answer>', text='', exact=False)
    """
    head, closed, said = text.rpartition("</think>")
    said, opened, broken_off = said.partition("<think>")
    before, begun, inner = head.partition("<think>")
    thought = broken_off if opened and not closed else inner if begun else before
    if not tagged:
        return Said(thought, said, True)
    answers = {part.partition("</answer>")[0].strip() for part in said.split("<answer>")[1:]}
    if len(answers) > 1 or not (closed or (answers and not truncated)):
        said = ""
    elif answers:
        said = answers.pop()
    return Said(thought, said, _FORM.fullmatch(text.strip()) is not None)
