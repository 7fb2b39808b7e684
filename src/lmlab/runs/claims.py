"""A directory in which long work goes on after every kill: it is for one work, and one job is at it at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmlab.config import flatten
from lmlab.distributed import world
from lmlab.errors import UserError
from lmlab.files import only_writer, read_mapping, write_json


@contextmanager
def one_job(directory: str | Path, option: str) -> Iterator[None]:
    """Keep other jobs out of a directory; of several processes that work together, the first does so for all.

    Arguments:
        option: by which another directory is named, such as `--out`.

    Raises:
        UserError: another job is at it.
    """
    if not world().is_main:
        yield
        return
    Path(directory).mkdir(parents=True, exist_ok=True)
    with only_writer(directory, f"Wait for it, or name another directory with {option}."):
        yield


def require_same_work(path: str | Path, now: Mapping[str, Any], what: str, option: str) -> None:
    """Note what a directory is for, or see that it is for the same.

    Arguments:
        path: of the note, in the directory.
        now: what decides what comes out.
        what: is done there, such as "search".
        option: as in `one_job`.

    Raises:
        UserError: it is for another; what differs is listed.
    """
    path = Path(path)
    if not path.exists():
        if world().is_main:
            write_json(path, dict(now))
        return
    then, ours = flatten(read_mapping(path)), flatten(dict(now))
    differing = [
        f"{key} ({then.get(key)}, now {ours.get(key)})"
        for key in dict.fromkeys([*ours, *then])
        if then.get(key) != ours.get(key)
    ]
    if differing:
        raise UserError(
            f"'{path.parent}' belongs to another {what}. What differs: {', '.join(differing)}.",
            f"Name another directory with {option}.",
        )
