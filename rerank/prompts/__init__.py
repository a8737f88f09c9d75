r"""Prompts are versioned data: a YAML file says the messages, the answer's first words, and how it is read.

    name: pointwise-yes-no
    version: 1
    source: where it comes from
    answer: {kind: binary, positive: "Yes", negative: "No"}
    messages:
      - {role: user, content: "Query: {query}\nPassage: {passage}"}
    prefix: ""

Placeholders: `{query}`; `{passage}` in a pointwise prompt; in a listwise prompt `{count}`, and a block
`each:` of messages repeated for every passage, or `{passages}` with `each_passage:`, both of which know
`{label}` and `{passage}`; in one whose answer is a permutation `{top}`, how many of the best are asked for, or of
the least relevant where the answer says `least_first: true`; in one that grades each of several passages `{asked}`,
the label of the one in question; `{instruction}` in one that has an `instruction`, which a user may replace.

`messages` are put into the model's own chat template. A model that was released with a form of its own is asked in it,
whatever its tokenizer's template is: `pieces` in place of `messages` are the whole prompt, control tokens included,
each tokenised by itself as such models' own code does, with `special_tokens: true` between the tokens that the
tokenizer puts around a text.

    answer: {kind: binary, positive: "yes", negative: "no"}
    pieces:
      - "<|im_start|>user\n"
      - "<Query>: {query}\n<Document>: {passage}"
      - "<|im_end|>\n<|im_start|>assistant\n"

Braces are doubled to stand for themselves. There is no code in a prompt. A changed prompt is a new version; the
same file serves inference and training.
"""

from __future__ import annotations

from rerank.prompts.prompt import Prompt, list_prompts, load_prompt

__all__ = ["Prompt", "list_prompts", "load_prompt"]
