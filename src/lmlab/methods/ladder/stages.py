"""The stages `ladder` (train small runs, forecast a larger model before it is trained) and `ladder_outcome` (set the
outcome beside it).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.errors import UserError
from lmlab.evals import read_questions
from lmlab.files import read_mapping, write_json
from lmlab.hardware import gemm_flops, select_device, select_dtype
from lmlab.methods.ladder.analysis.baselines import carry_forward, log_linear
from lmlab.methods.ladder.config import LadderConfig, OutcomeConfig, TwoStepSettings
from lmlab.methods.ladder.fitting.forecast import Forecaster, TwoStep
from lmlab.methods.ladder.presenting.digits import level_text
from lmlab.methods.ladder.rungs.plan import flops_per_token, parse_length, size_of
from lmlab.methods.ladder.rungs.train import VALIDATION, collect, collect_run, question_task, train_rungs
from lmlab.methods.ladder.tables.own_table import write_table
from lmlab.methods.ladder.tables.table import RunTable
from lmlab.methods.ladder.tables.tasks import Task
from lmlab.progress import duration, with_unit
from lmlab.reports import Facts, Figure, Note, Section, Series, Table, line_chart
from lmlab.runs import (
    Results,
    Stage,
    StageContext,
    StageRecord,
)

_LEVEL = 0.9  # of the interval that an outcome is later held against
_TYPICAL_UTILIZATION = 0.2  # of small models
_SAME = 0.02  # N and D that differ by less than this share are those of the forecast


class Forecast(Results):
    """A forecast with its interval, and what two simpler ones say.

    Attributes:
        carry_forward: the figure of the best small run.
        log_linear: the line in the logarithm of compute.
        told: whether the runs tell a value at all; where they are all at chance, the interval alone is a forecast.
    """

    value: float
    lo: float
    hi: float
    carry_forward: float
    log_linear: float
    told: bool = True

    def text(self) -> str:
        """Value and interval as shares, or the interval alone."""
        interval = f"[{self.lo:.1%}, {self.hi:.1%}]"
        return f"{self.value:.1%} {interval}" if self.told else f"somewhere in {interval}, as all runs are at chance"


class Outcome(Forecast):
    """A forecast beside what came of it."""

    outcome: float
    inside: bool


class LadderResults(Results):
    """What was forecast, when, and from which runs; `n` parameters and `d` tokens are those of the target."""

    made: str
    n: float
    d: float
    level: float
    target_flops: float
    task: dict[str, Any]
    accuracy: Forecast
    heldout_loss: Forecast
    prediction: dict[str, Any]
    fit: dict[str, Any]
    runs: int
    ladder_flops: float


class Ladder(Stage[LadderConfig, LadderResults]):
    """Writes rungs/ (a run directory for each), runs.csv, and forecast.json with the time at which it was made."""

    def plan(self, config: LadderConfig, promised: Mapping[str, Any]) -> dict[str, str]:
        """Runs, arithmetic and time."""
        rungs = config.plan(dict.fromkeys(("tokens", "tokenizer", "heldout_tokens", "questions"), "")).rungs()
        device = select_device("auto")
        total = sum(rung.flops for rung in rungs)
        n, d = _target(config)
        return {
            "runs": ", ".join(rung.name for rung in rungs),
            "arithmetic": (
                f"{with_unit(total, 'FLOP')},"
                f" {total / (d * flops_per_token(config.target.model, config.seq_len)):.0%} of the target's"
            ),
            "target": f"N = {n:,.0f}, D = {d:,.0f}",
            "time": (
                "about"
                f" {duration(total / gemm_flops(str(device), select_dtype('auto', device)) / _TYPICAL_UTILIZATION)}"
            ),
        }

    def run(self, config: LadderConfig, context: StageContext) -> LadderResults:
        """Train what is missing, fit, and forecast."""
        places = {key: str(context.inputs[key]) for key in ("tokens", "tokenizer", "heldout_tokens", "questions")}
        plan = config.plan(places).model_copy(update={"seeds": (context.seed,)})
        train_rungs(plan, context.directory / "rungs", workers=config.workers)
        table = collect([context.directory / "rungs"])
        write_table(table, context.directory / "runs.csv")
        n, d = _target(config)
        found = forecast(
            table,
            ladder_task(context.inputs["questions"], config.limit),
            n,
            d,
            flops_per_token(config.target.model, config.seq_len),
        )
        write_json(context.directory / "forecast.json", found)
        return LadderResults(**found, runs=len(table), ladder_flops=sum(run.flops for run in table))

    def summary(self, results: LadderResults) -> str:
        """The forecast."""
        accuracy, loss = results.accuracy, results.heldout_loss
        return (
            f"{results.runs} runs forecast an accuracy of {accuracy.text()} and a held-out loss of {loss.value:.3f}"
            f" [{loss.lo:.3f}, {loss.hi:.3f}] nats a token."
        )

    def report(self, config: LadderConfig, results: LadderResults, directory: Path) -> list[Section]:
        """The runs and the curves."""
        table = RunTable.read(directory / "runs.csv")
        columns = ["run", "N", "tokens", "held-out loss", "bits per byte of the answer", "accuracy"]
        rows: list[list[Any]] = [
            [
                run.name,
                int(run.n),
                int(run.final_tokens),
                *(round(float(run.metrics[key][-1]), 4) for key in (VALIDATION, _BPB, _ACCURACY)),
            ]
            for run in table
        ]
        blocks: list[Any] = [
            Figure(
                _loss_curves(table), "Held-out loss of the small runs while they were trained.", "Losses of the ladder"
            ),
            Figure(
                _accuracy_points(table),
                "Accuracy against the bits per byte of the right answer, every measurement of every run.",
                "Second step",
            ),
            Table(columns, rows, "The last measurement of each run."),
            *_flag_notes(results),
        ]
        intro = (
            f"Small models were trained first, and forecast the large one at {_time(results.made)}, before its"
            " training began: a law of parameters and tokens for the loss, and a curve from loss to accuracy. They"
            f" cost {results.ladder_flops / results.target_flops:.0%} of its compute."
        )
        return [Section("Ladder", blocks, intro)]


class OutcomeResults(Results):
    """Forecast and outcome; `before` says whether it was a forecast, `as_planned` whether of this model."""

    made: str
    training_started: str
    before: bool
    as_planned: bool
    n: float
    d: float
    level: float
    accuracy: Outcome
    heldout_loss: Outcome


class LadderOutcome(Stage[OutcomeConfig, OutcomeResults]):
    """Compares what was forecast with what was measured at the end of training."""

    def run(self, config: OutcomeConfig, context: StageContext) -> OutcomeResults:
        """Read both."""
        ladder, model = context.inputs["ladder"], context.inputs["model"]
        found = read_mapping(ladder / "forecast.json")
        run = collect_run(model)
        if run is None or _ACCURACY not in run.metrics or VALIDATION not in run.metrics:
            raise UserError(
                f"'{model}' was not measured on the questions and the held-out text.",
                "Give its stage 'train' the keys questions and heldout_tokens.",
            )
        n, d = run.n, run.final_tokens
        as_planned = abs(n / found["n"] - 1) < _SAME and abs(d / found["d"] - 1) < _SAME
        if not as_planned:
            task = Task.model_validate(found["task"])
            found = forecast(RunTable.read(ladder / "runs.csv"), task, n, d, run.flops_per_token) | {
                "made": found["made"]
            }
        started = StageRecord.finished_in(model).started
        rows: dict[str, Any] = {}
        for name, key in (("accuracy", _ACCURACY), ("heldout_loss", VALIDATION)):
            outcome = float(run.metrics[key][-1])
            rows[name] = found[name] | {"outcome": outcome, "inside": found[name]["lo"] <= outcome <= found[name]["hi"]}
        before = datetime.fromisoformat(found["made"]) <= datetime.fromisoformat(started)
        return OutcomeResults(
            made=found["made"],
            training_started=started,
            before=before,
            as_planned=as_planned,
            n=n,
            d=d,
            level=_LEVEL,
            **rows,
        )

    def summary(self, results: OutcomeResults) -> str:
        """Forecast and outcome."""
        accuracy, loss = results.accuracy, results.heldout_loss
        return (
            f"accuracy {accuracy.outcome:.1%}, forecast {accuracy.text()}; held-out loss {loss.outcome:.3f},"
            f" forecast {loss.value:.3f} [{loss.lo:.3f}, {loss.hi:.3f}]."
        )

    def headline(self, results: OutcomeResults) -> dict[str, str]:
        """Forecast beside outcome."""
        accuracy = results.accuracy
        said = f"{accuracy.value:.1%}" if accuracy.told else f"{accuracy.lo:.0%} to {accuracy.hi:.0%}"
        return {"Accuracy, forecast": said, "Accuracy, outcome": f"{accuracy.outcome:.1%}"}

    def report(self, config: OutcomeConfig, results: OutcomeResults, directory: Path) -> list[Section]:
        """The table, and a sentence that tells whether it was a forecast."""
        percent = f"{level_text(results.level)} interval"
        rows: list[list[Any]] = []
        for title, key, digits, scale in (
            ("held-out loss, nats a token", "heldout_loss", 3, 1.0),
            ("accuracy, %", "accuracy", 1, 100.0),
        ):
            each = getattr(results, key)
            low, high, value, outcome, *others = (
                f"{getattr(each, name) * scale:.{digits}f}"
                for name in ("lo", "hi", "value", "outcome", "carry_forward", "log_linear")
            )
            rows.append(
                [
                    title,
                    value if each.told else "not told",
                    f"{low} to {high}",
                    outcome,
                    "inside" if each.inside else "outside",
                    *others,
                ]
            )
        if not results.as_planned:
            note = Note(
                "The model was not trained as the forecast said. The figures are those of the same small runs for its"
                " own size and length.",
                "warning",
            )
        elif results.before:
            note = Note(
                f"The forecast was made at {_time(results.made)}; the training began at"
                f" {_time(results.training_started)}.",
                "good",
            )
        else:
            began, made = _time(results.training_started), _time(results.made)
            note = Note(f"The training began at {began}, before the forecast of {made}: this is no forecast.", "bad")
        columns = ["", "forecast", percent, "outcome", "", "best small run", "line in log compute"]
        caption = "Forecast and outcome. The last two columns are what simpler forecasts would have said."
        return [Section("Forecast and outcome", [note, Table(columns, rows, caption)], rank=2)]


_BPB, _ACCURACY = "questions/bits_per_byte", "questions/accuracy"


def ladder_task(questions: Path, limit: int) -> Task:
    """The questions as a benchmark."""
    items = read_questions(questions / "task.jsonl" if questions.is_dir() else questions)
    count = min(limit, len(items))
    return question_task("questions", "Questions", float(np.mean([1 / len(item.options) for item in items])), count)


def forecast(table: RunTable, task: Task, n: float, d: float, flops: float | None) -> dict[str, Any]:
    """Accuracy and held-out loss at a target with their intervals, beside two simpler forecasts, and when this was
    computed.
    """
    accuracy_model = TwoStep("recommended").fit(table, task)
    predicted = accuracy_model.predict(n, d, _LEVEL, flops_per_token=flops)
    loss_model: Forecaster = TwoStep(TwoStepSettings(x=VALIDATION, delta=1e-2)).fit(table, task, calibrated=False)
    loss = loss_model.predict(n, d, _LEVEL, flops_per_token=flops)
    target_flops = (flops or 6 * n) * d
    simple = {
        name: {"carry_forward": carry_forward(table, key, lowest), "log_linear": log_linear(table, key, target_flops)}
        for name, key, lowest in (("accuracy", _ACCURACY, False), ("heldout_loss", VALIDATION, True))
    }
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "n": n,
        "d": d,
        "level": _LEVEL,
        "target_flops": target_flops,
        "task": task.model_dump(mode="json"),
        "accuracy": {
            "value": predicted.accuracy,
            "lo": predicted.lo,
            "hi": predicted.hi,
            "told": not predicted.diagnostics["untold"],
            **simple["accuracy"],
        },
        "heldout_loss": {"value": loss.loss, "lo": loss.loss_lo, "hi": loss.loss_hi, **simple["heldout_loss"]},
        "prediction": predicted.to_json(),
        "fit": accuracy_model.to_json(),
    }


def _time(stamp: str) -> str:
    return datetime.fromisoformat(stamp).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _target(config: LadderConfig) -> tuple[float, float]:
    n = size_of(config.target.model)
    return float(n), parse_length(config.target.tokens, n)


def _loss_curves(table: RunTable) -> Any:
    series = [Series(run.name, list(run.tokens), list(run.metrics[VALIDATION])) for run in table]
    return line_chart(series, "tokens", "held-out loss (nats a token)", log_x=True)


def _accuracy_points(table: RunTable) -> Any:
    series = [Series(run.name, list(run.metrics[_BPB]), list(run.metrics[_ACCURACY])) for run in table]
    return line_chart(series, "bits per byte of the right answer", "accuracy")


def _flag_notes(results: LadderResults) -> list[Any]:
    away = results.prediction["diagnostics"]["distance"]
    facts = {
        "Target's compute": f"{away['times_compute']:.1f} x the largest run",
        "Target's size": f"{away['times_n']:.1f} x",
        "Target's tokens": f"{away['times_d']:.1f} x",
        "Tokens a parameter": f"{away['tokens_per_parameter']:.2g}",
    }
    flags = results.prediction["diagnostics"]["flags"]
    return [Facts(facts), *([Note("Of the fit: " + "; ".join(flags) + ".", "warning")] if flags else [])]
