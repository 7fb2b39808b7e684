"""Unified diffs as git writes them, taken apart and put together without the loss of a byte.

A patch is a list of files, a file a list of header lines and hunks. Everything is text with its line ends, as CRLF
and a missing last line end are content.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(.*)", re.DOTALL)
_GIT = re.compile(r'diff --git ("?)a/(.*?)\1 ("?)b/(.*?)\3\r?\n?$', re.DOTALL)
_ESCAPES = {"a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, '"': 34, "\\": 92}


@dataclass(frozen=True)
class Hunk:
    """A run of changed lines.

    Attributes:
        old_start, old_count, new_start, new_count: as the header says, 1-based.
        section: what follows the second @@, with the line end.
        lines: each with its mark (blank, plus, minus or backslash) and its line end.
    """

    old_start: int
    old_count: int
    new_start: int
    new_count: int
    section: str
    lines: tuple[str, ...]

    @property
    def old_lines(self) -> list[str]:
        """What stands there before, without marks."""
        return [line[1:] for line in self.lines if line[:1] in (" ", "-") or not line.strip("\r\n")]

    @property
    def added(self) -> list[str]:
        """Added lines, without marks."""
        return [line[1:] for line in self.lines if line.startswith("+")]

    @property
    def removed(self) -> list[str]:
        """Removed lines, without marks."""
        return [line[1:] for line in self.lines if line.startswith("-")]

    def __str__(self) -> str:
        old = f"{self.old_start}" if self.old_count == 1 else f"{self.old_start},{self.old_count}"
        new = f"{self.new_start}" if self.new_count == 1 else f"{self.new_start},{self.new_count}"
        return f"@@ -{old} +{new} @@{self.section}" + "".join(self.lines)


@dataclass(frozen=True)
class FileDiff:
    """What a patch does to one file.

    Attributes:
        header: the lines before the first hunk.
        old, new: paths in the repository; None for a file that is created or removed.
        binary: the change is not text; it is in the header's lines.
    """

    header: tuple[str, ...]
    old: str | None
    new: str | None
    hunks: tuple[Hunk, ...] = ()
    binary: bool = False

    @property
    def path(self) -> str:
        """The path after the change, or before it for a removed file."""
        return self.new or self.old or ""

    @property
    def paths(self) -> set[str]:
        """All paths that it names."""
        return {path for path in (self.old, self.new) if path is not None}

    @property
    def modes(self) -> set[str]:
        """The modes that the header gives a file: 120000 is a symbolic link, 160000 a submodule."""
        found = (re.match(r"(?:new |old |deleted )(?:file )?mode (\d+)|index \S+ (\d+)", line) for line in self.header)
        return {(match[1] or match[2]) for match in found if match}

    def with_hunks(self, hunks: tuple[Hunk, ...]) -> FileDiff:
        """The same file with other hunks."""
        return replace(self, hunks=hunks)

    def __str__(self) -> str:
        return "".join(self.header) + "".join(map(str, self.hunks))


@dataclass
class _Open:
    header: list[str] = field(default_factory=list)
    hunks: list[tuple[re.Match[str], list[str]]] = field(default_factory=list)


def read_diff(text: str) -> list[FileDiff]:
    """The files of a patch, in order. Text before the first file is left out.

    A hunk ends where its counts say, so that lines which look like headers may stand in it; where the counts are wrong
    it ends at the next header.
    """
    files: list[FileDiff] = []
    current: _Open | None = None
    old_left = new_left = 0
    lines = _lines(text)
    for place, line in enumerate(lines):
        inside = current is not None and (old_left > 0 or new_left > 0)
        belongs = line[:1] in (" ", "+", "-", "\\") or line in ("\n", "\r\n")
        if inside and belongs and current is not None and not _interrupts(lines, place, (old_left, new_left)):
            current.hunks[-1][1].append(line)
            old_left -= line[:1] in (" ", "-", "\n", "\r")
            new_left -= line[:1] in (" ", "+", "\n", "\r")
            continue
        new_file = line.startswith("diff --git ") or (
            _starts_file(lines, place) and (current is None or bool(current.hunks))
        )
        if new_file:
            if current is not None:
                files.append(_close(current))
            current, old_left, new_left = _Open([line]), 0, 0
        elif current is None:
            continue
        elif (match := _HUNK.match(line)) and (
            current.hunks or any(each.startswith(("+++ ", "--- ")) for each in current.header)
        ):
            current.hunks.append((match, []))
            old_left, new_left = int(match[2] or 1), int(match[4] or 1)
        elif current.hunks:
            current.hunks[-1][1].append(line)  # "\ No newline at end of file", or what does not belong there
        else:
            current.header.append(line)
    if current is not None:
        files.append(_close(current))
    return files


def _lines(text: str) -> list[str]:
    """Lines that end at "\\n" and nothing else, as git sees them."""
    found = [line + "\n" for line in text.split("\n")]
    found[-1] = found[-1][:-1]
    return found if found[-1] else found[:-1]


def _starts_file(lines: list[str], place: int) -> bool:
    """Whether "--- old" and "+++ new" stand here."""
    return lines[place].startswith("--- ") and place + 1 < len(lines) and lines[place + 1].startswith("+++ ")


def _interrupts(lines: list[str], place: int, left: tuple[int, int]) -> bool:
    """Whether a new file begins though the counts of the hunk say that lines are missing.

    A removed and an added line may look like a file's header; with a hunk's header after them they are none only if
    they are just what is missing.
    """
    if not _starts_file(lines, place) or left == (1, 1) or place + 2 >= len(lines):
        return False
    return _HUNK.match(lines[place + 2]) is not None


def _close(current: _Open) -> FileDiff:
    header = current.header
    old, new = _paths(header)
    hunks = tuple(
        Hunk(int(m[1]), int(m[2] or 1), int(m[3]), int(m[4] or 1), m[5], tuple(lines)) for m, lines in current.hunks
    )
    binary = any(line.startswith(("Binary files ", "GIT binary patch")) for line in header)
    return FileDiff(tuple(header), old, new, hunks, binary)


def _paths(header: list[str]) -> tuple[str | None, str | None]:
    old = new = None
    if match := _GIT.match(header[0]):
        old, new = _unquote(match[2], match[1]), _unquote(match[4], match[3])
        if old != new:
            old, new = _same_names(header[0]) or (old, new)
    for line in header:
        name = line.rstrip("\r\n")
        if name.startswith("--- "):
            old = _side(name[4:], "a/")
        elif name.startswith("+++ "):
            new = _side(name[4:], "b/")
        elif name.startswith("new file mode"):
            old = None
        elif name.startswith("deleted file mode"):
            new = None
        elif name.startswith(("rename from ", "copy from ")):
            old = _quoted(name.split(" from ", 1)[1])
        elif name.startswith(("rename to ", "copy to ")):
            new = _quoted(name.split(" to ", 1)[1])
    return old, new


def _same_names(line: str) -> tuple[str, str] | None:
    """Paths with " b/" in them: both sides are the same unless the header says otherwise."""
    rest = line.rstrip("\r\n").removeprefix("diff --git ")
    half = (len(rest) - 1) // 2
    one, two = rest[:half], rest[half + 1 :]
    return (one[2:], two[2:]) if one[2:] == two[2:] and one.startswith("a/") and two.startswith("b/") else None


def _side(name: str, prefix: str) -> str | None:
    name = name.split("\t")[0]
    path = _quoted(name)
    return None if path == "/dev/null" else path.removeprefix(prefix)


def _quoted(name: str) -> str:
    return _unquote(name[1:-1], '"') if len(name) > 1 and name[0] == name[-1] == '"' else name


def _unquote(name: str, quote: str) -> str:
    """A path as git quotes it: octal for bytes beyond ASCII, backslashes for control characters."""
    if not quote or "\\" not in name:
        return name
    found = bytearray()
    for part in re.findall(r"\\(?:[0-7]{3}|.)|[^\\]+", name, re.DOTALL):
        if part[0] != "\\":
            found += part.encode()
        elif part[1:].isdigit():
            found.append(int(part[1:], 8) & 255)
        else:
            found.append(_ESCAPES.get(part[1], ord(part[1]) & 255))
    return found.decode("utf-8", "replace")


def write_diff(files: list[FileDiff]) -> str:
    """The text of a patch."""
    return "".join(map(str, files))
