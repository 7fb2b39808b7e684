"""`lmlab eval`: measure models, compare two of them, list tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import DryRun, Redo, example, print_table, run_stages
from lmlab.errors import UserError, missing_extra
from lmlab.evals.config import MeasuredOn, MeasuringOptions

app = typer.Typer(
    epilog=example(
        "lmlab eval --model models/smollm2 --tasks arc_easy,hellaswag --limit 200",
        "lmlab eval --model runs/demo/model --documents runs/demo/documents --task runs/demo/questions/task.jsonl",
        "lmlab eval --model models/a --model models/b --tasks olmes --workers 4 --out runs/two",
        "lmlab eval compare runs/two/evaluation-1 runs/two/evaluation-2",
    ),
)

Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Directory of the run, by default one for these arguments.", show_default=False),
]


@app.callback(invoke_without_command=True)
@options(MeasuringOptions)
@options(MeasuredOn, "on")
def evaluate(
    context: typer.Context,
    settings: MeasuringOptions,
    on: MeasuredOn,
    models: Annotated[
        list[Path] | None,
        typer.Option(
            "--model",
            help="A model's directory, GGUF file, checkpoint, stage or run; may be repeated.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, groups or YAML files, with commas between them.", show_default=False)
    ] = None,
    out: Out = None,
    dry_run: DryRun = False,
    redo: Redo = False,
) -> None:
    """Measure a model: benchmarks, bits per byte by domain and ranked accuracy, with standard errors.

    What a killed run measured is kept.
    """
    if context.invoked_subcommand is not None:
        return
    if not models:
        raise UserError(
            "Nothing to measure.", "Give --model and --tasks, --documents or --task; `lmlab eval --help` shows more."
        )
    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    chosen = settings.model_dump() | on.model_dump()
    places = run_evaluation(models, names, chosen, out, dry_run, redo)
    if not dry_run:
        for model, place in zip(models, places, strict=True):
            _print_tasks(place, str(model) if len(places) > 1 else None)


def run_evaluation(
    models: Sequence[Path],
    tasks: Sequence[str],
    settings: Mapping[str, Any],
    out: Path | None,
    dry_run: bool,
    redo: bool,
    where: str = "the command line",
) -> list[Path]:
    """Measure models in one run; the directory of each one's stage.

    Arguments:
        settings: of the stage `evaluate`; None stands for its default.
        where: what messages call the place where it was asked for.

    Raises:
        UserError: there is nothing to measure, or something is not there.
    """
    from lmlab.files import sha256_json
    from lmlab.runs import Documents, Model, Questions

    if not tasks and settings.get("documents") is None and settings.get("task") is None:
        raise UserError(
            "Nothing to measure.", "Give --tasks, --documents or --task; `lmlab eval tasks` lists the tasks."
        )
    for model in models:
        Model.find(model)
    for kind, key in ((Documents, "documents"), (Questions, "task")):
        if (place := settings.get(key)) is not None:
            kind.find(place)
    chosen = {
        key: str(value) if isinstance(value, Path) else value for key, value in settings.items() if value is not None
    }
    stages: dict[str, Any] = {}
    for number, model in enumerate(models, 1):
        stage = "evaluation" if len(models) == 1 else f"evaluation-{number}"
        title = {} if len(models) == 1 else {"title": str(model)}
        stages[stage] = {"kind": "evaluate", "model": str(model), "tasks": list(tasks), **chosen, **title}
    places = {stage: each["model"] for stage, each in stages.items()}
    measured = {key: value for key, value in chosen.items() if key not in ("workers", "backend")}
    name = f"eval-{sha256_json([measured, list(tasks), places])[:8]}"
    stages["report"] = {"kind": "report", "title": f"Evaluation of {', '.join(places.values())}"}
    directory = run_stages(name, stages, out, None, dry_run, redo, where=where)
    return [directory / stage for stage in places]


@app.command(name="tasks", epilog=example("lmlab eval tasks", "lmlab eval tasks arc"))
def list_tasks(
    words: Annotated[
        list[str] | None, typer.Argument(help="Show only names that hold one of these.", show_default=False)
    ] = None,
) -> None:
    """List the tasks that can be named, with split, shots, metric, chance and license; then short names and groups."""
    from rich.table import Table

    from lmlab.evals import known_groups, known_tasks
    from lmlab.evals.tasks import olmes

    known = known_tasks()
    if not known:
        raise olmes.missing()
    table = Table("name", "task", "split", "shots", "metric", "chance", "license")
    for name, task in known.items():
        if not words or any(word in name for word in words):
            known_by_accuracy = task.main_metric() == "accuracy"
            chance = "" if task.chance is None or not known_by_accuracy else f"{100 * task.chance:.1f} %"
            table.add_row(name, task.title, task.split, str(task.shots), task.metric_text(), chance, task.license)
    print_table(table)
    for name, targets in known_groups().items():
        if not words or any(word in name for word in words):
            print(f"{name}: {', '.join(targets)}")


@app.command(
    epilog=example("lmlab eval compare runs/eval-a runs/eval-b", "lmlab eval compare runs/a runs/b --out page.html")
)
def compare(
    first: Annotated[Path, typer.Argument(help="Directory of an evaluation, or of a stage of one.")],
    second: Annotated[Path, typer.Argument(help="Directory of another one, of the same tasks.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write a page there.", show_default=False)
    ] = None,
) -> None:
    """Test whether the second model differs from the first on the same questions: paired bootstrap, and McNemar's test
    of accuracies.
    """
    from lmlab.evals.comparing.evaluations import compare_evaluations, comparison_table, write_comparison

    found = compare_evaluations(first, second)
    print_table(comparison_table(found))
    if out is not None:
        print(f"Page: {write_comparison(found, first, second, out)}")


@app.command(epilog=example("lmlab eval harness --model models/smollm2 --tasks lambada_openai --limit 100"))
@options(MeasuringOptions, only=("limit", "precision"), notes={"limit": "Here the first ones."})
def harness(
    model: Annotated[Path, typer.Option(help="A model's directory, GGUF file, checkpoint, stage or run.")],
    settings: MeasuringOptions,
    tasks: Annotated[str, typer.Option(help="Names of the harness's tasks, with commas between them.")],
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples in each prompt.", show_default=False)] = None,
    include: Annotated[
        Path | None, typer.Option(help="Folder with further task files of the harness.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write the results there, as JSON.", show_default=False)
    ] = None,
) -> None:
    """Run tasks of EleutherAI's harness (lm-eval) on one of lmlab's models. The harness downloads their data."""
    import importlib.util

    from lmlab.hardware import reuse_memory

    if importlib.util.find_spec("lm_eval") is None:
        raise missing_extra("lm_eval", "Running tasks of EleutherAI's harness")
    from lmlab.evals.eleuther.names import check_harness_tasks

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UserError("--tasks names no task.", "`lm-eval ls tasks` lists the harness's tasks.")
    check_harness_tasks(names, include)
    from lmlab.evals.eleuther.harness import run_harness
    from lmlab.evals.evaluator import Evaluator
    from lmlab.files import write_json
    from lmlab.hardware.threads import settle

    reuse_memory()
    settle()
    evaluator = Evaluator.load(model, precision=settings.precision)
    found = run_harness(evaluator, names, settings.limit, num_fewshot, include)
    from lm_eval.utils import make_table

    print(f"Computed by {evaluator.scorer.description}.")
    print(make_table(found))
    if out is not None:
        write_json(
            out, {"results": found["results"], "n-samples": found.get("n-samples"), "versions": found.get("versions")}
        )
        print(f"Results: {out}")


def _print_tasks(directory: Path, model: str | None) -> None:
    from lmlab.distributed import world
    from lmlab.runs import StageRecord
    from lmlab.stages.parts.evaluate_report import EvaluateResults, terminal_table

    results = StageRecord.finished_in(directory).read_results(EvaluateResults)
    if results.tasks and world().is_main:
        if model is not None:
            print(model)
        print_table(terminal_table(results))
        print(f"Computed by {results.scorer}. ± is one standard error.")
