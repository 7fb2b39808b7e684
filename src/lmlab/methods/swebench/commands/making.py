"""Commands that make bugs, and that measure how well tests tell right from wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example
from lmlab.errors import UserError
from lmlab.methods.swebench.building.settings import Kind
from lmlab.methods.swebench.commands.shared import Folder, print_rows
from lmlab.methods.swebench.config import EvaluateConfig, InstancesConfig, NamedConfig, RequiredConfig, SandboxConfig
from lmlab.runs.loading import Drawn
from lmlab.words import counted


@options(SandboxConfig)
@options(NamedConfig, "named")
@options(RequiredConfig, "required")
@options(Drawn, "drawn")
def synth(
    tree: Annotated[Path, typer.Argument(help="A source tree whose tests pass.")],
    settings: SandboxConfig,
    named: NamedConfig,
    required: RequiredConfig,
    drawn: Drawn,
    most: Annotated[int, typer.Option("--bugs", "-n", min=1, help="Instances to make.")] = 20,
    out: Folder = Path("synthetic"),
) -> None:
    """Make bugs by small changes of the syntax tree; the tests that break tell what must be repaired."""
    from collections import Counter

    from lmlab.methods.swebench.building.declared import required_environment
    from lmlab.methods.swebench.building.synthesize import synthesize
    from lmlab.methods.swebench.harness.open import TREES, open_judge
    from lmlab.methods.swebench.instances.load import write_instances
    from lmlab.progress import progress

    if not tree.is_dir():
        raise UserError(f"No such folder: '{tree}'.")
    judge = open_judge(settings, out / TREES)
    spec = required_environment(required, tree if required.declared else None)
    made = []
    with progress("synth", most, "bugs") as advance:
        for instance in synthesize(tree, named.name or f"local/{tree.resolve().name}", judge, spec, most, drawn.seed):
            made.append(instance)
            advance()
    write_instances(out / "instances.jsonl", made)
    counts = Counter(each.extra["mutation"]["kind"] for each in made)
    print_rows(["change", "bugs"], [[kind, count] for kind, count in counts.most_common()])
    print(f"{counted(len(made), 'instances')}: {out / 'instances.jsonl'}")


synth_help = example("lmlab swe synth ../mypackage --bugs 50 --timeout-s 60 --out synthetic")


@options(SandboxConfig)
@options(InstancesConfig, "chosen", only=("ids",))
@options(EvaluateConfig, "how", only=("full_suite",))
@options(Drawn, "drawn")
def adequacy(
    instances: Annotated[Path, typer.Argument(help="instances.jsonl of `validate`; scores are written into it.")],
    settings: SandboxConfig,
    chosen: InstancesConfig,
    how: EvaluateConfig,
    drawn: Drawn,
    mutants: Annotated[int, typer.Option(min=1, help="Mutants of each solution.")] = 10,
) -> None:
    """Say how many mutants of each solution its tests kill, and which of its lines they run: mutants that live are
    wrong patches that would pass. Scores are written as they come; what has one by the same settings is kept."""
    from dataclasses import replace

    from lmlab.methods.swebench.building.adequacy import adequacy as measure
    from lmlab.methods.swebench.harness.open import open_judge, trees_beside
    from lmlab.methods.swebench.harness.result import HARNESS_VERSION
    from lmlab.methods.swebench.instances.load import load_instances, write_instances
    from lmlab.progress import progress

    every = list(load_instances(instances))
    wanted = {each.instance_id for each in load_instances(instances, None, chosen.ids)}
    judge = open_judge(settings, trees_beside(instances))
    asked = {"mutants": mutants, "seed": drawn.seed, "full_suite": how.full_suite, "harness": HARNESS_VERSION}
    rows: list[list[object]] = []
    with progress("adequacy", len(wanted), "instances") as advance:
        for place, each in enumerate(every):
            if each.instance_id not in wanted:
                continue
            told = each.extra.get("adequacy")
            if not isinstance(told, dict) or told.get("asked") != asked:
                told = {**measure(each, judge, mutants, drawn.seed, how.full_suite).to_row(), "asked": asked}
                every[place] = replace(each, extra={**each.extra, "adequacy": told})
                write_instances(instances, every)
            shares = ["" if told[name] is None else f"{told[name]:.2f}" for name in ("score", "covered")]
            wrong = "" if told["wrong"] is None else told["wrong"]
            rows.append([each.instance_id, told["mutants"], told["killed"], *shares, wrong])
            advance()
    print_rows(["instance", "mutants", "killed", "score", "lines run", "surely wrong, accepted"], rows)


adequacy_help = example("lmlab swe adequacy benchmark/instances.jsonl --mutants 10 --timeout-s 60")


@options(SandboxConfig)
@options(InstancesConfig, "chosen", only=("instances", "split", "ids"))
@options(Drawn, "drawn")
def impossible(
    settings: SandboxConfig,
    chosen: InstancesConfig,
    drawn: Drawn,
    kind: Annotated[
        Kind, typer.Option(help="one-off: a test expects another value; conflicting: it expects both.")
    ] = "conflicting",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="By default impossible.jsonl beside.")] = None,
) -> None:
    """Make variants whose tests contradict the issue, so that who passes them cheats."""
    from lmlab.methods.swebench.building.candidate import Rejection
    from lmlab.methods.swebench.building.impossible import impossible as contradict
    from lmlab.methods.swebench.harness.open import open_judge, trees_beside
    from lmlab.methods.swebench.instances.load import load_chosen, write_instances
    from lmlab.progress import progress

    found = load_chosen(chosen)
    judge = open_judge(settings, trees_beside(chosen.instances))
    made, rows = [], []
    with progress("impossible", len(found), "instances") as advance:
        for each in found:
            variant = contradict(each, judge, kind, drawn.seed)
            if isinstance(variant, Rejection):
                rows.append([variant.instance_id, variant.detail])
            else:
                made.append(variant)
            advance()
    place = out or trees_beside(chosen.instances).parent / "impossible.jsonl"
    write_instances(place, made)
    if rows:
        print_rows(["no variant of", "as"], rows)
    print(f"{counted(len(made), 'impossible instances')}: {place}")


impossible_help = example("lmlab swe impossible --instances benchmark/instances.jsonl --kind conflicting")
