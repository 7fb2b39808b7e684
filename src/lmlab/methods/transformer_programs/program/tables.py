"""The tables beside a program: the classifier's weights, and the categories of words. CSV files, read and written as
text: `NA`, `null`, commas, quotes and line ends are values like any other.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lmlab.errors import UserError
from lmlab.files import MAX_JSON_BYTES, decode_utf8, open_binary, write_text

PLACEHOLDER = "_"  # the value of numerical features, and of categories that no value has
_CATEGORY = re.compile(r"([\w.]*)\{i\}([\w.]*)\{j(?::0?(\d)d)?\}([\w.]*)")


@dataclass(frozen=True)
class Classifier:
    """Logits are the sum of rows (feature, value); those of numerical features are multiplied by the variable.

    Attributes:
        labels: one for each column.
        weights: feature -> value as text -> one weight for each label.
    """

    labels: tuple[str, ...]
    weights: Mapping[str, Mapping[str, tuple[float, ...]]]

    @property
    def features(self) -> tuple[str, ...]:
        """The variables that it reads."""
        return tuple(self.weights)

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return sum(len(rows) for rows in self.weights.values())

    def rows_of(self, feature: str) -> Mapping[str, tuple[float, ...]]:
        """The rows of a feature by value."""
        return self.weights[feature]

    def matters(self, feature: str) -> bool:
        """Whether the answer can depend on a variable: rows that are all equal add one constant."""
        rows = self.weights.get(feature)
        if not rows:
            return False
        if set(rows) == {PLACEHOLDER}:
            return any(rows[PLACEHOLDER])
        return len(set(rows.values())) > 1

    @classmethod
    def read(cls, path: str | Path, vocabulary: Sequence[str] = ()) -> Classifier:
        """Read `feature,value,LABEL,...`.

        Arguments:
            vocabulary: the tokens; where `_` is one of them, its rows are kept.

        Raises:
            UserError: a row is not so long as the header, or holds what is no finite number.
        """
        path = Path(path)
        rows = read_csv(path)
        header = rows[0] if rows else []
        if header[:2] != ["feature", "value"] or len(header) < 3:
            raise UserError(f"'{path}', line 1: a classifier begins with feature,value,LABEL,...")
        labels = header[2:]
        if len(set(labels)) < len(labels):
            raise UserError(f"'{path}', line 1: a label appears twice.")
        weights: dict[str, dict[str, tuple[float, ...]]] = {}
        twice: list[tuple[int, str, str]] = []
        for number, row in enumerate(rows[1:], 2):
            numbers = tuple(_number(text, path, number) for text in row[2:])
            feature = weights.setdefault(row[0], {})
            if row[1] in feature:
                twice.append((number, row[0], row[1]))
            feature[row[1]] = numbers
        for number, name, value in twice:
            # the reference writes one row `_` for each of the categories that no value has
            if value != PLACEHOLDER or len(weights[name]) == 1 or PLACEHOLDER in vocabulary:
                raise UserError(f"'{path}', row {number}: the value {value!r} of '{name}' appears twice.")
        for name, values in weights.items():
            if len(values) > 1 and PLACEHOLDER not in vocabulary:
                weights[name] = {value: row for value, row in values.items() if value != PLACEHOLDER}
        return cls(tuple(labels), weights)

    def write(self, path: str | Path) -> None:
        """Write what `read` reads."""
        path = Path(path)
        rows = (
            [feature, value, *(repr(float(each)) for each in numbers)]
            for feature, values in self.weights.items()
            for value, numbers in values.items()
        )
        write_csv(path, [["feature", "value", *self.labels], *rows])


@dataclass(frozen=True)
class Embeddings:
    """What each word is: for each variable a category (a number, or a name made by a pattern), or a number.

    Attributes:
        words: in the order of the file.
        columns: variable -> one value a word.
        categories: how a category is called, as `Emb{i}.V{j:02d}` of variable i; None leaves numbers.
    """

    words: tuple[str, ...]
    columns: Mapping[str, tuple[int | float, ...]]
    categories: str | None = None

    def values(self, name: str) -> list[str | int | float]:
        """What each word is in a variable, as predicates and tables call it."""
        if name.startswith("num_"):
            return list(self.columns[name])
        return [category(self.categories, variable_number(name), int(each)) for each in self.columns[name]]

    @cached_property
    def index(self) -> dict[str, int]:
        """The row of each word."""
        return {word: number for number, word in enumerate(self.words)}

    @classmethod
    def read(cls, path: str | Path, categories: str | None = None) -> Embeddings:
        """Read `word,var0_embeddings,...`.

        Raises:
            UserError: a word appears twice, or a category is no whole number.
        """
        path = Path(path)
        rows = read_csv(path)
        header = rows[0] if rows else []
        if header[:1] != ["word"]:
            raise UserError(f"'{path}', line 1: embeddings begin with word,var0_embeddings,...")
        words = tuple(row[0] for row in rows[1:])
        if len(set(words)) < len(words):
            raise UserError(f"'{path}': a word appears twice.")
        columns: dict[str, tuple[int | float, ...]] = {}
        for place, name in enumerate(header[1:], 1):
            numbers = [_number(row[place], path, line) for line, row in enumerate(rows[1:], 2)]
            if name.startswith("num_"):
                columns[name] = tuple(numbers)
                continue
            wrong = next((line for line, each in enumerate(numbers, 2) if each < 0 or each % 1), None)
            if wrong is not None:
                raise UserError(f"'{path}', row {wrong}: the category of '{name}' is not a whole number from 0 on.")
            columns[name] = tuple(int(each) for each in numbers)
        return cls(words, columns, categories)

    def write(self, path: str | Path) -> None:
        """Write what `read` reads."""
        path = Path(path)
        rows = ([word, *map(repr, row)] for word, *row in zip(self.words, *self.columns.values(), strict=True))
        write_csv(path, [["word", *self.columns], *rows])


def variable_number(name: str) -> int:
    """The number in the name of an embedding."""
    digits = re.search(r"\d+", name)
    return int(digits[0]) if digits else 0


def category(pattern: str | None, i: int, j: int) -> str | int:
    """How category j of variable i is called.

    Raises:
        UserError: the pattern is none. It comes from a file, so that it is not given to Python's own formatting.
    """
    if pattern is None:
        return j
    found = _CATEGORY.fullmatch(pattern)
    if found is None:
        raise UserError(f"categories: {pattern!r:.80} is not a pattern such as 'Emb{{i}}.V{{j:02d}}'.")
    before, between, width, after = found.groups()
    return f"{before}{i}{between}{str(j).zfill(int(width or 0))}{after}"


def read_csv(path: Path) -> list[list[str]]:
    """The rows of a CSV file, all as long as the first.

    Raises:
        UserError: there is no such file, it is too large, not UTF-8, not CSV, or a row has another length.
    """
    try:
        with open_binary(path) as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"No such file: '{path}'.") from None
    except (IsADirectoryError, ValueError):  # a name with a NUL is none
        raise UserError(f"{str(path)!r:.200} is not a file.") from None
    if len(data) > MAX_JSON_BYTES:
        raise UserError(f"'{path}' has more than {MAX_JSON_BYTES:,} bytes.")
    try:
        rows = list(csv.reader(io.StringIO(decode_utf8(data, f"'{path}'"), newline=""), strict=True))
    except csv.Error as error:
        raise UserError(f"'{path}' is not a CSV file: {error}.") from None
    rows = [row for row in rows if row]
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise UserError(f"'{path}', row {number}: {len(row)} cells, but the header has {len(rows[0])}.")
    return rows


def write_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file with every cell quoted."""
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def _number(text: str, path: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"'{path}', row {line}: {text!r:.60} is not a finite number.")
    return value
