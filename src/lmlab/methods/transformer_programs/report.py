"""Sections of reports: the seeds of a training with their curves, and the program that came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.methods.transformer_programs.decompile.text import own_part
from lmlab.methods.transformer_programs.program.emitting.emit import to_python
from lmlab.methods.transformer_programs.program.ir import Program
from lmlab.reports import Block, Code, Figure, Note, Section, Series, Table, line_chart
from lmlab.reports.blocks import NoteKind

_SHOWN_LINES = 400  # more make the page long; the file beside it has all

_SAYS: dict[bool, tuple[NoteKind, str]] = {True: ("good", "agree"), False: ("bad", "DIFFER")}


def training_sections(results: Mapping[str, Any], program: Program | None) -> list[Section]:
    """What a training gave.

    Arguments:
        results: of the stage `train_program`.
    """
    blocks: list[Block] = []
    if results["plateau"]:
        blocks.append(
            Note(
                f"All seeds are on a plateau: the best of {len(results['seeds'])} has"
                f" {100 * results['valid_accuracy']:.1f} % on validation, the most common answer"
                f" {100 * results['majority']:.1f} %. Try more seeds, more heads or more epochs.",
                "warning",
            )
        )
    for label, count in results.get("unseen_labels", {}).items():
        blocks.append(
            Note(f"The label '{label}' never occurs in training; its {count} places count as wrong.", "warning")
        )
    blocks += [seed_table(results["seeds"], results["best_seed"]), *curves(results["curves"], results["seeds"])]
    sections = [Section("Seeds", blocks, "Accuracy is that of the program: of the network under the arg max.", 1)]
    if program is not None:
        sections.append(program_section(program, results.get("program") or {}))
    return sections


def seed_table(rows: Sequence[Mapping[str, Any]], best: int) -> Table:
    """A row for each seed, the best one marked."""
    names = [name for name in ("valid_accuracy", "test_accuracy", "test_sequence_accuracy") if name in rows[0]]
    titles = {"valid_accuracy": "validation", "test_accuracy": "test", "test_sequence_accuracy": "whole sequences"}
    table = [[str(row["seed"]), *(100 * row[name] for name in names), _state(row)] for row in rows]
    place = next(number for number, row in enumerate(rows) if row["seed"] == best)
    return Table(["seed", *(f"{titles[name]}, %" for name in names), ""], table, highlight_row=place)


def _state(row: Mapping[str, Any]) -> str:
    return "loss is no number" if row["diverged"] else "stopped behind others" if row.get("stopped") else ""


def curves(found: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The accuracy of each seed over the training."""
    if len(found) < 2:
        return []
    steps = [each["step"] for each in found]
    lines = [
        Series(f"seed {row['seed']}", steps, [100 * each["accuracy"][place] for each in found])
        for place, row in enumerate(rows)
    ]
    chart = line_chart(lines, "step", "validation accuracy of the arg max, %")
    return [Figure(chart, "Measured on the first 2,000 validation sequences.")]


def program_section(program: Program, manifest: Mapping[str, Any]) -> Section:
    """The program's text and how it was checked."""
    blocks: list[Block] = []
    checked = manifest.get("verification")
    if checked:
        every = checked.get("exhaustive")
        scope = f"on all inputs up to {every} symbols" if every else "on every split and on random inputs"
        kind, word = _SAYS[bool(manifest.get("faithful"))]
        blocks.append(Note(f"Program and network {word} {scope}: {checked['places']:,} places.", kind))
    size = program.size()
    blocks.append(Table(["part", "count"], [[name.replace("_", " "), count] for name, count in size.items()]))
    shorter = manifest.get("minimized")
    if shorter:
        names = ("lines", "nodes", "predicate_pairs", "table_rows", "classifier_rows")
        rows = [[name.replace("_", " "), shorter["before"][name], shorter["after"][name]] for name in names]
        blocks.append(Table(["", "before", "minimized"], rows))
    return Section("Program", [*blocks, _text(to_python(program))], rank=2)


def decompiled_section(results: Mapping[str, Any], text: str) -> Section:
    """A language model read as a program.

    Arguments:
        results: of the stage `decompile`.
        text: of the program, in Python.
    """
    paths = results["paths"]
    left = "1 is" if paths["left"] == 1 else f"{paths['left']} are"
    said = (
        f"Of {paths['written']} paths, {left} left, in {results['lines']} lines. On sequences that were not used it"
        f" answers as the model does at {100 * results['match']:.2f} % of places."
    )
    names = {"match": "as the model", "model_accuracy": "model right", "program_accuracy": "program right"}
    names["most_common"] = "most common answer"
    rows = [
        [title, *("" if name not in each else 100 * each[name] for name in names)]
        for title, each in zip(_titles(list(results["tests"])), results["tests"].values(), strict=True)
    ]
    table = [Table(["sequences", *(f"{name}, %" for name in names.values())], rows)] if rows else []
    own = "What is its own in program.py, behind the functions that all such programs have"
    return Section("A language model as a program", [*table, _text(own_part(text), own)], said, rank=2)


def _titles(paths: Sequence[str]) -> list[str]:
    """The names of files, where they tell them apart."""
    names = [Path(path).name for path in paths]
    return names if len(set(names)) == len(names) else list(paths)


def _text(python: str, title: str = "program.py") -> Code:
    lines = python.splitlines()
    cut = "" if len(lines) <= _SHOWN_LINES else f": the first {_SHOWN_LINES} of {len(lines)} lines."
    return Code("\n".join(lines[:_SHOWN_LINES]), f"{title}{cut}")
