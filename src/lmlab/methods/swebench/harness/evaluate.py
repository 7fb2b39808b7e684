"""Many patches: by several workers, resumed by what was judged and not by its name, reported in the public layout."""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmlab import __version__
from lmlab.distributed import Backend, FolderStore, Leases, fan_out
from lmlab.errors import UserError
from lmlab.files import read_mapping, sha256_json, write_json, write_text
from lmlab.methods.swebench.grading.find_logs import METADATA, OUTPUT, PATCH, REPORT, RUN_LOG
from lmlab.methods.swebench.grading.run_report import Share, log_folder, make_run_report
from lmlab.methods.swebench.grading.verdict import grade
from lmlab.methods.swebench.harness.judge import Judge
from lmlab.methods.swebench.harness.result import HARNESS_VERSION, Result
from lmlab.methods.swebench.harness.testing import command_of, files_of
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.predictions import Prediction
from lmlab.methods.swebench.patches.diff import read_diff
from lmlab.progress import progress
from lmlab.stats import wilson

_RESULT, _LEASES, _MARK = "result.json", "leases", ".seen-"
_POLL_S = 0.2  # between looks at what others hold: less asks the file system often, more waits after the last one


@dataclass(frozen=True)
class Evaluated:
    """A model's run.

    Attributes:
        results: by instance, of all that were submitted.
        report: in the layout of the public package; `path` is its file.
        summary: ours: statuses, reasons, intervals, and what was run on what.
        reused: results that were there before.
    """

    results: Mapping[str, Result]
    report: dict[str, Any]
    path: Path
    summary: dict[str, Any]
    reused: int

    @property
    def share(self) -> Share:
        """Resolved of all."""
        return Share.of(self.report)


def result_key(judge: Judge, instance: Instance, patch: str | None) -> str:
    """What a verdict depends on: the instance, the patch, the environment, the command, the limits, the walls, and the
    rules of this harness. A changed patch under an old name is another key.
    """
    return sha256_json(
        {
            "instance": instance.digest,
            "patch": sha256_json(patch or ""),
            "environment": judge.environment_of(instance).id,
            "command": [*command_of(instance), *files_of(instance)],
            "limits": judge.limits.model_dump(mode="json"),
            "isolation": judge.executor.probe().isolation,
            "control": judge.control,
            "harness": HARNESS_VERSION,
            **({"full_suite": True} if judge.full_suite else {}),
            **({"base_image": base} if judge.environments.images and (base := judge.environments.base_image) else {}),
        }
    )


def evaluate(
    instances: Sequence[Instance],
    predictions: Mapping[str, Prediction],
    judge: Judge,
    out: str | Path,
    run_id: str,
    workers: int = 1,
    resume: bool = True,
    backend: Backend = "processes",
) -> Evaluated:
    """Judge the patches of one model.

    Several processes may share the folder `out`: each patch is judged by one of them.

    Arguments:
        predictions: by instance.
        out: receives results/, logs/ and the reports.
        run_id: names the run in logs and reports.
        resume: take up results that are there.
        backend: `ray` spreads patches over a cluster, whose machines see `out`, trees and environments at the same
            places, and have the sandbox.

    Raises:
        UserError: there are no predictions, or they are of several models.
    """
    out = Path(out)
    models = {each.model for each in predictions.values()}
    if len(models) != 1:
        raise UserError(f"A run is of one model, and these predictions are of {len(models)}.")
    (model,) = models
    known = {each.instance_id: each for each in instances}
    began, reused = time.time(), 0
    todo: dict[str, str] = {}
    results: dict[str, Result] = {}
    for name, prediction in predictions.items():
        key = result_key(judge, known[name], prediction.patch)
        found = _stored(out, key) if resume else None
        if found is None:
            todo[name] = key
        else:
            results[name], reused = found, reused + 1
    with progress("evaluate", len(predictions), "patches", start=reused) as advance:
        way = _judged_by_ray if backend == "ray" else _judged
        for name, result in way(_Work(todo, known, predictions, judge, out, resume), workers):
            results[name] = result
            counts = Counter(each.status for each in results.values())
            advance(1, f"{counts['resolved']} resolved")
    folder = log_folder(out, run_id, model)
    for name, result in results.items():
        key = result_key(judge, known[name], predictions[name].patch)
        _write_logs(folder / name, known[name], predictions[name], result, _place(out, key))
    _write_metadata(folder.parent / METADATA, instances, began)
    report = make_run_report(instances, predictions, folder, network=False)
    summary = _summary(results, report, instances, judge, time.time() - began) | _of_predictions(
        predictions, known, len(report["resolved_ids"])
    )
    path = out / f"{model.replace('/', '__')}.{run_id}.json"
    write_json(path, report)
    write_json(path.with_suffix(".lmlab.json"), summary | {"model": model, "run_id": run_id})
    return Evaluated(results, report, path, summary, reused)


