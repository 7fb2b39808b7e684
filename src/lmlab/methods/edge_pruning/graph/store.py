"""One memory for what all writers write, from which every masked sum is one matrix product, and one more for its
gradient.

Writers come in order and a reader reads a beginning of them, so each is written once, in place, before anyone reads it.
The backward pass goes through the steps in reverse (a scalar token that runs through all of them sees to that): readers
add their gradients to what they have read, and when a step's own writers are reached, the gradient of what they wrote
is complete. No step keeps anything but what lies within itself.

Shapes: B examples, W writers, R readers of a step, n writers of a step, M = T D numbers that a writer writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Compute = Callable[[Tensor], Tensor]


class _Memory:
    """What the steps of a pass share.

    It does not know the token: the graph of gradients would hold itself, and nothing would ever be freed.
    """

    def __init__(self, written_BWM: Tensor, recompute: bool, measured_BWM: Tensor | None) -> None:
        self.written_BWM, self.recompute, self.measured_BWM = written_BWM, recompute, measured_BWM
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
    """

    def __init__(
        self,
        batch: int,
        writers: int,
        numbers: int,
        like: Tensor,
        recompute: bool = False,
        measured_BWM: Tensor | None = None,
    ) -> None:
        self._memory = _Memory(like.new_empty(batch, writers, numbers), recompute, measured_BWM)
        self._token = torch.zeros((), device=like.device, requires_grad=True)

    @property
    def written_BWM(self) -> Tensor:
        """What the writers have written."""
        return self._memory.written_BWM

    def write(self, first: int, y_BnM: Tensor) -> None:
        """What does not depend on masks: embeddings."""
        self.written_BWM[:, first : first + y_BnM.shape[1]] = y_BnM

    def step(self, z_BRw: Tensor, base_BM: Tensor, compute: Compute, writes: int) -> None:
        """Read, compute and write: compute maps [B, R, M] to [B, n, M], which the writers after the w that are read
        write.
        """
        if torch.is_grad_enabled() and z_BRw.requires_grad:
            self._token = _Step.apply(self._token, z_BRw, base_BM, compute, self._memory)
        else:
            first = z_BRw.shape[2]
            self.written_BWM[:, first : first + writes] = compute(self._memory.read(z_BRw, base_BM))

    def last_read(self, z_B1w: Tensor, base_BM: Tensor) -> Tensor:
        """The read of the output, [B, 1, M]."""
        if torch.is_grad_enabled() and z_B1w.requires_grad:
            read: Tensor = _LastRead.apply(self._token, z_B1w, base_BM, self._memory)
            return read
        return self._memory.read(z_B1w, base_BM)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, z_BRw: Tensor, base_BM: Tensor, compute: Compute, memory: _Memory) -> Tensor:
        first = z_BRw.shape[2]
        read_BRM = memory.read(z_BRw, base_BM)
        if memory.recompute:
            y_BnM, ctx.kept = compute(read_BRM), None
        else:
            with torch.enable_grad():
                y_BnM = compute(read_BRM.requires_grad_())
            ctx.kept = (read_BRM, y_BnM)
        memory.written_BWM[:, first : first + y_BnM.shape[1]] = y_BnM.detach()
        ctx.save_for_backward(z_BRw, base_BM)
        ctx.compute, ctx.memory, ctx.writes = compute, memory, y_BnM.shape[1]
        return token.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        z_BRw, base_BM = ctx.saved_tensors
        if ctx.kept is None:
            with torch.enable_grad():
                read_BRM = ctx.memory.read(z_BRw.detach(), base_BM).requires_grad_()
                y_BnM = ctx.compute(read_BRM)
        else:
            (read_BRM, y_BnM), ctx.kept = ctx.kept, None
        (grad_BRM,) = torch.autograd.grad(y_BnM, read_BRM, ctx.memory.gradient(z_BRw.shape[2], ctx.writes))
        return grad_outputs[0], ctx.memory.add_gradient(z_BRw, grad_BRM), None, None, None


class _LastRead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, z_B1w: Tensor, base_BM: Tensor, memory: _Memory) -> Tensor:
        ctx.save_for_backward(z_B1w)
        ctx.memory = memory
        return memory.read(z_B1w, base_BM)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (z_B1w,) = ctx.saved_tensors
        return (
            torch.zeros((), device=z_B1w.device),
            ctx.memory.add_gradient(z_B1w, grad_outputs[0].contiguous()),
            None,
            None,
        )
