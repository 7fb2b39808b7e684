"""Labeled token sequences: JSON lines with `tokens` and `labels` (or one `label`, or a `target`), CoNLL columns,
and lines of an input, a tab and its target.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmlab.data.documents import Reject
from lmlab.errors import UserError
from lmlab.files import MAX_JSON_BYTES, ParseError, json_value, open_binary, without_compression
from lmlab.words import counted

Kind = Literal["tokens", "sequence", "pairs"]
"""Labels of each token, one of the whole sequence, or a target that may be shorter than its input: the places beyond it
have no label."""
_FIELDS = {"tokens": ("labels", "tags"), "sequence": ("label", "intent"), "pairs": ("target",)}
_COMMENT = re.compile(r"#\s*(\w+\s*=|newdoc|newpar)")  # of CoNLL-U, before the tokens of a sentence
_BLANKS = re.compile(" +")
_COLUMNS = (".conll", ".tsv", ".txt", ".bio", ".iob", ".iob2")


@dataclass(frozen=True)
class LabeledSequence:
    """One sequence.

    Attributes:
        labels: one a token, None where there is none; or, of a labeled sequence as a whole, exactly one.
        where: its place, for messages.
    """

    tokens: tuple[str, ...]
    labels: tuple[str | None, ...]
    where: str


def read_labeled(
    path: str, kind: Kind = "tokens", token_column: int = 0, label_column: int = -1, labels_field: str | None = None
) -> Iterator[LabeledSequence | Reject]:
    """The sequences of a file; in the place of one that cannot be used, why.

    Arguments:
        path: JSON lines, or by its ending (.conll, .tsv, .txt) one token a line with a blank line between sentences; of
            pairs, an input, a tab and its target, whose symbols stand between spaces.
        kind: a label for each token, or for each sequence, or pairs of an input and a target.
        token_column, label_column: of a file with columns, counted from 0; negative ones from the last.
        labels_field: the field of JSON lines with the labels; by default `labels` or `tags`, or `label` or `intent`, or
            `target`.

    Raises:
        UserError: there is no such file, or it cannot have such labels.
    """
    try:
        file = open_binary(path)
    except FileNotFoundError:
        raise UserError(f"No such file: '{path}'.") from None
    with file:
        lines = ((number, line) for number, line in enumerate(iter(lambda: file.readline(MAX_JSON_BYTES + 1), b""), 1))
        if without_compression(str(path)).lower().endswith(_COLUMNS):
            if kind == "sequence":
                raise UserError(
                    f"'{path}' has columns, which label tokens, not sequences.",
                    "Give JSON lines with tokens and label, or ask for labels of tokens.",
                )
            if kind == "pairs":
                yield from _pairs(path, lines)
            else:
                yield from _columns(path, lines, token_column, label_column)
        else:
            for number, line in lines:
                if line.strip():
                    yield _record(line, f"'{path}', line {number}", kind, labels_field)


def _record(line: bytes, where: str, kind: Kind, labels_field: str | None) -> LabeledSequence | Reject:
    try:
        record = json_value(line)
    except ParseError as error:
        return Reject(where, f"not valid JSON: {error}")
    if not isinstance(record, dict):
        return Reject(where, "not a mapping of keys to values")
    tokens = record.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(each, str) for each in tokens):
        return Reject(where, "'tokens' is not a list of texts")
    if not tokens:
        return Reject(where, "'tokens' is empty")
    names = (labels_field,) if labels_field else _FIELDS[kind]
    name = next((each for each in names if each in record), names[0])
    labels = record.get(name)
    if kind == "sequence":
        label = _label(labels)
        if label is None:
            return Reject(where, f"'{name}' is neither a text nor a whole number")
        return LabeledSequence(tuple(tokens), (label,), where)
    if not isinstance(labels, list):
        return Reject(where, f"'{name}' is not a list")
    if kind == "pairs":
        if len(labels) > len(tokens):
            return Reject(where, _too_long(tokens, labels))
        labels = [*labels, *[None] * (len(tokens) - len(labels))]
    if len(labels) != len(tokens):
        return Reject(where, f"{counted(len(tokens), 'tokens')} but {counted(len(labels), 'labels')}")
    # numbers and texts are one kind of label: "3" and 3 are the same answer
    found = tuple(_label(each) for each in labels)
    if any(name is None and each is not None for name, each in zip(found, labels, strict=True)):
        return Reject(where, "a label is neither a text, a whole number nor null")
    if not any(each is not None for each in found):
        return Reject(where, "no place has a label")
    return LabeledSequence(tuple(tokens), found, where)


def _too_long(tokens: Sequence[str], labels: Sequence[Any]) -> str:
    return f"{len(labels)} targets for {counted(len(tokens), 'tokens')}: there is one place for each token"


def _pairs(path: str, lines: Iterator[tuple[int, bytes]]) -> Iterator[LabeledSequence | Reject]:
    """Pairs of a file with an input, a tab and its target on each line."""
    for number, data in lines:
        where = f"'{path}', line {number}"
        try:
            line = data.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield Reject(where, f"not UTF-8 (byte {error.start})")
            continue
        if not line.strip():
            continue
        cells = [_BLANKS.split(cell.strip(" ")) if cell.strip(" ") else [] for cell in line.split("\t")]
        if len(cells) != 2:
            yield Reject(where, f"{len(cells)} parts between tabs; an input, a tab and its target are needed")
        elif not cells[0]:
            yield Reject(where, "the input is empty")
        elif not cells[1]:
            yield Reject(where, "the target is empty")
        elif len(cells[1]) > len(cells[0]):
            yield Reject(where, _too_long(*cells))
        else:
            yield LabeledSequence(tuple(cells[0]), (*cells[1], *[None] * (len(cells[0]) - len(cells[1]))), where)


def _label(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _columns(
    path: str, lines: Iterator[tuple[int, bytes]], token_column: int, label_column: int
) -> Iterator[LabeledSequence | Reject]:
    """Sentences of a file with one token a line; columns stand between tabs or spaces, whichever the line has."""
    tokens, labels, first, problem = [], [], 0, ""  # type: list[str], list[str | None], int, str
    for number, data in lines:
        try:
            line = data.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            line, problem = "?", f"not UTF-8 (byte {error.start})"
        if not first and "\t" not in line and _COMMENT.match(line):
            continue
        if line.strip() and not line.startswith("-DOCSTART-"):
            first = first or number
            # spaces that belong to a token, such as one that does not break, separate nothing
            cells = line.split("\t") if "\t" in line else _BLANKS.split(line.strip(" "))
            try:
                tokens.append(cells[token_column])
                labels.append(cells[label_column])
            except IndexError:
                problem = problem or f"line {number} has {counted(len(cells), 'columns')}"
                continue
            if not tokens[-1] or not labels[-1]:
                problem = problem or f"line {number} has no {'token' if not tokens[-1] else 'label'}"
            continue
        if first:
            yield _sentence(path, first, tokens, labels, problem)
        tokens, labels, first, problem = [], [], 0, ""
    if first:
        yield _sentence(path, first, tokens, labels, problem)


def _sentence(
    path: str, first: int, tokens: list[str], labels: list[str | None], problem: str
) -> LabeledSequence | Reject:
    where = f"'{path}', line {first}"
    return Reject(where, problem) if problem else LabeledSequence(tuple(tokens), tuple(labels), where)
