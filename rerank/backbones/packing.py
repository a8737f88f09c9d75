"""Many sequences as one: no padding, and what sequences begin with in common is there once.

A pack lays the tokens of N sequences in one row of T. In lexicographic order each sequence adds only the tokens
after the prefix that it shares with the one before it, so that the pack is their trie. Everything that a model does
token by token sees `[1, T]`; only attention must know who may look at whom, and it is told here: `attention` is
registered with transformers under `NAME` and is handed the pack through the model's keyword arguments. Nothing is
cached and nothing is copied but the keys and values that a block of sequences looks at.

Shapes: `h` query heads, `g` key heads, `d` a head's width; a block has `B` sequences of at most `q` own tokens and at
most `k` tokens in all.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rerank.backbones.base import common_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)

NAME = "rerank_packed"
_CHUNK = {"cpu": 2**16}  # queries x keys of one head computed together: on a CPU they stay in a core's cache
_LARGE = 2**23  # elsewhere: few kernels, each with enough to do
_WASTE = {"cpu": 1.15}  # how much larger than its content a block may be by padding
_LOOSE = 2.0  # elsewhere: attention is the lesser part, and each block more is a dozen kernels more in every layer
_WORTH = 8  # a prefix is shared from an eighth of the sequence on: below, plain causal attention gains more
_LONG = 1024  # keys from which torch's kernel beats matrix products on a CPU in bfloat16

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Queries `[start, end)` of every sequence of a block; they see the first `low` keys, none from `reach` on, and
    what `mask` `[B, 1, end - start, reach - low]` (0 or -inf) leaves between."""

    start: int
    end: int
    low: int
    reach: int
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """Sequences whose attention is computed at once: `size` = (B, q, k). What is short is padded with any row."""

    size: tuple[int, int, int]
    first: Tensor  # [B], the position of each one's first own token
    chunks: tuple[Chunk, ...]  # for matrix products; none where torch's kernel is faster
    alone: bool  # no sequence looks at another's rows


@dataclass(frozen=True, slots=True)
class Pack:
    """`ids` and `positions` are `[1, T]`; `rows` has, for each sequence in the given order, its tokens' rows.

    The blocks' query rows stand in a row in `queries` `[sum of B * q]`, their key rows in `keys` `[sum of B * k]`;
    `back` `[T]` says where among the queries each row of the pack is.
    """

    ids: Tensor
    positions: Tensor
    rows: tuple[Tensor, ...]
    blocks: tuple[Block, ...]
    queries: Tensor
    keys: Tensor
    back: Tensor


def offer(model: PreTrainedModel) -> None:
    """Makes this attention the model's, where it lets its attention be chosen; without a pack it is torch's own."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if model.config._attn_implementation == "sdpa":
        try:
            model.set_attn_implementation(NAME)
        except ValueError as error:
            _log.debug("no packed attention for %s: %s", type(model).__name__, error)


def shared(before: Ids, after: Ids) -> int:
    """How many tokens `after` takes over from `before`; 0 where it is not worth it.

    >>> shared((1, 2, 3), (1, 2, 4, 5)), shared((1, 2), tuple(range(1, 40)))
    (2, 0)
    """
    common = common_prefix(before, after)
    return common if common * _WORTH >= len(after) else 0


def by_prefix(sequences: Sequence[Ids], budget: int | None, *, share: bool = True) -> list[list[int]]:
    """Batches of at most `budget` tokens, what is shared counted once, of neighbours in lexicographic order."""
    batches: list[list[int]] = []
    used, before = 0, None
    for i in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        own = len(sequences[i]) - (shared(before, sequences[i]) if share and before is not None else 0)
        if before is None or (budget is not None and used + own > budget):
            batches.append([])
            used, own = 0, len(sequences[i])
        batches[-1].append(i)
        used, before = used + own, sequences[i]
    return batches


def pack(sequences: Sequence[Ids], *, device: torch.device, dtype: torch.dtype, share: bool = True) -> Pack:
    """Lays the sequences together, with `share` as a trie. `dtype` is the model's, for the masks."""
    ids: list[int] = []
    positions: list[int] = []
    rows: list[list[int]] = [[] for _ in sequences]
    own: list[tuple[int, int, int]] = []  # tokens of its own, tokens in all, which
    before: int | None = None
    for i in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        sequence = sequences[i]
        common = 0 if before is None or not share else shared(sequences[before], sequence)
        rows[i] = [
            *(rows[before][:common] if before is not None else ()),
            *range(len(ids), len(ids) + len(sequence) - common),
        ]
        ids += sequence[common:]
        positions += range(common, len(sequence))
        if len(sequence) > common:
            own.append((len(sequence) - common, len(sequence), i))
        before = i
    groups = _groups(sorted(own), _CHUNK.get(device.type, _LARGE), _WASTE.get(device.type, _LOOSE))
    queries: list[int] = []
    keys: list[int] = []
    back = [0] * len(ids)
    for group in groups:
        longest, reach = max(item[0] for item in group), max(item[1] for item in group)
        for count, length, i in group:
            mine = rows[i][length - count :]
            for offset, row in enumerate(mine, start=len(queries)):
                back[row] = offset
            queries += mine + [mine[-1]] * (longest - count)
            keys += rows[i] + [mine[-1]] * (reach - length)
    return Pack(
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        tuple(torch.tensor(r, device=device) for r in rows),
        tuple(_block(group, device, dtype) for group in groups),
        torch.tensor(queries, device=device),
        torch.tensor(keys, device=device),
        torch.tensor(back, device=device),
    )


