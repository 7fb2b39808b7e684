"""`metrics.jsonl`: one row a logged step, appended and never torn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.files import ParseError, json_value, write_jsonl
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


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All whole rows; a last line that a kill cut short is left out.

    Raises:
        UserError: another line is damaged.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            row = json_value(line, allow_nan=True)
        except ParseError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise _damaged(path, number, str(error)) from None
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise _damaged(path, number, "it has no number of a step")
        rows.append(row)
    return rows


def _damaged(path: Path, number: int, why: str) -> UserError:
    return UserError(
        f"'{path}', line {number} is not a row of metrics: {why}.",
        "Remove that line: figures of its step are lost, the training is not.",
    )
