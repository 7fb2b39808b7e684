"""Examples in the files of other programs: the CSV of EAP-IG, and the Arrow folders of the reference implementation."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmlab.errors import UserError, reads

Row = dict[str, Any]


def is_foreign(path: Path) -> bool:
    """Whether a path is read here, and not as JSON lines."""
    return path.is_dir() or path.suffix in (".csv", ".arrow")


@reads("examples")
def foreign_rows(path: Path) -> list[Row]:
    """The rows of a CSV file, an Arrow file, or a folder with Arrow files or with one such folder a split, as lines of
    lmlab's own format.

    Raises:
        UserError: the path holds none of these, or its columns are not known.
    """
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as text:
            found: list[Row] = [dict(row) for row in csv.DictReader(text)]
        return list(_renamed(found, path))
    if path.is_file():
        return list(_renamed(_arrow(path), path))
    files = sorted(path.glob("*.arrow"))
    parts: list[tuple[str | None, Path]] = [(None, file) for file in files] or [
        (folder.name, file) for folder in sorted(path.iterdir()) if folder.is_dir() for file in folder.glob("*.arrow")
    ]
    if not parts:
        raise UserError(
            f"'{path}' is a directory where a file is needed, or a folder of Arrow files.",
            "Name a file of JSON lines, CSV or Arrow.",
        )
    rows = []
    for split, file in parts:
        rows += [row if split is None else {**row, "split": split} for row in _renamed(_arrow(file), file)]
    return rows


def _arrow(path: Path) -> list[Row]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            try:
                table = pa.ipc.open_stream(source).read_all()
            except pa.ArrowInvalid:
                table = pa.ipc.open_file(source).read_all()
            rows: list[Row] = table.to_pylist()
    except pa.ArrowInvalid as error:
        raise UserError(f"'{path}' is not an Arrow file ({error}).") from None
    return rows


def _renamed(rows: list[Row], path: Path) -> Iterator[Row]:
    if not rows:
        raise UserError(f"'{path}' holds no examples.")
    columns = set(rows[0])
    for needed, change in _KNOWN:
        if needed <= columns:
            for number, row in enumerate(rows, 1):
                if any(row.get(name) in (None, "") for name in needed):
                    raise UserError(f"'{path}', row {number}: a field among {', '.join(sorted(needed))} is empty.")
                yield change(row)
            return
    known = "; ".join(", ".join(sorted(needed)) for needed, _ in _KNOWN)
    raise UserError(f"'{path}' has the columns {', '.join(sorted(columns))}; known are: {known}.")


def _without_last_word(text: str) -> str:
    return text.rstrip().rpartition(" ")[0]


def _ioi(row: Mapping[str, Any]) -> Row:
    return {
        "clean": _without_last_word(row["ioi_sentences"]),
        "corrupted": _without_last_word(row["corr_ioi_sentences"]),
        "answer": f" {row['a']}",
        "distractor": f" {row['b']}",
    }


def _pronouns(row: Mapping[str, Any]) -> Row:
    answers = {"answer": f" {row['pronoun'].strip()}", "distractor": f" {row['corr_pronoun'].strip()}"}
    return {"clean": row["prefix"], "corrupted": row["corr_prefix"], **answers}


def _years(row: Mapping[str, Any]) -> Row:
    # which tokens the years are depends on the tokenizer: distributions are compared
    return {"clean": row["prefix"], "corrupted": row["corr_prefix"], "meta": {"digits": row["digits"]}}


def _expressions(row: Mapping[str, Any]) -> Row:
    return {"clean": row["input"], "corrupted": row["corr_input"], "meta": {"target": row["target"]}}


def _tokens(row: Mapping[str, Any]) -> Row:
    return {"clean": row["seq"], "corrupted": row["corr_seq"], "meta": {"target": row["target"]}}


def _indices(row: Mapping[str, Any]) -> Row:
    answers = {"answer": int(row["correct_idx"]), "distractor": int(row["incorrect_idx"])}
    return {"clean": row["clean"], "corrupted": row["corrupted"], **answers}


def _plain(row: Mapping[str, Any]) -> Row:
    named = {name: row[name] for name in ("answer", "distractor", "split") if row.get(name)}
    return {"clean": row["clean"], "corrupted": row["corrupted"], **named}


_KNOWN: tuple[tuple[set[str], Callable[[Mapping[str, Any]], Row]], ...] = (
    ({"ioi_sentences", "corr_ioi_sentences", "a", "b"}, _ioi),
    ({"prefix", "corr_prefix", "pronoun", "corr_pronoun"}, _pronouns),
    ({"prefix", "corr_prefix", "digits"}, _years),
    ({"seq", "target", "corr_seq"}, _tokens),
    ({"input", "corr_input", "target"}, _expressions),
    ({"clean", "corrupted", "correct_idx", "incorrect_idx"}, _indices),
    ({"clean", "corrupted"}, _plain),
)
