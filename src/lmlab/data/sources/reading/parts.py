"""Files that say themselves how many they are: `train-00001-of-00003.parquet`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch

_PART = re.compile(r"(?P<before>.*[-_.])(?P<number>\d{3,6})-of-(?P<total>\d{3,6})(?P<after>[^/]*)")


def missing_parts(location: str, files: Sequence[str]) -> list[str]:
    """The parts of data sets that are not there, though others of them are and the location means them too.

    Arguments:
        location: as the user wrote it. One file, or a glob that would not match what is missing, is a choice.
        files: what it means.
    """
    if list(files) == [location]:
        return []
    last = location.rstrip("/").rpartition("/")[2]
    pattern = last if not set(last).isdisjoint("*?[") else "*"
    sets: dict[tuple[str, str, str], dict[int, int]] = {}
    for path in files:
        if found := _PART.fullmatch(path):
            numbers = sets.setdefault((found["before"], found["total"], found["after"]), {})
            numbers[int(found["number"])] = len(found["number"])
    missing = []
    for (before, total, after), numbers in sets.items():
        first = int(int(total) in numbers)  # some count from 1
        width = max(numbers.values())
        missing += [
            f"{before}{number:0{width}}-of-{total}{after}"
            for number in range(first, first + min(int(total), _MOST))
            if number not in numbers
        ]
    return sorted(path for path in missing if fnmatch(path.rpartition("/")[2], pattern))


_MOST = 100_000  # a name may say anything