@dataclass(frozen=True)
class _Work:
    """What is to be judged, and where results go.

    Attributes:
        todo: names of patches to their keys.
        resume: take up a result that another process has written meanwhile.
    """

    todo: Mapping[str, str]
    known: Mapping[str, Instance]
    predictions: Mapping[str, Prediction]
    judge: Judge
    out: Path
    resume: bool

    def of(self, name: str) -> _Job:
        """One patch of it, for any process."""
        return _Job(self.judge, self.known[name], self.predictions[name].patch, self.todo[name], self.out, self.resume)


@dataclass(frozen=True)
class _Job:
    """One patch to judge."""

    judge: Judge
    instance: Instance
    patch: str | None
    key: str
    out: Path
    resume: bool

    def run(self, leases: Leases) -> Result | None:
        """Judge the patch and store its result; None while another process does."""
        lease = leases.acquire(self.key)
        if lease is None:
            return None
        with lease:
            if self.resume and (found := _stored(self.out, self.key)) is not None:
                return found  # another process was faster
            place = _place(self.out, self.key)
            result = self.judge.judge(self.instance, self.patch, keep=place)
            write_json(place / _RESULT, result.to_row())
            return result


def _judged(work: _Work, workers: int) -> Iterator[tuple[str, Result]]:
    """Results as they come; a patch that another process has taken is waited for."""
    leases = Leases(FolderStore(work.out / _LEASES))
    waiting = list(work.todo)
    pool = ThreadPoolExecutor(workers, "evaluate")
    running: dict[Future[Result | None], str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                name = waiting.pop(0)
                running[pool.submit(work.of(name).run, leases)] = name
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                name, result = running.pop(future), future.result()
                if result is None:
                    waiting.append(name)
                    time.sleep(_POLL_S)
                else:
                    yield name, result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        leases.close()


def _judged_by_ray(work: _Work, workers: int) -> Iterator[tuple[str, Result]]:
    """Results as they come from a cluster; a result is stored by what it depends on, so that a patch whose machine is
    lost is judged again elsewhere, and by nobody twice.
    """
    names = list(work.todo)
    work = replace(work, out=work.out.resolve())
    work.out.mkdir(parents=True, exist_ok=True)
    mark = work.out / f"{_MARK}{secrets.token_hex(16)}"
    mark.touch()
    try:
        jobs = [(work.of(name), mark) for name in names]
        for number, result in fan_out(_on_ray, jobs, workers if workers > 1 else None, "ray"):
            yield names[number], result
    finally:
        mark.unlink(missing_ok=True)


def _on_ray(asked: tuple[_Job, Path]) -> Result:
    job, mark = asked
    if (missing := _unseen(job, mark)) is not None:
        return Result(job.instance.instance_id, "infra", missing)
    leases = Leases(FolderStore(job.out / _LEASES))
    try:
        while (result := job.run(leases)) is None:
            time.sleep(_POLL_S)
        return result
    finally:
        leases.close()


def _unseen(job: _Job, mark: Path) -> str | None:
    """What this machine of a cluster does not see of the folders of the one that asks; None if it sees all of them.

    Arguments:
        mark: a file that the one that asks has put into the folder of results.
    """
    if not mark.is_file():
        place = job.out
    elif not job.judge.workspaces.trees.folder.is_dir():
        place = job.judge.workspaces.trees.folder
    else:
        return None
    return (
        f"the machine {os.uname().nodename} of the cluster does not see the folder '{place}' of the machine that asks:"
        " put it on storage that all of them mount at the same place"
    )


def _place(out: Path, key: str) -> Path:
    return out / "results" / key[:2] / key


def _stored(out: Path, key: str) -> Result | None:
    """A result that was written before. What is no verdict, or cannot be read, is judged again."""
    path = _place(out, key) / _RESULT
    if not path.exists():
        return None
    try:
        found = Result.from_row(read_mapping(path))
    except (UserError, TypeError):
        return None
    return found if found.is_verdict else None


def _write_logs(folder: Path, instance: Instance, prediction: Prediction, result: Result, place: Path) -> None:
    """The folder of an instance as the public package has it, whose grader comes to our verdict by the log."""
    folder.mkdir(parents=True, exist_ok=True)
    if prediction.empty:
        return
    write_text(folder / PATCH, (prediction.patch or "").encode("utf-8", "backslashreplace").decode())
    said = f"{result.status}: {result.reason}\n"
    write_text(folder / RUN_LOG, said + str(result.evidence.get("applying", "")))
    log = place / OUTPUT
    if log.exists():
        text = log.read_text(encoding="utf-8")
        if result.status not in ("resolved", "unresolved", "timed_out"):
            text = f">>>>> Tests Errored\n{said}{text}"
        write_text(folder / OUTPUT, text)
    report = folder / REPORT
    if result.status in ("resolved", "unresolved"):
        found = grade(instance, result.statuses).report()
        assert found[instance.instance_id]["resolved"] == result.resolved
        write_json(report, found)
    elif result.status in ("forged", "invalid", "out_of_memory", "disk_full"):
        row = {
            "patch_is_None": False,
            "patch_exists": True,
            "patch_successfully_applied": False,
            "resolved": False,
            "infra_failure": False,
        }
        write_json(report, {instance.instance_id: row})
    else:
        report.unlink(missing_ok=True)


def _write_metadata(path: Path, instances: Sequence[Instance], began: float) -> None:
    if not path.exists():
        digest = sha256_json(sorted(each.digest for each in instances))
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began))
        write_json(path, {"dataset": digest, "split": "", "task_repo": None, "created_at": created})


