"""Predictions with repaired patches, and what was repaired."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lmlab.errors import UserError, did_you_mean
from lmlab.methods.swebench.harness.judge import Judge
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.predictions import Prediction
from lmlab.methods.swebench.patches.repair import LEVELS, RepairLevel, repair_patch
from lmlab.sandbox.box import get_file

_MOST_BYTES = 4 << 20  # of a file that is searched for where a patch belongs


def reader_of(tree: Path) -> Callable[[str], str | None]:
    """Reads text files of a tree by their path, and follows no link out of it."""

    def read(path: str) -> str | None:
        try:
            return get_file(tree, path, _MOST_BYTES).decode("utf-8")
        except (OSError, UnicodeDecodeError, UserError):
            return None

    return read


def repaired(
    predictions: Mapping[str, Prediction], instances: Sequence[Instance], judge: Judge, level: str
) -> tuple[dict[str, Prediction], dict[str, list[str]]]:
    """Predictions with their patches repaired (`repair_patch`), and the steps that changed each.

    Raises:
        UserError: there is no such level.
    """
    known: dict[str, RepairLevel] = {each: each for each in LEVELS}
    if level not in known:
        raise UserError(f"Unknown repair '{level}'. {did_you_mean(level, known)}")
    found, steps = dict(predictions), dict[str, list[str]]()
    if level == "raw":
        return found, steps
    trees = {each.instance_id: each for each in instances}
    for name, prediction in predictions.items():
        if not prediction.empty:
            read = reader_of(judge.workspaces.pristine(trees[name])) if level == "anchor" else None
            patch, done = repair_patch(prediction.patch or "", known[level], read)
            if done:
                found[name], steps[name] = replace(prediction, patch=patch), done
    return found, steps
