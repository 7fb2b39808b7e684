"""One text over several processes: each holds a part of its tokens, and attention brings them together.

Two ways, of equal results. `ulysses` (Jacobs et al. 2023) exchanges tokens for heads before attention and back after
it, so that each process attends with some of the heads over the whole text; key-value heads travel once, or as often as
it takes to give every process one. `allgather_kv` (Llama 3, Dubey et al. 2024, section 3.3.2) leaves queries where they
are and gathers keys and values, for any number of heads. A process then holds a piece from the beginning of the text
and the piece as far from its end: queries at the end have more to attend to, and so all processes have equally much.

Borders of documents may stand anywhere, and texts need not divide by the number of processes. Labels are those of
the whole text, so that the last token of a part is predicted from too, and sums and counts are those of the parts:
the mean over all processes is that of one process. Models know nothing of it: how queries meet keys is an attribute
of theirs, which is set for a step.

Shapes: B batch, N query heads, K key-value heads, T tokens of a text, t of a part, p processes, H width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.distributed.device_mesh import init_device_mesh

from lmlab.data import Batch
from lmlab.distributed import World
from lmlab.errors import UserError
from lmlab.models import ModelConfig, Transformer
from lmlab.models.attention.backends import Backend, attend
from lmlab.models.attention.visibility import Visibility, document_starts, visibility_of
from lmlab.train.config import ParallelConfig, SequenceAttention
from lmlab.train.steps.step import StepFunction, StepOutput, WrappedStep

_FILL = {"labels": -100, "document_ids": -1}  # of padding; 0 for all else


@dataclass(frozen=True)
class Part:
    """This process among those that share a text.

    Attributes:
        group: of `torch.distributed`.
        rank, size: number of this process in it, and of all.
    """

    group: Any
    rank: int
    size: int


def way_of(config: ModelConfig, size: int, asked: SequenceAttention) -> SequenceAttention:
    """Which of the two ways serves a model: the first where its heads divide.

    Raises:
        UserError: neither does, or the one that is asked for does not.
    """
    scaling = config.rope_scaling
    if scaling is not None and scaling.depends_on_length:
        raise UserError(
            f"parallel.sequence_parallel {size}: the model's rope_scaling ({scaling.type}) depends on how long a text"
            " is, which no process sees.",
            "Set a rope_theta for the length in place of it.",
        )
    if not config.causal:
        raise UserError("parallel.sequence_parallel is for causal models.", "Set it to 1.")
    divides = config.num_heads % size == 0
    if asked == "ulysses" and not divides:
        raise UserError(
            f"parallel.sequence_attention ulysses: {config.num_heads} heads cannot be shared evenly by {size}"
            " processes.",
            f"Set sequence_parallel to a divisor of {config.num_heads}, or sequence_attention to allgather_kv.",
        )
    return ("ulysses" if divides else "allgather_kv") if asked == "auto" else asked


def part_of(config: ParallelConfig, world: World, device: torch.device) -> Part:
    """The group of this process: consecutive ones share a text."""
    size = config.sequence_parallel
    mesh = init_device_mesh(device.type, (world.size // size, size), mesh_dim_names=("data", "sequence"))
    return Part(mesh["sequence"].get_group(), world.rank % size, size)


class SequenceParallelStep(WrappedStep):
    """A step function of packed rows, which all processes of a group are given alike, on this process's part of them.

    Arguments:
        step: takes `input_ids`, `labels`, `document_ids` and `position_ids`, each [B, t].
        way: `ulysses` or `allgather_kv`.
    """

    def __init__(self, step: StepFunction, part: Part, way: SequenceAttention) -> None:
        super().__init__(step)
        self.part, self.way = part, way

    def __call__(self, model: Any, batch: Batch) -> StepOutput:
        """The loss of this process's part.

        Raises:
            UserError: the step is not one of packed rows.
        """
        chunk, documents_BT = split_rows(batch, self.part.rank, self.part.size, pieces_of(self.way))
        attention = SequenceAttentionOf(self.part, self.way, documents_BT)
        networks = [module for module in model.modules() if isinstance(module, Transformer)]
        for network in networks:
            network.spread = attention
        try:
            return super().__call__(model, chunk)
        finally:
            for network in networks:
                network.spread = None


def pieces_of(way: SequenceAttention) -> int:
    """How many pieces of a text a process holds: with gathered keys one from its beginning and one from its end."""
    return 2 if way == "allgather_kv" else 1


def split_rows(batch: Mapping[str, Tensor], rank: int, size: int, pieces: int = 1) -> tuple[Batch, Tensor]:
    """A process's part of packed rows, with the positions of its tokens in their documents; and which document each
    token of the whole rows belongs to, [B, T], padded so that the parts are equal.

    Arguments:
        pieces: 1, or 2 for one from the beginning and one from the end (`_piece_order`).

    Raises:
        UserError: they are not packed rows.
    """
    if not {"input_ids", "labels", "document_ids"} <= set(batch):
        raise UserError(
            "parallel.sequence_parallel: this training has no packed rows that could be shared by processes.",
            "Set sequence_parallel to 1.",
        )
    length = batch["input_ids"].shape[1]
    room = -length % (size * pieces)
    padded = {
        name: nn.functional.pad(value, (0, room), value=_FILL.get(name, 0))
        for name, value in batch.items()
        if value.shape[:2] == batch["input_ids"].shape
    }
    documents_BT = padded["document_ids"]
    index = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    padded["position_ids"] = index - document_starts(documents_BT)
    own = _piece_order(size, pieces)[rank * pieces : (rank + 1) * pieces]
    chunk = {name: _in_order(value, own, size * pieces, 1).contiguous() for name, value in padded.items()}
    return chunk, documents_BT


def _piece_order(size: int, pieces: int) -> list[int]:
    """The pieces of a text in the order of the processes that hold them: of three with two pieces 0 5, 1 4, 2 3."""
    if pieces == 1:
        return list(range(size))
    return [piece for rank in range(size) for piece in (rank, 2 * size - 1 - rank)]


def _in_order(x: Tensor, order: Sequence[int], count: int, dimension: int) -> Tensor:
    """Some of `count` equal pieces along a dimension, in an order."""
    pieces = x.chunk(count, dimension)
    return torch.cat([pieces[number] for number in order], dimension)


class SequenceAttentionOf:
    """Attention over a whole text from the parts of it that the processes hold; called as `attend` is.

    Arguments:
        documents_BT: of the whole text.

    Attributes:
        whole: what the queries of the whole text see.
    """

    def __init__(self, part: Part, way: SequenceAttention, documents_BT: Tensor) -> None:
        self.part, self.way = part, way
        length = documents_BT.shape[1]
        self.whole = visibility_of(length, documents_BT, None, documents_BT.device, causal=True)
        self.own: list[Visibility] = []
        if way == "allgather_kv":  # the queries of a piece are the last ones of the keys up to its end
            starts_BT = document_starts(documents_BT)
            size = length // (2 * part.size)
            for piece in _piece_order(part.size, 2)[2 * part.rank : 2 * part.rank + 2]:
                stop = (piece + 1) * size
                self.own.append(Visibility(size, stop, starts_BT[:, stop - size : stop]))

    def __call__(
        self,
        q_BNtH: Tensor,
        k_BKtH: Tensor,
        v_BKtH: Tensor,
        visibility: Visibility,
        backend: Backend = "auto",
        soft_cap: float | None = None,
    ) -> Tensor:
        """What each head gathers for the tokens of this part, [B, t, N, H].

        Arguments:
            visibility: `whole`, with the layer's window if it has one.
        """
        if self.way == "allgather_kv":
            k_BKTH, v_BKTH = (_Gather.apply(x, self.part) for x in (k_BKtH, v_BKtH))
            found = []
            for q, seen in zip(q_BNtH.chunk(2, 2), self.own, strict=True):
                seen = seen if visibility.window is None else seen.within(visibility.window, q.device)
                seen.prepare(len(q), q.device, q.dtype in (torch.bfloat16, torch.float16))
                k, v = k_BKTH[:, :, : seen.num_keys], v_BKTH[:, :, : seen.num_keys]
                found.append(attend(q, k, v, seen, backend, soft_cap))
            return torch.cat(found, 1)
        repeats = heads_repeated(k_BKtH.shape[1], self.part.size)
        if repeats > 1:
            k_BKtH, v_BKtH = (x.repeat_interleave(repeats, 1) for x in (k_BKtH, v_BKtH))
        q, k, v = (_Swap.apply(x, self.part, 1, 2) for x in (q_BNtH, k_BKtH, v_BKtH))
        visibility.prepare(len(q), q.device, q.dtype in (torch.bfloat16, torch.float16))
        out_BTnH = attend(q, k, v, visibility, backend, soft_cap)
        swapped: Tensor = _Swap.apply(out_BTnH, self.part, 1, 2)
        return swapped


def heads_repeated(num_kv_heads: int, size: int) -> int:
    """How often each key-value head travels under `ulysses`, so that every process gets one: no oftener than needed."""
    return size // math.gcd(num_kv_heads, size)


class _Swap(torch.autograd.Function):
    """Give away parts of one dimension and receive those of another; the gradient goes the other way round."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, part: Part, scatter: int, gather: int) -> Tensor:
        ctx.part, ctx.scatter, ctx.gather = part, scatter, gather  # type: ignore[attr-defined]
        return torch.cat(_exchange(x, part, scatter).unbind(0), gather)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        part, scatter, gather = ctx.part, ctx.scatter, ctx.gather  # type: ignore[attr-defined]
        return torch.cat(_exchange(gradients[0], part, gather).unbind(0), scatter), None, None, None


