"""SWE-bench: how many packages' tests run in an environment of what the packages themselves declare, without a hand.

python benchmarks/swebench_environments.py ARCHIVE.tar.gz [...] --work FOLDER [--timeout-s 300]

Reads each archive's declarations (`lmlab swe validate --declared`), builds the environment, and runs all tests in the
sandbox. Counts those whose tests are collected and of which more than 80 % pass. What is in FOLDER is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from lmlab.errors import LmlabError
from lmlab.files import read_jsonl
from lmlab.methods.swebench import Instance, Judge
from lmlab.methods.swebench.building.declared import required_environment
from lmlab.methods.swebench.config import RequiredConfig, SandboxConfig
from lmlab.methods.swebench.grading.parsers.status import SKIPPED
from lmlab.methods.swebench.harness.open import open_judge
from lmlab.methods.swebench.harness.testing import passing
from lmlab.methods.swebench.harness.workspaces.trees import unpack
from lmlab.methods.swebench.harness.workspaces.workspace import copied
from lmlab.stats import wilson

_ENOUGH = 0.8  # as SWE-smith keeps environments


def tried(archive: Path, folder: Path, judge: Judge) -> dict[str, Any]:
    """What becomes of one package."""
    tree = folder / "trees" / archive.name.removesuffix(".tar.gz")
    if not tree.exists():
        tree.mkdir(parents=True)
        unpack(archive.read_bytes(), tree, strip=1)
    spec = required_environment(RequiredConfig(), tree)
    row: dict[str, Any] = {"package": tree.name, "requirements": list(spec.requirements)}
    began = time.monotonic()
    try:
        built = judge.environments.ensure(spec)
        row |= {"mb": round(built.bytes / 1e6), "build_s": round(time.monotonic() - began, 1)}
        base = Instance(tree.name, extra={"environment": spec.model_dump(mode="json")})
        with copied(tree) as own:
            run = judge.test(base, own, whole=True)
    except LmlabError as failure:
        return {**row, "tests": 0, "passed": 0, "why": failure.message}
    # Each test once: by the runner's results, where it left some
    statuses = {name: status for name, status in (run.structured or run.logged).items() if status != SKIPPED}
    last = (run.output.strip().splitlines() or [""])[-1][:200]
    passed = sum(map(passing, statuses.values()))
    return {**row, "tests": len(statuses), "passed": passed, "test_s": round(run.result.wall_s, 1), "why": last}


def main() -> None:
    """Each archive in its turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--timeout-s", type=float, default=300)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    log = options.work / "outcomes.jsonl"
    known = {row["package"]: row for row in read_jsonl(log)} if log.exists() else {}
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    judge = open_judge(SandboxConfig(timeout_s=options.timeout_s), options.work / "none")
    rows = []
    for archive in options.archives:
        name = archive.name.removesuffix(".tar.gz")
        if name not in known:
            known[name] = tried(archive, options.work, judge)
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(known[name]) + "\n")
        rows.append(known[name])
        print(json.dumps(known[name]), flush=True)
    enough = sum(row["passed"] > _ENOUGH * row["tests"] > 0 for row in rows)
    share = wilson(enough, len(rows))
    print(f"{enough} of {len(rows)} packages: tests are collected, and more than {_ENOUGH:.0%} pass", end=" ")
    print(f"(95 % interval {100 * share.low:.0f} to {100 * share.high:.0f} %)")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
