"""Splits that a source holds: what is meant for training, and what is not.

A data set tells its splits by the names of folders (`train/`, `test/`), of files (`train-00000-of-00002.parquet`,
`wiki.test.tokens`), by a list (`dataset_dict.json`), by the names of an archive's members, or by a field of the records
(`split`). Who reads all of it trains on the test.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from lmlab.data.sources.reading.dataset_card import Card
from lmlab.errors import UserError
from lmlab.redaction import redact

ALL = "all"
TRAIN = "train"
# As the Hugging Face Hub reads names (datasets/data_files.py), and how lmlab calls what its own stages hold out.
_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "development": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "heldout": "heldout",
    "held-out": "heldout",
    "held_out": "heldout",
    "holdout": "heldout",
}
_WORD = re.compile(rf"(?<![a-z])(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)
_SHARD = re.compile(r"(?P<split>[A-Za-z]\w*)-\d{4,}-of-\d{4,}")
_CODE = frozenset(
    f".{each}"
    for each in "py pyi js jsx ts tsx java kt c cc cpp h hpp cs rs go rb php sh pl scala r jl".split()  # noqa: SIM905
)


def canonical(name: str) -> str | None:
    """`train`, `validation`, `test` or `heldout` for a name that is just that, in any of its spellings."""
    return _WORDS.get(name.lower().strip())


@dataclass(frozen=True)
class Choice:
    """Which files are read.

    Attributes:
        notice: what was left out, where the user did not say so.
        split: the split of records that name theirs.
    """

    files: list[str]
    notice: str | None = None
    split: str = TRAIN


def choose_files(
    location: str,
    files: Sequence[str],
    wanted: str | None,
    listed: Collection[str] = (),
    is_text: bool = False,
    card: Card | None = None,
) -> Choice:
    """The files of one split.

    Arguments:
        location: as the user wrote it; a split that it names itself was chosen by it.
        files: all that it means.
        wanted: a split by name, or `all`; None for `train` where there are several.
        listed: splits that the data set lists, each a folder of its own.
        is_text: files of plain text may be called anything: there splits are told by equal names with another split,
            and sources of programs have none.
        card: what the README of the data set says; it goes before all that names tell.

    Raises:
        UserError: there is no such split, or several but none for training; the message names them.
    """
    if card is not None:
        return _by_card(location, files, wanted, card)
    if wanted == ALL:
        return Choice(list(files), split=ALL)
    base = _base(location, files)
    labels = {file: _label(PurePosixPath(file[len(base) :].lstrip("/")), listed) for file in files}
    if is_text:
        labels = _only_siblings(labels, base)
    names = {name for name in labels.values() if name}
    if wanted is not None:
        return _named(location, labels, wanted)
    kinds = {_kind(name) for name in names}
    # only the end of a location is a choice, and a folder only if it is called just that
    last = location.rstrip("/").rpartition("/")[2]
    is_pattern = not set(last).isdisjoint("*?[")
    asked = {canonical(each) for each in (_WORD.findall(last) if is_pattern else [last])} - {None}
    known = kinds - {None}
    if kinds <= {TRAIN} or (known and known <= asked) or (not known and len(names) < 2):
        return Choice(list(files))
    if TRAIN in kinds:
        chosen = [file for file, name in labels.items() if name and _kind(name) == TRAIN]
        left = sorted({name for name in names if _kind(name) != TRAIN})
    elif known and None in labels.values():
        chosen = [file for file, name in labels.items() if name is None]
        left = sorted(names)
    elif not known and not listed:
        return Choice(list(files))  # shards of several parts, such as languages, and none is a split
    else:
        raise UserError(
            f"'{location}' holds the {_list(names)}, and none of them is called train.",
            f"Say which is meant: split: {min(names)} in the source, or split: all.",
        )
    what = f"took {_list({str(labels[file]) for file in chosen} - {'None'}) or 'the files that name no split'}"
    return Choice(
        chosen,
        f"'{redact(location)}' holds several splits: {what} ({len(chosen)} of {len(files)} files) and left out"
        f" {', '.join(left) or 'the rest'}. Another is read with split: NAME, everything with split: all.",
    )


def _by_card(location: str, files: Sequence[str], wanted: str | None, card: Card) -> Choice:
    of_config = [file for file in files if file in card.splits]
    if wanted == ALL:
        return Choice(of_config, split=ALL)
    if wanted is not None:
        return _named(location, {file: card.splits[file] for file in of_config}, wanted)
    names = set(card.splits.values())
    chosen = [file for file in of_config if _kind(card.splits[file]) == TRAIN] if len(names) > 1 else of_config
    if not chosen:
        raise UserError(
            f"'{location}' holds the {_list(names)}, and none of them is called train.",
            f"Say which is meant: split: {min(names)} in the source, or split: all.",
        )
    if len(chosen) == len(files):
        return Choice(chosen)
    taken = {card.splits[file] for file in chosen}
    others = f"; other configurations: {', '.join(card.others)}" if card.others else ""
    return Choice(
        chosen,
        f"'{redact(location)}': by its README took {_list(taken)} of the configuration {card.name} ({len(chosen)} of"
        f" {len(files)} files) and left out {', '.join(sorted(names - taken)) or 'the rest'}{others}. Another split is"
        " read with split: NAME, all of them with split: all.",
        min(taken) if len(taken) == 1 else TRAIN,
    )


def _named(location: str, labels: dict[str, str | None], wanted: str) -> Choice:
    kind = canonical(wanted)
    chosen = [file for file, name in labels.items() if name == wanted]
    chosen = chosen or [file for file, name in labels.items() if name and kind and _kind(name) == kind]
    names = {name for name in labels.values() if name}
    if not chosen and names:
        raise UserError(f"'{location}' has no split '{wanted}'; it holds the {_list(names)}.", "Name one of these.")
    # nothing names a split: the records may
    return Choice(chosen or list(labels), split=wanted)


def _label(path: PurePosixPath, listed: Collection[str]) -> str | None:
    """The split that a path below the source names, by its file or else its nearest folder; `train_sft` is kept whole
    where it is the name of a shard."""
    if path.parts and path.parts[0] in listed:
        return path.parts[0]
    shard = _SHARD.search(path.name)
    if shard and _last_word(shard["split"]):
        return shard["split"]
    for part in reversed(path.parts):
        if word := _last_word(part):
            return _WORDS[word.lower()]
    return shard["split"] if shard else None


def _last_word(part: str) -> str | None:
    found = _WORD.findall(part)
    return found[-1] if found else None


def _kind(name: str) -> str | None:
    word = _last_word(name)
    return None if word is None else _WORDS[word.lower()]


def _only_siblings(labels: dict[str, str | None], base: str) -> dict[str, str | None]:
    """Labels only where the same name exists with another split, too."""
    groups: dict[str, set[str]] = {}
    names = {}
    for file, label in labels.items():
        path = PurePosixPath(file[len(base) :].lstrip("/"))
        if label is None or path.suffix.lower() in _CODE:
            continue
        inside = next((number for number, part in enumerate(path.parts[:-1]) if _last_word(part)), None)
        pieces = path.parts if inside is None or _last_word(path.name) else path.parts[: inside + 1]
        names[file] = re.sub(r"\d+", "#", _WORD.sub("*", "/".join(pieces)))
        groups.setdefault(names[file], set()).add(label)
    return {file: label if file in names and len(groups[names[file]]) > 1 else None for file, label in labels.items()}


def _base(location: str, files: Sequence[str]) -> str:
    """The part of the files' paths that the user wrote down, up to a folder: what it names was chosen."""
    fixed = re.split(r"[*?\[]", location)[0]
    if fixed != location:
        fixed = fixed.rpartition("/")[0]
    if list(files) == [location]:
        return location
    for file in files:  # locations and files differ by a protocol, or by what ~ stands for
        place = file.find(fixed.rstrip("/") + "/") if fixed else 0
        if place >= 0:
            return file[: place + len(fixed.rstrip("/"))]
    common = files[0].rpartition("/")[0] if files else ""
    while common and not all(file.startswith(f"{common}/") for file in files):
        common = common.rpartition("/")[0]
    return common


def _list(names: Collection[str]) -> str:
    ordered = sorted(names)
    if not ordered:
        return ""
    return f"split {ordered[0]}" if len(ordered) == 1 else f"splits {', '.join(ordered[:-1])} and {ordered[-1]}"
