"""Commands that write instances in the forms of other harnesses, and read them back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example
from lmlab.methods.swebench.commands.shared import Folder
from lmlab.methods.swebench.config import InstancesConfig, SandboxConfig
from lmlab.methods.swebench.inference.settings import InferConfig
from lmlab.words import counted

Form = Literal["swebench", "harbor", "verifiers"]


@options(SandboxConfig, only=("cache", "repositories", "timeout_s", "memory_mib", "cpus"))
@options(InstancesConfig, "chosen")
@options(InferConfig, "shown", only=("context", "budget", "style", "encoder", "device", "granularity"))
def export(
    form: Annotated[Form, typer.Argument(help="swebench (a task repository), harbor (task folders) or verifiers.")],
    settings: SandboxConfig,
    chosen: InstancesConfig,
    shown: InferConfig,
    name: Annotated[str, typer.Option(help="Of the data set, organization or package.")] = "lmlab-swe",
    out: Folder = Path("exported"),
) -> None:
    """Write instances for other harnesses: task folders with images, tests and solution, or an environment."""
    from lmlab.methods.swebench.exchange.harbor import write_harbor, write_readme
    from lmlab.methods.swebench.exchange.tasks import copy_trees, with_script, with_tree
    from lmlab.methods.swebench.exchange.verifiers import write_verifiers
    from lmlab.methods.swebench.harness.environment import Environments
    from lmlab.methods.swebench.harness.judge import Judge
    from lmlab.methods.swebench.harness.open import TREES, cache_of, open_workspaces, trees_beside
    from lmlab.methods.swebench.instances.load import load_chosen
    from lmlab.methods.swebench.instances.task_repository import write_task_repository
    from lmlab.sandbox import Limits
    from lmlab.sandbox.local import Local

    found = load_chosen(chosen)
    workspaces = open_workspaces(settings, trees_beside(chosen.instances))
    if form == "swebench":
        if settings.repositories is not None:
            found = [with_tree(each, workspaces) for each in found]
        scripted = [with_script(each) for each in found]
        copy_trees(found, workspaces.trees, out / TREES)
        write_task_repository(out, scripted, name)
    elif form == "verifiers":
        write_verifiers(out, found, workspaces, shown, name, settings.timeout_s)
    else:
        limits = Limits(timeout_s=settings.timeout_s, memory_mib=settings.memory_mib, cpus=settings.cpus)
        # Nothing is run, so that it needs no sandbox
        judge = Judge(Local(), workspaces, Environments(cache_of(settings) / "envs"), limits)
        write_harbor(out, found, judge, name)
        write_readme(out, len(found))
    print(f"{counted(len(found), 'instances')} for {form}: {out}")


export_help = example(
    "lmlab swe export harbor --instances benchmark/instances.jsonl --out tasks",
    "lmlab swe export verifiers --instances benchmark/instances.jsonl --context oracle --out environment",
)


@options(SandboxConfig, only=("cache", "repositories"))
def import_(
    form: Annotated[
        Literal["harbor", "swebench"], typer.Argument(help="harbor (tasks that `export` wrote) or swebench.")
    ],
    folder: Annotated[
        Path, typer.Argument(help="Folder with the tasks; for swebench also a file of instances or a known name.")
    ],
    settings: SandboxConfig,
    out: Folder = Path("benchmark"),
) -> None:
    """Read instances of another harness: instances.jsonl, with their trees where these are at hand: in the folder (what
    `export` wrote), or in --repositories. Published instances keep theirs in their images."""
    from lmlab.methods.swebench.exchange.harbor import read_harbor
    from lmlab.methods.swebench.exchange.tasks import bring_trees
    from lmlab.methods.swebench.harness.open import TREES, open_workspaces, trees_beside
    from lmlab.methods.swebench.harness.workspaces.trees import TreeStore
    from lmlab.methods.swebench.instances.load import load_instances, write_instances

    counts: dict[str, int] = {}
    if form == "harbor":
        found = list(read_harbor(folder, TreeStore(out / TREES)))
    else:
        beside = TreeStore(trees_beside(folder))
        found, counts = bring_trees(load_instances(str(folder)), beside, open_workspaces(settings, out / TREES))
    path = out / "instances.jsonl"
    write_instances(path, found)
    print(f"{counted(len(found), 'instances')}: {path}")
    if counts.get("image"):
        print(f"{counted(counts['image'], 'trees are')} left in images, where `eval --executor docker` runs the tests.")
    if counts.get("missing"):
        print(f"{counted(counts['missing'], 'trees are')} not at hand. Name a folder with clones: --repositories")


import_help = example(
    "lmlab swe import harbor tasks/ --out benchmark",
    "lmlab swe import swebench exported/ --repositories clones/ --out benchmark",
)
