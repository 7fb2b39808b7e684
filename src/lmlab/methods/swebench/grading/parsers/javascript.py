"""JavaScript's runners as many projects print them: Mocha, Karma, Jest, Jasmine, and harnesses of their own.

The names of tests are those that published instances use; that is why some keep what looks like an accident, such as a
blank at the end.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from lmlab.files import json_value
from lmlab.methods.swebench.grading.parsers.lines import jest, jest_json
from lmlab.methods.swebench.grading.parsers.status import FAILED, PASSED, LogContext, StatusMap, without_escapes


class _Suites:
    """The suites that enclose a line, told by indentation."""

    def __init__(self) -> None:
        self.open: list[tuple[str, int]] = []

    def enter(self, line: str) -> None:
        """Take a line as the title of a suite."""
        indent = len(line) - len(line.lstrip())
        while self.open and self.open[-1][1] >= indent:
            self.open.pop()
        self.open.append((line.strip(), indent))

    def name(self, test: str) -> str:
        """The test's name with those of its suites."""
        return " - ".join([*(title for title, _ in self.open), test])


def _indented(line: str) -> bool:
    return len(line) > len(line.lstrip())


_TIMING = re.compile(r"\(\d+ms\)")


def highlightjs(log: str, context: LogContext) -> StatusMap:
    """Mocha's `spec` reporter; what follows the count of passed tests is not a list of tests."""
    found: StatusMap = {}
    suite: list[str] = []
    for line in re.split(r"\n[ \t]*\d+ passing", log)[0].split("\n"):
        stripped = line.strip()
        if stripped.startswith(("✓", "✔")):
            test = line.split(stripped[0], 1)[1]
            found[".".join([*suite, _TIMING.sub("", test).strip()])] = PASSED
        elif re.match(r"\d+\)", stripped):
            test = line.split(")", 1)[1]
            found[".".join([*suite, _TIMING.sub("", test).strip()])] = FAILED
        elif line.startswith("  "):
            suite = [stripped]
    return found


_PRISM_COMMAND = "./node_modules/.bin/mocha tests/run.js --reporter json"


def prismjs(log: str, context: LogContext) -> StatusMap:
    """Mocha's `json` reporter, once for each command in the log."""
    found: StatusMap = {}
    for part in log.split(_PRISM_COMMAND)[1:]:
        results = json_value("{" + part.split("{", 1)[-1].rsplit("}", 1)[0] + "}")
        for key, status in (("failures", FAILED), ("passes", PASSED)):
            found |= {test["fullTitle"]: status for test in results[key]}
    return found


def _failed(*names: str) -> StatusMap:
    return dict.fromkeys(names, FAILED)


def eslint(log: str, context: LogContext) -> StatusMap:
    """Mocha's `min` reporter, which prints failures only."""
    failures = re.findall(r"\s{2}\d+\)([\s\S]*?)\s+.*Error", log)
    return _failed(*(re.sub(r"\s+", " ", each).strip() for each in failures))


_BPMN = (
    r"2KPhantomJS\s[\d\.]+\s\(Linux\s[\d\.]+\)\s(.*)FAILED\n",
    r"2KPhantomJS\s[\d\.]+\s\(Linux\sx86\_64\)\s(.*)FAILED\n",
    r"Chrome\sHeadless\s.*\s\(Linux\sx86\_64\)\s(.*)FAILED\n",
    r"HeadlessChrome\s[\d\.]+\s\(Linux\s[\d\.]+\)\s(.*)FAILED\n",
)


def bpmn_js(log: str, context: LogContext) -> StatusMap:
    """Karma's `progress` reporter, of which failures stand in the log."""
    return _failed(*(name for pattern in _BPMN for name in re.findall(pattern, log)))


_OPENLAYERS = (
    r"Chrome\sHeadless\s[\d\.]+\s\(Linux\s[\d\.\_\S]+\)\s(.*)\sFAILED\n",
    r"Chrome\s[\d\.]+\s\(Linux\s[\d\.\_\S]+\)\s(.*)FAILED\n",
    r"^\s{2}\d+\)([\s\S]*?)Error:",
    r"^case\s(.*):\smismatch",
)


def openlayers(log: str, context: LogContext) -> StatusMap:
    """Karma, Mocha, and a harness that compares renderings."""
    found = (name for pattern in _OPENLAYERS for name in re.findall(pattern, log, re.MULTILINE))
    return _failed(*(re.sub(r"\s+", " ", name).strip() for name in found))


