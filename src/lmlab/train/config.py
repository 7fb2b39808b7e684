"""The settings of the loop."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from lmlab.config import Config
from lmlab.distributed import World
from lmlab.errors import UserError
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.parallelism.parallel import ParallelConfig
from lmlab.train.schedule import ScheduleConfig
from lmlab.train.trackers import TrackerName


class TrainerConfig(Config):
    """How the loop runs.

    Attributes:
        steps, tokens, epochs: how long: optimizer steps, or tokens or passes over the data (rounded up to whole steps);
            one of the three.
        batch_size: rows of a step, over all processes.
        micro_batch_size: rows that a process runs at once; the default is its whole share of the batch.
        precision: `bf16` computes in bfloat16 with fp32 weights; `auto` takes bf16 where the hardware is faster in it.
        clip_norm: the gradient's largest norm.
        compile: have `torch.compile` translate the network.
        recompute_blocks: activation checkpointing: one of so many blocks is computed again in the backward pass (1 for
            all, 0 for none).
        evaluate_every, checkpoint_every: in steps; the last step always has both.
        keep_checkpoints: how many of the newest are kept.
        keep_best: a figure of the evaluation, such as `heldout_loss`; where it is the lowest so far a checkpoint is
            written, and the best is kept.
        background_checkpoints: write them while training goes on, from a copy in memory; by default on GPUs.
        mirror: URL of a folder that gets a copy of every checkpoint, such as `s3://bucket/run`.
        track: further places for metrics: `tensorboard`, `wandb`.
    """

    steps: PositiveInt | None = None
    tokens: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    batch_size: PositiveInt
    micro_batch_size: PositiveInt | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    parallel: ParallelConfig = ParallelConfig()
    clip_norm: PositiveFloat = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    compile: bool = False
    recompute_blocks: int = Field(default=0, ge=0)
    log_every: PositiveInt = 10
    evaluate_every: PositiveInt | None = None
    checkpoint_every: PositiveInt = 100
    keep_checkpoints: int = Field(default=2, ge=1)
    keep_best: str | None = None
    background_checkpoints: bool | None = None
    mirror: str | None = None
    track: tuple[TrackerName, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> TrainerConfig:
        if sum(each is not None for each in (self.steps, self.tokens, self.epochs)) != 1:
            raise ValueError("give either steps, tokens or epochs.")
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
        share, uneven = divmod(self.batch_size, world.size)
        rows = min(self.rows_at_once, share)
        if uneven or rows == 0 or share % rows:
            raise UserError(
                f"A batch_size of {self.batch_size} rows cannot be shared evenly by {world.size} processes with a"
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
            return math.ceil(self.epochs * num_rows / self.batch_size - 1e-9)
        return self.steps

    def in_steps(self, tokens_per_row: int | None, num_rows: int | None) -> TrainerConfig:
        """The same with its length in steps."""
        return self.model_copy(
            update={"steps": self.num_steps(tokens_per_row, num_rows), "tokens": None, "epochs": None}
        )
