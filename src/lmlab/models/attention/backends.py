"""The ways to compute attention. All give the same numbers; `attend` takes the fastest that fits, unless one is named.

- `sdpa`: PyTorch's `scaled_dot_product_attention`, with a dense mask where documents or padding ask for one
- `blocked`: blocks of queries on a CPU (`blocked.py`)
- `runs`: on a CPU, the fused kernel for each run of keys, or blocks, as is faster on this machine (`cpu.py`)
- `one query`: two products for the newest token of each row, on a CPU, or on a GPU behind a mask
- `flex`: FlexAttention, compiled, whose block mask skips the work across documents
- `varlen`: `torch.nn.attention.varlen`, documents as sequences of a flat batch; GPU, half precision

Shapes: B batch, T query tokens, S key tokens, N query heads, K key-value heads, G = N / K, H width of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lmlab.hardware import ways
from lmlab.models.attention.cpu import cpu_attention
from lmlab.models.attention.visibility import Visibility
from lmlab.models.dtypes import sum_dtype
from lmlab.models.layers.soft_cap import cap

varlen_attn: Callable[..., Any] | None = None
if torch.backends.cuda.is_built():  # it runs on GPUs alone, and its import takes all of PyTorch's compiler with it: 2 s
    from torch.nn.attention.varlen import varlen_attn

# its parameters differ between versions of PyTorch
_VARLEN_KNOWS = frozenset(inspect.signature(varlen_attn).parameters) if varlen_attn is not None else frozenset()

# for fewer queries PyTorch 2.11 takes another kernel, which does not compile for grouped heads in fp32
_SHORTEST_FLEX = 128
_FEW_QUERIES = 16  # of a draft, or of the end of a prompt
_FLEX_VARIANTS = 64  # far more than one process needs; PyTorch's own limit is 8

Backend = Literal["auto", "sdpa", "runs", "blocked", "one query", "flex", "varlen"]


class Attend(Protocol):
    """How queries meet keys: `attend`, or what stands in its place."""

    def __call__(
        self,
        q_BNTH: Tensor,
        k_BKSH: Tensor,
        v_BKSH: Tensor,
        visibility: Visibility,
        backend: Backend = "auto",
        soft_cap: float | None = None,
        /,
    ) -> Tensor:
        """What each head gathers, [B, T, N, H]."""
        ...


class Spread(Attend, Protocol):
    """Attention of a part of a text whose other parts stand elsewhere.

    Attributes:
        whole: what its queries see, in the place of what the part alone says.
    """

    whole: Visibility


def attend(
    q_BNTH: Tensor,
    k_BKSH: Tensor,
    v_BKSH: Tensor,
    visibility: Visibility,
    backend: Backend = "auto",
    soft_cap: float | None = None,
) -> Tensor:
    """What each head gathers.

    Arguments:
        q_BNTH: queries, [B, N, T, H].
        k_BKSH, v_BKSH: keys and values, [B, K, S, H].
        visibility: which keys each query sees.
        backend: how; `auto` chooses by device, type and visibility.
        soft_cap: c, where scores x become c tanh(x / c).

    Returns:
        [B, T, N, H].

    Raises:
        ValueError: the back end that was asked for cannot compute this.
    """
    if backend == "auto":
        backend = _choose(q_BNTH, visibility, soft_cap)
    if backend in ("runs", "blocked"):
        _refuse(visibility.is_dense, backend, "padding between tokens")
        return cpu_attention(
            q_BNTH,
            k_BKSH,
            v_BKSH,
            visibility.starts_BT,
            visibility.stops_BT,
            causal=visibility.causal,
            soft_cap=soft_cap,
            way="blocks" if backend == "blocked" else None,
        )
    if backend in ("varlen", "flex"):
        continues = visibility.num_queries != visibility.num_keys
        _refuse(visibility.is_dense or continues, backend, "padding between tokens, or a cache")
    if backend == "varlen":
        _refuse(soft_cap is not None, "varlen", "capped scores")
        return _varlen(q_BNTH, k_BKSH, v_BKSH, visibility)
    if backend == "flex":
        learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q_BNTH, k_BKSH, v_BKSH))
        _refuse(learns and q_BNTH.device.type == "cpu", "flex", "gradients on a CPU")
        return _flex(q_BNTH, k_BKSH, v_BKSH, visibility, soft_cap)
    if backend == "one query":
        gathered = one_query(q_BNTH, k_BKSH, v_BKSH, visibility, soft_cap)
        if q_BNTH.device.type == "cpu":
            # the fused kernel gives numbers for queries, or for keys, that are none
            wide = sum_dtype(q_BNTH)
            made_B = q_BNTH.sum((1, 2, 3), dtype=wide) + k_BKSH[:, :, -1].sum((1, 2), dtype=wide)
            if not bool(made_B.isfinite().all()):
                gathered[~made_B.isfinite()] = float("nan")
        return gathered
    if backend != "sdpa":
        raise ValueError(f"there is no attention back end '{backend}'; use 'sdpa'")
    if soft_cap is not None:  # PyTorch's attention has none
        return attend_with_pattern(q_BNTH, k_BKSH, v_BKSH, visibility, lambda pattern: pattern, soft_cap)
    return _sdpa(q_BNTH, k_BKSH, v_BKSH, visibility)


def attend_with_pattern(
    q_BNTH: Tensor,
    k_BKSH: Tensor,
    v_BKSH: Tensor,
    visibility: Visibility,
    listen: Callable[[Tensor], Tensor],
    soft_cap: float | None = None,
) -> Tensor:
    """As `attend`, by way of the explicit probabilities [B, N, T, S], which `listen` sees and may replace."""
    group = q_BNTH.shape[1] // k_BKSH.shape[1]
    k_BNSH, v_BNSH = k_BKSH.repeat_interleave(group, 1), v_BKSH.repeat_interleave(group, 1)
    scores = cap((q_BNTH @ k_BNSH.transpose(-1, -2)).to(sum_dtype(q_BNTH)) * q_BNTH.shape[-1] ** -0.5, soft_cap)
    pattern = listen(scores.masked_fill(~visibility.mask(q_BNTH.device), float("-inf")).softmax(-1))
    return (pattern.to(v_BNSH.dtype) @ v_BNSH).transpose(1, 2)


def attend_with_prefix(
    q_BNTH: Tensor,
    k_BKSH: Tensor,
    v_BKSH: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    visibility: Visibility,
    prefix_visible: Tensor | None,
    soft_cap: float | None = None,
) -> Tensor:
    """As `attend`, after a prefix that several rows share.

    Arguments:
        prefix_k, prefix_v: keys and values of the prefix, [P, K, L, H]; row r of the batch continues row r // (B / P).
        prefix_visible: which of its slots each query sees, [B or P, T or 1, L]; None if all.
    """
    batch, heads, length, width = q_BNTH.shape
    parents, kv_heads = prefix_k.shape[:2]
    wide = sum_dtype(q_BNTH)
    q = (q_BNTH * width**-0.5).reshape(parents, batch // parents, kv_heads, heads // kv_heads, length, width)
    shared = torch.einsum("pckgth,pksh->pckgts", q, prefix_k.to(q.dtype)).to(wide)
    shared = cap(shared, soft_cap)
    if prefix_visible is not None:
        seen = prefix_visible.reshape(parents, -1, *prefix_visible.shape[1:])
        shared = shared.masked_fill(~seen[:, :, None, None], float("-inf"))
    own = cap(torch.einsum("bkgth,bksh->bkgts", q.flatten(0, 1), k_BKSH).to(wide), soft_cap)
    own = own.masked_fill(~visibility.mask(q.device)[:, :, None], float("-inf")).reshape(*shared.shape[:-1], -1)
    top = torch.maximum(shared.amax(-1, keepdim=True), own.amax(-1, keepdim=True))
    shared, own = (shared - top).exp(), (own - top).exp()
    total = shared.sum(-1, keepdim=True) + own.sum(-1, keepdim=True)
    out = torch.einsum("pckgts,pksh->pckgth", shared.to(q.dtype), prefix_v.to(q.dtype)).to(wide)
    out = out + torch.einsum("bkgts,bksh->bkgth", own.to(q.dtype).flatten(0, 1), v_BKSH).reshape(out.shape)
    return (out / total).to(q.dtype).reshape(batch, heads, length, width).transpose(1, 2)


def _sdpa(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, visibility: Visibility) -> Tensor:
    if visibility.rows_are_one_document:
        visibility = Visibility(visibility.num_queries, visibility.num_keys, causal=visibility.causal)
    # without a mask PyTorch takes its fastest kernel; its own causal order counts from the first key, not from the last
    sees_all = visibility.is_plain and (not visibility.causal or visibility.num_queries == 1)
    triangle = visibility.is_plain and visibility.causal and visibility.num_queries == visibility.num_keys
    mask = None if sees_all or triangle else visibility.mask(q_BNTH.device)
    grouped = q_BNTH.shape[1] != k_BKSH.shape[1]
    out = F.scaled_dot_product_attention(
        q_BNTH, k_BKSH, v_BKSH, attn_mask=mask, is_causal=triangle and not sees_all, enable_gqa=grouped
    )
    return out.transpose(1, 2)


def one_query(q_BN1H: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, visibility: Visibility, soft_cap: float | None) -> Tensor:
    """As `attend`, for the newest token of each row, without gradients."""
    batch, heads, _, width = q_BN1H.shape
    if visibility.window is not None and visibility.unwindowed.is_plain:
        k_BKSH, v_BKSH = (x[:, :, -visibility.window :] for x in (k_BKSH, v_BKSH))  # the window and nothing else
        visibility = Visibility(1, k_BKSH.shape[2])
    kv_heads, slots = k_BKSH.shape[1:3]
    if q_BN1H.device.type == "cpu" and soft_cap is None:
        # the heads of a group read the same keys: as so many queries of one head they are PyTorch's fused kernel's
        mask = None if visibility.is_plain else visibility.mask(q_BN1H.device)
        if mask is not None and mask.shape[1] > 1:  # heads that see different keys, as in a memory
            mask = mask.reshape(len(mask), kv_heads, -1, slots)
        grouped_BKGH = q_BN1H.reshape(batch, kv_heads, -1, width)
        if heads == kv_heads and grouped_BKGH.dtype == torch.bfloat16 and ways.way("query bf16") == "twice":
            # of a single query the kernel makes products of a vector, which can take longer than those of two
            twice_BK2H = torch.cat((grouped_BKGH, grouped_BKGH), 2)
            out_BK1H = F.scaled_dot_product_attention(twice_BK2H, k_BKSH, v_BKSH, attn_mask=mask)[:, :, :1]
            return out_BK1H.reshape(batch, 1, heads, width)
        return F.scaled_dot_product_attention(grouped_BKGH, k_BKSH, v_BKSH, attn_mask=mask).view(batch, 1, heads, width)
    queries = (q_BN1H * width**-0.5).reshape(batch * kv_heads, -1, width)
    keys = k_BKSH.reshape(-1, slots, width).transpose(1, 2)
    # a GPU gives the sums as it has them; rounded to half precision, large scores would lose more than a tenth
    widens = keys.device.type == "cuda" and is_half(keys.dtype)
    scores = torch.bmm(queries, keys, torch.float32) if widens else torch.bmm(queries, keys)
    scores = cap(scores, soft_cap)
    if not visibility.is_plain:
        hidden_B1S = ~visibility.mask(scores.device)[:, :, 0]
        scores.view(batch, -1, slots).masked_fill_(hidden_B1S, float("-inf"))
    pattern = scores.softmax(-1).to(v_BKSH.dtype)
    return torch.bmm(pattern, v_BKSH.reshape(-1, slots, width)).view(batch, 1, heads, width)


def is_half(dtype: torch.dtype) -> bool:
    """Whether a GPU's fused attention over documents computes in this type."""
    return dtype in (torch.bfloat16, torch.float16)


