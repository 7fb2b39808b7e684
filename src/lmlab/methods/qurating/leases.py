"""Leases of pieces of work: many processes share a folder, each takes a piece that nobody has, and takes over those
whose holders have died.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

from lmlab.parsing import json_value

PATIENCE_S = 120.0


class Leases:
    """Files in a folder that all workers see.

    Arguments:
        patience_s: a lease that has not been renewed for so long belongs to nobody.
    """

    def __init__(self, folder: Path, patience_s: float = PATIENCE_S) -> None:
        self.folder, self.patience_s = folder, patience_s
        self._me = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, name: str) -> bool:
        """Take a piece; False if another worker has it."""
        path = self.folder / f"{name}.json"
        for _ in range(2):
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                if not self._abandoned(path):
                    return False
                stale = path.with_name(f".{path.name}.{self._me}")
                try:
                    os.rename(path, stale)  # only one of several workers succeeds
                except FileNotFoundError:
                    continue
                stale.unlink()
                continue
            with os.fdopen(descriptor, "w") as file:
                json.dump({"holder": self._me}, file)
            return True
        return False

    def renew(self, name: str) -> None:
        """Say that the holder of a piece is alive."""
        os.utime(self.folder / f"{name}.json")

    def give_back(self, name: str) -> None:
        """End a lease."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def _abandoned(self, path: Path) -> bool:
        try:
            if time.time() - path.stat().st_mtime > self.patience_s:
                return True
            host, pid, _ = json_value(path.read_text())["holder"].rsplit("-", 2)
        except (FileNotFoundError, ValueError, KeyError):
            return False
        return host == socket.gethostname() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists()
