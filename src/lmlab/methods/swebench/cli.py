"""`lmlab swe`: build issue-resolving benchmarks, run patches in a sandbox, grade them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example, print_table
from lmlab.errors import UserError
from lmlab.methods.swebench.commands import asking, building, exchanging, making, running
from lmlab.methods.swebench.config import InstancesConfig
from lmlab.words import counted

app = typer.Typer(
    no_args_is_help=True,
    help="Issue-resolving benchmarks from any repository: build, run patches in a sandbox, grade (SWE-bench).",
)

Network = Annotated[
    bool, typer.Option("--network/--no-network", help="Whether the tests had a network; it tells what its errors mean.")
]


app.command(epilog=building.collect_help)(building.collect)
app.command(epilog=building.validate_help)(building.validate)
app.command(epilog=building.check_help)(building.check)
app.command(epilog=making.synth_help)(making.synth)
app.command(epilog=making.adequacy_help)(making.adequacy)
app.command(epilog=making.impossible_help)(making.impossible)
app.command(epilog=asking.retrieve_help)(asking.retrieve)
app.command(epilog=asking.prompt_help)(asking.prompt)
app.command(epilog=asking.infer_help)(asking.infer)
app.command(epilog=asking.agent_help)(asking.agent)
app.command("train-data", epilog=asking.train_data_help)(asking.train_data)
app.command(epilog=asking.memorized_help)(asking.memorized)
app.command("eval", epilog=running.evaluate_help)(running.evaluate)


@app.command(epilog=example("lmlab swe grade test_output.txt --instances lite.jsonl --id sympy__sympy-24213"))
@options(InstancesConfig, "chosen", only=("instances", "split"))
def grade(
    log: Annotated[Path, typer.Argument(help="Log of a test run, of any harness from 1.x to 5.x.")],
    chosen: InstancesConfig,
    id: Annotated[
        str | None, typer.Option(help="Instance, by default the folder's or file's name.", show_default=False)
    ] = None,
    network: Network = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write report.json there.", show_default=False)
    ] = None,
) -> None:
    """Grade the log of one test run."""
    from lmlab.files import write_json
    from lmlab.methods.swebench.grading.logs import read_log_file
    from lmlab.methods.swebench.grading.verdict import grade_log
    from lmlab.methods.swebench.instances.load import load_instances

    name = id or (log.name.removesuffix(".eval.log").split(".")[0] if log.name.endswith(".log") else log.parent.name)
    (instance,) = load_instances(chosen.instances, chosen.split, [name])
    verdict = grade_log(instance, read_log_file(log), network=network)
    if out is not None:
        write_json(out, verdict.report())
    print(f"{name}: {'resolved' if verdict.resolved else 'not resolved'} ({verdict.resolution})")
    if verdict.reason:
        print(f"  {verdict.reason}{f' ({verdict.infra_reason})' if verdict.infra_reason else ''}")
    for column, outcome in (("FAIL_TO_PASS", verdict.fail_to_pass), ("PASS_TO_PASS", verdict.pass_to_pass)):
        print(f"  {column}: {len(outcome.success)} as expected, {len(outcome.failure)} not")
        for test in outcome.failure[:20]:
            print(f"    {test}")


@app.command(
    epilog=example(
        "lmlab swe report logs/run_evaluation/run1 --instances lite.jsonl",
        "lmlab swe report old-logs/ --instances lite.jsonl --out run.json",
    )
)
@options(InstancesConfig, "chosen", only=("instances", "split"))
def report(
    logs: Annotated[Path, typer.Argument(help="Folder with logs of any harness from 1.x to 5.x.")],
    chosen: InstancesConfig,
    predictions: Annotated[
        str | None,
        typer.Option("--predictions", "-p", help="Patches, for those that are empty or missing.", show_default=False),
    ] = None,
    network: Network = True,
    write: Annotated[bool, typer.Option("--write", help="Put the report.json of each log beside it.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the run's report there, JSON.", show_default=False)
    ] = None,
) -> None:
    """Grade a folder of logs again, without running anything."""
    from rich.table import Table

    from lmlab.files import write_json
    from lmlab.methods.swebench.grading.regrading import report_of_logs
    from lmlab.methods.swebench.instances.load import load_instances

    found = report_of_logs(logs, load_instances(chosen.instances, chosen.split), predictions, write, network)
    table = Table()
    for name in (
        "logs of",
        "graded",
        "resolved",
        "unresolved",
        "not valid",
        "not run",
        "empty",
        "share, 95 % interval",
    ):
        table.add_column(name, justify="left" if name == "logs of" else "right")
    for group in found:
        table.add_row(*group.row())
    print_table(table)
    if out is not None:
        if len(found) > 1:
            raise UserError(
                f"'{logs}' holds logs of {counted(len(found), 'runs')}.", "Name the folder of one, or leave out --out."
            )
        write_json(out, found[0].report)
        print(f"Report: {out}")


app.command(epilog=running.compare_help)(running.compare)
app.command("pass-at", epilog=running.pass_at_help)(running.pass_at)
app.command(epilog=exchanging.export_help)(exchanging.export)
app.command("import", epilog=exchanging.import_help)(exchanging.import_)
app.command("best-of", epilog=running.best_of_help)(running.best_of)
app.command("env", epilog=example("lmlab swe env", "lmlab swe env --prune"))(running.environments)
app.command(epilog=example("lmlab swe doctor"))(running.doctor)
