"""One memory for what all writers write, from which every masked sum is one matrix product, and one more for its
gradient.

Writers come in order and a reader reads a beginning of them, so each is written once, in place, before anyone reads it.
The backward pass goes through the steps in reverse (a scalar token that runs through all of them sees to that): readers
add their gradients to what they have read, and when a step's own writers are reached, the gradient of what they wrote
is complete. No step keeps anything but what lies within itself.

Shapes: B examples, W writers, R readers of a step, n writers of a step, M = T D numbers that a writer writes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

Compute = Callable[[Tensor], Tensor]


class _Memory:
    """What the steps of a pass share.

    It does not know the token: the graph of gradients would hold itself, and nothing would ever be freed.
    """

    def __init__(
        self, written_BWM: Tensor, recompute: bool, measured_BWM: Tensor | None, dropped: Collection[int]
    ) -> None:
        self.written_BWM, self.recompute, self.measured_BWM = written_BWM, recompute, measured_BWM
        self.dropped = dropped
        self._gradient_BWM: Tensor | None = None

    def read(self, z_BRw: Tensor, base_BM: Tensor) -> Tensor:
        """base + sum over w of z written_w, [B, R, M]."""
        return torch.baddbmm(base_BM[:, None], z_BRw, self.written_BWM[:, : z_BRw.shape[2]])

    def add_gradient(self, z_BRw: Tensor, grad_BRM: Tensor) -> Tensor:
        """Pass a reader's gradient on to what it read; return that of its masks."""
        if self._gradient_BWM is None:
            self._gradient_BWM = torch.zeros_like(self.written_BWM)
        self._gradient_BWM[:, : z_BRw.shape[2]].baddbmm_(z_BRw.transpose(1, 2), grad_BRM)
        factors = self.written_BWM if self.measured_BWM is None else self.measured_BWM
        return torch.bmm(grad_BRM, factors[:, : z_BRw.shape[2]].transpose(1, 2))

    def gradient(self, first: int, writes: int) -> Tensor:
        """The gradient of what some writers wrote, complete once all their readers have been passed."""
        assert self._gradient_BWM is not None
        return self._gradient_BWM[:, first : first + writes]


class Store:
    """The memory of one masked pass.

    Arguments:
        batch, writers, numbers: B, W, M.
        recompute: keep nothing of the steps for the backward pass, and compute each again there.
        measured_BWM: what gradients of masks are products with, in place of what was written: the outputs of another
            run (integrated gradients).
        dropped: the first writers of steps that pass no gradient on to what they read.
    """

    def __init__(
        self,
        batch: int,
        writers: int,
        numbers: int,
        like: Tensor,
        recompute: bool = False,
        measured_BWM: Tensor | None = None,
        dropped: Collection[int] = (),
    ) -> None:
        self._memory = _Memory(like.new_empty(batch, writers, numbers), recompute, measured_BWM, dropped)
        self._token = torch.zeros((), device=like.device, requires_grad=True)

    @property
    def written_BWM(self) -> Tensor:
        """What the writers have written."""
        return self._memory.written_BWM

    def gradient(self, first: int, writes: int) -> Tensor:
        """After the backward pass, the gradient of what so many writers from this one on wrote, [B, n, M]."""
        return self._memory.gradient(first, writes)

    def write(self, first: int, y_BnM: Tensor) -> None:
        """What does not depend on masks: embeddings."""
        if _followed(y_BnM):
            self._token = _Write.apply(self._token, y_BnM, first, self._memory)
        else:
            self.written_BWM[:, first : first + y_BnM.shape[1]] = y_BnM

    def step(
        self,
        z_BRw: Tensor,
        base_BM: Tensor,
        compute: Compute,
        first: int,
        writes: int,
        constants: Sequence[Tensor] = (),
    ) -> None:
        """Read, compute and write: compute maps [B, R, M] to [B, n, M].

        Arguments:
            first: the number of the first writer that writes it; others may stand between it and the w that are read.
            writes: how many do.
            constants: what else `compute` uses that gradients are asked for.
        """
        if _followed(z_BRw, base_BM, *constants):
            self._token = _Step.apply(self._token, z_BRw, base_BM, compute, first, self._memory, *constants)
        else:
            self.written_BWM[:, first : first + writes] = compute(self._memory.read(z_BRw, base_BM))

    def last_read(self, z_BRw: Tensor, base_BM: Tensor) -> Tensor:
        """The reads of the output, [B, R, M]."""
        if _followed(z_BRw, base_BM):
            read: Tensor = _LastRead.apply(self._token, z_BRw, base_BM, self._memory)
            return read
        return self._memory.read(z_BRw, base_BM)


def _followed(*tensors: Tensor) -> bool:
    """Whether gradients of any are asked for."""
    return torch.is_grad_enabled() and any(each.requires_grad for each in tensors)


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, y_BnM: Tensor, first: int, memory: _Memory) -> Tensor:
        memory.written_BWM[:, first : first + y_BnM.shape[1]] = y_BnM
        ctx.memory, ctx.first, ctx.writes = memory, first, y_BnM.shape[1]
        return token.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return grad_outputs[0], ctx.memory.gradient(ctx.first, ctx.writes).clone(), None, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        token: Tensor,
        z_BRw: Tensor,
        base_BM: Tensor,
        compute: Compute,
        first: int,
        memory: _Memory,
        *constants: Tensor,
    ) -> Tensor:
        read_BRM = memory.read(z_BRw, base_BM)
        if memory.recompute:
            y_BnM, ctx.kept = compute(read_BRM), None
        else:
            with torch.enable_grad():
                y_BnM = compute(read_BRM.requires_grad_())
            ctx.kept = (read_BRM, y_BnM)
        memory.written_BWM[:, first : first + y_BnM.shape[1]] = y_BnM.detach()
        ctx.save_for_backward(z_BRw, base_BM)
        ctx.compute, ctx.memory, ctx.constants = compute, memory, constants
        ctx.first, ctx.writes = first, y_BnM.shape[1]
        return token.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        z_BRw, base_BM = ctx.saved_tensors
        if ctx.first in ctx.memory.dropped:
            ctx.kept = None
            return grad_outputs[0], torch.zeros_like(z_BRw), None, None, None, None, *(None for _ in ctx.constants)
        if ctx.kept is None:
            with torch.enable_grad():
                read_BRM = ctx.memory.read(z_BRw.detach(), base_BM).requires_grad_()
                y_BnM = ctx.compute(read_BRM)
        else:
            (read_BRM, y_BnM), ctx.kept = ctx.kept, None
        sources = (read_BRM, *ctx.constants)
        grad_BRM, *others = torch.autograd.grad(y_BnM, sources, ctx.memory.gradient(ctx.first, ctx.writes))
        grad_BM = grad_BRM.sum(1) if ctx.needs_input_grad[2] else None
        return grad_outputs[0], ctx.memory.add_gradient(z_BRw, grad_BRM), grad_BM, None, None, None, *others


class _LastRead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, z_BRw: Tensor, base_BM: Tensor, memory: _Memory) -> Tensor:
        ctx.save_for_backward(z_BRw)
        ctx.memory = memory
        return memory.read(z_BRw, base_BM)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (z_BRw,) = ctx.saved_tensors
        return (
            torch.zeros((), device=z_BRw.device),
            ctx.memory.add_gradient(z_BRw, grad_outputs[0].contiguous()),
            grad_outputs[0].sum(1) if ctx.needs_input_grad[2] else None,
            None,
        )