def _summary(
    results: Mapping[str, Result],
    report: Mapping[str, Any],
    instances: Sequence[Instance],
    judge: Judge,
    seconds: float,
) -> dict[str, Any]:
    counts = Counter(each.status for each in results.values())
    resolved, total = len(report["resolved_ids"]), len(instances)
    interval = wilson(resolved, total)
    info = judge.executor.probe()
    controlled = [each for each in results.values() if each.control_s > 0]
    suites = [each.evidence["full_suite"] for each in results.values() if each.evidence.get("full_suite")]
    impossible = {each.instance_id for each in instances if each.extra.get("impossible")}
    told: dict[str, Any] = {}
    if suites:
        checked = [each["broken"] > 0 for each in suites if "why_not" not in each]
        told["full_suite"] = {"checked": len(checked), "broken": sum(checked)}
        if unknown := {
            name: each.evidence["full_suite"]["why_not"]
            for name, each in sorted(results.items())
            if "why_not" in each.evidence.get("full_suite", {})
        }:
            told["full_suite"]["unknown"] = unknown
    if impossible:
        told["impossible"] = {"total": len(impossible), "passed": len(impossible & set(report["resolved_ids"]))}
    return {
        "resolved": resolved,
        "total": total,
        "share": interval.value,
        "interval": list(interval.bounds),
        "statuses": dict(sorted(counts.items())),
        "instances": {
            name: {
                "status": each.status,
                "reason": each.reason,
                "failures": list(each.failures[:50]),
                "touches_test_infra": list(each.touches_test_infra),
                "restored": list(each.restored),
                "applied_by": each.applied_by,
                "evidence": each.evidence,
                "wall_s": round(each.wall_s, 3),
                "test_s": round(each.test_s, 3),
                "control_s": round(each.control_s, 3),
            }
            for name, each in sorted(results.items())
        },
        **told,
        "seconds": round(seconds, 2),
        "test_s": round(sum(each.test_s for each in results.values()), 2),
        "control_s": round(sum(each.control_s for each in controlled), 2),
        "provenance": {
            "dataset": sha256_json(sorted(each.digest for each in instances)),
            "harness": HARNESS_VERSION,
            "lmlab": __version__,
            "executor": info.name,
            "isolation": info.isolation,
            "enforced": dict(info.enforced),
            "limits": judge.limits.model_dump(mode="json"),
            "control": judge.control,
            "machine": os.uname().machine,
        },
    }


def _of_predictions(
    predictions: Mapping[str, Prediction], known: Mapping[str, Instance], resolved: int
) -> dict[str, Any]:
    """What the answers cost, as far as they say so, and how much of the reference solutions they have word by word:
    high shares over many issues tell of solutions that a model has seen.
    """
    found: dict[str, Any] = {}
    costs = [
        float(each.extra["cost"]) for each in predictions.values() if isinstance(each.extra.get("cost"), int | float)
    ]
    if costs:
        found["cost_usd"] = round(sum(costs), 6)
        found["cost_usd_per_resolved"] = round(sum(costs) / resolved, 6) if resolved else None
    shares = [overlap(known[name].patch, each.patch) for name, each in predictions.items() if not each.empty]
    told = [each for each in shares if each is not None]
    if told:
        found["lines_of_the_solution"] = {"patches": len(told), "mean": round(sum(told) / len(told), 4)}
    return found


_TELLING = 20  # characters of a line that two people do not write alike by accident


def overlap(gold: str, patch: str | None) -> float | None:
    """The share of the longer lines of the reference solution that a patch adds too; None where it adds none."""
    own, other = (
        {line.strip() for file in read_diff(text or "") for hunk in file.hunks for line in hunk.added}
        for text in (gold, patch)
    )
    own = {line for line in own if len(line) >= _TELLING}
    return len(own & other) / len(own) if own else None


def read_summary(path: Path) -> dict[str, Any]:
    """A summary that `evaluate` wrote.

    Raises:
        UserError: it is none.
    """
    found = read_mapping(path)
    if "provenance" not in found or not isinstance(found.get("instances"), dict):
        raise UserError(f"'{path}' is no summary of an evaluation.", "Name a file MODEL.RUN.lmlab.json.")
    return found
