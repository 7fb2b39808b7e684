"""A copy of a run's checkpoints on another file system (S3, a cluster's store), kept up to date and read when the run
starts on a new machine.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec

from lmlab.errors import LmlabError, UserError

_LAST = "state.json"  # goes last, so that what has it is whole
_PAUSES = (0.5, 2.0)  # seconds before further attempts


class Mirror:
    """The folder behind a URL.

    Raises:
        UserError: the URL's file system is not known or its package not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            system, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(f"mirror '{url}': {error}.") from None
        self._system: Any = system

    def update(self, kept: Sequence[Path]) -> None:
        """Copy the checkpoints that are not there yet, then remove those that are not kept; what fails is tried again a
        few times.

        Raises:
            LmlabError: the file system goes on to refuse.
        """
        for pause in (*_PAUSES, None):
            try:
                return self._update(kept)
            except Exception as error:  # every file system raises errors of its own
                if pause is None:
                    raise LmlabError(
                        f"The mirror '{self.url}' cannot be written ({type(error).__name__}: {error}).",
                        "The checkpoints in the run's directory are whole.",
                    ) from error
                time.sleep(pause)

    def _update(self, kept: Sequence[Path]) -> None:
        there = self._whole()
        for path in kept:
            if path.name not in there:
                self._put(path)
        for name in set(there) - {path.name for path in kept}:
            self._system.rm(f"{self._root}/{name}", recursive=True)

    def fetch_latest(self, directory: Path) -> None:
        """Copy the newest checkpoint to `directory`, if there is any."""
        try:
            there = self._whole()
            if there:
                name = there[-1]
                temporary = directory / f".{name}.tmp"
                temporary.mkdir(parents=True, exist_ok=True)
                for file in self._system.ls(f"{self._root}/{name}", detail=False):
                    self._system.get_file(file, str(temporary / posixpath.basename(file)))
                temporary.rename(directory / name)
        except Exception as error:
            raise LmlabError(
                f"The mirror '{self.url}' cannot be read ({type(error).__name__}: {error}).", "Check the address."
            ) from error

    def _whole(self) -> list[str]:
        """The names of the checkpoints that are whole, oldest first."""
        self._system.invalidate_cache()
        if not self._system.exists(self._root):
            return []
        names = [posixpath.basename(path.rstrip("/")) for path in self._system.ls(self._root, detail=False)]
        return sorted(name for name in names if self._system.exists(f"{self._root}/{name}/{_LAST}"))

    def _put(self, path: Path) -> None:
        self._system.makedirs(f"{self._root}/{path.name}", exist_ok=True)
        for file in sorted(path.iterdir(), key=lambda file: file.name == _LAST):
            self._system.put_file(str(file), f"{self._root}/{path.name}/{file.name}")
