"""The report of a run: which instances were resolved, in the layout (schema 2) that `swebench` reads and writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.files import ParseError, json_value, write_json
from lmlab.methods.swebench.grading.find_logs import OUTPUT, REPORT, RUN_LOG, FoundLog, find_logs, find_untested
from lmlab.methods.swebench.grading.infrastructure import sign_in
from lmlab.methods.swebench.grading.logs import read_log_file
from lmlab.methods.swebench.grading.verdict import Verdict, grade_log
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.predictions import Prediction
from lmlab.stats import Interval, wilson


def log_folder(root: Path, run_id: str, model: str) -> Path:
    """Where the logs of a model's run stand: below the working directory, for `swebench` to find them.

    Raises:
        UserError: the model's name is no name of a folder.
    """
    if model.strip(".") == "" or "\0" in model or len(model) > 200:
        raise UserError(f"The model's name {model[:50]!r} is no name of a folder.", "Change model_name_or_path.")
    return root / "logs" / "run_evaluation" / run_id / model.replace("/", "__")


def read_report(path: Path, instance_id: str) -> dict[str, Any] | None:
    """What a report.json says of an instance; None if the file is empty, cut off or of another instance."""
    try:
        found = json_value(path.read_bytes())
        report = found[instance_id]
        return report if isinstance(report, dict) and "resolved" in report else None
    except (ParseError, KeyError, TypeError):
        return None


def make_run_report(
    instances: Sequence[Instance], predictions: Mapping[str, Prediction], logs: str | Path, network: bool = True
) -> dict[str, Any]:
    """The report of a model's run, from the folders of its instances.

    Arguments:
        predictions: by instance, of one model.
        logs: the folder with one folder an instance, each with report.json where it was run.
        network: the tests had one (`sign_in`).
    """
    logs = Path(logs)
    ids: dict[str, set[str]] = {
        name: set()
        for name in (
            "completed",
            "incomplete",
            "empty_patch",
            "resolved",
            "unresolved",
            "infra_failure",
            "ambiguous_failure",
            "error",
        )
    }
    reasons: dict[str, str] = {}
    for instance in instances:
        name = instance.instance_id
        prediction = predictions.get(name)
        if prediction is None:
            ids["incomplete"].add(name)
            continue
        if prediction.empty:
            ids["empty_patch"].add(name)
            continue
        folder = logs / name
        if (folder / REPORT).exists():
            ids["completed"].add(name)
            report = read_report(folder / REPORT, name)
            kind = "error" if report is None else "resolved" if report["resolved"] else "unresolved"
        else:
            kind = "error"
        ids[kind].add(name)
        if kind != "resolved":
            texts = [read_log_file(folder / file) for file in (OUTPUT, RUN_LOG) if (folder / file).exists()]
            if sign := sign_in("\n".join(texts), network):
                reasons[name] = sign.reason
                ids["infra_failure" if sign.tier == "environment" else "ambiguous_failure"].add(name)
    counts = {f"{kind}_instances": len(found) for kind, found in ids.items() if kind != "incomplete"}
    return {
        "total_instances": len(instances),
        "submitted_instances": len(predictions),
        **counts,
        "submitted_ids": sorted(predictions),
        **{f"{kind}_ids": sorted(found) for kind, found in ids.items()},
        "failure_reasons": dict(sorted(reasons.items())),
        "schema_version": 2,
    }


@dataclass(frozen=True)
class Share:
    """Resolved instances of all, with Wilson's interval. Empty and failed patches stay in the denominator."""

    resolved: int
    total: int
    interval: Interval[float]

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Share:
        """Of a run's report."""
        resolved, total = len(report["resolved_ids"]), int(report["total_instances"])
        return cls(resolved, total, wilson(resolved, total))

    def __str__(self) -> str:
        low, high = (100 * each for each in self.interval.bounds)
        share = 100 * self.interval.value
        return f"{self.resolved}/{self.total} resolved, {share:.1f} % (95 % interval {low:.1f} to {high:.1f})"


def regrade(
    directory: str | Path, instances: Sequence[Instance], write: bool = False, network: bool = True
) -> dict[Path, dict[str, tuple[FoundLog, Verdict]]]:
    """Grade every log in a folder again.

    Arguments:
        write: put the report.json of each beside its log.

    Returns:
        For each folder of one model the verdict of each instance; where an instance has several logs there, of the
        last. A folder with patches and no log (`find_untested`) has none.

    Raises:
        UserError: there is no log of these instances.
    """
    directory = Path(directory)
    known = {each.instance_id: each for each in instances}
    found: dict[Path, dict[str, tuple[FoundLog, Verdict]]] = {}
    for log in find_logs(directory, known):
        verdict = grade_log(known[log.instance_id], read_log_file(log.path), network=network)
        found.setdefault(log.group, {})[log.instance_id] = (log, verdict)
        if write and not log.legacy:
            write_json(log.beside(REPORT), verdict.report())
    for group in find_untested(directory, known):
        found.setdefault(group, {})
    if not found:
        raise UserError(
            f"'{directory}' has no logs of these instances.",
            "Logs are called INSTANCE/test_output.txt or INSTANCE.MODEL.eval.log.",
        )
    return found
