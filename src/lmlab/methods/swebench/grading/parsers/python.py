"""Logs of Python's test runners: pytest as several projects print it, Django's, SymPy's."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lmlab.methods.swebench.grading.parsers.status import (
    ERROR,
    FAILED,
    PASSED,
    SKIPPED,
    WORDS,
    LogContext,
    StatusMap,
)

_COUNT = re.compile(r"\[\d+\]")
_OPTION = re.compile(r"(.*?)\[(.*)\]")
_CONTROL = {code: None for code in range(1, 32) if code != 10}  # all but the line feed, which are taken out
_COLOR = re.compile(r"\[\d+m")


def _summary(log: str) -> Iterator[tuple[str, str]]:
    """Status word and id of each line of pytest's short summary (`-rA`)."""
    for line in log.split("\n"):
        if not line.startswith(WORDS):
            continue
        words = (line.replace(" - ", " ") if line.startswith(FAILED) else line).split()
        # "SKIPPED [3] tests/test_x.py:7: why" counts tests and names none
        if len(words) > 1 and not (words[0] == SKIPPED and _COUNT.fullmatch(words[1])):
            yield words[0], words[1]


def pytest(log: str, context: LogContext) -> StatusMap:
    """pytest with `-rA`; an id ends at the first blank."""
    return {name: status for status, name in _summary(log)}


def pytest_options(log: str, context: LogContext) -> StatusMap:
    """As `pytest`; of a parameter that is an absolute path only the last part is kept, as the rest is the machine's."""
    found: StatusMap = {}
    for status, name in _summary(log):
        if option := _OPTION.search(name):
            test, value = option.groups()
            if value.startswith("/") and not value.startswith("//") and "*" not in value:
                value = "/" + value.rpartition("/")[2]
            name = f"{test}[{value}]"
        found[name] = status
    return found


def matplotlib(log: str, context: LogContext) -> StatusMap:
    """As `pytest`; older Pythons print the members of one enumeration as numbers."""
    return pytest(log.replace("MouseButton.LEFT", "1").replace("MouseButton.RIGHT", "3"), context)


def pytest_v2(log: str, context: LogContext) -> StatusMap:
    """pytest with colors, of any version: the status stands first (`-rA`) or last (`-v`); ids may hold blanks."""
    found: StatusMap = {}
    for line in _COLOR.sub("", log).translate(_CONTROL).split("\n"):
        if line.startswith(WORDS):
            words = (line.split(" - ", 1)[0] if line.startswith(FAILED) else line).split()
            if len(words) > 1 and not (words[0] == SKIPPED and _COUNT.fullmatch(words[1])):
                found[" ".join(words[1:])] = words[0]
        elif line.endswith(WORDS):
            words = line.split()
            if len(words) > 1:
                found[" ".join(words[:-1])] = words[-1]
    return found


def seaborn(log: str, context: LogContext) -> StatusMap:
    """pytest with `-v` (id, status, progress) or `-rA`; only passed and failed."""
    found: StatusMap = {}
    for line in log.split("\n"):
        words = line.split()
        if len(words) < 2:
            continue
        if line.startswith(FAILED):
            found[words[1]] = FAILED
        elif f" {PASSED} " in line:
            if words[1] == PASSED:
                found[words[0]] = PASSED
        elif line.startswith(PASSED):
            found[words[1]] = PASSED
    return found


# What Django prints between "NAME ... " and "ok", and by which such a test is known
_DJANGO_INTERRUPTED = {
    "Testing against Django installed in": re.compile(
        r"^(.*?)\s\.\.\.\sTesting against Django installed in (?s:.*?) silenced\)\.\nok$", re.MULTILINE
    ),
    "Internal Server Error: /": re.compile(r"^(.*?)\s\.\.\.\sInternal Server Error: /.*/\nok$", re.MULTILINE),
    "System check identified no issues (0 silenced)": re.compile(
        r"^(.*?)\s\.\.\.\sSystem check identified no issues \(0 silenced\)\nok$", re.MULTILINE
    ),
}
_DJANGO_MIGRATIONS = "Applying sites.0002_alter_domain_unique...test_no_migrations"
_DJANGO_VERSION = "--version is equivalent to version"


def django(log: str, context: LogContext) -> StatusMap:
    """Django's runner, which is unittest with `--verbosity 2`: "NAME ... ok", with output of the test in between."""
    found: StatusMap = {}
    open_test: str | None = None
    for raw in log.split("\n"):
        line = raw.strip()
        if _DJANGO_VERSION in line:
            found[_DJANGO_VERSION] = PASSED
        if " ... " in line:
            open_test = line.partition(" ... ")[0]
        for end in (" ... ok", " ... OK", " ...  OK"):
            if line.endswith(end):
                if line.startswith(_DJANGO_MIGRATIONS):  # the name follows what a migration printed
                    line = line.partition("...")[2].strip()
                found[line.rsplit(end, 1)[0]] = PASSED
                break
        if " ... skipped" in line:
            found[line.partition(" ... skipped")[0]] = SKIPPED
        for word, status in (("FAIL", FAILED), ("ERROR", ERROR)):
            if line.endswith(f" ... {word}"):
                found[line.partition(f" ... {word}")[0]] = status
            if line.startswith(f"{word}:"):
                words = line.split()
                if len(words) > 1:
                    found[words[1]] = status
        if line.startswith("ok") and open_test is not None:
            found[open_test] = PASSED
    for text, pattern in _DJANGO_INTERRUPTED.items():
        found |= {match[1]: PASSED for match in _near(pattern, text, log)}
    return found


def _near(pattern: re.Pattern[str], text: str, log: str) -> Iterator[re.Match[str]]:
    """Matches of a pattern that begins at most two lines before a text that it holds: what `finditer` finds, without
    trying every other line.
    """
    end = place = 0
    while (place := log.find(text, place)) >= 0:
        starts = [log.rfind("\n", 0, place) + 1]
        for _ in range(2):
            starts.insert(0, log.rfind("\n", 0, max(starts[0] - 1, 0)) + 1)
        for start in dict.fromkeys(starts):
            if start >= end and (match := pattern.match(log, start)):
                end = match.end()
                yield match
                break
        place = max(place + 1, end)


_SYMPY_TITLE = re.compile(r" (.*)\.py:(.*) ")
_SYMPY_ENDS = {" E": ERROR, " F": FAILED, " ok": PASSED}


def sympy(log: str, context: LogContext) -> StatusMap:
    """SymPy's runner: "test_name ok", and titles "____ path.py:test_name ____" above tracebacks."""
    lines = log.split("\n")
    titles = (_SYMPY_TITLE.search(line) for line in lines if ".py:" in line)
    found = {f"{title[1]}.py:{title[2]}": FAILED for title in titles if title}
    for raw in lines:
        line = raw.strip()
        if line.startswith("test_"):
            for end, status in _SYMPY_ENDS.items():
                if line.endswith(end):
                    found[line.split()[0]] = status
    return found
