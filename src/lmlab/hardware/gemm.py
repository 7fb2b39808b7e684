"""Matrix products of training in fp32 by the faster of PyTorch's two CPU libraries.

PyTorch hands fp32 products to MKL, which runs processors that are not Intel's with narrower vectors than they have.
oneDNN, which PyTorch holds too, uses the full width: about twice as fast on an AMD processor with AVX-512, also in
fp32. It adds up a row of products in one go and MKL in blocks, so its rounding errors are larger (relative to the
result, 5e-7 against 2.5e-7 for rows of 1,536). That is far below the noise of a gradient; products without gradients,
by which models are evaluated and compared, stay with MKL unless `fast_inference` asks for speed.

Which library is used depends on the processor, or on what was measured on it (`lmlab.hardware.ways`), and does not
change within a run.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from lmlab.hardware.ways import way

_FEW = 24  # rows: beyond them the order of the weight costs no more than that of the result
_PART, _MOST_PARTS = 512, 8  # rows of a part of a sum, and parts
_LARGEST_SPLIT = 2**19  # numbers of a weight: of larger ones the library spreads columns over threads, not rows

_fast_inference: ContextVar[bool] = ContextVar("fast_inference", default=False)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias; x is [..., K], weight [N, K], bias [N]."""
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if not learns and are_few_half_rows(x, weight):
        few = few_rows(x.reshape(-1, x.shape[-1]), weight)
        return (few if bias is None else few + bias).contiguous().view(*x.shape[:-1], weight.shape[0])
    if not (learns or _fast_inference.get()) or not x.numel() or not _by_onednn(x, weight):
        if learns and _is_split(x, weight):
            split: Tensor = _SplitLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
            return split.view(*x.shape[:-1], weight.shape[0])
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    product: Tensor = _Linear.apply(rows, weight, bias) if learns else _onednn(rows, weight, bias)
    return product.view(*x.shape[:-1], weight.shape[0])


def are_few_half_rows(x: Tensor, weight: Tensor) -> bool:
    """Whether this product, without gradients, is one of `few_rows`."""
    if x.dtype != torch.bfloat16 or weight.dtype != x.dtype or x.device.type != "cpu":
        return False
    numbers, width = x.numel(), x.shape[-1]
    return 0 < width <= numbers <= _FEW * width and not (
        torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    )


def few_rows(x_MK: Tensor, weight_NK: Tensor) -> Tensor:
    """x @ weight.T for few rows in half precision on a CPU, [M, N]; the numbers of a column may lie side by side in
    memory.

    Which way is fastest depends on the processor: for one row the product of a matrix and a vector or the general one;
    for several that one, which brings the weight into another order each time, or the weight as the left matrix, which
    is read as it lies; and for both a weight that was brought into order before (`keep_in_order`).
    """
    ordered = _in_order(weight_NK) if _ordered else None
    if ordered is not None:
        product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x_MK, ordered, None, "none", [], "")
        return product
    if len(x_MK) == 1:
        if way("row bf16") == "vector":
            return torch.mv(weight_NK, x_MK.view(-1)).view(1, -1)
    elif way("rows bf16") == "columns":
        return torch.mm(weight_NK, x_MK.t()).t()
    return F.linear(x_MK, weight_NK)


@dataclass(frozen=True)
class _Source:
    """A parameter as it was: its memory, which no other is mistaken for that lies at the same place later, and the
    number of writes to it.
    """

    parameter: weakref.ref[Tensor]
    memory: StorageWeakRef
    place: int
    writes: int

    def holds(self) -> bool:
        found = self.parameter()
        return (
            found is not None
            and found.data_ptr() == self.place
            and found._version == self.writes
            and found.untyped_storage()._cdata == self.memory.cdata
        )


@dataclass(frozen=True)
class _Ordered:
    """A weight in oneDNN's own order, its bytes, and what it was made of."""

    weight: Tensor
    nbytes: int
    made_of: tuple[_Source, ...]

    def holds(self) -> bool:
        return all(source.holds() for source in self.made_of)


_Place = tuple[int, torch.Size]
_ordered: dict[_Place, _Ordered] = {}


def keep_in_order(weight_NK: Tensor, made_of: Sequence[Tensor]) -> None:
    """Keep a second copy of a weight, in the order in which oneDNN's products of few rows read it, for as long as the
    parameters that it consists of live and neither move nor are written to. Copies for which that no longer holds are
    given back.

    Not seen is what PyTorch does not count: writes through `.data`, or by other libraries to the same memory. Those of
    optimizers are, also of fused ones, which it does not count either.

    Arguments:
        weight_NK: in bf16 on a CPU.
        made_of: the parameters that share its memory.
    """
    _forget(lambda each: not each.holds())
    if any(each.is_inference() or each.is_shared() for each in made_of):  # whose writes are not counted
        return
    _watch_optimizers()
    place = weight_NK.data_ptr(), weight_NK.shape
    forget = partial(_forget_place, _ordered, place)  # which is called while Python ends too, when globals are gone
    sources = tuple(
        _Source(weakref.ref(each, forget), StorageWeakRef(each.untyped_storage()), each.data_ptr(), each._version)
        for each in made_of
    )
    with torch.no_grad():
        ordered = torch.ops.mkldnn._reorder_linear_weight(weight_NK.detach().contiguous(), 1)
    _ordered[place] = _Ordered(ordered, weight_NK.nbytes, sources)


