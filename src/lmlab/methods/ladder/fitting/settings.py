"""The settings of estimators, and the named ones."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from lmlab.config import Config
from lmlab.errors import UserError, did_you_mean
from lmlab.methods.ladder.fitting.accuracy import AccuracyForm
from lmlab.methods.ladder.fitting.laws import LossForm


class TwoStepSettings(Config):
    """One way from (N, D) to an accuracy.

    Attributes:
        x: the quantity between the steps: `bpb` (task loss), `c4`, `taskce`, `validation` (mean of all validation
            sets), or a column.
        law: of the first step; `single` and `power` lead straight to the accuracy and have no second step.
        delta: where Huber's loss of the first step becomes linear, in logarithms; None for least squares.
        starts: `paper` is the reference's single start with its bounds and optimizer, `grid` takes the best of at least
            24.
        shrink: strength with which ln alpha and ln beta are drawn to their medians over the tasks.
        last: checkpoints whose mean stands for a run, at most those of its last tenth.
        accuracy_law: of the second step.
        moving_average, skip: checkpoints that are averaged for the second step, at most a seventh of a run's,
            and the share at a run's beginning that is left out.
        anchor: append the point (loss 0, accuracy 1).
        weighting: of the second step: every checkpoint alike, every run alike, or by the likely noise of accuracy
            (`binomial`).
        runs: `paper` leaves out runs below 1xC and repeated ones; `all` takes the mean of repeated runs, which weighs
            as many as they are.
        short_weight: of runs below 1xC, where all are taken and every size has longer ones: their rates decay over so
            few steps that they lie off the law of the longer ones. 0 leaves them out.
        pool: fit the law to all splits of a benchmark together, weighted by their questions, and move it to the split
            that is predicted by the mean difference between the two on the fitted runs.
    """

    x: str = "bpb"
    law: LossForm = "nd"
    delta: PositiveFloat | None = 1e-3
    starts: Literal["paper", "grid"] = "grid"
    shrink: NonNegativeFloat = 0.0
    last: PositiveInt = 5
    accuracy_law: AccuracyForm = "sigmoid"
    moving_average: PositiveInt = 5
    skip: float = Field(default=0.10, ge=0, lt=1)
    anchor: bool = True
    weighting: Literal["checkpoints", "runs", "binomial"] = "checkpoints"
    runs: Literal["paper", "all"] = "paper"
    short_weight: float = Field(default=1.0, ge=0, le=1)
    pool: bool = False

    @model_validator(mode="after")
    def _check(self) -> TwoStepSettings:
        if self.starts == "paper" and self.runs == "all":
            raise ValueError("starts 'paper' fit the runs of the paper; take starts 'grid' with runs 'all'.")
        return self

    @property
    def chained(self) -> bool:
        """Whether there is a second step."""
        return self.law in ("nd", "flops")


class EstimatorSettings(Config):
    """An estimator: one two-step chain, or the mean logit of several.

    Attributes:
        name: for tables.
        members: the chains.
        weights: of the members' logits; equal by default.
    """

    name: str
    members: tuple[TwoStepSettings, ...] = Field(min_length=1)
    weights: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> EstimatorSettings:
        if self.weights and len(self.weights) != len(self.members):
            raise ValueError(f"{len(self.weights)} weights for {len(self.members)} members.")
        return self


def preset(name: str) -> EstimatorSettings:
    """A named estimator.

    Raises:
        UserError: there is none of this name.
    """
    if name not in PRESETS:
        raise UserError(f"There is no estimator '{name}'. {did_you_mean(name, PRESETS)}")
    return EstimatorSettings(name=name, members=PRESETS[name])


_PAPER = TwoStepSettings(starts="paper")
_ALL: dict[str, Any] = {"pool": True, "runs": "all", "short_weight": 0.0}
PRESETS: dict[str, tuple[TwoStepSettings, ...]] = {
    # Chosen by backtests inside the published ladder; docs/methods/ladder.md has the rule and all candidates.
    "recommended": (
        TwoStepSettings(delta=None, shrink=1e-3, **_ALL),
        TwoStepSettings(x="c4", **_ALL),
        TwoStepSettings(x="taskce", delta=None, shrink=1e-3, **_ALL),
        TwoStepSettings(law="direct", delta=None, shrink=1e-3, **_ALL),
    ),
    "paper": (_PAPER,),
    "flops": (TwoStepSettings(law="flops", starts="paper"),),
    "single": (TwoStepSettings(law="single"),),
    "power": (TwoStepSettings(law="power"),),
    "c4": (TwoStepSettings(x="c4"),),
    "taskce": (
        TwoStepSettings(x="taskce", accuracy_law="log_sigmoid", anchor=False, moving_average=1, skip=0.5, last=1),
    ),
}
