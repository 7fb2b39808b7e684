"""The parts of an emitted program that are the same in all: they read its tables, select, and add up scores."""

from __future__ import annotations

HEAD = '''\
"""A Transformer Program{title}: python program.py "TOKEN TOKEN ..." prints its answers.

Its weights are read from {files} in this folder.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import {types}
from pathlib import Path

FOLDER = Path(__file__).parent


def read_table(name: str) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a CSV file beside this one."""
    with open(FOLDER / name, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return rows[0], rows[1:]
'''
SELECT_CLOSEST = '''\
T = TypeVar("T")


def select_closest(
    keys: Sequence[str | int],
    queries: Sequence[str | int],
    values: Sequence[T],
    matches: Callable[..., bool],
    causal: bool,
) -> list[T]:
    """The value at the nearest place whose key matches, the left one of two, the own last.

    That of the first place where nothing matches.
    """
    found = []
    for i, query in enumerate(queries):
        seen = range(i + 1 if causal else len(keys))
        matching = [j for j in seen if matches(query, keys[j])]
        nearest = min(matching, key=lambda j: (j == i, abs(j - i), j), default=0)
        found.append(values[nearest])
    return found
'''
SELECT_SUM = '''\
def select_sum(
    keys: Sequence[str | int],
    queries: Sequence[str | int],
    values: Sequence[float],
    matches: Callable[..., bool],
    causal: bool,
) -> list[float]:
    """The sum of the values of all places whose key matches."""
    sums = []
    for i, query in enumerate(queries):
        seen = range(i + 1 if causal else len(keys))
        sums.append(sum(values[j] for j in seen if matches(query, keys[j])))
    return sums
'''
READ_WEIGHTS = '''\
def read_weights() -> tuple[list[str], dict[tuple[str, str], list[float]]]:
    """The labels, and the row of each value of each feature."""
    header, rows = read_table("{weights}")
    return header[2:], {{(row[0], row[1]): [float(x) for x in row[2:]] for row in rows}}


LABELS, ROWS = read_weights()
'''
READ_WORDS = '''\
def read_words() -> dict[str, list[str]]:
    """The categories of each word."""
    _, rows = read_table("{embeddings}")
    return {{row[0]: row[1:] for row in rows}}


WORDS = read_words()
'''
ADD_CATEGORIES = '''\
def add_categories(
    logits: list[list[float]], feature: str, values: Sequence[str | int]
) -> None:
    """Add the row of each place's value."""
    for place, value in enumerate(values):
        row = ROWS[feature, str(value)]
        logits[place] = [a + b for a, b in zip(logits[place], row, strict=True)]
'''
ADD_NUMBERS = '''\
def add_numbers(
    logits: list[list[float]], feature: str, values: Sequence[float]
) -> None:
    """Add the feature's row times each place's number."""
    row = ROWS[feature, "_"]
    for place, value in enumerate(values):
        logits[place] = [a + value * b for a, b in zip(logits[place], row, strict=True)]
'''
SPELL = '''\
def spell(token: str) -> str:
    """The token as the program reads it."""
    return {how}
'''
MAIN = """\
if __name__ == "__main__":
    if len(sys.argv) != 2:
        print('usage: python program.py "TOKEN TOKEN ..."', file=sys.stderr)
        sys.exit(2)
    try:
        print(run(sys.argv[1].split()))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
"""

# what the text of an emitted program may use; no variable of a program takes such a name
HELPERS = {
    "read_table", "select_closest", "select_sum", "read_weights", "read_words", "add_categories", "add_numbers", "run",
    "csv", "sys", "Callable", "Sequence", "Path", "FOLDER", "LABELS", "ROWS", "WORDS", "known", "logits", "answers",
    "scores", "annotations", "VOCABULARY", "re", "spell", "StrEnum", "T", "TypeVar", "keys", "results",
}  # fmt: skip