def bytes_in_order() -> int:
    """The bytes of all copies that are kept."""
    return sum(each.nbytes for each in list(_ordered.values()))


def _forget(when: Callable[[_Ordered], bool]) -> None:
    for place, each in list(_ordered.items()):  # threads may drop a model meanwhile
        if when(each):
            _ordered.pop(place, None)


def _forget_place(kept: dict[_Place, _Ordered], place: _Place, _: weakref.ref[Tensor]) -> None:
    kept.pop(place, None)


@cache
def _watch_optimizers() -> None:
    register_optimizer_step_post_hook(_forget_trained)


def _forget_trained(optimizer: Optimizer, *_: Any) -> None:
    """Drop the copies of what an optimizer has written: fused ones do not count as writes."""
    if _ordered:
        trained = {id(each) for group in optimizer.param_groups for each in group["params"]}
        _forget(lambda each: any(id(source.parameter()) in trained for source in each.made_of))


def _in_order(weight_NK: Tensor) -> Tensor | None:
    try:
        key = weight_NK.data_ptr(), weight_NK.shape
    except RuntimeError:  # without memory of its own, as within torch.func.vmap
        return None
    found = _ordered.get(key)
    if found is None or not weight_NK.is_contiguous():  # a square matrix, transposed, is another one
        return None
    if found.holds():
        return found.weight
    _ordered.pop(key, None)  # it has been written to
    return None


@contextmanager
def fast_inference() -> Iterator[None]:
    """Use the faster library for products without gradients too: for generation, where the speed of each product is
    felt.
    """
    token = _fast_inference.set(True)
    try:
        yield
    finally:
        _fast_inference.reset(token)


def mm(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for matrices [M, K] and [K, N], within the computation of a gradient; no gradient flows through it."""
    return _onednn(a, b.t(), None) if _by_onednn(a, b) else torch.mm(a, b)


def outer(left: Tensor, right: Tensor) -> Tensor:
    """left.T @ right for matrices [M, N] and [M, K] of many rows: the gradient of a weight.

    By MKL on every processor: oneDNN brings both matrices into another order first, and takes 1.2 to 1.8 times as long.
    """
    with as_precise_as(left):
        if not _is_split(left, right.t()):  # whose rows are the columns of the result
            return torch.mm(left.t(), right)
        return _split_outer(left.contiguous(), right.contiguous())


def as_precise_as(grad: Tensor) -> AbstractContextManager[Any]:
    """Compute a gradient in the precision that it came in, also where the backward pass is called within autocast,
    which would round it to half precision.
    """
    kind = grad.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _is_split(x: Tensor, weight: Tensor) -> bool:
    """Whether the gradient of this weight is a sum over so many rows, for a result so small, that it is added up from
    products of parts. MKL's threads wait for each other many times within one such product: beside other work on the
    machine it takes three to six times as long, and the parts together hardly longer than alone.
    """
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and weight.dtype == torch.float32
    if not plain or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    return rows >= 4 * _PART and x.shape[-1] * weight.shape[0] <= _LARGEST_SPLIT and way("weights fp32") == "split"


def _split_outer(left: Tensor, right: Tensor) -> Tensor:
    parts = min(_MOST_PARTS, len(left) // _PART)
    whole = len(left) // parts * parts
    of_left, of_right = (x[:whole].view(parts, -1, x.shape[1]) for x in (left, right))
    summed = torch.bmm(of_left.transpose(1, 2), of_right).sum(0)
    return summed if whole == len(left) else torch.addmm(summed, left[whole:].t(), right[whole:])


class _SplitLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)  # type: ignore[arg-type]
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad_outputs[0].contiguous()
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad  # type: ignore[attr-defined]
        with as_precise_as(grad):
            return (
                grad @ weight if needs_x else None,
                _split_outer(grad, x.contiguous()) if needs_weight else None,
                grad.sum(0) if needs_bias else None,
            )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
        # beside a frozen weight the input is not needed again, which is most of what an adapter's training would keep
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)  # type: ignore[arg-type]
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad  # type: ignore[attr-defined]
        return (
            _Linear.apply(grad, weight.t(), None) if needs_x else None,
            outer(grad, x) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.compiler.is_compiling():
        return _opaque_onednn(x, weight, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


@torch.library.custom_op("lmlab::onednn_linear", mutates_args=())
def _opaque_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """For the compiler, which knows the operator of oneDNN for prepacked weights only."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


@_opaque_onednn.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    plain = a.device.type == "cpu" and a.dtype == torch.float32 and b.dtype == torch.float32
    return plain and not torch.is_autocast_enabled("cpu") and way("products fp32") == "onednn"
