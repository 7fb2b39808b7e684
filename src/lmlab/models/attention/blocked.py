"""Attention on a CPU, a block of queries at a time, over the keys that the block can see and no others.

On CPUs the batched matrix products of plain PyTorch are faster than its fused attention kernel, forward and backward,
and blocks let causal order and the borders of packed documents save the work outside them. Probabilities are computed
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

_BLOCK = 128


@dataclass(frozen=True)
class _Block:
    """Queries `start:stop` of rows `rows` see keys `first:last`, but for what `mask` (added to the last scores) takes
    away.
    """

    rows: slice
    start: int
    stop: int
    first: int
    last: int
    mask_ts: Tensor


def blocked_attention(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, starts_BT: Tensor | None) -> Tensor:
    """Causal attention from each query's first visible key.

    Arguments:
        q_BNTH: queries, [B, N, T, H]; the last T of S tokens.
        k_BKSH, v_BKSH: keys and values, [B, K, S, H], N a multiple of K.
        starts_BT: first visible key of each query, None for 0.

    Returns:
        what each head gathers, [B, T, N, H].
    """
    out: Tensor = _attention(q_BNTH, k_BKSH, v_BKSH, starts_BT)
    return out


@torch.library.custom_op("lmlab::blocked_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> Tensor:
    batch, heads, length, width = q.shape
    k, v = k.contiguous(), v.contiguous()
    out = q.new_empty(batch, length, heads, width)
    for block in _plan(q, k, starts):
        queries, keys, values = _operands(q, k, v, block)
        gathered = torch.bmm(_probabilities(queries, keys, block), values)
        target = _per_group(out, block, k.shape[1])
        target.copy_(gathered.view(target.shape[0], target.shape[1], target.shape[2], -1, width))
    return out


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3])


@torch.library.custom_op("lmlab::blocked_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    width, kv_heads = q.shape[-1], k.shape[1]
    k, v = k.contiguous(), v.contiguous()
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    grad_k, grad_v = (torch.zeros_like(x, dtype=sum_dtype(x)) for x in (k, v))
    grad_heads = grad_q.unflatten(1, (kv_heads, -1))
    for block in _plan(q, k, starts):
        queries, keys, values = _operands(q, k, v, block)
        grads = _per_group(grad, block, kv_heads).reshape(queries.shape)
        probabilities = _probabilities(queries, keys, block)
        seen = (block.rows, slice(None), slice(block.first, block.last))
        grad_v[seen].flatten(0, 1).add_(torch.bmm(probabilities.transpose(1, 2), grads))
        grad_scores = torch.bmm(grads, values.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_scores, probabilities, -1, q.dtype)
        grad_k[seen].flatten(0, 1).add_(torch.bmm(grad_scores.transpose(1, 2), queries))
        target = grad_heads[block.rows, :, :, block.start : block.stop]
        torch.mul(torch.bmm(grad_scores, keys).view(target.shape), width**-0.5, out=target)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


@_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(q, memory_format=torch.contiguous_format),
        torch.empty_like(k, memory_format=torch.contiguous_format),
        torch.empty_like(v, memory_format=torch.contiguous_format),
    )


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    return *_attention_backward(grad, *ctx.saved_tensors), None


_attention.register_autograd(_backward, setup_context=_save)


def _operands(q: Tensor, k: Tensor, v: Tensor, block: _Block) -> tuple[Tensor, Tensor, Tensor]:
    """A block's scaled queries [bK, G t, H], keys and values [bK, s, H]; the heads of a group share a product."""
    queries = q[block.rows, :, block.start : block.stop] * q.shape[-1] ** -0.5
    queries = queries.reshape(-1, q.shape[1] // k.shape[1] * (block.stop - block.start), q.shape[-1])
    seen = (block.rows, slice(None), slice(block.first, block.last))
    return queries, k[seen].flatten(0, 1), v[seen].flatten(0, 1)


def _probabilities(queries: Tensor, keys: Tensor, block: _Block) -> Tensor:
    scores = torch.bmm(queries, keys.transpose(1, 2))
    tokens, masked = block.mask_ts.shape
    scores.view(scores.shape[0], -1, tokens, scores.shape[-1])[..., -masked:].add_(block.mask_ts)
    return scores.softmax(-1)  # in bf16 too, the kernel sums in fp32


def _per_group(x_BTNH: Tensor, block: _Block, kv_heads: int) -> Tensor:
    """The rows and tokens of a block, [b, K, G, t, H]."""
    return x_BTNH[block.rows, block.start : block.stop].unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)


_last_plan: tuple[weakref.ref[Tensor], tuple[object, ...], list[_Block]] | None = None


def _plan(q: Tensor, k: Tensor, starts: Tensor | None) -> list[_Block]:
    """The blocks of one forward pass; all its layers share the tensor `starts`, so the last plan is kept."""
    global _last_plan
    batch, length, offset = q.shape[0], q.shape[2], k.shape[2] - q.shape[2]
    if starts is None:
        return [block for block in _row_blocks(slice(0, batch), [0] * length, offset, q)]
    key = (offset, q.dtype, q.device)
    if _last_plan is not None and _last_plan[0]() is starts and _last_plan[1] == key:
        return _last_plan[2]
    rows = starts.tolist()
    if len(rows) == 1 or all(row == rows[0] for row in rows[1:]):
        blocks = list(_row_blocks(slice(0, batch), rows[0], offset, q))
    else:
        blocks = [
            block for index, row in enumerate(rows) for block in _row_blocks(slice(index, index + 1), row, offset, q)
        ]
    _last_plan = (weakref.ref(starts), key, blocks)
    return blocks


def _row_blocks(rows: slice, starts: list[int], offset: int, like: Tensor) -> Iterator[_Block]:
    dtype, device = like.dtype, like.device
    for start in range(0, len(starts), _BLOCK):
        stop = min(start + _BLOCK, len(starts))
        first, last = starts[start], offset + stop
        if starts[stop - 1] == first:  # one document: only the causal triangle is masked
            mask = _triangle(stop - start, like)
        else:
            keys = torch.arange(first, last, device=device)
            hidden = (keys > torch.arange(offset + start, last, device=device)[:, None]) | (
                keys < torch.tensor(starts[start:stop], device=device)[:, None]
            )
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
        yield _Block(rows, start, stop, first, last, mask)


def _triangle(size: int, like: Tensor) -> Tensor:
    return torch.full((size, size), float("-inf"), dtype=like.dtype, device=like.device).triu_(1)
