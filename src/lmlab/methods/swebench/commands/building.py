"""Commands that build benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example
from lmlab.errors import UserError
from lmlab.methods.swebench.building.settings import CollectConfig, ValidateConfig
from lmlab.methods.swebench.commands.shared import Folder, print_rows
from lmlab.methods.swebench.config import (
    EvaluateConfig,
    InstancesConfig,
    NamedConfig,
    RequiredConfig,
    SandboxConfig,
)
from lmlab.words import counted


@options(CollectConfig)
@options(NamedConfig, "named")
def collect(
    sources: Annotated[
        list[Path], typer.Argument(help="A git repository or bundle, or source archives in the order of releases.")
    ],
    settings: CollectConfig,
    named: NamedConfig,
    github: Annotated[
        Path | None,
        typer.Option(
            help="Folder with saved pull requests and issues of GitHub (JSON of its API, pages), for the repository.",
            show_default=False,
        ),
    ] = None,
    out: Folder = Path("benchmark"),
) -> None:
    """Find changes that edit source and tests: candidates.jsonl, with the tree before each in trees/."""
    from collections import Counter

    from lmlab.methods.swebench.building.collect import collect_archives, collect_git, collect_github
    from lmlab.methods.swebench.harness.open import TREES
    from lmlab.methods.swebench.harness.workspaces.trees import TreeStore
    from lmlab.methods.swebench.instances.load import write_instances
    from lmlab.progress import progress

    trees = TreeStore(out / TREES)
    is_archive = len(sources) > 1 or sources[0].name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar"))
    skipped = Counter[str]()
    if github is not None and (is_archive or len(sources) > 1):
        raise UserError("--github goes with one git repository.")
    if github is not None:
        found = collect_github(github, sources[0], trees, named.name, settings, skipped)
    elif is_archive:
        stem = sources[0].name.rpartition("-")[0] or sources[0].name
        limits = settings.model_copy(update={"max_source_files": None, "max_source_lines": None})
        found = collect_archives(sources, trees, named.name or f"{stem}/{stem}", limits)
    else:
        found = collect_git(sources[0], trees, named.name, settings)
    candidates = []
    with progress("collect", None, "candidates") as advance:
        for each in found:
            candidates.append(each.instance)
            advance()
    path = out / "candidates.jsonl"
    write_instances(path, candidates)
    if skipped:
        print_rows(["pull requests that are none, as", "number"], [[name, n] for name, n in skipped.most_common()])
    print(f"{counted(len(candidates), 'candidates')}: {path}\nNext: lmlab swe validate {path}")


collect_help = example(
    "lmlab swe collect ../mypackage --since 2024-01-01 --out benchmark",
    "lmlab swe collect ../mypackage --github saved/ --out benchmark",
    "lmlab swe collect mypackage-1.0.tar.gz mypackage-1.1.tar.gz mypackage-1.2.tar.gz --out benchmark",
)


@options(ValidateConfig, into="validation")
@options(SandboxConfig)
@options(InstancesConfig, "chosen", only=("ids",))
@options(RequiredConfig, "required")
@options(EvaluateConfig, "how", only=("workers",))
def validate(
    candidates: Annotated[Path, typer.Argument(help="candidates.jsonl of `collect`.")],
    settings: SandboxConfig,
    validation: ValidateConfig,
    chosen: InstancesConfig,
    required: RequiredConfig,
    how: EvaluateConfig,
) -> None:
    """Run the tests before and after each candidate's change: instances.jsonl and rejected.jsonl."""
    from collections import Counter

    from lmlab.files import read_jsonl, write_jsonl
    from lmlab.methods.swebench.building.declared import required_environment
    from lmlab.methods.swebench.building.many import validate_all
    from lmlab.methods.swebench.harness.environment import EnvironmentSpec
    from lmlab.methods.swebench.harness.open import open_judge, trees_beside
    from lmlab.methods.swebench.instances.instance import Instance
    from lmlab.methods.swebench.instances.load import load_instances, write_instances

    if not candidates.exists() or not any(read_jsonl(candidates)):
        raise UserError(f"'{candidates}' has no candidates.", "Run: lmlab swe collect REPOSITORY")
    found = load_instances(candidates, None, chosen.ids)
    judge = open_judge(settings, trees_beside(candidates))
    folder = candidates.parent

    def spec(candidate: Instance) -> EnvironmentSpec:
        return required_environment(required, judge.workspaces.pristine(candidate) if required.declared else None)

    valid, rejected = validate_all(found, judge, spec, validation, folder / "validated", how.workers)
    write_instances(folder / "instances.jsonl", valid)
    write_jsonl(folder / "rejected.jsonl", [each.to_row() for each in rejected])
    counts = Counter(each.reason for each in rejected)
    print_rows(["outcome", "candidates"], [["valid", len(valid)], *([name, n] for name, n in counts.most_common())])
    print(f"Instances: {folder / 'instances.jsonl'}")


validate_help = example(
    "lmlab swe validate benchmark/candidates.jsonl --require text-unidecode --timeout-s 120 --workers 2"
)


@options(InstancesConfig, "chosen", only=("instances", "split"))
def check(
    chosen: InstancesConfig,
    lite: Annotated[bool, typer.Option("--lite", help="Also say which meet the criteria of Lite.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write those without problems there, and of Lite with --lite."),
    ] = None,
) -> None:
    """Check instances: ids, lists, patches, statements; with --lite by the criteria of SWE-bench Lite. With --out those
    that pass are written, their trees beside them."""
    from lmlab.methods.swebench.exchange.tasks import copy_trees
    from lmlab.methods.swebench.harness.open import TREES, trees_beside
    from lmlab.methods.swebench.harness.workspaces.trees import TreeStore
    from lmlab.methods.swebench.instances.lite import lite_criteria
    from lmlab.methods.swebench.instances.load import load_instances, write_instances
    from lmlab.methods.swebench.instances.task_repository import check_instance

    found = load_instances(chosen.instances, chosen.split)
    rows = [[each.instance_id, problem] for each in found for problem in check_instance(each)]
    if rows:
        print_rows(["instance", "problem"], rows)
    print(f"{counted(len(found), 'instances')}, {len({row[0] for row in rows})} with problems.")
    kept = [each for each in found if each.instance_id not in {row[0] for row in rows}]
    if lite:
        reasons = {each.instance_id: lite_criteria(each) for each in found}
        kept = [each for each in kept if not reasons[each.instance_id]]
        print_rows(["instance", "not in Lite, as"], [[name, "; ".join(why)] for name, why in reasons.items() if why])
        print(f"{sum(not why for why in reasons.values())} meet the criteria of Lite.")
    if out is not None:
        if not kept:
            raise UserError("No instance is left.", "See above why.")
        copy_trees(kept, TreeStore(trees_beside(chosen.instances)), out.parent / TREES)
        write_instances(out, kept)
        print(f"{counted(len(kept), 'instances are')} kept: {out}")
    elif rows:
        raise typer.Exit(1)


check_help = example(
    "lmlab swe check --instances benchmark/instances.jsonl",
    "lmlab swe check --instances benchmark/instances.jsonl --lite --out lite/instances.jsonl",
)