def _choose(q_BNTH: Tensor, visibility: Visibility, soft_cap: float | None) -> Backend:
    if q_BNTH.device.type == "cpu":
        if visibility.num_queries == 1 and not torch.is_grad_enabled():
            return "one query"
        # a few tokens behind many: a mask costs less than two calls that are put together
        behind = visibility.num_queries <= _FEW_QUERIES and visibility.num_queries < visibility.num_keys
        few = visibility.num_queries == 1 or (behind and soft_cap is None and not torch.is_grad_enabled())
        return "sdpa" if visibility.is_dense or few else "runs"
    if q_BNTH.device.type == "cuda" and visibility.num_queries == 1 and visibility.is_dense:
        # PyTorch has no fused kernel for a mask with grouped heads: it repeats the keys, in fp32
        return "sdpa" if torch.is_grad_enabled() else "one query"
    if q_BNTH.device.type != "cuda" or visibility.is_dense or visibility.num_queries != visibility.num_keys:
        return "sdpa"
    if soft_cap is not None:
        return "flex" if visibility.num_queries >= _SHORTEST_FLEX else "sdpa"
    if visibility.starts_BT is None or (visibility.window is None and visibility.rows_are_one_document):
        return "sdpa"
    windowed = visibility.window is not None and "window_size" not in _VARLEN_KNOWS
    if is_half(q_BNTH.dtype) and not windowed:
        return "varlen"
    return "flex" if visibility.num_queries >= _SHORTEST_FLEX else "sdpa"


