"""What a part has found: JSON that is written after every measurement, and tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Record:
    """The rows of a part, by table, on the disk from the first on.

    Arguments:
        path: the JSON file.
        environment: what it runs on.
    """

    def __init__(self, path: Path, environment: Mapping[str, Any]) -> None:
        self._path = path
        self.content: dict[str, Any] = {"environment": dict(environment), "notes": [], "tables": {}}
        self._write()

    def row(self, table: str, row: Row, quiet: bool = False) -> None:
        """Add a row to a table, and print it unless it is one of many that are as they should be."""
        self.content["tables"].setdefault(table, []).append(row)
        self._write()
        if not quiet:
            print(f"  {table}: " + ", ".join(f"{key} {_cell(value)}".strip() for key, value in row.items()), flush=True)

    def note(self, text: str) -> None:
        """Say something that a reader of the figures must know."""
        self.content["notes"].append(text)
        self._write()
        print(f"  note: {text}", flush=True)

    def tables(self, whole: bool) -> str:
        """All tables in Markdown, and the notes below them.

        Arguments:
            whole: also each check that was passed; without, their number and the one nearest to its tolerance.
        """
        parts = []
        for title, rows in self.content["tables"].items():
            passed = [row for row in rows if "tolerance" in row and not row[""]]
            if passed and not whole:
                nearest = max(passed, key=lambda row: row["error"] / (row["tolerance"] or 1.0))
                told = ", ".join(_cell(value) for key, value in nearest.items() if key)
                parts.append(f"\n{title}: {len(passed)} of {len(rows)} passed; nearest to its tolerance: {told}")
                rows = [row for row in rows if row not in passed]
            if rows:
                parts.append(_table(title, rows))
        return "\n".join([*parts, "", *(f"- {each}" for each in self.content["notes"])])

    def _write(self) -> None:
        beside = self._path.with_suffix(".tmp")
        beside.write_text(json.dumps(self.content, indent=1), encoding="utf-8")
        beside.replace(self._path)


def _table(title: str, rows: list[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"\n{title}\n", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if value and abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
