"""SWE-bench: what an evaluation survives. Timeouts by the hundred, and kill -9 at random moments.

python benchmarks/swebench_robustness.py [--timeouts 1000] [--kills 10] [--instances 12]

Prints: how many processes and control groups are left after so many runs whose time was over; after so many kills of
`lmlab swe eval` (each with all its children), whether the verdicts are those of a run that nobody has killed, and how
many patches were judged a second time though their result had been stored.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:] = [each for each in sys.path if Path(each or ".").resolve() != Path(__file__).parent.resolve()]
sys.path.insert(0, str(ROOT / "tests" / "methods" / "swebench"))

from lmlab.methods.swebench import (  # noqa: E402
    Environments,
    EnvironmentSpec,
    Instance,
    Judge,
    TreeStore,
    Workspaces,
    collect_git,
    validate,
)
from lmlab.methods.swebench.building.settings import ValidateConfig  # noqa: E402
from lmlab.methods.swebench.harness.workspaces.git import commit_tree, git  # noqa: E402
from lmlab.methods.swebench.instances.load import write_instances  # noqa: E402
from lmlab.sandbox import Box, Limits, choose_executor  # noqa: E402
from lmlab.sandbox.process import descendants  # noqa: E402


def _groups() -> set[str]:
    """Control groups of lmlab."""
    return {str(each) for each in Path("/sys/fs/cgroup").glob("**/lmlab-*") if each.is_dir()}


def timeouts(count: int, workers: int = 8) -> None:
    """Runs that leave the session, the group and their parent before their time is over."""
    executor = choose_executor("auto")
    before, groups = set(descendants(os.getpid())), _groups()
    script = "echo begun; (setsid sh -c 'sleep 60' &) ; sleep 60 & trap '' TERM; while :; do sleep 60; done"

    def one(number: int) -> bool:
        sink = io.BytesIO()
        with (
            tempfile.TemporaryDirectory(prefix="lmlab-timeouts-") as folder,
            executor.open(Box(Path(folder)), Limits(timeout_s=2.0, memory_mib=64)) as session,
        ):
            result = session.run(["sh", "-c", script], sink=sink)
        return result.timed_out and sink.getvalue() == b"begun\n"

    begin = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        told = sum(pool.map(one, range(count)))
    left, new = set(descendants(os.getpid())) - before, _groups() - groups
    seconds = time.monotonic() - begin
    print(f"{count} timeouts in {seconds:.0f} s: {told} told as such with what was printed before;", end=" ")
    print(f"{len(left)} processes and {len(new)} control groups are left", flush=True)


def _benchmark(folder: Path, count: int) -> Path:
    """Instances of one small package, in the folder; their file."""
    from swe_parts import BASE, FIXED, lean_environment, write_tree

    repository = folder / "calc"
    write_tree(repository, BASE)
    commit_tree(repository)
    write_tree(repository, FIXED)
    git(repository, "add", "--all")
    git(repository, "commit", "-q", "-m", "Add numbers")
    spec = EnvironmentSpec(requirements=(), python=str(lean_environment(folder / "environment")))
    workspaces = Workspaces(folder / "cache", TreeStore(folder / "trees"))
    judge = Judge(choose_executor("auto"), workspaces, Environments(folder / "e"), Limits(timeout_s=300))
    (candidate,) = collect_git(repository, workspaces.trees, "owner/calc")
    instance = validate(candidate, judge, spec, ValidateConfig(repeats=1, before_runs=1, hash_seeds=()))
    assert isinstance(instance, Instance), instance
    path = folder / "instances.jsonl"
    write_instances(path, [replace(instance, instance_id=f"owner__calc-{number}") for number in range(count)])
    return path


def _evaluation(instances: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lmlab", "swe", "eval", "--instances", str(instances), "--predictions", "gold"]
    command += ["--out", str(out), "--cache", str(out.parent / "cache"), "--timeout-s", "300", "--every-control"]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _stored(out: Path) -> dict[str, int]:
    return {str(each): each.stat().st_mtime_ns for each in (out / "results").glob("*/*/result.json")}


def kills(count: int, instances: int, seed: int = 0) -> None:
    """Kill an evaluation again and again, until it has been killed so often and then ends."""
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="lmlab-kills-") as name:
        folder = Path(name)
        path = _benchmark(folder / "benchmark", instances)
        begin = time.monotonic()
        assert _evaluation(path, folder / "whole").wait() == 0
        whole = time.monotonic() - begin
        out, again, done = folder / "killed", 0, 0
        for _ in range(count):
            known = _stored(out)
            process = _evaluation(path, out)
            time.sleep(generator.uniform(0.1, 1.0) * whole * 3 / count)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            after = _stored(out)
            again += sum(after.get(each) != at for each, at in known.items())
            done = len(after)
        known = _stored(out)
        assert _evaluation(path, out).wait() == 0
        again += sum(_stored(out).get(each) != at for each, at in known.items())
        one, two = (json.loads((each / "gold.run.json").read_text()) for each in (folder / "whole", out))
        print(f"a whole evaluation of {instances}: {whole:.0f} s; {count} kills, after which {done} results were there")
        print(f"the report is that of the whole one: {one == two}; stored results judged again: {again}")
        left = [each for each in (folder / "cache").rglob(".new-*")]
        print(f"unfinished trees left in the cache: {len(left)}")


def main() -> None:
    """Both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timeouts", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--instances", type=int, default=12)
    options = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    if options.kills:
        kills(options.kills, options.instances)
    if options.timeouts:
        timeouts(options.timeouts)
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
