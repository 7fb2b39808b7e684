"""The one training loop.

What is learned is a step function: (model, batch) -> summed loss, count and metrics. The trainer owns everything else: accumulation with exact means
over the global batch, precision, clipping, schedule, logging, evaluation, checkpoints, resuming and stopping.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from lmlab.config import Config
from lmlab.data import Batch, Loader
from lmlab.errors import Interrupted, LmlabError, UserError
from lmlab.hardware import gemm_flops, peak_memory_bytes, select_device, select_dtype, synchronize
from lmlab.progress import progress
from lmlab.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from lmlab.train.interrupt import StopRequest
from lmlab.train.metrics import MetricLog
from lmlab.train.optimizer import OptimizerConfig, Optimizers
from lmlab.train.schedule import ScheduleConfig, learning_rate_factor


class TrainerConfig(Config):
    """How the loop runs.

    Attributes:
        steps: optimizer steps.
        batch_size: rows of a step, over all processes.
        micro_batch_size: rows that are run at once; the default is the whole batch.
        precision: `bf16` computes in bfloat16 with fp32 weights; `auto` takes bf16 where the hardware is faster in it.
        clip_norm: the gradient's largest norm.
        evaluate_every, checkpoint_every: in steps; the last step always has both.
        keep_checkpoints: how many of the newest are kept.
    """

    steps: PositiveInt
    batch_size: PositiveInt
    micro_batch_size: PositiveInt | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: PositiveFloat = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    log_every: PositiveInt = 10
    evaluate_every: PositiveInt | None = None
    checkpoint_every: PositiveInt = 100
    keep_checkpoints: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _check(self) -> TrainerConfig:
        if self.batch_size % self.rows_at_once:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}.")
        return self

    @property
    def rows_at_once(self) -> int:
        """Rows of a micro-batch."""
        return self.micro_batch_size or self.batch_size


@dataclass(frozen=True)
class StepOutput:
    """What a step function returns.

    Attributes:
        loss_sum: the loss summed over what it is a mean of (tokens, pairs), with gradients.
        count: how many they are; the gradient of a step is that of total loss_sum / total count.
        sums: further sums to log as means, name -> (sum, count).
    """

    loss_sum: Tensor
    count: Tensor
    sums: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


StepFunction = Callable[[Any, Batch], StepOutput]
Evaluation = Callable[[Any], dict[str, float]]


class Trainer:
    """Trains a model in a directory that holds everything needed to go on.

    Arguments:
        model: an initialised module; it is moved to the device.
        step_function: the loss of a micro-batch.
        loader: the batches.
        config: the settings.
        directory: receives `metrics.jsonl` and `checkpoints/`.
        evaluate: called with the model (in evaluation mode, no gradients) every `evaluate_every` steps; its figures are logged.
        flops_per_token: for utilisation figures.
    """

    def __init__(
        self,
        model: nn.Module,
        step_function: StepFunction,
        loader: Loader,
        config: TrainerConfig,
        directory: Path,
        evaluate: Evaluation | None = None,
        flops_per_token: float | None = None,
    ) -> None:
        self.config, self.directory, self.loader = config, directory, loader
        self.device = select_device(config.device)
        self.dtype = select_dtype(config.precision, self.device)
        self.model = model.to(self.device)
        self.step_function, self.evaluate, self.flops_per_token = step_function, evaluate, flops_per_token
        self.optimizers = Optimizers(self.model, config.optimizer)
        self.step, self.tokens, self.seconds = 0, 0, 0.0

    def fit(self) -> dict[str, Any]:
        """Train to the last step, from the newest checkpoint if there is one.

        Returns:
            a summary: steps, tokens, seconds, tokens per second, utilisation of the measured GEMM peak, peak memory.

        Raises:
            Interrupted: stopped by a signal; a checkpoint was written.
            LmlabError: the loss or the gradient is not finite.
        """
        self._resume()
        log = MetricLog(self.directory / "metrics.jsonl", after_step=self.step)
        total = self.config.steps
        try:
            with StopRequest() as stop, progress("train", total, "steps", start=self.step) as advance:
                for batch in itertools.islice(self.loader, total - self.step):
                    row = self._train_step(batch)
                    self.step += 1
                    last = self.step == total
                    evaluates = self.evaluate is not None and (last or _every(self.config.evaluate_every, self.step))
                    if evaluates:
                        row |= self._evaluate()
                    if last or evaluates or self.step == 1 or _every(self.config.log_every, self.step):
                        log.write(row)
                    if last or stop.requested or _every(self.config.checkpoint_every, self.step):
                        self._checkpoint()
                    advance(1, note=f"loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s")
                    if stop.requested and not last:
                        raise Interrupted(
                            f"Stopped by {stop.requested.name} at step {self.step} of {total}; a checkpoint was written.",
                            "Run the same command again to go on.",
                        )
        finally:
            log.close()
        return self._summary()

    def _train_step(self, batch: Batch) -> dict[str, Any]:
        start = time.perf_counter()
        self.model.train()
        factor = learning_rate_factor(self.config.schedule, self.step, self.config.steps)
        self.optimizers.set_factor(factor)
        loss_sum, count = torch.zeros(()), torch.zeros(())
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, float] = defaultdict(float)
        for micro_batch in _split(batch, self.config.rows_at_once):
            moved = {key: value.to(self.device, non_blocking=True) for key, value in micro_batch.items()}
            with self._autocast():
                output = self.step_function(self.model, moved)
            output.loss_sum.backward()
            loss_sum += output.loss_sum.detach().cpu()
            count += output.count.detach().cpu()
            for name, (value, number) in output.sums.items():
                sums[name] += float(value)
                counts[name] += float(number)
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        torch._foreach_div_(gradients, max(1.0, float(count)))
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm))
        loss = float(loss_sum / count.clamp(min=1))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise LmlabError(
                f"The loss or gradient is not finite at step {self.step + 1} (loss {loss}, gradient norm {norm}); training stopped.",
                f"The checkpoint of step {self._last_checkpoint()} is intact. Lower the learning rate, raise warmup_fraction, or use precision fp32.",
            )
        self.optimizers.step()
        self.optimizers.zero_grad()
        synchronize(self.device)
        seconds = time.perf_counter() - start
        num_tokens = batch["input_ids"].numel() if "input_ids" in batch else int(count)
        self.tokens += num_tokens
        self.seconds += seconds
        row = {
            "step": self.step + 1,
            "tokens": self.tokens,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": self.config.optimizer.learning_rate * factor,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": num_tokens / seconds,
        }
        return row | {name: sums[name] / counts[name] for name in sums if counts[name]}

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()

    def _evaluate(self) -> dict[str, float]:
        assert self.evaluate is not None
        self.model.eval()
        with torch.no_grad(), self._autocast():
            return self.evaluate(self.model)

    def _checkpoint(self) -> None:
        state = {"loader": self.loader.state(), "tokens": self.tokens, "seconds": self.seconds, "total_steps": self.config.steps}
        save_checkpoint(self.directory / "checkpoints", self.step, self.model, self.optimizers, state, self.config.keep_checkpoints)

    def _last_checkpoint(self) -> int:
        saved = checkpoints(self.directory / "checkpoints")
        return int(saved[-1].name.removeprefix("step-")) if saved else 0

    def _resume(self) -> None:
        saved = checkpoints(self.directory / "checkpoints")
        if not saved:
            return
        state = load_checkpoint(saved[-1], self.model, self.optimizers)
        if state["step"] > self.config.steps:
            raise UserError(
                f"'{saved[-1]}' is at step {state['step']}, beyond the {self.config.steps} steps asked for.",
                "Raise steps, or start a new run with --out.",
            )
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.loader.restore(state["loader"])

    def _summary(self) -> dict[str, Any]:
        rate = self.tokens / self.seconds if self.seconds else 0.0
        peak = gemm_flops(str(self.device), self.dtype)
        achieved = rate * self.flops_per_token if self.flops_per_token else None
        return {
            "steps": self.step,
            "tokens": self.tokens,
            "epochs": round(self.loader.epoch, 3),
            "seconds": round(self.seconds, 2),
            "tokens_per_second": round(rate, 1),
            "device": str(self.device),
            "precision": "bf16" if self.dtype == torch.bfloat16 else "fp32",
            "gemm_peak_flops": peak,
            "achieved_flops": achieved,
            "utilisation": achieved / peak if achieved else None,
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }


def _every(interval: int | None, step: int) -> bool:
    return interval is not None and step % interval == 0


def _split(batch: Batch, rows: int) -> Iterator[Batch]:
    total = len(next(iter(batch.values())))
    for start in range(0, total, rows):
        yield {key: value[start : start + rows] for key, value in batch.items()}
