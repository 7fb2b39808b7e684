"""Temporary folders that say whose they are, so that those of killed processes are removed by the next one."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from lmlab.distributed.leases import is_dead, owner_token

_OWNER = "owner"
_LONGEST = 1000  # bytes of a token


@contextlib.contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """An empty folder in the system's place for such, removed at the end.

    Arguments:
        purpose: a word for its name.
    """
    remove_left_folders()
    place = Path(tempfile.mkdtemp(prefix=f"lmlab-{purpose}-"))
    try:
        (place / _OWNER).write_text(owner_token(), "utf-8")
        inside = place / "files"
        inside.mkdir()
        yield inside
    finally:
        remove_tree(place)


@lru_cache(maxsize=1)
def remove_left_folders() -> None:
    """Remove the scratch folders of this user's processes that are known to have died on this machine; looked for once
    in a process.
    """
    if not hasattr(os, "getuid"):  # not on Windows
        return
    for note in Path(tempfile.gettempdir()).glob(f"lmlab-*/{_OWNER}"):
        with contextlib.suppress(OSError):
            about = os.lstat(note.parent)
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                continue
            with open(note, encoding="utf-8", errors="replace") as file:
                token = file.read(_LONGEST)
            if is_dead(token):
                remove_tree(note.parent)


def remove_tree(folder: str | Path) -> None:
    """Remove a folder that somebody hostile may have written to. Python's own way ends at folders nested deeper than
    its recursion limit, and at those whose modes forbid it.
    """
    if subprocess.run(["rm", "-rf", "--", folder], check=False, capture_output=True).returncode != 0:
        subprocess.run(["chmod", "-R", "u+rwx", "--", folder], check=False, capture_output=True)
        subprocess.run(["rm", "-rf", "--", folder], check=False, capture_output=True)
