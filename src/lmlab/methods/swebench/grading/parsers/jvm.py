"""Maven and Gradle."""

from __future__ import annotations

import re

from lmlab.methods.swebench.grading.parsers.status import FAILED, PASSED, LogContext, StatusMap

_MAVEN_TEST = re.compile(r".*-Dtest=(\S+)")
_MAVEN_RESULT = re.compile(r".*BUILD (SUCCESS|FAILURE)$")


def maven(log: str, context: LogContext) -> StatusMap:
    """Maven names no passed tests, so each is run by a command of its own, and its result is that of the build.

    Commands (as the shell traces them) and results may come out of step; the first waits for the first.
    """
    pairs, waiting, early = [], list[str](), list[str]()
    for raw in log.split("\n"):
        line = raw.strip()
        if test := _MAVEN_TEST.match(line):
            waiting.append(test[1])
        if result := _MAVEN_RESULT.match(line):
            if waiting:
                pairs.append((waiting.pop(0), result[1]))
            else:
                early.append(result[1])
    pairs += zip(waiting, early, strict=False)
    return {test: PASSED if word == "SUCCESS" else FAILED for test, word in pairs}


_GRADLE_LINE = re.compile(r"([^>].+)\s+(PASSED|FAILED)$")
_GRADLE_TEST = re.compile(r"([^>]\S*\s+>\s+\S+)$")


def gradle(log: str, context: LogContext) -> StatusMap:
    """Gradle with a test logger: "Class > test PASSED", or the word on a later line."""
    found: StatusMap = {}
    waiting: str | None = None
    for raw in log.split("\n"):
        line = raw.strip()
        if whole := _GRADLE_LINE.match(line):
            found[whole[1]], waiting = whole[2], None
        elif test := _GRADLE_TEST.match(line):
            waiting = test[1]
        elif waiting is not None and line in (PASSED, FAILED):
            found[waiting], waiting = line, None
    return found
