"""SWE-bench: grading, sandbox and attacks beside the public package `swebench` 5.0.2, in one run.

python benchmarks/swebench.py --shared ../shared [--parts grading,costs,attacks] [--instances 12] [--controls 5]

Prints: agreement with the published verdicts and the time of a log by both graders; what a sandbox, a workspace and a
run of tests cost; instances an hour with one and two workers and what the walls add; what controls cost, run each time
and once for equal changes; how many attacks of the tests each grader takes for a pass, class by class.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
# This folder would stand in for the package `swebench`, which bears the script's name
sys.path[:] = [each for each in sys.path if Path(each or ".").resolve() != Path(__file__).parent.resolve()]
sys.path.insert(0, str(ROOT / "tests" / "methods" / "swebench"))

from lmlab.methods.swebench import (  # noqa: E402
    Environments,
    EnvironmentSpec,
    Instance,
    Judge,
    Prediction,
    TreeStore,
    Workspaces,
    collect_git,
    evaluate,
    grade_log,
    validate,
)
from lmlab.methods.swebench.building.settings import ValidateConfig  # noqa: E402
from lmlab.methods.swebench.grading.logs import decode  # noqa: E402
from lmlab.methods.swebench.harness.judge import Memory  # noqa: E402
from lmlab.methods.swebench.harness.workspaces.git import commit_tree, git  # noqa: E402
from lmlab.sandbox import Box, Limits, choose_executor  # noqa: E402
from lmlab.stats import t_interval  # noqa: E402


def _logs(shared: Path) -> Iterator[tuple[dict[str, object], Instance, bytes]]:
    with gzip.open(shared / "lite_meta.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for row in rows:
        row["eval_script"] = row.pop("eval_script_skeleton")
    lite = {row["instance_id"]: Instance.from_row(row) for row in rows}
    with tarfile.open(shared / "logs.tar.xz") as archive:
        data = {each.name: archive.extractfile(each).read() for each in archive if each.isfile()}
    for line in (shared / "expected.jsonl").read_text().splitlines():
        row = json.loads(line)
        yield row, lite[row["instance_id"]], data[row["log"]]


def _spec(instance: Instance) -> object:
    from swebench.types import TestSpec

    tests = list(instance.fail_to_pass), list(instance.pass_to_pass)
    return TestSpec(
        instance.instance_id, "", [], instance.repo, instance.version, *tests, instance.log_parser, instance.eval_type
    )


def grading(shared: Path, scratch: Path) -> None:
    """Agreement on all logs; time of those that both can read, in turns."""
    from swebench.harness.grading import get_eval_report

    file = scratch / "log"
    right = total = same = both = 0
    ours = theirs = 0.0
    for row, instance, data in _logs(shared):
        verdict = grade_log(instance, decode(data))
        total += 1
        right += (verdict.applied, verdict.resolved) == (row["applied"], row["resolved"])
        if row["format"] != "docker":
            continue
        file.write_bytes(data)
        prediction = {"instance_id": instance.instance_id, "model_name_or_path": "m", "model_patch": "x"}
        spec, begin = _spec(instance), time.perf_counter()
        report = get_eval_report(spec, prediction, str(file), True)
        middle = time.perf_counter()
        own = grade_log(instance, decode(file.read_bytes())).report()
        theirs, ours = theirs + middle - begin, ours + time.perf_counter() - middle
        both, same = both + 1, same + (own == report)
    print(f"published verdicts: {right} of {total} equal; reports equal to those of swebench 5.0.2: {same} of {both}")
    mine, other = 1e3 * ours / both, 1e3 * theirs / both
    print(f"time of a log: ours {mine:.2f} ms, theirs {other:.2f} ms, {other / mine:.2f} times")


def _timed(work: Callable[[], object], count: int) -> list[float]:
    found = []
    for _ in range(count):
        begin = time.perf_counter()
        work()
        found.append(1e3 * (time.perf_counter() - begin))
    return sorted(found)


def _judge(folder: Path) -> tuple[Judge, Instance]:
    from swe_parts import BASE, FIXED, write_tree

    repository = folder / "calc"
    write_tree(repository, BASE)
    commit_tree(repository)
    write_tree(repository, FIXED)
    git(repository, "add", "--all")
    git(repository, "commit", "-q", "-m", "Add numbers")
    workspaces = Workspaces(folder / "cache", TreeStore(folder / "trees"))
    limits = Limits(timeout_s=60, memory_mib=512, processes=64)
    judge = Judge(choose_executor("bubblewrap"), workspaces, Environments(folder / "environments"), limits)
    (candidate,) = collect_git(repository, workspaces.trees, "owner/calc")
    config = ValidateConfig(repeats=1, before_runs=1, hash_seeds=())
    begin = time.perf_counter()
    instance = validate(candidate, judge, EnvironmentSpec(), config)
    assert isinstance(instance, Instance), instance
    environment = judge.environments.ensure(judge.environment_of(instance))
    print(
        f"environment with pytest: {environment.bytes / 1e6:.0f} MB; validated in {time.perf_counter() - begin:.1f} s"
    )
    return judge, instance


def costs(judge: Judge, instance: Instance, count: int, times: int, scratch: Path) -> None:
    """What a sandbox, a workspace, and a run of tests cost; what controls cost; instances an hour."""
    judge.workspaces.pristine(instance)

    def fresh() -> None:
        with judge.workspaces.fresh(instance):
            pass

    def start() -> None:
        with judge.executor.open(Box(scratch)) as session:
            session.run(["/bin/true"])

    local = replace(judge, executor=choose_executor("local", unsafe=True))

    def tests(with_: Judge) -> Callable[[], object]:
        def run() -> None:
            with judge.workspaces.fresh(instance) as tree:
                with_.test(instance, tree, ["tests/test_calc.py"])

        return run

    for name, work in (("sandbox, /bin/true", start), ("fresh workspace", fresh)):
        found = _timed(work, 40)
        print(f"{name}: median {statistics.median(found):.0f} ms, 95th of 100 {found[int(0.95 * len(found))]:.0f} ms")
    walls, none = [], []
    for number in range(max(10, count // 4)):  # in turns, each first as often, as the machine's load changes
        for with_, found in ((judge, walls), (local, none))[:: 1 if number % 2 else -1]:
            found += _timed(tests(with_), 1)
    one, two = statistics.median(walls), statistics.median(none)
    ratios = [100 * (wall / bare - 1) for wall, bare in zip(walls, none, strict=True)]
    mean = t_interval(ratios)
    print(
        f"run of tests: {one:.0f} ms in bubblewrap, {two:.0f} ms without walls: {100 * (one / two - 1):+.1f} %;"
        f" of {len(ratios)} pairs the mean {mean.value:+.1f} % ({mean.low:+.1f} to {mean.high:+.1f}), the"
        f" median {statistics.median(ratios):+.1f} %",
        flush=True,
    )
    controls(judge, instance, times)
    many = [replace(instance, instance_id=f"owner__calc-{number}") for number in range(count)]
    predictions = {each.instance_id: Prediction(each.instance_id, "gold", each.patch) for each in many}
    for workers in (1, 2):
        begin = time.perf_counter()
        done = evaluate(many, predictions, judge, scratch / f"out{workers}", "run", workers)
        seconds = time.perf_counter() - begin
        assert done.share.resolved == count, done.summary["statuses"]
        spent = done.summary["control_s"] / sum(each.wall_s for each in done.results.values())
        print(
            f"{workers} worker(s): {3600 * count / seconds:.0f} instances an hour, all {count} resolved;"
            f" controls are {100 * spent:.0f} % of the time; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )


def controls(judge: Judge, instance: Instance, count: int) -> None:
    """Share of the time of judging that controls take: of the reference solution, and of samples of which three in four
    are equal; by processor time, as the machine's load changes.
    """
    other = instance.patch.replace("return a + b", "return b + a")
    asked = [instance.patch] * count + [other] * count
    verdicts = []
    for name, reuse in (("each time", False), ("once", True)):
        own = replace(judge, reuse=reuse, memory=Memory())
        own.judge(instance, instance.patch)
        results = [own.judge(instance, patch) for patch in asked]
        verdicts.append([(each.status, each.statuses) for each in results])
        for label, part in (("the reference solution", results[:count]), ("an equal patch", results[count:])):
            share = sum(each.control_s for each in part) / sum(each.wall_s for each in part)
            print(f"controls run {name}, {label} {count} times: {100 * share:.0f} % of the time")
    assert verdicts[0] == verdicts[1]
    print(f"verdicts and statuses of all {len(asked)} are equal")


def attacks(judge: Judge, instance: Instance, scratch: Path) -> None:
    """Which attacks each takes for a pass: ours by its verdict, the public grader by the log of the first run."""
    from swebench.harness.grading import get_eval_report
    from test_swe_attacks import ATTACKS

    quick = replace(judge, limits=judge.limits.model_copy(update={"timeout_s": 4.0, "memory_mib": 256}))
    ours, theirs, logs = [], [], 0
    kinds: dict[str, list[int]] = {}
    for name, attack in ATTACKS.items():
        place = scratch / name.replace(":", "_")
        result = quick.judge(instance, attack.patch, keep=place)
        ours += [name] if result.resolved else []
        row = kinds.setdefault(name.partition(":")[0], [0, 0, 0, 0])
        row[0], row[1] = row[0] + 1, row[1] + result.resolved
        log = place / "test_output.txt"
        if log.exists():
            logs += 1
            prediction = {"instance_id": instance.instance_id, "model_name_or_path": "m", "model_patch": "x"}
            report = get_eval_report(_spec(instance), prediction, str(log), True)
            passed = bool(report[instance.instance_id]["resolved"])
            theirs += [name] if passed else []
            row[2], row[3] = row[2] + 1, row[3] + passed
    print(f"attacks taken for a pass: ours {len(ours)} of {len(ATTACKS)}, swebench 5.0.2 {len(theirs)} of {logs} logs")
    print(f"  by the public grader: {', '.join(theirs)}")
    print("| class | attacks | ours takes for a pass | logs | swebench 5.0.2 takes for a pass |\n|---|---|---|---|---|")
    for kind, (count, own, seen, other) in kinds.items():
        print(f"| {kind} | {count} | {own} | {seen} | {other} |")


def main() -> None:
    """All measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, help="folder that holds data/swebench")
    parser.add_argument("--parts", default="grading,costs", help="of grading, costs, attacks")
    parser.add_argument("--instances", type=int, default=12, help="through one worker and through two")
    parser.add_argument("--controls", type=int, default=5, help="patches of each kind whose controls are measured")
    options = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="lmlab-swebench-") as folder:
        scratch = Path(folder)
        if options.shared is not None and "grading" in options.parts:
            grading(options.shared / "data" / "swebench", scratch)
        judge, instance = _judge(scratch / "judge")
        work = scratch / "work"
        work.mkdir()
        if "costs" in options.parts:
            costs(judge, instance, options.instances, options.controls, work)
        if "attacks" in options.parts:
            attacks(judge, instance, scratch / "attacks")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