def _groups(own: Sequence[tuple[int, int, int]], chunk: int, waste: float) -> list[list[tuple[int, int, int]]]:
    """Sequences of about the same size together, as many as a chunk holds."""
    groups: list[list[tuple[int, int, int]]] = []
    real = 0
    longest = 0
    for item in own:
        q, k, _ = item
        area, top = q * k, max(longest, k)
        padded = q * top * (len(groups[-1]) + 1) if groups else 0
        if groups and padded <= min(waste * (real + area), max(chunk, q * top)):
            groups[-1].append(item)
            real, longest = real + area, top
        else:
            groups.append([item])
            real, longest = area, k
    return groups


def _block(group: Sequence[tuple[int, int, int]], device: torch.device, dtype: torch.dtype) -> Block:
    q, k = max(item[0] for item in group), max(item[1] for item in group)
    first = torch.tensor([length - own for own, length, _ in group])
    alone = not first.any()  # known once, here: asked of a GPU in every layer it would wait for it
    chunks = _chunks(first, q, k, dtype) if _products_win(device, dtype, k, alone) else ()
    return Block((len(group), q, k), first.to(device), chunks, alone)


def _products_win(device: torch.device, dtype: torch.dtype, keys: int, alone: bool) -> bool:
    """Whether matrix products beat torch's own kernel."""
    return device.type == "cpu" and dtype == torch.bfloat16 and (keys < _LONG or not alone)


def _chunks(first: Tensor, q: int, k: int, dtype: torch.dtype) -> tuple[Chunk, ...]:
    chunks = []
    start = 0
    while start < q:
        seen = int(first.max()) + start
        step = (math.isqrt(seen * seen + 4 * _CHUNK["cpu"] // len(first)) - seen) // 2  # step * (seen + step) = chunk
        end = min(q, start + max(32, step))
        low, reach = int(first.min()) + start, min(k, int(first.max()) + end)
        position = first[:, None, None] + torch.arange(start, end)[:, None]  # [B, end - start, 1]
        hidden = torch.arange(low, reach) > position
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -math.inf)[:, None]
        chunks.append(Chunk(start, end, low, reach, mask))
        start = end
    return tuple(chunks)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the pack shapes it anew every time
def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    pack: Pack | None = None,
    **options: object,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of the pack; transformers' own without one.

    `query` is `[1, h, T, d]`, `key` and `value` `[1, g, T, d]`; returns `[1, T, h, d]`.
    """
    if pack is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        own: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return own
    for name in ("softcap", "s_aux"):
        if options.get(name) is not None:
            raise NotImplementedError(f"packed attention has no {name}")
    scaling = options.get("scaling")
    scale = scaling if isinstance(scaling, float) else query.shape[-1] ** -0.5
    q, k, v = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)  # [T, heads, d]
    sizes = [block.size for block in pack.blocks]
    window = options.get("sliding_window")
    if isinstance(window, int) and any(window < reach for _, _, reach in sizes):
        raise NotImplementedError("packed attention has no sliding window")
    # one gather for all blocks and one back: a gather's gradient is as large as what it gathers from
    asked, shown = ([b * n for b, n, _ in sizes], [b * n for b, _, n in sizes])
    asks = torch.split(q.index_select(0, pack.queries), asked)
    offers, gives = (torch.split(part.index_select(0, pack.keys), shown) for part in (k, v))
    found = []
    for block, ask, offer, give in zip(pack.blocks, asks, offers, gives, strict=True):
        compute = _by_products if block.chunks else _fused
        mine, theirs, values = (
            part.reshape(block.size[0], -1, *part.shape[1:]).transpose(1, 2) for part in (ask, offer, give)
        )
        found.append(compute(mine, theirs, values, block, scale).transpose(1, 2).flatten(0, 1))
    return torch.cat(found).index_select(0, pack.back)[None], None


def _fused(q: Tensor, k: Tensor, v: Tensor, block: Block, scale: float) -> Tensor:
    """torch's kernel: `[B, h, q, d]`."""
    if block.alone:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    position = block.first[:, None] + torch.arange(q.shape[2], device=q.device)
    visible = torch.arange(k.shape[2], device=q.device) <= position[:, None, :, None]
    if q.device.type != "cpu":  # no kernel there takes a mask and shared key heads
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, enable_gqa=q.device.type == "cpu")


def _by_products(q: Tensor, k: Tensor, v: Tensor, block: Block, scale: float) -> Tensor:
    """Matrix products and a softmax, chunk by chunk; query heads that share a key head are rows of one product."""
    b, h, length, d = q.shape
    g = k.shape[1]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    q = (q * scale).reshape(b * g, h // g, length, d)
    k = k.reshape(b * g, -1, d).transpose(1, 2)
    v = v.reshape(b * g, -1, d)
    for chunk in block.chunks:
        size = chunk.end - chunk.start
        scores = torch.bmm(q[:, :, chunk.start : chunk.end].reshape(b * g, -1, d), k[:, :, : chunk.reach])
        scores.view(b, h, size, -1)[..., chunk.low :] += chunk.mask
        weights = torch.softmax(scores, -1)
        found = torch.bmm(weights, v[:, : chunk.reach])
        out[:, :, chunk.start : chunk.end] = found.view(b, h, size, d)
    return out
