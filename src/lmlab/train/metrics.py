"""`metrics.jsonl`: one row a logged step, appended and never torn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmlab.files import write_jsonl


class MetricLog:
    """Appends rows to a JSON lines file.

    Arguments:
        path: the file.
        after_step: rows of later steps are removed first, as a resumed run will write them again.
    """

    def __init__(self, path: Path, after_step: int) -> None:
        kept = [row for row in read_metrics(path) if row["step"] <= after_step]
        write_jsonl(path, kept)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row and hand it to the system at once."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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
