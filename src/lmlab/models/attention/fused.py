"""Attention on a CPU by PyTorch's fused kernel, a call for each run of keys, without a mask.

The kernel knows causal order from the first key on, and no borders of documents. Both are had by calling it for parts:
packed documents each by itself, and new tokens behind a cache once on what came before and once on themselves, put
together by the sums that the kernel gives with its result.

Shapes: B batch, N query heads, K key-value heads, T query tokens, S key tokens, H width of a head.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.models.dtypes import sum_dtype

_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_PLANS = 2  # the latest alone: layers of one pass share a plan, and the next pass makes its own


@dataclass(frozen=True)
class Run:
    """Queries `start:stop` of rows `rows` see the keys `first:last`; if `causal`, no key after their own, and both are
    the same tokens.
    """

    rows: slice
    start: int
    stop: int
    first: int
    last: int
    causal: bool


@dataclass(frozen=True)
class Plan:
    """The calls of one pass.

    Attributes:
        earlier: those on keys before the queries' own.
        runs: those on the queries' own keys; together they cover all queries.
        mean: tokens of a run.
        packed: whether rows hold several runs.
    """

    earlier: list[Run]
    runs: list[Run]
    mean: float
    packed: bool


def fused_forward(q: Tensor, k: Tensor, v: Tensor, plan: Plan, lse_BNT: Tensor) -> Tensor:
    """What each head gathers, [B, T, N, H]; `lse_BNT` receives the logarithms of the softmax's denominators."""
    batch, heads, length, width = q.shape
    out = q.new_empty(batch, length, heads, width)
    for run in plan.runs:
        queries, keys = _tokens(run.rows, run.start, run.stop), _tokens(run.rows, run.first, run.last)
        gathered, lse = _kernel(q[queries], k[keys], v[keys], 0.0, run.causal)
        if len(plan.runs) == 1 and not plan.earlier:
            lse_BNT.copy_(lse)
            return gathered.transpose(1, 2).contiguous()
        out[run.rows, run.start : run.stop] = gathered.transpose(1, 2)
        lse_BNT[queries] = lse
    for run in plan.earlier:
        queries, keys = _tokens(run.rows, run.start, run.stop), _tokens(run.rows, run.first, run.last)
        gathered, lse = _kernel(q[queries], k[keys], v[keys], 0.0, False)
        known, here = lse_BNT[queries], out[run.rows, run.start : run.stop]
        both = torch.logaddexp(known, lse)
        share = (lse - both).exp_().transpose(1, 2)[..., None]
        here.copy_(torch.lerp(here.to(share.dtype), gathered.transpose(1, 2).to(share.dtype), share))
        known.copy_(both)
    return out


def fused_backward(
    grad_BTNH: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BTNH: Tensor, lse_BNT: Tensor, plan: Plan
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values."""
    grad, out = grad_BTNH.transpose(1, 2), out_BTNH.transpose(1, 2)
    if len(plan.runs) == 1 and not plan.earlier:
        of_q, of_k, of_v = _kernel_backward(grad, q, k, v, out, lse_BNT, 0.0, plan.runs[0].causal)
        return _by_token(of_q), _by_token(of_k), _by_token(of_v)
    # in the layout of the projections, which read them next
    rooms = (torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format) for x in (q, k, v))
    grad_q, grad_k, grad_v = (x.transpose(1, 2) for x in rooms)
    if plan.earlier:  # whose queries have two gradients
        grad_q = torch.zeros_like(grad_q, dtype=sum_dtype(q))
    for run in (*plan.runs, *plan.earlier):
        queries, keys = _tokens(run.rows, run.start, run.stop), _tokens(run.rows, run.first, run.last)
        parts = (grad[queries], q[queries], k[keys], v[keys], out[queries], lse_BNT[queries].contiguous())
        of_q, of_k, of_v = _kernel_backward(*parts, 0.0, run.causal)
        if plan.earlier:
            grad_q[queries] += of_q
        else:
            grad_q[queries] = of_q
        grad_k[keys], grad_v[keys] = of_k, of_v
    return grad_q.to(q.dtype), grad_k, grad_v


def _by_token(x_BNTH: Tensor) -> Tensor:
    """The same in the layout of the projections."""
    return x_BNTH.transpose(1, 2).contiguous().transpose(1, 2)


def _tokens(rows: slice, start: int, stop: int) -> tuple[slice, slice, slice]:
    return rows, slice(None), slice(start, stop)


_last_plans: list[tuple[weakref.ref[Tensor], tuple[int, int, bool], Plan | None]] = []


def plan_runs(
    batch: int, length: int, num_keys: int, starts_BT: Tensor | None, stops_BT: Tensor | None, causal: bool
) -> Plan | None:
    """The calls that give this attention; None where keys do not come in runs that whole stretches of queries share, as
    with a sliding window.
    """
    if not length or not batch:
        return None
    if starts_BT is None:
        return _plain(batch, length, num_keys, causal)
    if length != num_keys:
        return None
    key = (batch, length, causal)
    for known, made_for, plan in _last_plans:  # the layers of a pass share the tensor
        if known() is starts_BT and made_for == key:
            return plan
    found = _of_documents(batch, length, starts_BT, stops_BT, causal)
    _last_plans.insert(0, (weakref.ref(starts_BT), key, found))
    del _last_plans[_PLANS:]
    return found


def _plain(batch: int, length: int, num_keys: int, causal: bool) -> Plan:
    rows, before = slice(0, batch), num_keys - length
    if not causal or length == 1 or not before:
        return Plan([], [Run(rows, 0, length, 0, num_keys, causal and length > 1)], num_keys, False)
    return Plan(
        [Run(rows, 0, length, 0, before, False)], [Run(rows, 0, length, before, num_keys, True)], num_keys, False
    )


def _of_documents(batch: int, length: int, starts_BT: Tensor, stops_BT: Tensor | None, causal: bool) -> Plan | None:
    index_T = torch.arange(length, device=starts_BT.device)
    first_BT = starts_BT == index_T
    # every token must see from where the last run began: a window begins anew with each token
    if not bool((starts_BT == torch.where(first_BT, index_T, 0).cummax(1).values).all()):
        return None
    rows_alike = len(starts_BT) == 1 or bool((starts_BT == starts_BT[:1]).all())
    borders = [row.nonzero().flatten().tolist() for row in (first_BT[:1] if rows_alike else first_BT)]
    if stops_BT is not None and not bool((stops_BT == _next_starts(first_BT)).all()):
        return None
    runs = []
    for index, row in enumerate(borders):
        rows = slice(0, batch) if rows_alike else slice(index, index + 1)
        for start, stop in zip(row, [*row[1:], length], strict=True):
            runs.append(Run(rows, start, stop, start, stop, causal))
    return Plan([], runs, length * len(borders) / len(runs), len(runs) > len(borders))


def _next_starts(first_BT: Tensor) -> Tensor:
    """Where the next run begins, or the row ends, [B, T]."""
    length = first_BT.shape[1]
    index_T = torch.arange(length, device=first_BT.device)
    later = torch.full_like(first_BT, length, dtype=torch.long)
    later[:, :-1] = torch.where(first_BT[:, 1:], index_T[1:], length)
    return later.flip(1).cummin(1).values.flip(1)
