"""Answers that are no diffs (search and replace, whole files, edits as JSON), turned into one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Literal

from lmlab.errors import UserError
from lmlab.files import ParseError, json_value
from lmlab.methods.swebench.patches.extract import extract_patch
from lmlab.methods.swebench.patches.repair import ReadFile
from lmlab.words import counted

AnswerFormat = Literal["diff", "search_replace", "full_file", "json_edits"]

_BLOCK = re.compile(
    r"^(?:#+ *)?(?P<path>[^\s`<>]+)\n(?:```\w*\n)?<{5,} ?SEARCH\n(?P<old>.*?)^={5,}\n(?P<new>.*?)^>{5,} ?REPLACE",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"\[start of (?P<path>[^\]\n]+)\]\n(?P<text>.*?)\[end of (?P=path)\]", re.DOTALL)


def patch_of_answer(answer: str, fmt: AnswerFormat, read: ReadFile) -> str | None:
    """The unified diff that an answer stands for.

    Arguments:
        fmt: `diff`: a patch in tags or fences; `search_replace`: blocks of a path, the lines to find and those to put
            there; `full_file`: whole files between [start of PATH] and [end of PATH]; `json_edits`: a list of `{"path",
            "old", "new"}`.
        read: the base tree.

    Returns:
        None where the answer holds nothing of that format.

    Raises:
        UserError: what is to be replaced does not stand there exactly once.
    """
    if fmt == "diff":
        return extract_patch(answer)
    if fmt == "full_file":
        files = {match["path"].strip(): match["text"] for match in _FILE.finditer(answer)}
        return diff_of(read, files) if files else None
    edits = _blocks(answer) if fmt == "search_replace" else _json_edits(answer)
    changed: dict[str, str] = {}
    for path, old, new in edits:
        before = changed.get(path, read(path) or "")
        changed[path] = replaced(before, old, new, path)
    return diff_of(read, changed) if changed else None


def replaced(text: str, old: str, new: str, path: str) -> str:
    """A text with lines replaced that stand there once: exactly, else up to blanks.

    Raises:
        UserError: they stand there never, or several times.
    """
    if not old.strip() and not text:
        return new
    if text.count(old) == 1 and old:
        return text.replace(old, new)
    if text.count(old) > 1:
        raise UserError(f"{path}: what is to be replaced stands there {counted(text.count(old), 'times')}.")
    have, want = text.splitlines(keepends=True), [" ".join(line.split()) for line in old.splitlines()]
    there = [" ".join(line.split()) for line in have]
    places = [p for p in range(len(there) - len(want) + 1) if want and there[p : p + len(want)] == want]
    if len(places) != 1:
        raise UserError(f"{path}: what is to be replaced stands there {counted(len(places), 'times')}.")
    return "".join([*have[: places[0]], new, *have[places[0] + len(want) :]])


def diff_of(read: ReadFile, after: Mapping[str, str | None]) -> str:
    """A patch that git applies, from the contents of files after the change; None removes a file."""
    parts = []
    for path, new in sorted(after.items()):
        old = read(path)
        if old == new:
            continue
        header = [f"diff --git a/{path} b/{path}\n"]
        if old is None:
            header.append("new file mode 100644\n")
        elif new is None:
            header.append("deleted file mode 100644\n")
        names = ("/dev/null" if old is None else f"a/{path}", "/dev/null" if new is None else f"b/{path}")
        before, now = _lines(old or ""), _lines(new or "")
        body = list(difflib.unified_diff(before, now, *names, n=3))
        marked = (line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in body)
        parts += [*header, *marked]
    return "".join(parts)


def _lines(text: str) -> list[str]:
    found = re.findall(r"[^\n]*\n|[^\n]+", text)
    return list(found)


def _blocks(answer: str) -> list[tuple[str, str, str]]:
    return [(match["path"], match["old"], match["new"]) for match in _BLOCK.finditer(answer)]


def _json_edits(answer: str) -> list[tuple[str, str, str]]:
    text = extract_patch(answer) or ""
    try:
        found = json_value(text)
    except ParseError:
        return []
    listed = found if isinstance(found, list) else found.get("edits", []) if isinstance(found, dict) else []
    keys = ("path", "old", "new")
    return [
        (each["path"], each["old"], each["new"])
        for each in listed
        if isinstance(each, dict) and all(isinstance(each.get(key), str) for key in keys)
    ]
