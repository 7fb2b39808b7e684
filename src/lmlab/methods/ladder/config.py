"""Settings of the method: plans of ladders, estimators, the stages, and what commands read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from lmlab.config import NO_INFLUENCE, Config, Flag, validate
from lmlab.errors import UserError, did_you_mean
from lmlab.models import ModelConfig
from lmlab.runs import Input, ModelInput, QuestionsInput, TokensInput, VocabularyInput
from lmlab.words import counted

if TYPE_CHECKING:
    from lmlab.methods.ladder.rungs.plan import Rung

LossForm = Literal["nd", "coupled", "tied", "flops", "single", "power", "direct", "line"]
# Laws of a loss, from which a curve leads to the accuracy.
CHAINED: tuple[LossForm, ...] = ("nd", "coupled", "tied", "flops")
AccuracyForm = Literal["sigmoid", "logistic", "log_sigmoid", "mc", "soft"]
Variant = Literal["rc", "mc", "soft"]

OLMO_SIZES = {  # d_model, num_heads, num_layers, d_ff
    "190M": (768, 12, 12, 3072),
    "370M": (1024, 16, 16, 4096),
    "600M": (1344, 16, 16, 5376),
    "760M": (1536, 16, 16, 6144),
    "1B": (2048, 16, 16, 8192),
    "3B": (3328, 16, 16, 13_312),
    "7B": (4096, 32, 32, 11_008),
    "13B": (5120, 40, 40, 13_824),
}
"""The published ladder: d_model, num_heads, num_layers, d_ff."""


class LadderPlan(Config):
    """A ladder to be trained.

    Attributes:
        sizes: shapes by name; the names of the published ladder need no shape.
        multiples: lengths as multiples of 20 N tokens; or `lengths` of all sizes, such as `100B`.
        seq_len: tokens of a row.
        rule: `olmo` takes learning rates and batches from the size, `template` those of `trainer` for all.
        divisor: batches are rounded to multiples of so many rows.
        evaluations: how often a run is measured.
        seeds: of the runs; several make replicates, which intervals use.
        without: runs that are given up, by their names.
        trainer: the rest of the loop: optimizer, schedule, precision.
        train: what else the stage `train` is given: tokens, tokenizer, heldout_tokens, questions, tasks, tasks_limit.
    """

    name: str = "ladder"
    sizes: dict[str, ModelConfig | None] = Field(min_length=1)
    multiples: tuple[PositiveFloat, ...] = (1, 2, 5, 10)
    lengths: tuple[str | float, ...] = ()
    seq_len: PositiveInt = 4096
    rule: Literal["olmo", "template"] = "olmo"
    divisor: PositiveInt = 64
    evaluations: PositiveInt = 20
    seeds: tuple[int, ...] = (0,)
    without: tuple[str, ...] = ()
    trainer: dict[str, Any] = Field(default={})
    train: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _check(self) -> LadderPlan:
        for name, model in self.sizes.items():
            if model is None and name not in OLMO_SIZES:
                raise ValueError(f"sizes.{name} has no shape. {did_you_mean(name, OLMO_SIZES)}")
        if not self.multiples and not self.lengths:
            raise ValueError("give multiples or lengths.")
        for field in ("multiples", "lengths", "seeds"):
            values = [f"{each:g}" if isinstance(each, float) else str(each) for each in getattr(self, field)]
            twice = next((each for place, each in enumerate(values) if each in values[:place]), None)
            if twice is not None:
                raise ValueError(f"{field}: {twice} is there twice, and both runs would have one name.")
        return self

    def rungs(self) -> list[Rung]:
        """All runs, the cheapest first."""
        from lmlab.methods.ladder.rungs.plan import rungs_of

        return rungs_of(self)

    def stage(self, rung: Rung) -> dict[str, Any]:
        """The rung as a stage `train` of a recipe."""
        from lmlab.methods.ladder.rungs.plan import stage_of

        return stage_of(self, rung)


class LadderTarget(Config):
    """What is forecast: a network, and how many tokens it will be trained on."""

    model: ModelConfig
    tokens: str | float


class LadderConfig(Config):
    """Small runs, and the larger model that they forecast.

    Attributes:
        sizes: shapes of the small runs by name.
        lengths: tokens of each: a number, or such as `400K` or `2xC`.
        questions: a stage or a file with ranked questions.
        limit: the most questions that a run is measured on, each time.
        evaluations: how often a run is measured.
        trainer: the loop of all runs, without their length.
        target: the model that is forecast.
        workers: runs that are trained at once.
    """

    tokens: TokensInput
    tokenizer: VocabularyInput
    heldout_tokens: TokensInput
    questions: QuestionsInput
    sizes: dict[str, ModelConfig] = Field(min_length=2)
    lengths: tuple[str | float, ...] = Field(min_length=2)
    seq_len: PositiveInt
    limit: PositiveInt = 300
    evaluations: PositiveInt = 4
    heldout_rows: PositiveInt = 64
    max_epochs: float = 4.0  # up to there repeated text is nearly as good as new (Muennighoff et al. 2023)
    trainer: dict[str, Any]
    target: LadderTarget
    workers: Annotated[PositiveInt | None, NO_INFLUENCE] = None

    def plan(self, places: dict[str, str]) -> LadderPlan:
        """The plan of the small runs."""
        train: dict[str, Any] = {key: places[key] for key in ("tokens", "tokenizer", "heldout_tokens", "questions")}
        train |= {"heldout_rows": self.heldout_rows, "max_epochs": self.max_epochs} | {"tasks_limit": self.limit}
        return LadderPlan(
            sizes=dict(self.sizes),
            lengths=self.lengths,
            seq_len=self.seq_len,
            rule="template",
            evaluations=self.evaluations,
            trainer=self.trainer,
            train=train,
        )


class OutcomeConfig(Config):
    """A stage `ladder`, and the model that it forecast."""

    ladder: Input
    model: ModelInput


class TwoStepSettings(Config):
    """One way from (N, D) to an accuracy.

    Attributes:
        x: the quantity between the steps: `bpb` (task loss), `c4`, `taskce`, `validation` (mean of all validation
            sets), or a column.
        law: of the first step. `nd` is that of Bhagia et al., `coupled` bends its sum by an exponent k, `tied` has one
            exponent for N and D, `flops` is a law of compute; `single`, `power`, `direct` and `line` lead straight
            to the accuracy and have no second step.
        delta: where Huber's loss of the first step becomes linear, in logarithms; None for least squares.
        starts: `paper` is the reference's single start with its bounds and optimizer, `grid` takes the best of at least
            24.
        shrink: strength with which ln alpha and ln beta are drawn to their medians over the tasks.
        last: checkpoints whose mean stands for a run, at most those of its last tenth.
        accuracy_law: of the second step; `logistic` goes from chance to 1 and has two parameters, `mc` predicts answers
            by letter, `soft` the probability of the right answer.
        figure: what is predicted by a law that can predict several; the accuracy of full answers (`rc`) by default.
        moving_average, skip: checkpoints that are averaged for the second step, at most a seventh of a run's,
            and the share at a run's beginning that is left out.
        anchor: append the point (loss 0, accuracy 1), which weighs as a checkpoint, and at most as a 600th of all (in
            fits by the reference's starts always as a checkpoint).
        weighting: of the second step: every checkpoint alike, every run alike, or by the likely noise of accuracy
            (`binomial`); the last also of the runs, where a law leads straight to the accuracy.
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
    figure: Variant | None = None
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
        if self.figure not in (None, self.variant):
            raise ValueError(f"the accuracy law '{self.accuracy_law}' predicts {self.variant}, not {self.figure}.")
        return self

    @property
    def variant(self) -> Variant:
        """Which accuracy is predicted: of full answers, of letters, or the probability of the right answer."""
        return self.accuracy_law if self.accuracy_law in ("mc", "soft") else self.figure or "rc"

    @property
    def chained(self) -> bool:
        """Whether there is a second step."""
        return self.law in CHAINED

    @property
    def sign(self) -> float:
        """Where an unlucky run lies by the first step: above with its loss, below with its accuracy."""
        return 1.0 if self.chained else -1.0


class EstimatorSettings(Config):
    """An estimator: one two-step chain, or the mean logit of several.

    Attributes:
        name: for tables.
        members: the chains.
        weights: of the members' logits; equal by default.
        small: the chains in place of `members` on ladders of fewer than 12 configurations, if there are any.
    """

    name: str
    members: tuple[TwoStepSettings, ...] = Field(min_length=1)
    weights: tuple[float, ...] = ()
    small: tuple[TwoStepSettings, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> EstimatorSettings:
        if self.weights and len(self.weights) != len(self.members):
            raise ValueError(f"{counted(len(self.weights), 'weights')} for {counted(len(self.members), 'members')}.")
        return self


def preset(name: str) -> EstimatorSettings:
    """A named estimator.

    Raises:
        UserError: there is none of this name.
    """
    if name not in PRESETS:
        raise UserError(f"There is no estimator '{name}'. {did_you_mean(name, PRESETS)}")
    return EstimatorSettings(name=name, members=PRESETS[name], small=SMALL.get(name, ()))


_PAPER = TwoStepSettings(starts="paper")
_ALL: dict[str, Any] = {"pool": True, "runs": "all", "short_weight": 0.0}  # repeated runs too, and none below 1xC
PRESETS: dict[str, tuple[TwoStepSettings, ...]] = {
    # Chosen by backtests inside the published ladder; docs/methods/ladder.md has the rule and all candidates.
    "recommended": (
        TwoStepSettings(law="tied", delta=None, **_ALL),
        TwoStepSettings(x="c4", law="coupled", delta=None, **_ALL),
        TwoStepSettings(law="direct", delta=None, shrink=1e-3, **_ALL),
    ),
    "paper": (_PAPER,),
    "flops": (TwoStepSettings(law="flops", starts="paper"),),
    "single": (TwoStepSettings(law="single"),),
    "power": (TwoStepSettings(law="power"),),
    "line": (TwoStepSettings(law="line", delta=None, runs="all", short_weight=0.0),),
    "c4": (TwoStepSettings(x="c4"),),
    # The probability of the right answer, itself a figure: the curve is nearly a line, and its ends are known.
    "soft": (TwoStepSettings(x="taskce", law="tied", accuracy_law="soft", delta=None, anchor=False, **_ALL),),
    "taskce": (
        TwoStepSettings(x="taskce", accuracy_law="log_sigmoid", anchor=False, moving_average=1, skip=0.5, last=1),
    ),
}
# Few runs do not determine a law, and the plain line errs the other way. Chosen by backtests on parts of the published
# ladder (benchmarks/ladder_small.py).
SMALL: dict[str, tuple[TwoStepSettings, ...]] = {
    "recommended": (PRESETS["recommended"][0], TwoStepSettings(law="line", delta=None, weighting="binomial", **_ALL))
}


class RunsOptions(Config):
    """What commands read, and how they treat what must not be fitted.

    Attributes:
        config_path: the same as the argument.
        tasks: tasks by name, separated by commas, or main, main+, all.
        task_file: tasks of your own: TOML or JSON.
        drop_bad_rows: drop rows with values that cannot be, and count them.
        allow_unfinished: fit runs that have not come to their end.
        root: further folder that a configuration may read from; may be repeated.
        family: of models (the column meta/family) whose law is wanted; the others lend their exponents.
    """

    config_path: Annotated[Path | None, Flag(("-c", "--config-path"))] = None
    tasks: Annotated[str, Flag(("-k", "--tasks"))] = "main"
    task_file: Path | None = None
    drop_bad_rows: bool = False
    allow_unfinished: bool = False
    root: tuple[str, ...] = ()
    family: str | None = None


class EstimatorOptions(Config):
    """An estimator by name, and what is changed of it; the reference's flags are known too.

    Attributes:
        preset: recommended, paper, flops, single, power, line, c4, taskce or soft.
        x: between the steps: bpb, c4, taskce, validation, or a column.
        y: the accuracy: rc_acc, mc_acc for answers by letter, or soft for the probability of the right answer.
        law: of the first step: nd, coupled, tied, flops, single, power, direct or line.
        moving_avg: checkpoints to average.
        skip_perc: share left out of the second step.
        last_n_points: checkpoints that stand for a run.
        use_log_sigmoid: the log-sigmoid in the second step.
        step2_config_path: other runs for the second step.
    """

    preset: str = "recommended"
    x: Annotated[str | None, Flag(("-x", "--x"))] = None
    y: Annotated[Literal["rc_acc", "mc_acc", "soft"] | None, Flag(("-y", "--y"))] = None
    law: str | None = None
    moving_avg: Annotated[int | None, Flag(("--moving-avg", "--moving_avg"))] = Field(default=None, ge=1)
    skip_perc: Annotated[float | None, Flag(("--skip-perc", "--skip_perc"))] = Field(default=None, ge=0, le=0.99)
    last_n_points: Annotated[int | None, Flag(("--last-n-points", "--last_n_points"))] = Field(default=None, ge=1)
    use_log_sigmoid: Annotated[bool, Flag(("--use-log-sigmoid", "--use_log_sigmoid"))] = False
    step2_config_path: Path | None = None

    def settings(self) -> EstimatorSettings:
        """The estimator: a preset, or a chain with some of its settings changed.

        Raises:
            UserError: there is no such preset, or a change is impossible.
        """
        named = {"x": "x", "law": "law", "moving_average": "moving_avg", "skip": "skip_perc", "last": "last_n_points"}
        changes = {key: getattr(self, name) for key, name in named.items() if getattr(self, name) is not None}
        if self.y == "mc_acc":
            changes["accuracy_law"] = "mc"
        if self.use_log_sigmoid:
            changes |= {"accuracy_law": "log_sigmoid", "anchor": False}
        name = "soft" if self.y == "soft" and self.preset == "recommended" else self.preset
        if self.y == "soft" and name != "soft":
            changes |= {"accuracy_law": "soft", "anchor": False, "x": self.x or "taskce"}
        found = preset(name)
        if not changes:
            return found
        base = found.members[0]
        member = validate(TwoStepSettings, base.model_dump() | changes, "the options")
        return EstimatorSettings(name=f"{self.preset}, changed", members=(member,))


class ForecastOptions(Config):
    """Intervals of forecasts.

    Attributes:
        interval: share of outcomes that intervals are to hold.
        seed: of the replicates.
    """

    interval: float = Field(default=0.9, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)


class MeanOptions(Config):
    """How tasks are averaged.

    Attributes:
        weigh: of tasks in the mean: alike, or signal for more weight to those that tell models apart far beyond their
            noise.
    """

    weigh: Literal["alike", "signal"] = "alike"


class DecideOptions(Config):
    """Scenarios, and what is wanted of them.

    Attributes:
        scenario: a model that could be trained, as N:D, such as 7e9:4T or 1e9:20xC; may be repeated.
        at_least: a threshold, TASK=ACCURACY in 0 to 1, such as hellaswag=0.8, or mean=0.6 for the mean over the tasks;
            may be repeated.
        sure: the probability with which all thresholds are to be reached.
        flops_per_second: of one device, for the hours of devices.
        price: of an hour of one device, in your currency.
    """

    scenario: Annotated[tuple[str, ...], Flag(("-s", "--scenario"))] = ()
    at_least: tuple[str, ...] = ()
    sure: float = Field(default=0.8, gt=0, lt=1)
    flops_per_second: PositiveFloat = 4e14
    price: NonNegativeFloat | None = None
