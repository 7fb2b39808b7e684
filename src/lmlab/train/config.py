"""The settings of the loop.

Those that say how work is done and not what is learned, rounding apart, are marked: they may change between attempts.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from lmlab.config import NO_INFLUENCE, Config, FloatPrecision
from lmlab.errors import UserError
from lmlab.hardware.settings import OnDevice
from lmlab.train.optimization.schedule import ScheduleConfig
from lmlab.train.trackers import TrackerName

if TYPE_CHECKING:
    from lmlab.distributed import World

SequenceAttention = Literal["auto", "ulysses", "allgather_kv"]
OptimizerName = Literal["adamw", "muon", "rmsprop"]


class ParameterGroup(Config):
    """Settings of the parameters whose names hold a pattern."""

    match: str = Field(description="a regular expression, searched in names such as blocks.0.attention.query.weight")
    learning_rate: PositiveFloat | None = Field(default=None, description="in place of the optimizer's own")
    weight_decay: float | None = Field(default=None, ge=0, description="in place of the optimizer's own")
    optimizer: OptimizerName | None = Field(default=None, description="in place of the optimizer's own name")
    frozen: bool = Field(default=False, description="they are not trained")

    @field_validator("match")
    @classmethod
    def _check(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"'{value}' is not a regular expression ({error}).") from None
        return value


class OptimizerConfig(Config):
    """Which optimizer, with what settings."""

    name: OptimizerName = Field(
        default="adamw",
        description="adamw or rmsprop for everything, or muon (Jordan et al. 2024) for the matrices of the blocks with"
        " adamw for the rest",
    )
    learning_rate: PositiveFloat = Field(
        default=1e-3,
        description="the highest rate, for adamw and for muon alike (muon's updates are scaled to adamw's size, Liu et"
        " al. 2025, section 2.2)",
    )
    weight_decay: float = Field(default=0.1, ge=0, description="on matrices only; norms and biases have none")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="of adamw; the second is rmsprop's alpha")
    eps: PositiveFloat = Field(default=1e-8, description="added to the root of the second moment")
    momentum: float = Field(default=0.95, ge=0, lt=1, description="of muon")
    groups: tuple[ParameterGroup, ...] = Field(
        default=(), description="exceptions; a parameter belongs to the first group that matches it"
    )


class ParallelConfig(Config):
    """How several processes share one training; with one process it has no effect."""

    kind: Literal["data", "fsdp", "hybrid"] = Field(
        default="fsdp",
        description="data: every process holds the whole model; fsdp: a share of it; hybrid: groups that share copies",
    )
    shard_size: PositiveInt | None = Field(
        default=None, description="processes that share one copy in hybrid; by default those of a machine"
    )
    gather_once: bool = Field(
        default=False,
        description="keep a block's weights after the forward pass until its backward pass, in place of gathering them"
        " twice",
    )
    expert_parallel: PositiveInt = Field(
        default=1,
        description="processes among which the experts of each layer are spread, with fsdp; the tokens travel. What"
        " else the model has, and the experts over the groups of so many processes, is shared as without",
    )

    sequence_parallel: PositiveInt = Field(
        default=1,
        description="processes that share each row, every one a part of its tokens; rows may then be longer than one"
        " process has memory for",
    )
    sequence_attention: SequenceAttention = Field(
        default="auto",
        description="ulysses: tokens are exchanged for heads, whose number it must divide; allgather_kv: keys and"
        " values are gathered; auto: the first where it can be",
    )

    @model_validator(mode="after")
    def _check(self) -> ParallelConfig:
        if self.shard_size is not None and self.kind != "hybrid":
            raise ValueError(f"shard_size belongs to the kind hybrid, not to {self.kind}.")
        if self.expert_parallel > 1 and self.kind != "fsdp":
            raise ValueError(f"expert_parallel {self.expert_parallel} belongs to the kind fsdp, not to {self.kind}.")
        return self

    def data_place(self, world: World) -> tuple[int, int]:
        """Which share of the rows this process reads, and how many shares there are: processes that share a row read
        the same.

        Raises:
            UserError: the processes cannot be laid out so.
        """
        if world.size % self.sequence_parallel:
            raise UserError(
                f"parallel.sequence_parallel {self.sequence_parallel} does not divide the {world.size} processes.",
                "Choose a divisor.",
            )
        return world.rank // self.sequence_parallel, world.size // self.sequence_parallel

    def layout(self, world: World) -> tuple[int, int]:
        """Replicas, and the processes that share each.

        Raises:
            UserError: the processes cannot be laid out so.
        """
        match self.kind:
            case "data":
                return world.size, 1
            case "fsdp":
                return 1, world.size
        shard = self.shard_size or world.local_size
        if world.size % shard:
            raise UserError(
                f"parallel.shard_size {shard} does not divide the {world.size} processes.", "Choose a divisor."
            )
        return world.size // shard, shard


class TrainerConfig(OnDevice):
    """How the loop runs."""

    steps: PositiveInt | None = Field(
        default=None, description="length in steps of the optimizer; or give tokens or epochs"
    )
    tokens: PositiveInt | None = Field(default=None, description="length in tokens, rounded up to whole steps")
    epochs: PositiveFloat | None = Field(
        default=None, description="length in passes over the data, rounded up to whole steps"
    )
    batch_size: PositiveInt = Field(description="rows of a step, over all processes")
    micro_batch_size: Annotated[PositiveInt | None, NO_INFLUENCE] = Field(
        default=None, description="rows that a process runs at once; by default its whole share of the batch"
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    parallel: Annotated[ParallelConfig, NO_INFLUENCE] = ParallelConfig()
    clip_norm: PositiveFloat = Field(default=1.0, description="the gradient's largest norm")
    precision: FloatPrecision = Field(
        default="auto",
        description="bf16 computes in bfloat16 with fp32 weights; auto takes bf16 where the hardware is faster in it",
    )
    compile: Annotated[bool, NO_INFLUENCE] = Field(
        default=False, description="have torch.compile translate the network"
    )
    recompute_blocks: Annotated[int, NO_INFLUENCE] = Field(
        default=0,
        ge=0,
        description="activation checkpointing: one of so many blocks is computed again in the backward pass (1 for"
        " all, 0 for none)",
    )
    tile_mlp: Annotated[int, NO_INFLUENCE] = Field(
        default=0,
        ge=0,
        description="feed-forward networks map so many tokens at a time and compute them again in the backward pass,"
        " for rows whose inner numbers do not fit (0 for all at once); routed experts are left as they are, and"
        " compile goes without it",
    )
    balance_lengths: Annotated[bool, NO_INFLUENCE] = Field(
        default=False,
        description="each process runs the rows of a step by the arithmetic of their attention, the most first, so that"
        " all processes are at like ones at the same time; the result is the same",
    )
    log_every: Annotated[PositiveInt, NO_INFLUENCE] = Field(default=10, description="steps between rows of the log")
    evaluate_every: Annotated[PositiveInt | None, NO_INFLUENCE] = Field(
        default=None, description="steps between evaluations; the last step always has one"
    )
    checkpoint_every: Annotated[PositiveInt, NO_INFLUENCE] = Field(
        default=100, description="steps between checkpoints; the last step always has one"
    )
    keep_checkpoints: Annotated[int, NO_INFLUENCE] = Field(
        default=2, ge=1, description="how many of the newest checkpoints are kept"
    )
    keep_best: Annotated[str | None, NO_INFLUENCE] = Field(
        default=None,
        description="a figure of the evaluation, such as heldout_loss; where it is the lowest so far a checkpoint is"
        " written, and the best is kept",
    )
    background_checkpoints: Annotated[bool | None, NO_INFLUENCE] = Field(
        default=None,
        description="write checkpoints while training goes on, from a copy in memory; by default on GPUs",
    )
    mirror: Annotated[str | None, NO_INFLUENCE] = Field(
        default=None, description="URL of a folder that gets a copy of every checkpoint, such as s3://bucket/run"
    )
    track: Annotated[tuple[TrackerName, ...], NO_INFLUENCE] = Field(
        default=(), description="further places for metrics: tensorboard, wandb"
    )

    @model_validator(mode="after")
    def _check(self) -> TrainerConfig:
        if sum(each is not None for each in (self.steps, self.tokens, self.epochs)) != 1:
            raise ValueError("give either steps, tokens or epochs.")
        if self.tile_mlp and self.compile:
            raise ValueError("tile_mlp goes without compile.")
        if self.batch_size % self.rows_at_once:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}."
            )
        return self

    @property
    def rows_at_once(self) -> int:
        """Rows of a micro-batch where one process has the whole batch."""
        return self.micro_batch_size or self.batch_size

    def rows_of_process(self, world: World) -> int:
        """Rows of a micro-batch of one of the processes of a job.

        Raises:
            UserError: the batch cannot be shared evenly by them.
        """
        readers = self.parallel.data_place(world)[1]
        share, uneven = divmod(self.batch_size, readers)
        rows = min(self.rows_at_once, share)
        if uneven or rows == 0 or share % rows:
            raise UserError(
                f"A batch_size of {self.batch_size} rows cannot be shared evenly by {readers} processes with a"
                f" micro_batch_size of {rows}.",
                "Choose a batch_size that is a multiple of both together.",
            )
        return rows

    def num_steps(self, tokens_per_row: int | None = None, num_rows: int | None = None) -> int | None:
        """Optimizer steps of the whole training; None if that needs to know the tokens of a row, or the rows of an
        epoch, which are not given.
        """
        if self.tokens is not None and tokens_per_row is not None:
            return math.ceil(self.tokens / (self.batch_size * tokens_per_row))
        if self.epochs is not None and num_rows is not None:
            return math.ceil(self.epochs * num_rows / self.batch_size - 1e-9)  # rounding must not add a step
        return self.steps

    def in_steps(self, tokens_per_row: int | None, num_rows: int | None) -> TrainerConfig:
        """The same with its length in steps."""
        return self.model_copy(
            update={"steps": self.num_steps(tokens_per_row, num_rows), "tokens": None, "epochs": None}
        )
