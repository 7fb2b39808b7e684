"""Attention on a CPU, a block of queries at a time, over the keys that the block can see and no others; causal or not.

Batched matrix products of plain PyTorch, which on some processors are faster than its fused attention kernel. Blocks
let causal order, windows and the borders of packed documents save the work outside them. Probabilities are computed
again in the backward pass, so that memory grows with the length and not with its square.

Shapes: B batch, N query heads, K key-value heads, G = N / K, T query tokens, S key tokens, H width of a head, t tokens
of a block, s its keys.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.models.dtypes import sum_dtype

_BLOCK = 128  # queries: products are large enough to be fast, and little is computed above the diagonal


@dataclass(frozen=True)
class _Block:
    """Queries `start:stop` of rows `rows` see keys `first:last`, but for what `mask` (added to the last scores) takes
    away; None if it takes nothing.
    """

    rows: slice
    start: int
    stop: int
    first: int
    last: int
    mask_ts: Tensor | None


def blocked_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor | None,
    stops: Tensor | None,
    causal: bool,
    soft_cap: float | None,
) -> Tensor:
    """What each head gathers, [B, T, N, H]; arguments as those of `cpu_attention`."""
    batch, heads, length, width = q.shape
    k, v = k.contiguous(), v.contiguous()
    out = q.new_empty(batch, length, heads, width)
    for block in _plan(q, k, starts, stops, causal):
        queries, keys, values = _operands(q, k, v, block)
        gathered = torch.bmm(_probabilities(queries, keys, block, soft_cap)[0], values)
        target = _per_group(out, block, k.shape[1])
        target.copy_(gathered.view(target.shape[0], target.shape[1], target.shape[2], -1, width))
    return out


def blocked_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor | None,
    stops: Tensor | None,
    causal: bool,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values, from that of what `blocked_forward` gave."""
    width, kv_heads = q.shape[-1], k.shape[1]
    k, v = k.contiguous(), v.contiguous()
    grad_q = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
    # a key is seen from many blocks: sums of so many terms are kept in fp32
    grad_k, grad_v = (torch.zeros_like(x, dtype=sum_dtype(x)) for x in (k, v))
    grad_heads = grad_q.unflatten(1, (kv_heads, -1))
    for block in _plan(q, k, starts, stops, causal):
        queries, keys, values = _operands(q, k, v, block)
        grads = _per_group(grad, block, kv_heads).reshape(queries.shape)
        probabilities, slopes = _probabilities(queries, keys, block, soft_cap)
        seen = (block.rows, slice(None), slice(block.first, block.last))
        grad_v[seen].flatten(0, 1).add_(torch.bmm(probabilities.transpose(1, 2), grads))
        grad_scores = torch.bmm(grads, values.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_scores, probabilities, -1, q.dtype)
        if slopes is not None:
            grad_scores = grad_scores.mul_(slopes)
        grad_k[seen].flatten(0, 1).add_(torch.bmm(grad_scores.transpose(1, 2), queries))
        target = grad_heads[block.rows, :, :, block.start : block.stop]
        torch.mul(torch.bmm(grad_scores, keys).view(target.shape), width**-0.5, out=target)
    return grad_q, in_layout_of_projections(grad_k, k.dtype), in_layout_of_projections(grad_v, v.dtype)


def in_layout_of_projections(x_BKSH: Tensor, dtype: torch.dtype) -> Tensor:
    """The same with the numbers of a token side by side, as the projection that reads a gradient next wants them."""
    room = torch.empty_like(x_BKSH.transpose(1, 2), dtype=dtype, memory_format=torch.contiguous_format)
    return room.copy_(x_BKSH.transpose(1, 2)).transpose(1, 2)


