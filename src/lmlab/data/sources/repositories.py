"""Repositories as long documents: all files of one, one after the other, in an order that says nothing.

So ProLong makes its long code data (Gao et al. 2024, section 3.1): files are not ordered by what they import, which
lengthens the distances over which a model must look.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lmlab.config import Config
from lmlab.data.documents import Document, Reject
from lmlab.errors import UserError
from lmlab.files import content_digests
from lmlab.words import counted

_SKIPPED = {"__pycache__", "node_modules", "site-packages", "dist-packages"}


class RepositoriesSource(Config):
    """Folders, each a repository and one document; by default the packages of the running Python's standard library.

    Attributes:
        path: the folder that holds them.
        suffixes: of the files that are taken.
        exclude: names of folders, at any depth, whose files are left out.
        min_files: repositories with fewer are left out.
        seed: another order of the files.
    """

    kind: Literal["repositories"] = "repositories"
    path: str | None = None
    suffixes: tuple[str, ...] = Field(default=(".py", ".md", ".rst", ".txt", ".toml", ".c", ".h"), min_length=1)
    exclude: tuple[str, ...] = ("test", "tests")
    min_files: int = Field(default=2, ge=1)
    domain: str = "repositories"
    seed: int = 0

    @property
    def root(self) -> Path:
        """The folder that is read."""
        return Path(self.path).expanduser() if self.path else Path(sysconfig.get_paths()["stdlib"])

    def repositories(self) -> Iterator[tuple[str, list[Path]]]:
        """The name of each and its files, in the order in which they stand in its document.

        Raises:
            UserError: there is no such folder.
        """
        if not self.root.is_dir():
            raise UserError(f"There is no folder '{self.root}'.", "Name the folder that holds the repositories.")
        for folder in sorted(
            path for path in self.root.iterdir() if path.is_dir() and not self._hidden(path.relative_to(self.root))
        ):
            files = [
                path
                for path in folder.rglob("*")
                if path.suffix in self.suffixes and path.is_file() and not self._hidden(path.relative_to(folder))
            ]
            if len(files) >= self.min_files:
                yield folder.name, sorted(files, key=self._place)

    def read(self) -> Iterator[Document | Reject]:
        """One document a repository; each file begins with its path."""
        for name, files in self.repositories():
            parts, unread = list[str](), list[str]()
            for path in files:
                shown = path.relative_to(self.root).as_posix()
                try:
                    parts.append(f"# {shown}\n{path.read_text(encoding='utf-8')}")
                except UnicodeDecodeError:
                    unread.append(shown)
            if unread:  # one reject for all of them: repositories are what is counted
                yield Reject(str(self.root / unread[0]), f"not UTF-8: {counted(len(unread), 'files')} of '{name}'")
            if parts:
                yield Document(name, "\n".join(parts), self.domain, name)

    def fingerprint(self) -> dict[str, Any]:
        """The settings with the name, size and digest of every file."""
        paths = [path for _, files in self.repositories() for path in files]
        named = zip(paths, content_digests(paths), strict=True)
        files = [(str(path.relative_to(self.root)), path.stat().st_size, digest) for path, digest in named]
        return {**self.model_dump(mode="json"), "python": platform.python_version(), "files": files}

    def notices(self) -> list[str]:
        """None."""
        return []

    def _place(self, path: Path) -> str:
        shown = f"{self.seed}|{path.relative_to(self.root).as_posix()}"
        return hashlib.sha256(shown.encode()).hexdigest()

    def _hidden(self, path: Path) -> bool:
        return any(part in _SKIPPED or part in self.exclude or part.startswith(".") for part in path.parts)
