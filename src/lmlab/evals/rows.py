"""One row a question on the disk, from which every statistic can be made; and a file of rows that a kill does
not harm.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from lmlab.errors import UserError
from lmlab.files import json_value, locked, write_jsonl

Row = dict[str, Any]


def read_rows(paths: Iterable[str | Path]) -> Iterator[Row]:
    """The whole rows of files that may have been cut off while a row was written.

    Raises:
        UserError: a line that is whole is not a row.
    """
    for path in paths:
        for number, line in enumerate(Path(path).read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                continue
            try:
                row = json_value(line, allow_nan=True)
            except ValueError:
                row = None
            if not isinstance(row, dict) or "id" not in row:
                raise UserError(
                    f"'{path}', line {number} is not a row of an evaluation.",
                    "Remove that line; its item is measured again.",
                )
            yield row


class RowFile:
    """Rows that are appended as they are found; what an earlier attempt wrote is kept.

    Several processes may write, each its own part; `finish` then makes one file of all parts, in the order of the
    questions.

    Arguments:
        path: of the finished file. Its parts stand beside it.
        part: the number of this process.
    """

    def __init__(self, path: Path, part: int = 0) -> None:
        self.path = path
        self._part = path.with_name(f"{path.stem}.part-{part}.jsonl")
        self._file: Any = None

    def done(self) -> dict[str, Row]:
        """The rows that there are, by id."""
        found = self._files()
        try:
            return {row["id"]: row for row in read_rows(found)}
        except FileNotFoundError:  # another process has finished meanwhile: its rows stand in the one file now
            if self._files() == found:
                raise
            return self.done()

    def _files(self) -> list[Path]:
        return [self.path] * self.path.exists() + sorted(self.path.parent.glob(f"{self.path.stem}.part-*.jsonl"))

    def append(self, row: Row) -> None:
        """Write a row, so that it survives the process.

        Raises:
            UserError: another process is writing the same part.
        """
        while self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self._part.open("a", encoding="utf-8")
            if not locked(file):
                file.close()
                raise UserError(
                    f"Another process is writing '{self._part}'.", "Wait for it, or name another directory."
                )
            if not _is_at(file, self._part):  # another process has finished, and removed it, since it was opened
                file.close()
                continue
            self._file = file
            _drop_half_a_line(self._part)
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Nothing more is written by this process."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self, ids: Iterable[str]) -> list[Row]:
        """Write the finished file with the rows of these questions, in this order, and remove its parts."""
        if os.name == "nt":  # where nothing is locked, and no open file can be removed
            self.close()
        try:
            found = self.done()
            rows = [found[id] for id in ids]
            write_jsonl(self.path, rows)
            for part in self.path.parent.glob(f"{self.path.stem}.part-*.jsonl"):
                part.unlink(missing_ok=True)
        finally:
            self.close()  # not before: what another process wrote in between would be lost with its part
        return rows


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one that stands at a path now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _drop_half_a_line(path: Path) -> None:
    if path.exists() and not (data := path.read_bytes()).endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])
