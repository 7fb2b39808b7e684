"""Paths and URLs: which files a location means, and what they are like.

A location is a local path, a glob, a folder, or a URL of any file system that fsspec knows
(`s3://bucket/folder/*.jsonl.zst`, `memory://x`).
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.files.compression import without_compression
from lmlab.files.systems import file_system, is_url, unreachable
from lmlab.redaction import redact

_OPEN = re.compile(r"[*?[]")  # where a glob leaves a path open


def absolute(location: str | Path) -> str:
    """A location in one form, however it was written: an absolute path (globs too), or a URL as it is."""
    return str(location) if is_url(location) else str(Path(location).expanduser().resolve())


def find_files(location: str, suffixes: Sequence[str] = ()) -> list[str]:
    """The files that a location means, sorted: one file, those a glob matches, or all below a folder.

    Arguments:
        suffixes: of the files below a folder that count, in small or large letters, before a suffix of compression;
            none for all.

    Raises:
        UserError: nothing is there, or the file system cannot be reached.
    """
    try:
        found = _find_remote(location, suffixes) if is_url(location) else _find_local(location, suffixes)
    except UserError:
        raise
    except Exception as error:  # every file system raises errors of its own
        raise unreachable(location, error) from None
    if not found and suffixes and is_folder(location):
        raise UserError(
            f"The folder '{location}' holds no file that ends in {_any_of(suffixes)}.",
            "Name the files themselves if theirs is another ending; globs such as data/**/*.txt are allowed.",
        )
    if not found:
        raise UserError(
            f"The source path '{location}' matches no file.", "Check the path; globs such as data/**/*.txt are allowed."
        )
    return found


def remote_version(location: str) -> list[Any]:
    """The size of a remote file and what tells its versions apart: its tag, or a time where there is none.

    Raises:
        UserError: it cannot be reached.
    """
    try:
        system, path = file_system(location)
        found = system.info(path)
    except UserError:
        raise
    except Exception as error:
        raise unreachable(location, error) from None
    version = next(
        (str(found[key]) for key in ("ETag", "etag", "LastModified", "mtime", "created", "updated") if found.get(key)),
        "",
    )
    return [found.get("size"), version]


def is_folder(location: str) -> bool:
    """Whether a location is a folder.

    Raises:
        UserError: the file system cannot be reached.
    """
    if not is_url(location):
        return Path(location).expanduser().is_dir()
    try:
        system, path = file_system(location)
        return bool(system.isdir(path))
    except UserError:
        raise
    except Exception as error:
        raise unreachable(location, error) from None


def names_within(location: str) -> Callable[[str], str]:
    """How the files that a location means, and places in them, are called there: below a folder by their path in it,
    and by its name where the location is a file. Such a name stays when all of it moves, and however the location is
    written; places may be told without their secrets.

    Raises:
        UserError: the file system cannot be reached.
    """
    roots = _roots(location)
    opened = [_OPEN.search(root) for root in roots]
    if any(opened) and not _is_there(location):
        below = [root[: at.start()].rpartition("/")[0] if at else root for root, at in zip(roots, opened, strict=True)]
    else:
        below = [*roots, *(root.rstrip("/").rpartition("/")[0] for root in roots)]
    starts = list(dict.fromkeys(form.rstrip("/") + "/" for root in below for form in (root, redact(root))))

    def name(place: str) -> str:
        return next((place.removeprefix(start) for start in starts if place.startswith(start)), place)

    return name


def _is_there(location: str) -> bool:
    """Whether a location is a file or folder, whatever characters of globs its name has."""
    if not is_url(location):
        return Path(location).expanduser().exists()
    try:
        system, path = file_system(location)
        return bool(system.isfile(path) or system.isdir(path))
    except UserError:
        raise
    except Exception as error:
        raise unreachable(location, error) from None


def _roots(location: str) -> list[str]:
    """A location as the files that are found there begin: as it was given, and as its file system writes it."""
    if not is_url(location):
        return [str(Path(location).expanduser())]
    system, path = file_system(location)
    return [location, system.unstrip_protocol(path)]


def _find_local(location: str, suffixes: Sequence[str]) -> list[str]:
    root = Path(location).expanduser()
    if root.is_file():
        return [str(root)]
    from lmlab.files.owned import only_owned  # which reads its manifests by way of this module

    if root.is_dir():
        found = [str(path) for path in sorted(root.rglob("*")) if path.is_file() and _counts(path.name, suffixes)]
        return only_owned(found, root)
    return only_owned([name for name in sorted(glob.glob(str(root), recursive=True)) if Path(name).is_file()], Path())


def _find_remote(location: str, suffixes: Sequence[str]) -> list[str]:
    system, path = file_system(location)
    if system.isfile(path):
        return [location]
    if system.isdir(path):
        found = [name for name in system.find(path) if _counts(name, suffixes)]
    else:
        found = [name for name, info in system.glob(path, detail=True).items() if info["type"] == "file"]
    return [system.unstrip_protocol(name) for name in sorted(found)]


def _counts(name: str, suffixes: Sequence[str]) -> bool:
    return not suffixes or without_compression(name).lower().endswith(tuple(each.lower() for each in suffixes))


def _any_of(names: Sequence[str]) -> str:
    *others, last = (f"'{name}'" for name in names)
    return f"{', '.join(others)} or {last}" if others else last
