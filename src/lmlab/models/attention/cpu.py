"""Attention on a CPU where each query sees one run of keys, by the way that is fastest on this machine.

`fused` calls PyTorch's kernel for each run of keys, `blocks` computes blocks of queries by plain products, and `mixed`
goes forward by the kernel and back in blocks. Which is fastest depends on the processor, the precision, the length of
the texts and on whether rows hold several (`lmlab.hardware.ways`). Windows and soft caps always take blocks.

Shapes: B batch, N query heads, K key-value heads, T query tokens, S key tokens, H width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lmlab.hardware import ways
from lmlab.models.attention.blocked import blocked_backward, blocked_forward
from lmlab.models.attention.fused import fused_backward, fused_forward, plan_runs
from lmlab.models.dtypes import sum_dtype

_BY_MACHINE = ""  # an operator's arguments have no None for a text


def cpu_attention(
    q_BNTH: Tensor,
    k_BKSH: Tensor,
    v_BKSH: Tensor,
    starts_BT: Tensor | None,
    stops_BT: Tensor | None = None,
    *,
    causal: bool = True,
    soft_cap: float | None = None,
    way: str | None = None,
) -> Tensor:
    """Attention of each query over one run of keys.

    Arguments:
        q_BNTH: queries, [B, N, T, H]; the last T of S tokens.
        k_BKSH, v_BKSH: keys and values, [B, K, S, H], N a multiple of K.
        starts_BT: first visible key of each query, [B, T], or [1, T] for all rows; None for 0.
        stops_BT: without causal order, the key after the last visible one; None for S. Runs do not overlap.
        causal: a query sees no key after its own.
        soft_cap: c, where scores x become c tanh(x / c).
        way: `fused`, `mixed` or `blocks`, where it can be; None for the one that is in force.

    Returns:
        what each head gathers, [B, T, N, H].
    """
    # told to the operator, so that both passes compute in one way; while a graph is compiled, runs are not known yet
    if not torch.compiler.is_compiling():
        way = _choose(q_BNTH, k_BKSH, starts_BT, stops_BT, causal, soft_cap, way)
        alone = not causal or q_BNTH.shape[2] == k_BKSH.shape[2]
        if way == "fused" and starts_BT is None and alone:  # one call, without what an operator of ours costs
            grouped = q_BNTH.shape[1] != k_BKSH.shape[1]
            return F.scaled_dot_product_attention(
                q_BNTH, k_BKSH, v_BKSH, is_causal=causal, enable_gqa=grouped
            ).transpose(1, 2)
    out: Tensor
    out, _ = _attention(q_BNTH, k_BKSH, v_BKSH, starts_BT, stops_BT, causal, soft_cap, way or _BY_MACHINE)
    return out


def _choose(
    q: Tensor,
    k: Tensor,
    starts: Tensor | None,
    stops: Tensor | None,
    causal: bool,
    soft_cap: float | None,
    way: str | None,
) -> str:
    if way == "blocks" or soft_cap is not None:
        return "blocks"
    plan = plan_runs(q.shape[0], q.shape[2], k.shape[2], starts, stops, causal)
    if plan is None:
        return "blocks"
    kind = "packed" if plan.packed else "one"
    return way or ways.way(f"attention {ways.PRECISIONS[q.dtype]} {kind} {ways.length_class(plan.mean)}")


@torch.library.custom_op("lmlab::attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor | None,
    stops: Tensor | None,
    causal: bool,
    soft_cap: float | None,
    way: str,
) -> tuple[Tensor, Tensor]:
    """What heads gather, and the logarithms of the softmax's denominators where the backward pass needs them."""
    way = _choose(q, k, starts, stops, causal, soft_cap, way or None)
    lse = q.new_empty(q.shape[:3], dtype=sum_dtype(q))
    if way == "blocks":
        return blocked_forward(q, k, v, starts, stops, causal, soft_cap), lse
    plan = plan_runs(q.shape[0], q.shape[2], k.shape[2], starts, stops, causal)
    assert plan is not None
    return fused_forward(q, k, v, plan, lse), lse


@_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor | None,
    stops: Tensor | None,
    causal: bool,
    soft_cap: float | None,
    way: str,
) -> tuple[Tensor, Tensor]:
    out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3])
    return out, q.new_empty(q.shape[:3], dtype=sum_dtype(q))


@torch.library.custom_op("lmlab::attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor | None,
    stops: Tensor | None,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    soft_cap: float | None,
    way: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if _choose(q, k, starts, stops, causal, soft_cap, way or None) != "fused":
        return blocked_backward(grad, q, k, v, starts, stops, causal, soft_cap)
    plan = plan_runs(q.shape[0], q.shape[2], k.shape[2], starts, stops, causal)
    assert plan is not None
    return fused_backward(grad, q, k, v, out, lse, plan)


@_attention_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor | None,
    stops: Tensor | None,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    soft_cap: float | None,
    way: str,
) -> tuple[Tensor, Tensor, Tensor]:
    def room(x: Tensor) -> Tensor:
        return torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)

    return room(q), room(k), room(v)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, starts, stops, ctx.causal, ctx.soft_cap, ctx.way = inputs
    # blocks compute everything again; what the kernel needs of its own is what the next layer keeps too
    ctx.save_for_backward(q, k, v, starts, stops, *((None, None) if ctx.way in ("blocks", "mixed") else output))


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    q, k, v, starts, stops, out, lse = ctx.saved_tensors
    if out is None:
        out = lse = q.new_empty(0)
    found = _attention_backward(grad, q, k, v, starts, stops, out, lse, ctx.causal, ctx.soft_cap, ctx.way)
    return *found, None, None, None, None, None


_attention.register_autograd(_backward, setup_context=_save)
