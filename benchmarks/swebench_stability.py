"""SWE-bench: whether verdicts stay what they are, and whether honest patches are taken for cheats.

python benchmarks/swebench_stability.py INSTANCES.jsonl [...] --work FOLDER [--repeats 5] [--honest 40] [--seconds 600]
python benchmarks/swebench_stability.py INSTANCES.jsonl [...] --work FOLDER --rewards 1000 [--seconds 600]

Judges the reference solution of each instance so many times with two hash seeds by one worker and by two, and other
edits of the solution's lines, right and wrong ones, once each with a control of its own. Prints how many reference
solutions are resolved, how many verdicts or outcomes of tests differ between repeats, and how many of all honest
patches were told to be forged, refused, invalid, or to touch how tests are found, and what controls cost. What is in
FOLDER is not judged again; after so many seconds it stops, and the same command goes on.

With --rewards it asks so many times for the rewards of 20 patches of the ten instances whose tests are shortest (each
solution, and another edit of it) by `RewardFn`s whose workspaces are warm, and once each without walls. Prints how
many rewards and outcomes of tests differ, what a reward takes, and what the process holds more at the end: open files,
threads, processes, temporary folders, control groups, and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from lmlab.files import read_jsonl, sha256_json
from lmlab.methods.swebench import Instance, Judge, load_instances
from lmlab.methods.swebench.config import SandboxConfig
from lmlab.methods.swebench.harness.open import open_judge, trees_beside
from lmlab.methods.swebench.harness.reward import RewardFn, reward_of
from lmlab.methods.swebench.inference.memory import edits_of
from lmlab.sandbox import choose_executor
from lmlab.stats import wilson

_SEEDS = ("0", "1")
_SHORTEST = 10  # instances whose rewards are asked for again and again


@dataclass(frozen=True)
class Work:
    """One patch to judge."""

    kind: str
    judge: Judge
    instance: Instance
    patch: str
    number: int
    seed: str
    workers: int

    @property
    def name(self) -> str:
        """Of what is judged, the repeat included."""
        parts = (self.kind, self.instance.instance_id, sha256_json(self.patch)[:12], self.seed, self.workers)
        return "/".join(map(str, (*parts, self.number)))

    def run(self) -> dict[str, object]:
        """The verdict, as a row."""
        environment = {**self.instance.extra["environment"]}
        environment["env"] = {**environment.get("env", {}), "PYTHONHASHSEED": self.seed}
        instance = replace(self.instance, extra={**self.instance.extra, "environment": environment})
        found = self.judge.judge(instance, self.patch)
        return {
            "name": self.name,
            "kind": self.kind,
            "instance": self.instance.instance_id,
            "patch": sha256_json(self.patch)[:12],
            "status": found.status,
            "reason": found.reason,
            "outcomes": sha256_json(dict(sorted(found.statuses.items()))),
            "touches": list(found.touches_test_infra),
            "seconds": round(found.wall_s, 2),
            "control_s": round(found.control_s, 2),
            "runs": found.runs,
        }


def planned(paths: list[Path], repeats: int, honest: int) -> Iterator[Work]:
    """All that is to be judged, honest edits behind the first repeat."""
    known = []
    for path in paths:
        judge = replace(open_judge(SandboxConfig(timeout_s=300), trees_beside(path)), reuse=False)
        known += [(judge, each) for each in load_instances(path)]
    for number in range(repeats):
        for workers in (1, 2):
            for seed in _SEEDS:
                yield from (Work("gold", judge, each, each.patch, number, seed, workers) for judge, each in known)
        if number == 0:
            for judge, each in known:
                edits = edits_of(each, judge.workspaces, honest)[1]
                yield from (Work("edit", judge, each, patch, 0, "0", 2) for patch in edits)


def held() -> dict[str, float]:
    """What this process holds: numbers of things, and MiB."""
    me = psutil.Process()
    return {
        "open files": me.num_fds(),
        "threads": me.num_threads(),
        "processes": len(me.children(recursive=True)),
        "temporary folders": len(list(Path(tempfile.gettempdir()).glob("lmlab-*"))),
        "control groups": len(list(Path("/sys/fs/cgroup").glob(f"**/lmlab-{os.getpid()}-*"))),
        "memory, MiB": round(me.memory_info().rss / 2**20, 1),
    }


def named(instance: Instance, patch: str) -> str:
    """A patch in few words."""
    return f"{instance.instance_id}/{sha256_json(patch)[:12]}"


def rewards(paths: list[Path], count: int, seconds: float, workers: int, log: Path) -> None:
    """Ask for rewards again and again."""
    known = []
    for path in paths:
        judge = open_judge(SandboxConfig(timeout_s=300), trees_beside(path))
        known += [(judge, each) for each in load_instances(path)]
    known.sort(key=lambda each: (min(each[1].extra["run_s"]["after"]), each[1].instance_id))
    asked = []
    for judge, each in known[:_SHORTEST]:
        fn = RewardFn([each], judge)
        asked += [(fn, each, each.patch), *((fn, each, patch) for patch in edits_of(each, judge.workspaces, 1)[1])]
    rows = list(read_jsonl(log)) if log.exists() else []
    spent, first, began = list[float](), dict[str, float](), time.monotonic()

    def ask(number: int) -> tuple[dict[str, object], float]:
        fn, each, patch = asked[number % len(asked)]
        started = time.monotonic()
        found = fn.judged(each.instance_id, patch)
        outcomes = sha256_json(dict(sorted(found.statuses.items())))
        return {
            "name": named(each, patch),
            "reward": reward_of(found),
            "outcomes": outcomes,
        }, time.monotonic() - started

    with open(log, "a", encoding="utf-8") as file, ThreadPoolExecutor(workers) as pool:
        while len(rows) < count and time.monotonic() - began < seconds:
            for row, took in pool.map(ask, range(len(rows), min(len(rows) + len(asked), count))):
                rows.append(row)
                spent.append(took)
                file.write(json.dumps(row) + "\n")
                file.flush()
            if len(spent) == 2 * len(asked):  # all is warm
                first = held()
    whole = time.monotonic() - began
    for what in ("reward", "outcomes"):
        seen = {row["name"]: {other[what] for other in rows if other["name"] == row["name"]} for row in rows}
        flips = sum(len(each) > 1 for each in seen.values())
        print(f"{len(rows)} rewards of {len(seen)} patches; patches whose {what} differ: {flips}", end="; ")
        print(f"without a reward: {sum(row['reward'] is None for row in rows)}")
    warm = sorted(spent[len(asked) :])
    if warm:
        told = f"median {statistics.median(warm):.3f} s, 95th of a hundred {warm[int(0.95 * len(warm))]:.3f} s"
        print(f"a reward of {len(warm)} in this process, {workers} at once: {told}; {len(spent) / whole:.2f} a second")
    if first:
        print(f"held after {2 * len(asked)} rewards: {first}\nheld after {len(spent)} rewards: {held()}")
    last = {row["name"]: row for row in rows}
    differ = []
    for fn, each, patch in asked:
        name = named(each, patch)
        bare = replace(fn.judge, executor=choose_executor("local", unsafe=True), reuse=False)
        found = bare.judge(each, patch)
        outcomes = sha256_json(dict(sorted(found.statuses.items())))
        if name in last and (float(found.resolved), outcomes) != (last[name]["reward"], last[name]["outcomes"]):
            differ.append((name, found.status, found.reason))
    print(f"{len(asked)} patches without walls; that differ: {differ or 0}")


def main() -> None:
    """Judge and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("instances", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--honest", type=int, default=40, help="other edits of each solution")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rewards", type=int, default=0, help="ask for so many rewards in place of all else")
    parser.add_argument("--workers", type=int, default=2, help="rewards at once")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.rewards:
        print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        place = options.work / "tmp"  # of its own, as others may leave folders in the system's
        place.mkdir(exist_ok=True)
        tempfile.tempdir = str(place)
        rewards(options.instances, options.rewards, options.seconds, options.workers, options.work / "rewards.jsonl")
        print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")
        return
    log = options.work / "outcomes.jsonl"
    rows = list(read_jsonl(log)) if log.exists() else []
    done = {row["name"] for row in rows}
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {len(done)} verdicts were there")
    until = time.monotonic() + options.seconds
    plan = (each for each in planned(options.instances, options.repeats, options.honest) if each.name not in done)
    held_back: Work | None = None
    with open(log, "a", encoding="utf-8") as file:
        while time.monotonic() < until and (first := held_back or next(plan, None)) is not None:
            part, held_back = [first], None
            while len(part) < first.workers and (other := next(plan, None)) is not None:
                if other.workers != first.workers:
                    held_back = other
                    break
                part.append(other)
            with ThreadPoolExecutor(first.workers) as pool:
                for row in pool.map(Work.run, part):
                    rows.append(row)
                    file.write(json.dumps(row) + "\n")
                    file.flush()
        left = held_back is not None or next(plan, None) is not None
    gold = [row for row in rows if row["kind"] == "gold"]
    verdicts = [row for row in gold if row["status"] != "infra"]
    share = wilson(sum(row["status"] == "resolved" for row in verdicts), max(1, len(verdicts)))
    print(f"{len(gold)} runs of reference solutions ({'some' if left else 'none'} of the plan are left):", end=" ")
    print(f"{100 * share.value:.2f} % resolved (95 % interval from {100 * share.low:.1f}),", end=" ")
    print(f"{len(gold) - len(verdicts)} without a verdict")
    for what in ("status", "outcomes"):
        seen: dict[str, set[str]] = {}
        for row in verdicts:
            seen.setdefault(row["instance"], set()).add(row[what])
        flips = sum(len(each) > 1 for each in seen.values())
        print(f"instances of {len(seen)} whose {what} differ between runs: {flips}")
    honest = {(row["instance"], row["patch"]): row for row in rows if row["status"] != "infra"}
    flagged = [row for row in honest.values() if row["status"] in ("forged", "refused", "invalid") or row["touches"]]
    counts = Counter(row["status"] for row in honest.values())
    print(f"honest patches: {len(honest)}, {dict(counts)}; flagged as cheats: {len(flagged)}")
    resolved = [row for row in rows if row["status"] == "resolved"]
    if resolved:
        more = statistics.fmean(row["runs"] - 1 for row in resolved)
        of_these, of_all = (
            sum(row["control_s"] for row in resolved) / sum(row["seconds"] for row in those)
            for those in (resolved, rows)
        )
        print(f"controls: {more:.2f} runs more for each resolved patch;", end=" ")
        print(f"{100 * of_these:.0f} % of the time of these, {100 * of_all:.0f} % of all")
    for row in flagged:
        print(f"  {row['name']}: {row['status']}: {row['reason']} {row['touches']}")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
