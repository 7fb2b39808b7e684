"""Reports of runs from their logs alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.methods.swebench.grading.find_logs import find_untested
from lmlab.methods.swebench.grading.run_report import regrade
from lmlab.methods.swebench.grading.verdict import Verdict
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.predictions import Prediction, by_model, load_predictions
from lmlab.stats import wilson


@dataclass(frozen=True)
class Regraded:
    """The logs of one folder, graded.

    Attributes:
        folder: that holds them.
        verdicts: by instance.
        untested: instances with a patch that came to no test run: it did not apply, or was refused.
        report: in the layout of `swebench`; without predictions, the instances that have logs count as submitted.
    """

    folder: Path
    verdicts: Mapping[str, Verdict]
    untested: frozenset[str]
    report: dict[str, Any]

    def row(self) -> list[str]:
        """Cells of a table."""
        resolved, graded = len(self.report["resolved_ids"]), len(self.verdicts)
        invalid = sum(not each.applied for each in self.verdicts.values())
        found = wilson(resolved, graded + len(self.untested))
        low, high = (100 * bound for bound in found.bounds)
        return [
            str(self.folder),
            f"{graded:,}",
            f"{resolved:,}",
            f"{len(self.report['unresolved_ids']):,}",
            f"{invalid:,}",
            f"{len(self.untested):,}",
            f"{len(self.report['empty_patch_ids']):,}",
            f"{100 * found.value:.1f} % ({low:.1f} to {high:.1f})",
        ]


def report_of_logs(
    logs: Path, instances: Sequence[Instance], predictions: str | None, write: bool, network: bool
) -> list[Regraded]:
    """Grade all logs of a folder and make a report for each model's run in it.

    Arguments:
        predictions: a file; the folder of a model's logs bears its name, and where it does not, and there is one model,
            they are that model's.
        write: put the report.json of each log beside it.

    Raises:
        UserError: there are no logs, or the predictions cannot be read.
    """
    models = by_model(load_predictions(predictions, instances)) if predictions else {}
    found = []
    untested = find_untested(logs, [each.instance_id for each in instances])
    for folder, graded in regrade(logs, instances, write, network).items():
        verdicts = {name: verdict for name, (_, verdict) in graded.items()}
        named = {model.replace("/", "__"): each for model, each in models.items()}
        own = named.get(folder.name, next(iter(named.values())) if len(named) == 1 else {})
        failed = frozenset(
            name for name in untested.get(folder, ()) if name not in verdicts and not (name in own and own[name].empty)
        )
        found.append(Regraded(folder, verdicts, failed, _report(instances, verdicts, failed, own)))
    return found


def _report(
    instances: Sequence[Instance],
    verdicts: Mapping[str, Verdict],
    untested: Collection[str],
    predictions: Mapping[str, Prediction],
) -> dict[str, Any]:
    names = [each.instance_id for each in instances]
    empty = [name for name, each in predictions.items() if each.empty]
    graded = [name for name in verdicts if name not in set(empty)]
    resolved = [name for name in graded if verdicts[name].resolved]
    unresolved = [name for name in graded if not verdicts[name].resolved]
    submitted = sorted({*predictions, *graded, *untested})
    signs = {name: verdicts[name] for name in unresolved if verdicts[name].infra_reason}
    ids = {
        "completed": graded,
        "incomplete": [name for name in names if name not in submitted],
        "empty_patch": empty,
        "resolved": resolved,
        "unresolved": unresolved,
        "infra_failure": [name for name, each in signs.items() if each.infra_failure],
        "ambiguous_failure": [name for name, each in signs.items() if not each.infra_failure],
        "error": [name for name in submitted if name not in graded and name not in empty],
    }
    return {
        "total_instances": len(names),
        "submitted_instances": len(submitted),
        **{f"{kind}_instances": len(found) for kind, found in ids.items() if kind != "incomplete"},
        "submitted_ids": submitted,
        **{f"{kind}_ids": sorted(found) for kind, found in ids.items()},
        "failure_reasons": {name: each.infra_reason for name, each in sorted(signs.items())},
        "schema_version": 2,
    }
