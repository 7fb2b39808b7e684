"""The one training loop.

What is learned is a step function: (model, batch) -> summed loss, count and metrics. The trainer owns everything else:
accumulation with exact means over the global batch, precision, clipping, schedule, logging, evaluation, checkpoints,
resuming and stopping.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lmlab.data import Batch, Loader
from lmlab.distributed import from_main, world
from lmlab.errors import Interrupted, LmlabError, UserError
from lmlab.hardware import machine_load, select_device, select_dtype, ways
from lmlab.hardware.threads import beat
from lmlab.progress import console, progress
from lmlab.train.config import TrainerConfig
from lmlab.train.failures import LESS_MEMORY, memory_on_paper, no_labels, not_finite
from lmlab.train.interrupt import Stopped, StopRequest
from lmlab.train.limits import KillWatch, is_out_of_memory
from lmlab.train.metrics import MetricLog
from lmlab.train.optimization.optimizer import Optimizers
from lmlab.train.optimization.plan import Plan, go_on
from lmlab.train.pace import Pace, dtype_name, rate_of
from lmlab.train.parallelism.parallel import clip_gradients, synchronize_gradients
from lmlab.train.parallelism.sequence import spread_sequences
from lmlab.train.prepare import prepare
from lmlab.train.saving.checkpoint import Checkpoints, checkpoints, load_checkpoint
from lmlab.train.saving.going_on import changes_since
from lmlab.train.steps.step import Evaluation, StepFunction, StepSums, after_step, by_cost, micro_batches

_MOST_EMPTY = 0.01  # of all steps may have no label; more are a fault of the data


class Trainer:
    """Trains a model in a directory that holds everything needed to go on. With several processes each has one, and all
    do the same.

    Arguments:
        model: a module; it is moved to the device and spread over the processes as `config.parallel` says.
        step_function: the loss of a micro-batch.
        loader: this process's share of the batches.
        config: the settings.
        directory: receives `metrics.jsonl` and `checkpoints/`.
        evaluate: called with the model (in evaluation mode, no gradients) every `evaluate_every` steps; its figures are
            logged.
        flops_per_token: for utilization figures.
        tokens_per_row: where the length or the schedule is given in tokens.
        materialize: fills the weights of a model that was built on the meta device, once each process has its share of
            the memory.
        start: a checkpoint whose weights, and with `start_optimizer` the optimizer's state, are taken when this
            directory has none of its own; steps and schedule begin anew.

    Raises:
        UserError: the batch cannot be shared evenly by the processes.
    """

    def __init__(
        self,
        model: nn.Module,
        step_function: StepFunction,
        loader: Loader,
        config: TrainerConfig,
        directory: str | Path,
        evaluate: Evaluation | None = None,
        flops_per_token: float | None = None,
        *,
        tokens_per_row: int | None = None,
        materialize: Callable[[Any], Any] | None = None,
        start: str | Path | None = None,
        start_optimizer: bool = False,
    ) -> None:
        directory = Path(directory)
        start = None if start is None else Path(start)
        self.config, self.directory, self.loader, self.world = config, directory, loader, world()
        self.device = select_device(config.device)
        self.dtype = select_dtype(config.precision, self.device)
        self.rows_at_once = config.rows_of_process(self.world)
        steps = config.num_steps(tokens_per_row, loader.num_rows)
        if steps is None:
            raise ValueError("a length in tokens needs tokens_per_row")
        self.total_steps = steps
        self.plan = Plan(config.schedule, steps, tokens_per_row and tokens_per_row * config.batch_size)
        loader.pin_memory = self.device.type == "cuda"
        self.evaluate = evaluate
        self.pace = Pace(self.device, self.dtype, self.world.size, flops_per_token)
        self.step_function = spread_sequences(step_function, model, config.parallel, self.world, self.device)
        self.model = prepare(model, config, self.world, self.device, self.dtype, materialize)
        self.optimizers = Optimizers(self.model, config.optimizer)
        self.checkpoints = Checkpoints(
            directory / "checkpoints",
            config.keep_checkpoints,
            config.keep_best,
            self.device.type != "cpu" if config.background_checkpoints is None else config.background_checkpoints,
            config.mirror,
        )
        self.step = 0
        self.empty = 0  # steps in which nothing was to be learned
        self._start = (start, start_optimizer)
        self._figures: dict[str, float] = {}  # of the last step, if it was evaluated
        self._best = math.inf
        self._read = loader.state()  # of the last whole step
        self._ways: dict[str, str] = {}  # of the steps before the newest checkpoint
        self._whole = True  # no step of the optimizer is under way
        self._unfinished: dict[str, Any] | None = None  # its row, if its evaluation was stopped

    def fit(self) -> dict[str, Any]:
        """Train to the last step, from the newest checkpoint if there is one.

        Returns:
            a summary: steps, tokens, seconds, tokens per second, utilization of the measured GEMM peak, peak memory.

        Raises:
            Interrupted: stopped by a signal; a checkpoint was written.
            LmlabError: the loss or the gradient is not finite; memory or disk are full.
        """
        self.pace.load_before = machine_load()
        watch = KillWatch(self.directory)
        if self.world.is_main:
            watch.begin(LESS_MEMORY)
        try:
            with self._told_if_out_of_memory():
                return self._fit()
        finally:
            if self.world.is_main:
                watch.end()

    def _fit(self) -> dict[str, Any]:
        self._resume()
        # every step of a run, and every process of it, computes in one way
        with ways.using(from_main(self._ways or ways.in_force())):
            return self._fit_in_one_way()

    def _fit_in_one_way(self) -> dict[str, Any]:
        total = self.total_steps
        log = (
            MetricLog(self.directory, self.step, self.config.track, self.config.model_dump(mode="json"))
            if self.world.is_main
            else None
        )
        try:
            with StopRequest() as stop, progress("train", total, "steps", start=self.step) as advance:
                if self._unfinished:
                    self._complete(self._unfinished, log, stop)
                for batch in self.pace.batches(self.loader, total - self.step):
                    row = self._train_step(batch, stop)
                    if row is None:
                        self._stop(stop)
                    assert row is not None
                    self.step += 1
                    self._read = self.loader.state()
                    self._complete(row, log, stop)
                    advance(1, note=f"loss {row['loss']:.3f}, {rate_of(batch, row['tokens_per_second'])}")
                self.checkpoints.wait()
        except BaseException:
            self._settle()
            raise
        finally:
            if log:
                log.close()
        return {"steps": self.step, "epochs": round(self.loader.epoch, 3), **self.pace.summary()}

    def _complete(self, row: dict[str, Any], log: MetricLog | None, stop: StopRequest) -> None:
        """What follows a step: evaluation, the row of the log, a checkpoint.

        Stopped in an evaluation, a resumed run begins with it.
        """
        last = self.step == self.total_steps
        evaluates = self.evaluate is not None and (last or _every(self.config.evaluate_every, self.step))
        self._figures = {}
        if evaluates:
            try:
                with stop.at_once() if self.world.size == 1 else nullcontext():
                    self._figures = self._evaluate()
            except Stopped:
                self._unfinished = row
                self._stop(stop)
        self._unfinished = None
        row |= self._figures
        if log and (last or evaluates or self.step == 1 or _every(self.config.log_every, self.step)):
            log.write(row)
        pinned = self.step in self.plan.pinned
        if last or self._is_best() or pinned or _every(self.config.checkpoint_every, self.step):
            self._checkpoint(pinned=pinned)

    @contextmanager
    def _told_if_out_of_memory(self) -> Iterator[None]:
        """Say what is needed where memory does not suffice. Weights are changed by whole steps alone, so that the
        checkpoints are good, and one of the last step is added if that can be.
        """
        try:
            yield
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            needs = memory_on_paper(
                self.model, self.config, self.world, self.device, self.dtype, self.plan.tokens_per_step
            )
        self.optimizers.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise LmlabError(
            f"Out of memory on {self.device} at step {self.step + 1}, with micro-batches of {self.rows_at_once} rows."
            f"{needs} {self._save_before_the_end()}",
            LESS_MEMORY,
        )

    def _save_before_the_end(self) -> str:
        newest = self._newest()
        if self._whole and self.world.size == 1 and self.step > newest:
            try:
                self._checkpoint()
                self.checkpoints.wait()
                newest = self.step
            except MemoryError:  # there is not even enough for that; the one before it stays
                pass
        return f"The checkpoint of step {newest} is whole." if newest else "No step was made yet."

    def _settle(self) -> None:
        """After an error: let the checkpoint that is being written be finished, and say so if it cannot be."""
        try:
            self.checkpoints.wait()
        except Exception as error:  # the one that ended the training is the one to be raised
            console.print(f"The last checkpoint could not be written: {error}", style="yellow")

    def _stop(self, stop: StopRequest) -> None:
        """Write a checkpoint and end, on a signal that any process was given."""
        self._checkpoint()
        self.checkpoints.wait()
        name = stop.requested.name if stop.requested else "a signal to another process"
        raise Interrupted(
            f"Stopped by {name} at step {self.step} of {self.total_steps}; a checkpoint was written.",
            "Run the same command again to go on.",
        )

    def _train_step(self, batch: Batch, stop: StopRequest) -> dict[str, Any] | None:
        """One optimizer step; None, with nothing changed, if a stop was requested before its end."""
        start = time.perf_counter()
        self.model.train()
        torch.manual_seed(self._seed())
        factor = self.plan.factor(self.step)
        self.optimizers.set_factor(factor)
        sums = StepSums(self.device)
        ordered = by_cost(batch) if self.config.balance_lengths else batch
        parts = list(micro_batches(ordered, self.rows_at_once))
        for number, micro_batch in enumerate(parts, 1):
            beat()
            moved = {key: value.to(self.device, non_blocking=True) for key, value in micro_batch.items()}
            synchronize_gradients(self.model, self.config.parallel, number == len(parts))
            try:
                with self._autocast():
                    output = self.step_function(self.model, moved)
            except LmlabError as error:
                raise LmlabError(
                    f"{error.message} It happened at step {self.step + 1}; training stopped.", error.remedy
                ) from error
            if not output.learned:
                output.loss_sum.backward()
            sums.add(output)
            if stop.requested and self.world.size == 1:
                break
        # the host waits for the device here alone, once a step, with all that is wanted of it
        loss, count, norm, figures = sums.total(self._clip(sums.gather(bool(stop.requested))))
        if sums.stop:
            self.optimizers.zero_grad()
            return None
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._not_finite(loss, norm)
        if count:
            self._whole = False
            self.optimizers.step()
            self._whole = True
        else:  # weight decay and old moments alone would move the weights
            self.empty += 1
            if self.empty > max(1, _MOST_EMPTY * self.total_steps):
                raise no_labels(self.step + 1, self.empty)
        self.optimizers.zero_grad()
        figures |= after_step(self.step_function, self.model)
        num_tokens = self.config.parallel.data_place(self.world)[1] * (
            sum(value.numel() for key, value in batch.items() if key.endswith("input_ids")) or int(count)
        )
        return {
            "step": self.step + 1,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": self.config.optimizer.learning_rate * factor,
            **self.pace.after_step(num_tokens, time.perf_counter() - start),
            **figures,
        }

    def _clip(self, count: Tensor) -> Tensor:
        """Turn summed gradients into means, limit their norm, and return what it was."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        # the count of labels over all processes and micro-batches is known only now; 1 where nothing was learned
        torch._foreach_div_(
            [each.to_local() if isinstance(each, DTensor) else each for each in gradients], count.float().clamp(min=1)
        )
        return clip_gradients(self.model.parameters(), self.config.clip_norm)

    def _seed(self) -> int:
        """Random numbers depend on the step and the process alone, so that a resumed run draws the same."""
        # no two steps, seeds or processes share a seed while there are fewer than 1,000,003 steps and 65,537 processes
        return ((self.loader.seed * 1_000_003 + self.step) * 65_537 + self.world.rank) % 2**63

    def _not_finite(self, loss: float, norm: float) -> LmlabError:
        self.checkpoints.wait()
        first = int(self._read["next_row"])
        return not_finite(self.step + 1, loss, norm, self._newest(), (first, first + self.config.batch_size - 1))

    def _newest(self) -> int:
        """The step of the newest checkpoint, 0 if there is none."""
        saved = checkpoints(self.directory / "checkpoints")
        return int(saved[-1].name.removeprefix("step-")) if saved else 0

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()

    def _evaluate(self) -> dict[str, float]:
        assert self.evaluate is not None
        self.model.eval()
        with torch.no_grad(), self._autocast():
            figures = self.evaluate(self.model)
        if self.config.keep_best and self.config.keep_best not in figures:
            raise UserError(f"keep_best: the evaluation gives no '{self.config.keep_best}', but {', '.join(figures)}.")
        return figures

    def _is_best(self) -> bool:
        """Whether this step's figure is the lowest so far of those by which checkpoints are kept."""
        figure = self._figures.get(self.config.keep_best or "", math.inf)
        if figure >= self._best:
            return False
        self._best = figure
        return True

    def _checkpoint(self, pinned: bool = False) -> None:
        start = time.perf_counter()
        state = {
            "loader": self._read,
            "tokens": self.pace.tokens,
            "seconds": self.pace.seconds,
            "plan": self.plan.record(),
        }
        state |= {
            "rows_at_once": self.rows_at_once,
            "precision": dtype_name(self.dtype),
            "ways": ways.in_force(),
            "figures": {name: value for name, value in self._figures.items() if math.isfinite(value)},
            "best": self._best if math.isfinite(self._best) else None,
            "unfinished": self._unfinished,
            "empty": self.empty,
        }
        self.checkpoints.save(self.step, self.model, self.optimizers, state, pinned=pinned)
        self.pace.paused += time.perf_counter() - start

    def _resume(self) -> None:
        state = self.checkpoints.load_newest(self.model, self.optimizers)
        if state is None:
            path, with_optimizer = self._start
            if path is not None:
                load_checkpoint(path, self.model, self.optimizers if with_optimizer else None)
            return
        self.plan, how = go_on(Plan.of(state["plan"]), self.plan, state["step"])
        for line in (how, *changes_since(state, self.dtype, self.rows_at_once)):
            if line and self.world.is_main:
                console.print(line, markup=False)
        self.step, self.pace.tokens, self.pace.seconds = state["step"], state["tokens"], state["seconds"]
        self.loader.restore(state["loader"])
        self._read = state["loader"]
        self._best = math.inf if state["best"] is None else state["best"]
        self._unfinished = state.get("unfinished")
        self.empty = int(state.get("empty", 0))
        self._ways = state.get("ways") or {}


def _every(interval: int | None, step: int) -> bool:
    return interval is not None and step % interval == 0