def chart_js(log: str, context: LogContext) -> StatusMap:
    """Karma, failures only."""
    pattern = r"Chrome\s[\d\.]+[^\S\r\n]\(.+?\)[^\S\r\n](.*)FAILED$"  # no line end between, else two browsers join
    return _failed(*re.findall(pattern, without_escapes(log), re.MULTILINE))


def marked(log: str, context: LogContext) -> StatusMap:
    """Jasmine, failures only."""
    return _failed(*(name.strip() for name in re.findall(r"^\d+\)\s(.*)", log, re.MULTILINE)))


def grommet(log: str, context: LogContext) -> StatusMap:
    """Jest, one line a file; the time that a file took is not part of its name."""
    found: StatusMap = {}
    for word, status in (("FAIL", FAILED), ("PASS", PASSED)):
        for name in re.findall(rf"^{word}\s(.*)", log, re.MULTILINE):
            found[re.sub(r"\s\([\d\.]+\s?(?:ms|s)\)$", "", name.strip())] = status
    return found


_FILE_LINE = [
    (re.compile(rf"{word}\s(.*){time}"), status)
    for word, status in (("PASS", PASSED), ("FAIL", FAILED))
    for time in (r"\s\([\d\.]+ms\)", r"\s\([\d\.]+\ss\)", r"\s\([\d\.]+s\)", "")
]


def carbon(log: str, context: LogContext) -> StatusMap:
    """Jest, one line a file."""
    found: StatusMap = {}
    for line in log.split("\n"):
        for pattern, status in _FILE_LINE:
            if match := pattern.match(line):
                found[match[1]] = status
                break
    return found


def next_js(log: str, context: LogContext) -> StatusMap:
    """alibaba-fusion/next, which went from Karma to Cypress with version 1.27."""
    return _next_cypress(log) if context.version == "1.27" else _next_karma(log)


def _next_karma(log: str) -> StatusMap:
    found: StatusMap = {}
    suites = _Suites()
    plain = re.sub(r"AssertionError:\s+#([\s\S]*?)\n\n", "", without_escapes(log))
    for part in plain.split(" xvfb-run ")[1:]:
        for line in part.split("Starting browser Chrome")[-1].split("\n"):
            if line.startswith("TOTAL"):
                break
            if line.strip().startswith(("ERROR", "LOG", "WARN", "Check", "in")):
                continue
            for mark, status in (("✗", FAILED), ("✓", PASSED)):
                if mark in line:
                    found[suites.name(line.split(mark, 1)[1].lstrip())] = status
                    break
            else:
                if _indented(line):
                    suites.enter(line)
    return found


def _next_cypress(log: str) -> StatusMap:
    found: StatusMap = {}
    parts = re.split(r"Running\:(.*)\)\n{3}\s{2}(.*)\n", log)
    for suite, part in zip(parts[2::3], parts[3::3], strict=True):
        for pattern, status in ((r"^\s{4}\d+\)\s(.*)", FAILED), (r"^\s{4}✓\s(.*)\(", PASSED)):
            found |= {f"{suite}: {name.strip()}": status for name in re.findall(pattern, part, re.MULTILINE)}
    return found


_LIGHTHOUSE = [
    (re.compile(rf"{mark}\s(.*){time}"), status)
    for mark, status in (("✔", PASSED), (r"\d+\)", FAILED))
    for time in (r"\s\(\d+m+s\)", "")
]


def lighthouse(log: str, context: LogContext) -> StatusMap:
    """Lighthouse: Mocha's JSON up to version 2, then Jest, then Mocha's `spec` reporter in three versions."""
    if context.version in ("9.5", "10.0", "10.2"):
        return _lighthouse_mocha(log)
    if float(context.version) >= 3:
        return carbon(log, context)
    found: StatusMap = {}
    for part in log.split("./node_modules/.bin/mocha --reporter json")[1:]:
        for key, end, status in (("passes", "]", PASSED), ("failures", "],", FAILED)):
            listed = part.split(f'"{key}": [')[-1].rsplit(end, 1)[0]
            found |= dict.fromkeys(re.findall(r"\"fullTitle\"\:\s\"(.*)\",\n", listed), status)
    return found


def _lighthouse_mocha(log: str) -> StatusMap:
    found: StatusMap = {}
    for run in re.split(r"running\s\d+\stest\sfiles", log)[1:]:
        suites = _Suites()
        for line in re.split(r"\d+\spassing", run)[0].strip().split("\n"):
            for pattern, status in _LIGHTHOUSE:
                if match := pattern.match(line.strip()):
                    found[suites.name(match[1])] = status
                    break
            else:
                if _indented(line):
                    suites.enter(line)
    return found


