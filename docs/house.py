"""Count what the house is made of, now and at an earlier revision, and write the table into docs/architecture.md.

python docs/house.py              # writes; takes a few seconds
python docs/house.py REVISION     # compares with another revision than that before the manifests of methods
"""

from __future__ import annotations

import ast
import io
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from tables import ROOT, filled

from lmlab.files.parsing import json_value

BEFORE = "d3f1518~1"  # the last one at which a method was made known in several places
PAGE = ROOT / "docs" / "architecture.md"
WIDTH = 120
_HELPS = 5


def tree(revision: str | None) -> dict[str, str]:
    """The files of a revision that are text, by path; None is the working tree."""
    if revision is None:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        return {path: text for path in listed.splitlines() if (text := _text((ROOT / path).read_bytes())) is not None}
    packed = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
    found = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            if file is not None and (text := _text(file.read())) is not None:
                found[member.name] = text
    return found


def _text(content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def rooms_of(files: dict[str, str]) -> tuple[dict[str, set[str]], set[str]]:
    """Which room imports which, and the rooms that stand in a circle with another."""
    uses: dict[str, set[str]] = defaultdict(set)
    for path, text in files.items():
        if not path.startswith("src/lmlab/") or not path.endswith(".py"):
            continue
        parts = path.split("/")
        room = parts[2].removesuffix(".py")
        for node in ast.walk(ast.parse(text)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            uses[room] |= {name.split(".")[1] for name in names if name.startswith("lmlab.")} - {room}
    whole = {room: set(found) for room, found in uses.items()}
    for _ in uses:
        whole = {room: found.union(*(whole.get(each, set()) for each in found)) for room, found in whole.items()}
    return dict(uses), {room for room, found in whole.items() if room in found}


def places(files: dict[str, str]) -> dict[str, Counter[str]]:
    """For each method the lines of source and packaging outside its own folder that make it known, by file; what
    `import lmlab` offers of it is left out, which no method needs.
    """
    methods = sorted({path.split("/")[3] for path in files if re.match(r"src/lmlab/methods/\w+/\w+\.py", path)})
    found: dict[str, Counter[str]] = {method: Counter() for method in methods}
    for path, text in files.items():
        if path.startswith("src/lmlab/door/"):
            continue
        if path.startswith("src/lmlab/") or path == "pyproject.toml":
            for method in methods:
                if not path.startswith(f"src/lmlab/methods/{method}/"):
                    lines = sum(f"lmlab.methods.{method}" in line for line in text.splitlines())
                    found[method] += Counter({path: lines} if lines else {})
    return found


def long_lines(files: dict[str, str], ending: str) -> int:
    """Lines over 120 characters: of Python, where no tool lets them be, and of prose."""
    count = 0
    for path, text in files.items():
        if path.endswith(ending) and not path.startswith("tests/data/chat_templates"):
            for line in prose(text) if ending == ".md" else text.splitlines():
                count += len(line) > WIDTH and "://" not in line and "  # " not in line
    return count


def prose(text: str) -> list[str]:
    """The lines of a page that can be broken: no tables, code, headings, or lone long words."""
    found, fence = [], False
    for line in text.splitlines():
        if line.lstrip().startswith(("```", "~~~")):
            fence = not fence
        elif not fence and not line.lstrip().startswith(("|", "#", "<", "[!")) and " " in line.strip():
            found.append(line)
    return found


def largest_rooms(files: dict[str, str]) -> int:
    """Files of the fullest flat folder."""
    counts: dict[str, int] = defaultdict(int)
    for path in files:
        if path.startswith("src/lmlab/") and path.endswith(".py") and not path.endswith("__init__.py"):
            counts[path.rpartition("/")[0]] += 1
    return max(counts.values())


def help_seconds(revision: str | None) -> float:
    """What `lmlab --help` takes, the median of a few."""
    with tempfile.TemporaryDirectory() as folder:
        source = str(ROOT / "src")
        if revision is not None:
            packed = subprocess.run(["git", "archive", revision, "src"], cwd=ROOT, check=True, capture_output=True)
            with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
                archive.extractall(folder, filter="data")
            source = f"{folder}/src"
        taken = []
        for _ in range(_HELPS):
            start = time.perf_counter()
            environment = os.environ | {"PYTHONPATH": source}
            command = [sys.executable, "-m", "lmlab", "--help"]
            subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def test_seconds(files: dict[str, str]) -> str:
    """What all tests take one after the other, as they were last noted."""
    if "tests/seconds.json" not in files:
        return "not noted"
    noted = json_value(files["tests/seconds.json"])
    there = {path.rpartition("/")[2] for path in files if re.fullmatch(r"tests/(.+/)?test_\w+\.py", path)}
    minutes = sum(seconds for name, seconds in noted.items() if name in there) / 60
    found = f"{minutes:.0f} min one after the other, noted while other work ran"
    missing = len(there - noted.keys())
    return found + (f", without {missing} files that are not noted yet" if missing else "")


def column(revision: str | None) -> dict[str, str]:
    """The figures of a revision."""
    files = tree(revision)
    uses, circle = rooms_of(files)
    known = places(files)
    source = {path: text for path, text in files.items() if path.startswith("src/") and path.endswith(".py")}
    longest = max(source, key=lambda path: len(source[path].splitlines()))
    return {
        "methods": f"{len(known)}",
        "rooms, and those in a circle": f"{len(uses)}, {len(circle)}",
        "other files to edit for a method more, and lines in them, at most": ", ".join(
            f"{max(map(count, known.values()), default=0)}" for count in (len, Counter.total)
        ),
        "files in the fullest flat folder": f"{largest_rooms(files)}",
        "files of source, and lines of the longest": f"{len(source)}, {len(source[longest].splitlines())}",
        "lines over 120 characters in Python, in prose": f"{long_lines(files, '.py'):,}, {long_lines(files, '.md'):,}",
        "`lmlab --help`": f"{help_seconds(revision):.2f} s",
        "all tests": test_seconds(files),
    }


def table(before: str) -> str:
    """Both columns."""
    then, now = column(before), column(None)
    rows = [f"| {name} | {then[name]} | {now[name]} |" for name in now]
    return "\n".join([f"| | before the manifests (`{before}`) | now |", "|---|---|---|", *rows])


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    PAGE.write_text(filled(text, "figures", table(sys.argv[1] if len(sys.argv) > 1 else BEFORE), "house"), "utf-8")
