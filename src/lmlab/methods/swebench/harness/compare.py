"""Two models on the same instances, and several tries of one model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmlab.errors import UserError
from lmlab.stats import Interval, mcnemar, paired_shares, pass_at_k, wilson


@dataclass(frozen=True)
class Comparison:
    """What two runs on the same instances show.

    Attributes:
        both, only_first, only_second, neither: instances by who resolved them.
        difference: the second's share less the first's, with the interval of `paired_shares`; `p` is that of no
            difference (exact McNemar).
        masked: instances left out since the surroundings failed in either run.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    difference: Interval[float]
    p: float
    masked: int


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    """Compare two summaries.

    Raises:
        UserError: they are of other instances, or by other rules.
    """
    one, two = first["provenance"], second["provenance"]
    for key, what in (("dataset", "other instances"), ("harness", "another version of the harness")):
        if one[key] != two[key]:
            raise UserError(f"The runs cannot be compared: they are of {what}.", "Evaluate both anew.")
    status = [{name: each["status"] for name, each in run["instances"].items()} for run in (first, second)]
    names = sorted(set(status[0]) & set(status[1]))
    kept = [name for name in names if "infra" not in (status[0][name], status[1][name])]
    if not kept:
        raise UserError("The runs have no instances in common.")
    a, b = ([float(run[name] == "resolved") for name in kept] for run in status)
    pairs = list(zip(a, b, strict=True))
    both, neither = pairs.count((1, 1)), pairs.count((0, 0))
    only_first, only_second = pairs.count((1, 0)), pairs.count((0, 1))
    return Comparison(
        both,
        only_first,
        only_second,
        neither,
        paired_shares(both, only_first, only_second, neither),
        mcnemar(only_first, only_second),
        len(names) - len(kept),
    )


def pass_at(runs: Sequence[Mapping[str, Any]], k: int) -> Interval[float]:
    """The chance that one of k tries resolves an issue, from n runs of one model (Chen et al. 2021), with Wilson's
    interval over instances. Tries without a verdict do not count as tries.

    Raises:
        UserError: the runs are of several models or other instances, or an instance has fewer than k tries.
    """
    require_one_model([str(run["model"]) for run in runs])
    if len({run["provenance"]["dataset"] for run in runs}) > 1:
        raise UserError("The runs are no tries of the same issues: they are of other instances.")
    tries: dict[str, list[bool]] = {}
    for run in runs:
        for name, each in run["instances"].items():
            if each["status"] != "infra":
                tries.setdefault(name, []).append(each["status"] == "resolved")
    if not tries:
        raise UserError("No run has a verdict on an instance.")
    if short := [name for name, found in tries.items() if len(found) < k]:
        raise UserError(f"pass@{k} needs {k} tries of each instance; {short[0]} has {len(tries[short[0]])}.")
    values = [pass_at_k(len(found), sum(found), k) for _, found in sorted(tries.items())]
    return wilson(sum(values), len(values))


def require_one_model(models: Sequence[str]) -> None:
    """See that runs are tries of one model. `infer --samples` numbers them: `NAME.0`, `NAME.1`.

    Raises:
        UserError: they are of several.
    """
    names = sorted({re.sub(r"\.\d+$", "", each) if len(set(models)) > 1 else each for each in models})
    if len(names) > 1:
        raise UserError(
            f"Tries are of one model, and these runs are of {len(names)}: {', '.join(names)}.",
            "Name the runs of one model, or set two side by side: lmlab swe compare.",
        )
