"""Runners that print a test and its outcome on one line, which one regular expression reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lmlab.methods.swebench.grading.parsers.status import FAILED, PASSED, SKIPPED, LogContext, StatusMap

_DURATION = r"(?:\s\(\d+(?:\.\d+)?\s*m?s\))?"


@dataclass(frozen=True)
class LineParser:
    """Reads line by line.

    Attributes:
        pattern: with the groups `word`, the outcome in the runner's terms, and `test`; matched against stripped lines.
        outcomes: by the runner's word; lines with another word say nothing.
    """

    pattern: re.Pattern[str]
    outcomes: Mapping[str, str]

    def __call__(self, log: str, context: LogContext) -> StatusMap:
        """The outcome of each test."""
        found: StatusMap = {}
        for line in log.split("\n"):
            match = self.pattern.match(line.strip())
            if match and (status := self.outcomes.get(match["word"])):
                found[match["test"]] = status
        return found


def _reads(pattern: str, **outcomes: str) -> LineParser:
    return LineParser(re.compile(pattern), outcomes)


# Go: sub-tests keep their slashes.
gotest = _reads(r"--- (?P<word>PASS|FAIL|SKIP): (?P<test>.+) \(.+\)$", PASS=PASSED, FAIL=FAILED, SKIP=SKIPPED)
# Rust
cargo = _reads(r"test\s+(?P<test>\S+)\s+\.\.\.\s+(?P<word>\w+)$", ok=PASSED, FAILED=FAILED)
# C and C++
jq = _reads(r"(?P<word>PASS|FAIL):\s(?P<test>.+)$", PASS=PASSED, FAIL=FAILED)
micropython = _reads(r"(?P<word>pass|FAIL|skip)\s+(?P<test>.+)$", FAIL=FAILED, skip=SKIPPED, **{"pass": PASSED})
googletest = _reads(r".*\[\s*(?P<word>OK|FAILED)\s*\]\s(?P<test>.*)\s\(.*\)$", OK=PASSED, FAILED=FAILED)
ctest = _reads(
    r"\s*\d+/\d+ Test\s+#\d+: (?P<test>\S+) [ .*]*(?P<word>Passed|Failed|Not Run|Timeout|Exception)",
    Passed=PASSED,
    Failed=FAILED,
    Timeout=FAILED,
    Exception=FAILED,
    **{"Not Run": SKIPPED},
)
# Java
ant = _reads(r"\[junit\]\s+\[(?P<word>PASS|FAIL|ERR)\]\s+(?P<test>.*)$", PASS=PASSED, FAIL=FAILED, ERR=FAILED)
# Ruby
minitest = _reads(r"(?P<test>.+)\. .*=.*(?P<word>\.|F|E).*$", F=FAILED, E=FAILED, **{".": PASSED})
cucumber = _reads(r"(?P<test>.*) \.+(?P<word>\.|F)", F=FAILED, **{".": PASSED})
ruby_unit = _reads(
    r"(?:test: )?(?P<test>.+):\s+(?P<word>\.|E\b|F\b|O\b)", E=FAILED, F=FAILED, O=SKIPPED, **{".": PASSED}
)
rspec = _reads(r"(?P<test>.+) - (?P<word>passed|failed)", passed=PASSED, failed=FAILED)
# JavaScript
tap = _reads(r"(?P<word>ok|not ok) \d+ (?P<test>.+)$", ok=PASSED, **{"not ok": FAILED})
jest = _reads(rf"(?P<word>✓|✕|○)\s+(?P<test>.+?)\s*{_DURATION}$", **{"✓": PASSED, "✕": FAILED, "○": SKIPPED})
jest_json = _reads(r"\[(?P<word>PASSED|FAILED)\]\s(?P<test>.+)$", PASSED=PASSED, FAILED=FAILED)
vitest = _reads(
    r"(?P<word>✓|×|↓)\s(?P<test>.+?)(?:\s(?:\d+\s*m?s?|\[skipped\]))?$", **{"✓": PASSED, "×": FAILED, "↓": SKIPPED}
)

_REDIS = re.compile(r"\[(ok|err|skip|ignore)\]:\s(.+?)(?:\s\(\d+\s*m?s\))?$")
_REDIS_FILE = re.compile(r"\s+in\s+\S+$")


def redis(log: str, context: LogContext) -> StatusMap:
    """Redis and Valkey; a failed test's line names its file, a passed one's does not."""
    outcomes = {"ok": PASSED, "err": FAILED, "skip": SKIPPED, "ignore": SKIPPED}
    found: StatusMap = {}
    for line in log.split("\n"):
        if match := _REDIS.match(line.strip()):
            word, test = match.groups()
            found[_REDIS_FILE.sub("", test) if word == "err" else test] = outcomes[word]
    return found


_PHP_SUITE = re.compile(r"(\w.+) \(.+\)$")
_PHP_TEST = re.compile(r"\s*([✔✘↩])\s*(.*)$")


def phpunit(log: str, context: LogContext) -> StatusMap:
    """PHPUnit with `--testdox`: suites, and below each its tests."""
    outcomes = {"✔": PASSED, "✘": FAILED, "↩": SKIPPED}
    found: StatusMap = {}
    suite: str | None = None
    for line in log.split("\n"):
        if title := _PHP_SUITE.match(line):
            suite = title[1]
        elif test := _PHP_TEST.match(line):
            found[f"{suite} > {test[2]}"] = outcomes[test[1]]
    return found


def jekyll(log: str, context: LogContext) -> StatusMap:
    """Jekyll, whose pull requests ran either of two runners; which one, the log shows."""
    number = context.instance_id.rpartition("-")[2]
    if number in ("8761", "8771"):
        return cucumber(log, context)
    return minitest(log, context)
