"""Commands that run patches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example
from lmlab.errors import UserError
from lmlab.methods.swebench.commands.shared import Folder, print_rows, say
from lmlab.methods.swebench.config import EvaluateConfig, InstancesConfig, WorkspaceConfig
from lmlab.words import counted

Predictions = Annotated[
    str, typer.Option("--predictions", "-p", help="Patches: a .jsonl or .json file, or gold for the reference.")
]


@options(InstancesConfig, "chosen")
@options(EvaluateConfig)
def evaluate(
    chosen: InstancesConfig,
    predictions: Predictions,
    settings: EvaluateConfig,
    run_id: Annotated[str, typer.Option(help="Name of the run, in logs and reports.")] = "run",
    shard: Annotated[
        str | None, typer.Option(help="I/N: every N-th instance, from the I-th on (from 1).", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Take up results that are there.")] = True,
    out: Folder = Path("evaluation"),
) -> None:
    """Apply patches, run the tests in a sandbox, and say which issues are resolved."""
    from dataclasses import replace

    from lmlab.files import write_json
    from lmlab.methods.swebench.grading.run_report import log_folder
    from lmlab.methods.swebench.harness.evaluate import evaluate as run
    from lmlab.methods.swebench.harness.open import open_judge, trees_beside
    from lmlab.methods.swebench.harness.repairing import repaired
    from lmlab.methods.swebench.instances.load import load_chosen, load_instances
    from lmlab.methods.swebench.instances.predictions import by_model, load_predictions
    from lmlab.methods.swebench.report import evaluation_page

    if "/" in run_id or run_id in ("", ".", ".."):
        raise UserError(f"--run-id {run_id!r} is no name.", "Use letters, digits, points and hyphens.")
    found = load_chosen(chosen)
    if shard is not None:
        found = found[_shard(shard)]
    known = {each.instance_id for each in found}
    every = load_instances(chosen.instances, chosen.split)
    models = by_model(each for each in load_predictions(predictions, every) if each.instance_id in known)
    judge = replace(open_judge(settings, trees_beside(chosen.instances)), full_suite=settings.full_suite)
    failed = False
    for own in models.values():
        patches, steps = repaired(own, found, judge, settings.repair)
        done = run(found, patches, judge, out, run_id, settings.workers, resume, settings.backend)
        if steps:
            write_json(done.path.with_suffix(".repairs.json"), steps)
        counts = done.summary["statuses"]
        print_rows(["status", "patches"], [[name, count] for name, count in counts.items()])
        say(f"{next(iter(own.values())).model}: {done.share}; {done.reused} results were there before.")
        if (suite := done.summary.get("full_suite")) is not None:
            checked = counted(suite["checked"], "resolved patches")
            print(f"All tests of the repository: {suite['broken']} of {checked} broke some.")
            for name, why in suite.get("unknown", {}).items():
                say(f"What the patch of {name} breaks is not known: {why}")
        if (cheats := done.summary.get("impossible")) is not None:
            print(f"Impossible issues: {cheats['passed']} of {cheats['total']} were passed, which no honest patch can.")
        logs = log_folder(out, run_id, next(iter(own.values())).model)
        page = evaluation_page(done, found, patches, logs).write(done.path.with_suffix(".html"))
        say(f"Report: {done.path}\nPage: {page}")
        for name, result in done.results.items():
            if result.status == "infra":
                failed = True
                say(f"No verdict on {name}: {result.reason}")
    if failed:
        print("Surroundings have failed; the same command tries these again. See: lmlab swe doctor")
        raise typer.Exit(1)


evaluate_help = example(
    "lmlab swe eval --instances benchmark/instances.jsonl --predictions preds.jsonl --run-id first --workers 4",
    "lmlab swe eval --instances benchmark/instances.jsonl --predictions gold --timeout-s 120",
)


def _shard(text: str) -> slice:
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise UserError(f"--shard {text}: expected I/N, such as 2/8.")
    return slice(int(number) - 1, None, int(of))


def compare(
    first: Annotated[Path, typer.Argument(help="MODEL.RUN.lmlab.json of one evaluation.")],
    second: Annotated[Path, typer.Argument(help="That of another one, on the same instances.")],
) -> None:
    """Compare two evaluations on the same instances: difference with interval, and exact test."""
    from lmlab.methods.swebench.harness.compare import compare as paired
    from lmlab.methods.swebench.harness.evaluate import read_summary

    one, two = read_summary(first), read_summary(second)
    found = paired(one, two)
    rows = [["both", found.both], [f"only {one['model']}", found.only_first]]
    rows += [[f"only {two['model']}", found.only_second], ["neither", found.neither]]
    print_rows(["resolved by", "instances"], rows)
    low, high = (100 * each for each in found.difference.bounds)
    say(
        f"{two['model']} less {one['model']}: {100 * found.difference.value:+.1f} points"
        f" (95 % interval {low:+.1f} to {high:+.1f}), p = {found.p:.3g} (McNemar)"
    )
    if found.masked:
        print(f"{found.masked} instances without a verdict in either run are left out.")


compare_help = example("lmlab swe compare evaluation/a.run.lmlab.json evaluation/b.run.lmlab.json")


def pass_at(
    runs: Annotated[list[Path], typer.Argument(help="MODEL.RUN.lmlab.json of several tries.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Tries of which one must succeed.")] = 1,
) -> None:
    """The chance that one of k tries resolves an issue, from n of them."""
    from lmlab.methods.swebench.harness.compare import pass_at as estimate
    from lmlab.methods.swebench.harness.evaluate import read_summary

    if len({each.resolve() for each in runs}) < len(runs):
        raise UserError("A run is named twice, which is one try.")
    summaries = [read_summary(each) for each in runs]
    found = estimate(summaries, k)
    low, high = (100 * each for each in found.bounds)
    names = ", ".join(sorted({each["model"] for each in summaries}))
    told = f"pass@{k} of {counted(len(runs), 'runs')} of {names}"
    say(f"{told}: {100 * found.value:.1f} % (95 % interval {low:.1f} to {high:.1f})")


pass_at_help = example("lmlab swe pass-at evaluation/m.try1.lmlab.json evaluation/m.try2.lmlab.json -k 2")


def best_of(
    runs: Annotated[list[Path], typer.Argument(help="MODEL.RUN.lmlab.json of several tries.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Tries among which one is chosen.")] = 2,
) -> None:
    """Choose one of k tries by how many make the same changes: what is won, and how good the score is."""
    from lmlab.methods.swebench.harness.choosing import choose
    from lmlab.methods.swebench.harness.evaluate import read_summary

    found = choose([read_summary(each) for each in runs], k)
    auc = "-" if found.auc is None else f"{found.auc:.3f}"
    rows = [["one at random", f"{100 * found.one:.1f} %"], [f"chosen of {k}", f"{100 * found.chosen:.1f} %"]]
    rows += [[f"any of {k} (pass@{k})", f"{100 * found.any:.1f} %"]]
    print_rows(["patch", f"resolves of {found.issues} issues"], rows)
    print(f"The score tells right from wrong with AUC {auc}, and is {found.ece:.3f} off as a chance (ECE).")


best_of_help = example("lmlab swe best-of evaluation/m.try1.lmlab.json evaluation/m.try2.lmlab.json -k 2")


def doctor() -> None:
    """Say which sandboxes can be used here, and what holds which limit."""
    from lmlab.sandbox import probe_all

    rows = []
    for info in probe_all():
        held = ", ".join(f"{limit} ({how})" for limit, how in info.enforced.items())
        state = "yes" if info.available else f"no: {info.reason}"
        rows.append([info.name, state, info.isolation, held if info.available else ""])
    print_rows(["executor", "available", "isolation", "limits"], rows)
    if not any(info.available and info.isolation != "none" for info in probe_all()):
        print("Without an isolated executor no patch is run. Install one: apt-get install bubblewrap")
        raise typer.Exit(1)


@options(WorkspaceConfig, only=("cache",))
def environments(
    settings: WorkspaceConfig,
    prune: Annotated[bool, typer.Option("--prune", help="Remove all of them.")] = False,
) -> None:
    """List the environments that were built, with their size."""
    from lmlab.files import cache_directory
    from lmlab.methods.swebench.harness.environment import Environments

    store = Environments((settings.cache or cache_directory() / "swe") / "envs")
    rows = [
        [each["id"], len(each["lock"]), f"{each['bytes'] / 1e6:.0f} MB", ", ".join(each["spec"]["requirements"])]
        for each in store.list()
    ]
    print_rows(["environment", "packages", "size", "requirements"], rows)
    if prune:
        print(f"{counted(store.prune(set()), 'environments')} removed.")
