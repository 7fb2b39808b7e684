"""What the README of a data set says of its files: configurations, and which files are which split of each.

The form is that of the Hugging Face Hub ("Manual configuration" of its documentation): a YAML header with `configs`,
each with `config_name`, `data_files` and perhaps `default: true`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from lmlab.errors import UserError
from lmlab.files import parse_yaml
from lmlab.redaction import redact

NAME = "README.md"
MAX_BYTES = 2**22  # of a README; the settings stand at its head
_HEADER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_TRAIN = "train"


@dataclass(frozen=True)
class Card:
    """The configuration that is read.

    Attributes:
        splits: file -> its split; a file that is not here belongs to no split of the configuration.
        name: of the configuration.
        others: names of the other ones.
    """

    splits: dict[str, str]
    name: str
    others: tuple[str, ...] = ()


def read_card(location: str, card: str, text: str, files: Sequence[str]) -> Card | None:
    """What a README says of the files beside and below it; None where it says nothing, or nothing of these.

    Arguments:
        location: as the user wrote it, for messages.
        card: the path of the README.

    Raises:
        UserError: there are several configurations and none is the default.
    """
    header = _HEADER.match(text)
    if header is None:
        return None
    try:
        found = parse_yaml(header[1], card)
    except UserError:  # what it says beside this need not be good YAML, and then says nothing here
        return None
    configs = found.get("configs") if isinstance(found, dict) else None
    folder = card.rpartition("/")[0]
    read: dict[str, dict[str, str]] = {}
    default = None
    for each in configs if isinstance(configs, list) else ():
        if not isinstance(each, dict) or "data_files" not in each:
            continue
        name = str(each.get("config_name", "default"))
        base = "/".join(part for part in (folder, str(each.get("data_dir") or "").strip("/")) if part)
        splits = dict(_files(each["data_files"], base, files))
        if splits:
            read[name] = splits
            default = name if each.get("default") is True else default
    if not read:
        return None
    chosen = default or ("default" if "default" in read else next(iter(read)) if len(read) == 1 else None)
    if chosen is None:
        names = ", ".join(sorted(read))
        raise UserError(
            f"'{redact(location)}' holds several configurations ({names}), of which its README calls none the default.",
            "Name the files of one, by their folder or a glob.",
        )
    return Card(read[chosen], chosen, tuple(sorted(read.keys() - {chosen})))


def _files(given: Any, base: str, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The files of each split, in the forms that `data_files` has."""
    if isinstance(given, dict):
        pairs = list(given.items())
    else:
        entries = given if isinstance(given, list) else [given]
        pairs = [
            (each.get("split", _TRAIN), each.get("path")) if isinstance(each, dict) else (_TRAIN, each)
            for each in entries
        ]
    for split, paths in pairs:
        for pattern in paths if isinstance(paths, list) else [paths]:
            if isinstance(pattern, str):
                whole = f"{base}/{pattern.removeprefix('./')}"
                yield from ((file, str(split)) for file in files if _matches(file, whole))


def _matches(file: str, pattern: str) -> bool:
    """As the Hub: `*` stays within a folder, `**` does not, and a folder means all that is below it."""
    if file == pattern or file.startswith(pattern.rstrip("/") + "/"):
        return True
    parts, wanted = file.split("/"), pattern.split("/")
    return _match_parts(parts, wanted)


def _match_parts(parts: list[str], wanted: list[str]) -> bool:
    # the parts that may have been matched so far, for each beginning of the pattern: no backtracking
    reached = {0}
    for each in wanted:
        if each == "**":
            reached = set(range(min(reached), len(parts) + 1)) if reached else set()
        else:
            reached = {place + 1 for place in reached if place < len(parts) and fnmatchcase(parts[place], each)}
    return len(parts) in reached
