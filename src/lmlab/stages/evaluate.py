"""The stage `evaluate`: benchmarks, bits per byte by domain and ranked accuracy of a model, beside the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lmlab.config import NO_INFLUENCE
from lmlab.data import read_documents
from lmlab.distributed import fan_out, world
from lmlab.errors import UserError
from lmlab.evals import (
    Evaluator,
    RankedTask,
    Row,
    Settings,
    Task,
    accuracy_by_domain,
    bits_per_byte,
    by_domain,
    chance_level,
    find_tasks,
    run_documents,
    run_task,
    task_figures,
    task_summary,
)
from lmlab.evals.config import MeasuredOn, MeasuringOptions
from lmlab.hardware import reuse_memory
from lmlab.hardware.settings import OnDevice
from lmlab.reports import Section
from lmlab.runs import (
    Documents,
    Input,
    Model,
    ModelInput,
    Questions,
    Stage,
    StageContext,
)
from lmlab.stages.baselines import BaselinesResults
from lmlab.stages.parts.evaluate_report import (
    EvaluateResults,
    comparison_section,
    headline_of,
    summary_of,
    tasks_section,
)

Figures = dict[str, dict[str, Any]]


class EvaluateConfig(MeasuringOptions, MeasuredOn, OnDevice):
    """Which model on what.

    Attributes:
        model: a model's directory, or the stage that trained it.
        title: what the report calls the model, where there are several.
        tasks: benchmarks by name, group, or YAML file.
        untrained: also measure the same network with fresh weights.
        baselines: a stage `baselines`, to set its figures beside the model's.
    """

    model: ModelInput
    title: Annotated[str | None, NO_INFLUENCE] = None
    tasks: list[str] = Field(default=[])
    split: Literal["train", "heldout"] = "heldout"
    baselines: Input | None = None
    untrained: bool = False


class Evaluate(Stage[EvaluateConfig, EvaluateResults]):
    """Writes rows: tasks/TASK.jsonl, and documents-NAME.jsonl and questions-NAME.jsonl (NAME: model, untrained)."""

    version: ClassVar[int] = 2
    distributed: ClassVar[bool] = True

    def depends_on(self, config: EvaluateConfig, promised: Mapping[str, Any]) -> Any:
        """The requests of the tasks."""
        return {task.name: task.fingerprint() for task in find_tasks(config.tasks)}

    def plan(self, config: EvaluateConfig, promised: Mapping[str, Any]) -> dict[str, str]:
        """Tasks and questions."""
        tasks = find_tasks(config.tasks)
        return {"tasks": ", ".join(task.name for task in tasks)} if tasks else {}

    def run(self, config: EvaluateConfig, context: StageContext) -> EvaluateResults:
        """Measure the model, then the untrained one; what a killed attempt measured is kept."""
        self._spread(config, context)
        if world().size == 1:
            reuse_memory()
        evaluator = Evaluator.load(context.find(Model, "model"), config.device, config.precision)
        if config.documents is not None and config.window > evaluator.scorer.max_seq_len:
            raise UserError(
                f"window {config.window} is longer than the model's max_seq_len {evaluator.scorer.max_seq_len}.",
                "Lower it.",
            )
        tasks = self._tasks(evaluator, config, context)
        measured: Figures = {}
        if config.documents is not None or config.task is not None:
            measured["model"] = self._measure("model", evaluator, config, context)
            if config.untrained:
                measured["untrained"] = self._measure(
                    "untrained", _untrained(evaluator, config, context.seed), config, context
                )
        chance = measured["model"].pop("chance", None) if measured else None
        if config.baselines is not None:
            measured |= context.results_of("baselines", BaselinesResults).baselines
        return EvaluateResults(scorer=evaluator.scorer.description, tasks=tasks, measured=measured, chance=chance)

    def _spread(self, config: EvaluateConfig, context: StageContext) -> None:
        """Have workers measure the tasks, each its share, before this process reads the model."""
        if config.workers == 1 or world().size > 1:
            return
        model = context.find(Model, "model")
        settings = Settings(config.limit, config.too_long, config.unconditional)
        jobs = [
            _Job(model, config.device, config.precision, task, settings, path, (number, config.workers))
            for task in find_tasks(config.tasks)
            if not (path := _place(context, task)).exists()
            for number in range(config.workers)
        ]
        for _ in fan_out(_run_job, jobs, config.workers, config.backend):
            pass

    def _tasks(self, evaluator: Evaluator, config: EvaluateConfig, context: StageContext) -> dict[str, Any]:
        """The summary of each task; what workers have measured is there."""
        settings = Settings(config.limit, config.too_long, config.unconditional)
        summaries = {}
        for task in find_tasks(config.tasks):
            rows = run_task(evaluator, task, settings, _place(context, task))
            assert rows is not None
            summaries[task.name] = {
                "title": task.title or task.name,
                "shots": task.shots,
                "split": task.split,
            } | task_summary(task, rows)
            summaries[task.name]["domains"] = _by_domain(task, rows)
        return summaries

    def _measure(
        self, name: str, evaluator: Evaluator, config: EvaluateConfig, context: StageContext
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if config.documents is not None:
            read = context.find(Documents, "documents").split(config.split)
            documents = list(read_documents(read))
            if not documents:
                raise UserError(f"'{read}' holds no documents.", "There is nothing to measure.")
            place = context.directory / f"documents-{name}.jsonl"
            every = None if config.begin == "auto" else config.begin == "every"
            rows = run_documents(
                evaluator, documents, config.window, config.stride, place, f"perplexity, {name}", every
            )
            found["bits_per_byte"] = {domain: asdict(bits_per_byte(each)) for domain, each in by_domain(rows).items()}
        if config.task is not None:
            path = context.find(Questions, "task").path
            task = RankedTask(
                name=f"questions-{name}",
                requests=str(path),
                normalization="bytes",
            )
            ranked = run_task(
                evaluator, task, Settings(None, config.too_long), context.directory / f"questions-{name}.jsonl"
            )
            assert ranked is not None
            if not (accuracy := accuracy_by_domain(ranked)):
                raise UserError(
                    f"'{path}': no question has several options that fit the model's window, so there is no accuracy.",
                    "Use --tasks.",
                )
            found["accuracy"] = accuracy
            if name == "model":
                found["chance"] = {"all": chance_level(ranked)} | {
                    domain: chance_level(rows) for domain, rows in by_domain(ranked).items()
                }
        return found

    def summary(self, results: EvaluateResults) -> str:
        """The model's figures."""
        return summary_of(results)

    def headline(self, results: EvaluateResults) -> dict[str, str]:
        """Accuracy, and bits per byte by domain."""
        return headline_of(results)

    def report(self, config: EvaluateConfig, results: EvaluateResults, directory: Path) -> list[Section]:
        """Tables and figures with standard errors."""
        where = f" of {config.title}" if config.title else ""
        sections = [tasks_section(results, where)] if results.tasks else []
        return sections + ([comparison_section(results, where)] if results.measured else [])