def _refuse(condition: bool, backend: str, what: str) -> None:
    if condition:
        raise ValueError(f"the attention back end '{backend}' does not handle {what}; use 'sdpa'")


def _varlen(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, visibility: Visibility) -> Tensor:
    if varlen_attn is None:
        raise ValueError("the attention back end 'varlen' needs a build of PyTorch for GPUs; use 'sdpa'")
    batch, heads, length, width = q_BNTH.shape
    borders, longest = visibility.unwindowed.sequences(batch, q_BNTH.device)
    before = -1 if visibility.window is None else visibility.window - 1
    _refuse(before >= 0 and "window_size" not in _VARLEN_KNOWS, "varlen", "sliding windows in this version of PyTorch")
    extra: dict[str, Any] = {"is_causal": visibility.causal}
    if "window_size" in _VARLEN_KNOWS:  # newer releases of PyTorch: tokens to the left and to the right, -1 for all
        extra = {"window_size": (before, 0 if visibility.causal else -1)}
    if heads != k_BKSH.shape[1]:
        if "enable_gqa" in _VARLEN_KNOWS:
            extra["enable_gqa"] = True
        else:
            k_BKSH, v_BKSH = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k_BKSH, v_BKSH))
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_BNTH, k_BKSH, v_BKSH))
    out: Any = varlen_attn(q, k, v, borders, borders, longest, longest, **extra)
    return out.view(batch, length, heads, width)


def _flex(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, visibility: Visibility, soft_cap: float | None) -> Tensor:
    grouped = q_BNTH.shape[1] != k_BKSH.shape[1]
    out = _flex_attention(q_BNTH.device.type)(
        q_BNTH,
        k_BKSH,
        v_BKSH,
        score_mod=None if soft_cap is None else _capped(soft_cap),
        block_mask=visibility.block_mask(q_BNTH.device),
        enable_gqa=grouped,
    )
    return out.transpose(1, 2)


@cache  # one function a cap, so that all layers share what was compiled
def _capped(soft_cap: float) -> Callable[..., Tensor]:
    def score(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return cap(score, soft_cap)

    return score


def _flex_attention(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # within a graph that is being compiled it is compiled with it
    return flex_attention if device != "cuda" or torch.compiler.is_compiling() else _compiled_flex_attention()


@cache
def _compiled_flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # each type, number of heads and kind of mask is compiled by itself; beyond this number PyTorch would compute the
    # whole square of scores, without a word but a warning
    torch._dynamo.config.recompile_limit = max(_FLEX_VARIANTS, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention)
