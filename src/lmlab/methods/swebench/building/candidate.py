"""A change that may become an instance, and the reasons for which it does not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmlab.methods.swebench.instances.instance import Instance

Reason = Literal[
    "test_patch_conflict",
    "patch_conflict",
    "no_tests_collected",
    "timeout",
    "no_f2p",
    "after_has_errors",
    "flaky_only",
    "environment_failed",
    "uncontrolled",
    "leak",
    "sandbox_failed",
]


@dataclass(frozen=True)
class Rejection:
    """A candidate that is no instance."""

    instance_id: str
    reason: Reason
    detail: str = ""

    def to_row(self) -> dict[str, Any]:
        """As JSON."""
        return {"instance_id": self.instance_id, "reason": self.reason, "detail": self.detail}


@dataclass(frozen=True)
class Candidate:
    """An instance without its lists of tests."""

    instance: Instance


_ISSUE = re.compile(r"(?:\b[\w.-]+/[\w.-]+)?#\d+|\bGH-?\d+\b", re.IGNORECASE)
_URL = re.compile(r"https?://\S+")
_COMMIT = re.compile(r"\b[0-9a-f]{7,40}\b")
_TRAILER = re.compile(r"^(?:Co-authored-by|Signed-off-by|Reviewed-by|Change-Id|\(cherry picked).*$", re.M | re.I)
_QUOTED = re.compile(r"```.*?```|``[^`]+``", re.DOTALL)


def statement_of(text: str) -> str:
    """A commit message or change-log entry as a problem statement: without numbers of issues, names of commits,
    addresses, and quoted code, which may give the solution away.
    """
    for pattern in (_TRAILER, _QUOTED, _URL, _ISSUE, _COMMIT):
        text = pattern.sub("", text)
    text = re.sub(r"\(\s*[,;]*\s*\)|\[\s*\]", "", text)
    lines = [re.sub(r"[ \t]+", " ", line).rstrip() for line in text.splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


_VERSION = (
    re.compile(r"""^__version__\s*(?::\s*\w+\s*)?=\s*['"]([^'"]+)['"]""", re.MULTILINE),
    re.compile(r"""^VERSION\s*=\s*\(([^)]*)\)""", re.MULTILINE),
    re.compile(r"""^version\s*=\s*['"]([^'"]+)['"]""", re.MULTILINE),
)


def version_in(texts: Mapping[str, str]) -> str:
    """Major and minor version of a package as its files say, or nothing.

    Arguments:
        texts: path to content of files that may say it.
    """
    for pattern in _VERSION:
        for _, text in sorted(texts.items()):
            if match := pattern.search(text):
                numbers = re.findall(r"\d+", match[1])
                if numbers:
                    return ".".join(numbers[:2])
    return ""