def _place(context: StageContext, task: Task) -> Path:
    return context.directory / "tasks" / f"{task.name}.jsonl"


@dataclass(frozen=True)
class _Job:
    """A worker's share of a task."""

    model: Model
    device: str
    precision: str
    task: Task
    settings: Settings
    path: Path
    share: tuple[int, int]


def _run_job(job: _Job) -> None:
    evaluator = _loaded(job.model, job.device, job.precision)
    run_task(evaluator, job.task, job.settings, job.path, job.share)


@lru_cache(maxsize=1)
def _loaded(model: Model, device: str, precision: str) -> Evaluator:
    """A worker reads the model once for all its jobs."""
    return Evaluator.load(model, device, precision)


def _untrained(evaluator: Evaluator, config: EvaluateConfig, seed: int) -> Evaluator:
    if evaluator.model is None:
        raise UserError(
            "untrained: fresh weights are drawn for lmlab's own networks, and this one runs by"
            f" {evaluator.scorer.description}."
        )
    evaluator.model.initialize(seed)
    return evaluator


def _by_domain(task: Task, rows: Sequence[Row]) -> dict[str, Any]:
    """The main figure in each domain, where there are several."""
    domains = by_domain([row for row in rows if not row.get("skipped")])
    if len(domains) < 2:
        return {}
    main = task.main_metric(rows)
    figures = {name: task_figures(task, found).get(main) for name, found in domains.items()}
    return {name: asdict(value) for name, value in figures.items() if value is not None}
