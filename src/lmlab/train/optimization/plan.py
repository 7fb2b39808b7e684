"""The course of the learning rate of a whole training, and how it goes on when the training becomes longer.

A training goes on under another schedule or length where that gives the steps already trained the rates that they had:
it is then the training that was planned so from the beginning. Otherwise it would be one that no schedule describes,
which needs to be asked for (`schedule.replan`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lmlab.errors import UserError
from lmlab.train.optimization.schedule import ScheduleConfig, decay_ends, learning_rate_factor, warmup_steps

_CLOSE = 1e-12  # rates that differ by rounding are the same


@dataclass(frozen=True)
class Plan:
    """The rate of every step.

    Attributes:
        tokens_per_step: where the schedule is given in tokens.
        warmup: its steps, where an earlier plan has fixed them.
        begin: the step from which a replanned schedule holds; before it, `earlier` does.
    """

    schedule: ScheduleConfig
    total_steps: int
    tokens_per_step: int | None = None
    warmup: float | None = None
    begin: int = 0
    earlier: Plan | None = None

    def factor(self, step: int) -> float:
        """The factor on the highest learning rate at `step`, counted from 0."""
        schedule = self.schedule
        if self.earlier is None:
            return learning_rate_factor(schedule, step, self.total_steps, self.tokens_per_step, self.warmup)
        if step < self.begin:
            return self.earlier.factor(step)
        assert schedule.replan is not None
        left, done = self.total_steps - self.begin, step - self.begin
        warmup = warmup_steps(schedule, left, self.tokens_per_step)
        if done < warmup:
            begun = self.earlier.factor(max(0, self.begin - 1))
            return begun + (schedule.replan - begun) * (done + 1) / (math.floor(warmup) + 1)
        ended = min(schedule.final_fraction, schedule.replan)
        shape = schedule.model_copy(update={"final_fraction": 0.0})
        return ended + (schedule.replan - ended) * learning_rate_factor(shape, done, left, self.tokens_per_step)

    @property
    def pinned(self) -> list[int]:
        """The steps after which a decay is complete that is not the last."""
        earlier = [] if self.earlier is None else [step for step in self.earlier.pinned if step <= self.begin]
        left = self.total_steps - self.begin
        return earlier + [self.begin + end for end in decay_ends(self.schedule, left)[:-1]]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schedule": self.schedule.model_dump(mode="json"),
            "total_steps": self.total_steps,
            "tokens_per_step": self.tokens_per_step,
            "warmup": self.warmup,
            "begin": self.begin,
            "earlier": None if self.earlier is None else self.earlier.record(),
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Plan:
        """What `record` gave."""
        earlier = record["earlier"]
        return cls(
            ScheduleConfig.model_validate(record["schedule"]),
            record["total_steps"],
            record["tokens_per_step"],
            record["warmup"],
            record["begin"],
            None if earlier is None else cls.of(earlier),
        )

    def went_as(self, other: Plan, steps: int) -> bool:
        """Whether the first steps have the same rates in both."""
        return all(abs(self.factor(step) - other.factor(step)) < _CLOSE for step in range(steps))


def go_on(before: Plan, wanted: Plan, step: int) -> tuple[Plan, str]:
    """The plan of a training that has made `step` steps under another one, and a sentence on how it goes on (empty if
    nothing has changed).

    Raises:
        UserError: the rates of the steps already made would have been others, and `schedule.replan` is not set; or
            they are more than are wanted.
    """
    if step > wanted.total_steps:
        raise UserError(
            f"The training is at step {step}, beyond the {wanted.total_steps} steps asked for.",
            "Raise steps, or start a new run with --out.",
        )
    if before.schedule == wanted.schedule and before.total_steps == wanted.total_steps:
        return before, ""
    longer = before.total_steps != wanted.total_steps
    change = f"{before.total_steps} -> {wanted.total_steps} steps" if longer else "another schedule"
    if before.earlier is None:
        if wanted.went_as(before, step):
            return wanted, f"{change}: goes on at step {step}, as if it had been planned so from the beginning."
        # a warm-up that is a share of the length keeps the steps that it had
        kept = replace(wanted, warmup=_warmup_of(before))
        if kept.went_as(before, step):
            warmup = math.floor(_warmup_of(before))
            return kept, f"{change}: goes on at step {step}; the warm-up stays at its {warmup} steps."
    if wanted.schedule.replan is None:
        raise UserError(
            f"{change}: the schedule {wanted.schedule.kind} would have given the {step} steps already trained other"
            " learning rates, so that the result would be that of no schedule.",
            "Set trainer.schedule.replan to the share of the highest rate to which it goes from here (such as 0.5), or"
            " start a new run with --out. The kind constant, and wsd before its decay, go on as they are.",
        )
    left = wanted.total_steps - step
    return replace(wanted, begin=step, earlier=before), (
        f"{change}: replanned from step {step}: the rate goes to {wanted.schedule.replan:g} of the highest, and on as"
        f" {wanted.schedule.kind} over the {left} steps that are left."
    )


def _warmup_of(plan: Plan) -> float:
    if plan.warmup is not None:
        return plan.warmup
    return warmup_steps(plan.schedule, plan.total_steps, plan.tokens_per_step)
