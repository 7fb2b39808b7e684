"""The names of tasks in EleutherAI's harness, without the harness: it takes many seconds to read its task files."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from lmlab.errors import UserError, did_you_mean

_NAMED = re.compile(rb"^\s*-?\s*(?:task|group|tag)\s*:\s*[\"']?([\w.+/-]+)", re.MULTILINE)


def check_harness_tasks(names: Sequence[str], include: Path | None = None) -> None:
    """Refuse a name that no task file spells; whether one that is spelled is a task, the harness tells.

    Arguments:
        include: a folder with further task files.

    Raises:
        UserError: there is no such task, with the nearest name, or no such folder.
    """
    if include is not None and not include.is_dir():
        raise UserError(f"There is no folder of task files '{include}'.")
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    folders = [Path(spec.origin).parent / "tasks", *([] if include is None else [include])]
    missing = {name: re.compile(rb"(?<!\w)" + re.escape(name.encode()) + rb"(?!\w)") for name in names}
    known: set[str] = set()
    for path in (path for folder in folders for path in folder.rglob("*.yaml")):
        text = path.read_bytes()
        known.update(name.decode() for name in _NAMED.findall(text))
        missing = {name: pattern for name, pattern in missing.items() if not pattern.search(text)}
        if not missing:
            return
    for name in missing:
        raise UserError(
            f"The harness has no task '{name}'.", f"{_near(name, known)} `lm-eval ls tasks` lists its tasks.".strip()
        )


def _near(name: str, known: set[str]) -> str:
    # of thousands of names only one that is near is worth showing, and only like ones can be: to compare is slow
    alike = [each for each in known if abs(len(each) - len(name)) <= 2 and each[:1] == name[:1]]
    told = did_you_mean(name, alike)
    return told if told.startswith("Did") else ""
