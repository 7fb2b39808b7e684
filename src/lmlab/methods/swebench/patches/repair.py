"""Repairs of patches that models write: counts of hunks, lines that belong to none, places that are off.

They change what is graded and so the score. Nothing is repaired unless asked for, and each step is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal

from lmlab.methods.swebench.patches.diff import FileDiff, Hunk, read_diff, write_diff

RepairLevel = Literal["raw", "recount", "minimal", "anchor"]
ReadFile = Callable[[str], str | None]
"""The content of a file of the base tree by its path; None where there is none."""

LEVELS: tuple[RepairLevel, ...] = ("raw", "recount", "minimal", "anchor")


def repair_patch(text: str, level: RepairLevel, read: ReadFile | None = None) -> tuple[str, list[str]]:
    """Repair a patch.

    Arguments:
        level: `raw` leaves it as it is; `recount` removes leading blank lines, ends the last line, and counts the lines
            of each hunk anew; `minimal` also drops unchanged lines at the end of hunks, as the original harness may;
            `anchor` instead moves each hunk to the one place where its lines stand, and gives it a line of context.
        read: the base tree, which `anchor` needs.

    Returns:
        The patch, and the names of the steps that changed it.
    """
    if level == "raw" or not text.strip():
        return text, []
    steps: list[str] = []

    def step(name: str, new: str, old: str) -> str:
        if new != old:
            steps.append(name)
        return new

    found = step("leading_newlines", text.lstrip("\n"), text)
    found = step("final_newline", found if found.endswith("\n") else found + "\n", found)
    files = read_diff(found)
    if not files:
        return found, steps
    if level == "minimal":
        files = [_each(file, _without_tail) for file in files]
        found = step("minimal", write_diff(files), found)
    if level == "anchor" and read is not None:
        files = [_anchored(file, read) for file in files]
        found = step("anchor", write_diff(files), found)
    found = step("recount", write_diff([_recounted(file) for file in files]), found)
    return found, steps


def _each(file: FileDiff, change: Callable[[Hunk], Hunk]) -> FileDiff:
    return file.with_hunks(tuple(change(hunk) for hunk in file.hunks))


def _marked(lines: Iterable[str]) -> tuple[str, ...]:
    """Lines that belong to a hunk; an empty one stands for an empty line of context, as editors strip its blank."""
    kept = []
    for line in lines:
        if line in ("\n", "\r\n"):
            kept.append(" " + line)
        elif line[:1] in (" ", "+", "-", "\\"):
            kept.append(line)
    return tuple(kept)


def _without_tail(hunk: Hunk) -> Hunk:
    lines = list(_marked(hunk.lines))
    while lines and not lines[-1].startswith(("+", "-", "\\")):
        lines.pop()
    return replace(hunk, lines=tuple(lines))


def _recounted(file: FileDiff) -> FileDiff:
    """The file with the counts that its hunks have, and new starts that follow from them."""
    hunks, shift = [], 0
    for hunk in file.hunks:
        lines = list(_marked(_without_blank_end(hunk)))
        old = sum(line[0] in " -" for line in lines)
        new = sum(line[0] in " +" for line in lines)
        start = hunk.old_start
        # An empty side starts at the line before, by diff's convention
        new_start = max(start + shift + (1 if old == 0 and new else 0) - (1 if new == 0 and old else 0), 0)
        hunks.append(Hunk(start, old, new_start, new, hunk.section, tuple(lines)))
        shift += new - old
    return file.with_hunks(tuple(hunks))


def _without_blank_end(hunk: Hunk) -> list[str]:
    """The lines of a hunk without empty ones that the answer ends with, unless the hunk's counts ask for them."""
    lines = list(hunk.lines)
    while lines and not lines[-1].strip("\r\n") and _old_count(lines) > hunk.old_count:
        lines.pop()
    return lines


def _old_count(lines: list[str]) -> int:
    return sum(line[:1] in (" ", "-", "\n", "\r") for line in lines)


# Lines are equal, else up to blanks at their end, else up to all blanks
_EQUAL: tuple[Callable[[str], str], ...] = (str, str.rstrip, lambda line: "".join(line.split()))


def _anchored(file: FileDiff, read: ReadFile) -> FileDiff:
    content = read(file.old) if file.old is not None else None
    if content is None:
        return file
    have = content.split("\n")
    return _each(file, lambda hunk: _moved(hunk, have))


def _moved(hunk: Hunk, have: list[str]) -> Hunk:
    """The hunk where its old lines stand: exactly, else up to blanks; where that place is not the only one, or there is
    none, it stays.
    """
    whole = replace(hunk, lines=_marked(hunk.lines))
    bare = _without_tail(hunk)
    for variant in [whole] if whole.lines == bare.lines else [whole, bare]:
        want = [line.rstrip("\r\n") for line in variant.old_lines]
        for equal in _EQUAL if any(line.strip() for line in want) else ():
            wanted, there = [equal(line) for line in want], [equal(line) for line in have]
            places = [at for at in range(len(there) - len(wanted) + 1) if there[at : at + len(wanted)] == wanted]
            if hunk.old_start - 1 in places:
                places = [hunk.old_start - 1]
            if len(places) == 1:
                return _with_context(variant, have, places[0] + 1)
            if places:
                return hunk
    return hunk


def _with_context(hunk: Hunk, have: list[str], start: int) -> Hunk:
    """The hunk at a place, with context and removed lines as the file has them."""
    lines, at = [], start - 1
    for line in hunk.lines:
        if line[:1] in (" ", "-"):
            end = line[len(line.rstrip("\r\n")) :]
            lines.append(line[0] + have[at] + ("\n" if end.endswith("\n") else end))
            at += 1
        else:
            lines.append(line)
    # Without a line after its changes, git takes a hunk for the end of the file
    if lines[-1][:1] in ("+", "-") and at < len(have) - 1:
        lines.append(f" {have[at]}\n")
    return replace(hunk, old_start=start, lines=tuple(lines))
