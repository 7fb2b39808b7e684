"""SWE-bench: what the walls of the sandbox add to test suites of ordinary length.

python benchmarks/swebench_walls.py INSTANCES.jsonl [...] [--pairs 10] [--seconds 500]

Of each file of instances (`swebench_mining.py` writes one for each package) it takes the newest, and runs all tests of
its repository with the solution applied, in bubblewrap and without walls in turns, so many pairs of each, in rounds
over all packages until the time is over. Prints for each package what a run takes and what the walls add, and the mean
over the packages of those whose tests take a second and more, and of the others.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

from lmlab.methods.swebench import Instance, Judge, load_instances
from lmlab.methods.swebench.config import SandboxConfig
from lmlab.methods.swebench.harness.open import open_judge, trees_beside
from lmlab.methods.swebench.harness.testing import passing, statuses_of
from lmlab.methods.swebench.harness.workspaces.git import run_git
from lmlab.methods.swebench.harness.workspaces.workspace import copied
from lmlab.sandbox import choose_executor
from lmlab.stats import t_interval

_ORDINARY_S = 1.0


def timed(judge: Judge, instance: Instance, solved: Path) -> tuple[float, int]:
    """Seconds of all tests in a fresh copy of a tree, session included, and how many pass."""
    with copied(solved) as tree:
        began = time.monotonic()
        run = judge.test(instance, tree, whole=True)
        return time.monotonic() - began, sum(map(passing, statuses_of(run).values()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("instances", nargs="+", type=Path)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=500)
    options = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    until = time.monotonic() + options.seconds
    known: dict[str, tuple[Judge, Judge, Instance]] = {}
    for path in options.instances:
        walled = open_judge(SandboxConfig(timeout_s=300), trees_beside(path))
        newest = max(load_instances(path), key=lambda each: (each.created_at, each.instance_id))
        bare = replace(walled, executor=choose_executor("local", unsafe=True))
        known[newest.instance_id] = walled, bare, newest
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in known}
    passed: dict[str, set[int]] = {name: set() for name in known}
    for number in range(-1, options.pairs):  # the first pair warms caches, and is not counted
        for name, (walled, bare, instance) in known.items():
            if time.monotonic() > until:
                break
            with walled.workspaces.fresh(instance) as solved:
                run_git(solved, ["apply", "--whitespace=nowarn", "-"], instance.patch.encode())
                walled.workspaces.hidden_tests(instance).write(solved)
                pair = (walled, bare) if number % 2 else (bare, walled)
                found = {each.executor.name: timed(each, instance, solved) for each in pair}
            passed[name] |= {count for _, count in found.values()}
            if number >= 0:
                taken[name].append((found["bubblewrap"][0], found["local"][0]))
    groups: dict[bool, list[float]] = {True: [], False: []}
    for name, pairs in taken.items():
        if len(pairs) < 2:
            print(f"{name}: not measured in the time")
            continue
        inside, outside = (statistics.median(column) for column in zip(*pairs, strict=True))
        added = t_interval([100 * (one / other - 1) for one, other in pairs])
        groups[outside >= _ORDINARY_S].append(added.value)
        print(
            f"{name}: {sorted(passed[name])} tests pass; medians of {len(pairs)} runs {inside:.2f} and {outside:.2f} s;"
            f" walls add, mean of pairs, {added.value:+.1f} % ({added.low:+.1f} to {added.high:+.1f});"
            f" {1000 * (inside - outside):+.0f} ms between the medians"
        )
    for ordinary, shares in groups.items():
        if shares:
            length = "a second and more" if ordinary else "less than a second"
            print(f"{len(shares)} suites of {length}: the walls add {statistics.fmean(shares):+.1f} % on average")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
