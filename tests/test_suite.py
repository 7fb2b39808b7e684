"""What holds of the tests themselves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path


def test_every_file_of_tests_has_a_name_of_its_own():
    """Folders of tests are no packages, so that two files of one name would hide each other when both are collected."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py")
    assert not [name for name, count in names.items() if count > 1]