class _Gather(torch.autograd.Function):
    """Keys or values [B, K, t, H] of all parts, two pieces each, in the order of the text, [B, K, T, H]; the gradients
    of a part are summed where it came from.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, part: Part) -> Tensor:
        ctx.part = part  # type: ignore[attr-defined]
        found = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(part.size)]
        dist.all_gather(found, x.contiguous(), group=part.group)
        order = _piece_order(part.size, 2)
        pieces = [piece for each in found for piece in each.chunk(2, 2)]
        return torch.cat([pieces[order.index(number)] for number in range(len(order))], 2)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        part: Part = ctx.part  # type: ignore[attr-defined]
        by_process = _in_order(gradients[0], _piece_order(part.size, 2), 2 * part.size, 2)
        return _exchange(by_process, part, 2).sum(0), None


def _exchange(x: Tensor, part: Part, dimension: int) -> Tensor:
    """Send the n-th piece along a dimension to process n; what came, [p, ...]."""
    sent = torch.stack(x.chunk(part.size, dimension)).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=part.group)
    return received


def spread_sequences(
    step: StepFunction, model: nn.Module, config: ParallelConfig, world: World, device: torch.device
) -> StepFunction:
    """The step function on this process's part of each row, if rows are shared by several processes.

    Raises:
        UserError: the model's heads, or what it is, do not suit the number of processes.
    """
    size = config.sequence_parallel
    if size == 1:
        return step
    networks = [module for module in model.modules() if isinstance(module, Transformer)]
    if not networks:
        raise UserError(f"parallel.sequence_parallel: {type(model).__name__} is no transformer.", "Set it to 1.")
    ways = {way_of(network.config, size, config.sequence_attention) for network in networks}
    return SequenceParallelStep(step, part_of(config, world, device), ways.pop())
