"""Which files of a fix are tests, and the fix in two patches: the solution, and the tests."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lmlab.methods.swebench.patches.diff import FileDiff, read_diff, write_diff

SplitRule = Literal["words", "reference"]

_WORDS = {"test", "tests", "testing", "e2e", "conftest"}
_SUBSTRINGS = ("test", "tests", "testing", "e2e")
_NO_DIRECTIVES = (".json", ".png", "csv", ".txt", ".md", ".jpg", ".jpeg", ".pkl", ".yml", ".yaml", ".toml")


def is_test(path: str, rule: SplitRule = "words") -> bool:
    """Whether a path is one of tests.

    Arguments:
        rule: `words`: one of the words between blanks and `_/.-` is test, tests, testing, e2e or conftest;
            `reference`: the path contains one of them anywhere, as in the original collection, where `latest.py`
            counts.
    """
    if rule == "reference":
        return any(word in path for word in _SUBSTRINGS)
    return any(word in _WORDS for word in re.split(r"[ _/.\-]", path))


@dataclass(frozen=True)
class SplitPatch:
    """A fix.

    Attributes:
        patch, test_patch: of the source, and of the tests.
        binary: paths whose change a text patch cannot carry.
    """

    patch: str
    test_patch: str
    binary: tuple[str, ...] = ()


def split_patch(text: str, rule: SplitRule = "words") -> SplitPatch:
    """Split a fix by the paths of its files."""
    source: list[FileDiff] = []
    tests: list[FileDiff] = []
    for file in read_diff(text):
        (tests if any(is_test(path, rule) for path in file.paths) else source).append(file)
    binary = tuple(each.path for each in [*source, *tests] if each.binary)
    return SplitPatch(write_diff(source), write_diff(tests), binary)


def directives(test_patch: str, repo: str = "") -> list[str]:
    """What the runner is told to run: the files that a test patch changes, without data; Django's as modules."""
    paths = [file.new for file in read_diff(test_patch) if file.new is not None]
    directives = [path for path in paths if not path.endswith(_NO_DIRECTIVES)]
    if repo == "django/django":
        return [path.removesuffix(".py").removeprefix("tests/").replace("/", ".") for path in directives]
    return directives


def runnable_tests(paths: Iterable[str]) -> list[str]:
    """Of changed paths those that pytest runs: `test*.py` and `*_test.py`; others (conftest.py, data) only help."""
    return sorted(
        path
        for path in paths
        if path.endswith(".py")
        and (path.rpartition("/")[2].startswith("test") or path.rpartition("/")[2].endswith("_test.py"))
    )