def _operands(q: Tensor, k: Tensor, v: Tensor, block: _Block) -> tuple[Tensor, Tensor, Tensor]:
    """A block's scaled queries [bK, G t, H], keys and values [bK, s, H]; the heads of a group share a product."""
    queries = q[block.rows, :, block.start : block.stop] * q.shape[-1] ** -0.5
    queries = queries.reshape(-1, q.shape[1] // k.shape[1] * (block.stop - block.start), q.shape[-1])
    seen = (block.rows, slice(None), slice(block.first, block.last))
    return queries, k[seen].flatten(0, 1), v[seen].flatten(0, 1)


def _probabilities(
    queries: Tensor, keys: Tensor, block: _Block, soft_cap: float | None
) -> tuple[Tensor, Tensor | None]:
    """The probabilities [bK, G t, s], and the slopes of capped scores, 1 - tanh^2, None without a cap."""
    scores, slopes = torch.bmm(queries, keys.transpose(1, 2)), None
    if soft_cap is not None:
        bent = scores.div_(soft_cap).tanh_()
        slopes, scores = 1 - bent.square(), bent * soft_cap
    if block.mask_ts is not None:
        tokens, masked = block.mask_ts.shape
        scores.view(scores.shape[0], -1, tokens, scores.shape[-1])[..., -masked:].add_(block.mask_ts)
    return scores.softmax(-1), slopes  # in bf16 too, the kernel sums in fp32


def _per_group(x_BTNH: Tensor, block: _Block, kv_heads: int) -> Tensor:
    """The rows and tokens of a block, [b, K, G, t, H]."""
    return x_BTNH[block.rows, block.start : block.stop].unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)


_PLANS = 2  # of layers with and without a sliding window
_last_plans: list[tuple[weakref.ref[Tensor], tuple[object, ...], list[_Block]]] = []


def _plan(q: Tensor, k: Tensor, starts: Tensor | None, stops: Tensor | None, causal: bool) -> list[_Block]:
    """The blocks of one forward pass; its layers of a kind share the tensor `starts`, so the last plans are kept."""
    batch, length, num_keys = q.shape[0], q.shape[2], k.shape[2]
    make = _causal_blocks if causal else _run_blocks
    if starts is None:
        return list(make(slice(0, batch), [0] * length, [num_keys] * length, num_keys - length, q))
    key = (batch, num_keys - length, q.dtype, q.device, causal)
    for known, made_for, blocks in _last_plans:
        if known() is starts and made_for == key:
            return blocks
    first = starts.tolist()
    last = first if stops is None else stops.tolist()
    rows = list(zip(first, last, strict=True))
    if all(row == rows[0] for row in rows[1:]):  # rows that are cut alike are computed together
        blocks = list(make(slice(0, batch), *rows[0], num_keys - length, q))
    else:
        blocks = [
            block
            for index, row in enumerate(rows)
            for block in make(slice(index, index + 1), *row, num_keys - length, q)
        ]
    _last_plans.insert(0, (weakref.ref(starts), key, blocks))
    del _last_plans[_PLANS:]
    return blocks


def _causal_blocks(rows: slice, starts: list[int], _: list[int], offset: int, like: Tensor) -> Iterator[_Block]:
    for start in range(0, len(starts), _BLOCK):
        stop = min(start + _BLOCK, len(starts))
        first, last = starts[start], offset + stop
        if starts[stop - 1] == first:  # one document: only the causal triangle is masked
            mask = _triangle(stop - start, like)
        else:
            keys = torch.arange(first, last, device=like.device)
            hidden = (keys > torch.arange(offset + start, last, device=like.device)[:, None]) | (
                keys < torch.tensor(starts[start:stop], device=like.device)[:, None]
            )
            mask = _hiding(hidden, like)
        yield _Block(rows, start, stop, first, last, mask)


def _run_blocks(rows: slice, starts: list[int], stops: list[int], _: int, like: Tensor) -> Iterator[_Block]:
    for start in range(0, len(starts), _BLOCK):
        stop = min(start + _BLOCK, len(starts))
        first, last = starts[start], stops[stop - 1]
        mask = None
        if starts[stop - 1] != first:  # several documents
            keys = torch.arange(first, last, device=like.device)
            hidden = (keys < torch.tensor(starts[start:stop], device=like.device)[:, None]) | (
                keys >= torch.tensor(stops[start:stop], device=like.device)[:, None]
            )
            mask = _hiding(hidden, like)
        yield _Block(rows, start, stop, first, last, mask)


def _hiding(hidden: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))


def _triangle(size: int, like: Tensor) -> Tensor:
    return torch.full((size, size), float("-inf"), dtype=like.dtype, device=like.device).triu_(1)
