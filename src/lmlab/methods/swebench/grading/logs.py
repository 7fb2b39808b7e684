"""What stands in the log of a test run: the marked region, the runner's exit status, and whether anything ran at all.

Marks are those of SWE-bench's harnesses. 1.x logs ("legacy") are one file an instance, with a mark where the model's
patch was applied; later ones are the output of a script that marks begin and end of the tests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmlab.errors import UserError
from lmlab.methods.swebench.grading.parsers import parse
from lmlab.methods.swebench.grading.parsers.status import ERROR, FAILED, LogContext, StatusMap

START, END = ">>>>> Start Test Output", ">>>>> End Test Output"
EXIT_CODE = ">>>>> Test Exit Code"
APPLIED_LEGACY = ">>>>> Applied Patch (pred)"
_INVALID = {
    ">>>>> Patch Apply Failed": "the patch did not apply",
    ">>>>> Reset Failed": "the repository could not be reset",
    ">>>>> Tests Errored": "the tests could not be run",
    ">>>>> Tests Timed Out": "the tests ran out of time",
}

Format = Literal["auto", "marked", "legacy"]

MOST_BYTES = 50_000_000
"""Of a longer log the head and the tail are kept, half of this each."""

# A runner that says how many tests it ran, and the number is not 0. Where only failures are printed, an empty list of
# results is a success if the suite ran, and nothing at all if it did not.
_RAN = re.compile(
    r"Executed [1-9]\d* of \d+"
    r"|TOTAL: [1-9]\d* (?:SUCCESS|FAILED)"
    r"|[1-9]\d* passing"
    r"|Tests:\s+[1-9]\d*"
    r"|Test Suites:\s+(?:\d+ \w+, )*[1-9]\d* total"
    r"|^# tests [1-9]\d*"
    r"|[1-9]\d* specs?, \d+ failures?"
    r"|': ok$",
    re.MULTILINE,
)
_EXIT = re.compile(rf"{re.escape(EXIT_CODE)}:\s*(-?\d+)")


@dataclass(frozen=True)
class Reading:
    """What a log says.

    Attributes:
        valid: it describes a test run on the patched repository.
        statuses: the outcome of each test; empty where the log is not valid.
        reason: why it is not valid, empty where it is.
        exit_code: the runner's, where the log records it.
    """

    valid: bool
    statuses: StatusMap
    reason: str = ""
    exit_code: int | None = None


def decode(data: bytes) -> str:
    """The text of a log with line ends "\\n"; bytes that are no UTF-8 are replaced, too many cut out of the middle."""
    if len(data) > MOST_BYTES:
        half = MOST_BYTES // 2
        cut = f"\n[{len(data) - 2 * half:,} bytes left out]\n".encode()
        data = data[:half] + cut + data[-half:]
    return data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")


def read_log_file(path: Path) -> str:
    """The text of a file (`decode`), of which no more than what is kept is read.

    Raises:
        UserError: there is no such file.
    """
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            if size <= MOST_BYTES:
                return decode(file.read())
            half = MOST_BYTES // 2
            head = file.read(half)
            file.seek(size - half)
            return decode(head + f"\n[{size - 2 * half:,} bytes left out]\n".encode() + file.read(half))
    except FileNotFoundError:
        raise UserError(f"No such file: '{path}'.") from None


def format_of(text: str) -> Literal["marked", "legacy"]:
    """Which harness has written a log."""
    return "legacy" if APPLIED_LEGACY in text and START not in text else "marked"


def read_log(text: str, parser: str, context: LogContext | None = None, fmt: Format = "auto") -> Reading:
    """Read a log as `swebench` 5.0.2 does.

    Arguments:
        parser: its name.

    Raises:
        UserError: there is no such parser.
    """
    context = context or LogContext()
    fmt = format_of(text) if fmt == "auto" else fmt
    if fmt == "legacy":
        if APPLIED_LEGACY not in text:
            return Reading(False, {}, "the log has no mark of an applied patch")
        statuses, reason = _parse(parser, text.rpartition(APPLIED_LEGACY)[2], context)
        return Reading(not reason, statuses, reason)
    for mark, reason in _INVALID.items():
        if mark in text:
            return Reading(False, {}, reason)
    if START not in text or END not in text:
        return Reading(False, {}, "the log lacks the marks of begin and end of the tests")
    recorded = _EXIT.search(text)
    exit_code = int(recorded[1]) if recorded else None
    statuses, reason = _parse(parser, text.split(START)[1].split(END)[0], context)
    if not statuses and not reason:  # some backends write the two streams in another order
        statuses, reason = _parse(parser, text, context)
    if reason:
        return Reading(False, {}, reason, exit_code)
    if not statuses and not _RAN.search(text):
        return Reading(False, {}, "no test was run: the log has no results", exit_code)
    if exit_code and statuses and not any(status in (FAILED, ERROR) for status in statuses.values()):
        return Reading(False, {}, f"the runner ended with {exit_code}, though no test has failed", exit_code)
    return Reading(True, statuses, "", exit_code)


def _parse(parser: str, text: str, context: LogContext) -> tuple[StatusMap, str]:
    try:
        return parse(parser, text, context), ""
    except UserError:
        raise
    # Output that is cut off, or that a patch has written, breaks structured formats in any way
    except Exception as error:
        return {}, f"the log cannot be parsed ({type(error).__name__}: {str(error)[:100]})"
