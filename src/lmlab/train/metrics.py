"""`metrics.jsonl`: one row a logged step, appended and never torn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.files import write_jsonl
from lmlab.train.trackers import TrackerName, open_trackers


class MetricLog:
    """Appends rows to `metrics.jsonl` of a directory, and hands them to trackers.

    Arguments:
        directory: where it is.
        after_step: rows of later steps are removed first, as a resumed run will write them again.
        track: trackers by name (`open_trackers`).
        config: what trackers store with the run.
    """

    def __init__(
        self,
        directory: Path,
        after_step: int,
        track: Sequence[TrackerName] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        path = directory / "metrics.jsonl"
        write_jsonl(path, [row for row in read_metrics(path) if row["step"] <= after_step])
        self._trackers = open_trackers(track, directory, config or {})
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row and hand it to the system at once."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(row)

    def close(self) -> None:
        """Close the file and the trackers."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole rows; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