def calypso(log: str, context: LogContext) -> StatusMap:
    """wp-calypso: Jest with `--verbose`, once for each command."""
    found: StatusMap = {}
    suites = _Suites()
    for part in log.split(" ./node_modules/.bin/jest ")[1:]:
        for line in part.split("\n"):
            if line.startswith(("Test Suites", "  ● ")):
                break
            stripped = line.strip()
            if stripped.startswith(("✓", "✕")):
                status = PASSED if stripped[0] == "✓" else FAILED
                timed = r"\(\d+ms\)$" if _TIMING.search(line) else ""
                if match := re.match(rf"\s+[✓✕]\s(.*){timed}", line):
                    enclosing = " - ".join(title for title, _ in suites.open)
                    found[f"{enclosing} - {match[1]}".strip()] = status
            elif _indented(line):
                suites.enter(line)
    return found


def _without_json(lines: list[str]) -> Iterator[str]:
    """Lines that are not part of a JSON value that a test printed."""
    inside = {"}": False, "]": False}
    for line in lines:
        end = line.rstrip()
        if end.endswith("{"):
            inside["}"] = True
        elif end.endswith("["):
            inside["]"] = True
        elif inside.get(end):
            inside[end] = False
        elif not any(inside.values()) and end[:1] + end[-1:] not in ("{}", "[]"):
            yield line


def _without_xml(text: str) -> str:
    pattern = re.compile(r"<(\w+)>[\s\S]*?<\/\1>")
    while match := pattern.search(text):
        opening = f"<{match[1]}>"
        text = text[: match.start()] + opening * (match[0].count(opening) - 1) + text[match.end() :]
    return text


def p5js(log: str, context: LogContext) -> StatusMap:
    """Mocha's list of failures: each line of a name is indented more than the one before."""
    found: StatusMap = {}
    text = _without_xml("\n".join(_without_json(without_escapes(log).split("\n"))))
    for match in re.finditer(r"^\s*\d+\)(.{0,1000}?):", text, re.MULTILINE | re.DOTALL):
        lines = match[1].split("\n")
        indents = [0, *(len(line) - len(line.lstrip()) for line in lines)]
        if all(one < two for one, two in itertools.pairwise(indents)):
            found[":".join(line.strip() for line in lines)] = FAILED
    return found


_KARMA = re.compile(r"(\s*)?([✔✖])?\s(.*)$")


def karma(log: str, context: LogContext) -> StatusMap:
    """Karma's `mocha` reporter, which nests suites by indentation."""
    found: StatusMap = {}
    depth, suite, started = -1, list[str](), False
    for line in log.split("\n"):
        if line.startswith("SUMMARY:"):
            break
        if "Starting browser" in line:
            started = True
            continue
        match = _KARMA.match(line) if started else None
        if match is None:
            continue
        indent, mark, name = match.groups()
        if mark:
            found[" > ".join([*suite, name])] = PASSED if mark == "✔" else FAILED
        elif indent:
            if len(indent) > depth:
                suite.append(name)
            elif len(indent) < depth and suite:
                suite.pop()
            depth = len(indent)
    return found


def immutable_js(log: str, context: LogContext) -> StatusMap:
    """immutable-js: one of its pull requests ran Jest with `--json`."""
    return (jest_json if context.instance_id.endswith("-2005") else jest)(log, context)


_QUARTO_FILES = (re.compile(r"/tmp/\w+\.qmd"), re.compile(r"/tmp/\w+/"))


def quarto_cli(log: str, context: LogContext) -> StatusMap:
    """Deno's runner; names of temporary files are numbered in order, a test without an outcome has failed."""
    found: StatusMap = {}
    numbers: dict[str, int] = {}
    for line in log.split("\n"):
        if "ERRORS" in line or "failures:" in line:
            break
        if not re.search(r"\[(smoke|unit)\]", line):
            continue
        for pattern in _QUARTO_FILES:
            if match := pattern.search(line):
                number = numbers.setdefault(match[0], len(numbers))
                line = pattern.sub(f"/tmp/{number}", line)
        summary = line.startswith("test result:") or all(word in line for word in ("passed", "failed", "steps"))
        if summary or "34mINFO" in line:
            continue
        test = line.split("...")[0].strip()
        if "32mok" in line:
            found[test] = PASSED
        elif "31mFAILED" in line:
            found[test] = FAILED
        else:
            found.setdefault(test, FAILED)
    return found
