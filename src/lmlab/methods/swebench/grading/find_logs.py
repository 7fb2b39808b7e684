"""Logs of evaluations in a folder, as the harnesses 1.x to 5.x leave them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

OUTPUT, REPORT, PATCH, RUN_LOG, METADATA = (
    "test_output.txt",
    "report.json",
    "patch.diff",
    "run_instance.log",
    "run.json",
)
_NO_VERDICT = "infra:"  # begins the RUN_LOG of a patch of which the surroundings let nothing be said
_LEGACY = ".eval.log"


@dataclass(frozen=True)
class FoundLog:
    """A log, the instance that it is of, and the folder that holds those of the same model."""

    instance_id: str
    path: Path
    group: Path

    @property
    def legacy(self) -> bool:
        """It was written by a 1.x harness: one file, no folder."""
        return self.path.name.endswith(_LEGACY)

    def beside(self, name: str) -> Path:
        """Another file of the same run, such as report.json."""
        return self.path.with_name(name)


def find_logs(directory: Path, ids: Iterable[str]) -> Iterator[FoundLog]:
    """The logs of known instances below a folder, in the order of their paths: `ID/test_output.txt`, and
    `ID.eval.log` or `ID.MODEL.eval.log`.
    """
    known = set(ids)
    for path in sorted(directory.rglob("*")):
        if path.name == OUTPUT and path.parent.name in known:
            yield FoundLog(path.parent.name, path, path.parent.parent)
        elif path.name.endswith(_LEGACY):
            parts = path.name.removesuffix(_LEGACY).split(".")
            names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
            if instance_id := next((name for name in names if name in known), None):
                yield FoundLog(instance_id, path, path.parent)


def find_untested(directory: Path, ids: Iterable[str]) -> dict[Path, set[str]]:
    """Patches of known instances below a folder that came to no test run, as those that no try applied: by the folder
    that holds those of the same model. Those whose surroundings failed are none of them.
    """
    known, found = set(ids), dict[Path, set[str]]()
    for path in sorted(directory.rglob(PATCH)):
        if path.parent.name not in known or path.with_name(OUTPUT).exists():
            continue
        said = path.with_name(RUN_LOG)
        if said.exists() and said.read_text(encoding="utf-8", errors="replace").startswith(_NO_VERDICT):
            continue
        found.setdefault(path.parent.parent, set()).add(path.parent.name)
    return found
