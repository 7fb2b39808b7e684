"""What the stages of the method give and take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lmlab.runs import Artifact

PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class Patches(Artifact):
    """Patches for issues: `predictions.jsonl` of a stage or a folder, or a file in a published layout."""

    called: ClassVar[str] = "patches"

    @classmethod
    def _at(cls, path: Path) -> Patches | None:
        if path.is_file():
            return cls(path)
        return cls(path / PREDICTIONS) if (path / PREDICTIONS).is_file() else None

    @classmethod
    def _remedy(cls) -> str:
        return "Name a stage or folder with predictions.jsonl, or a .jsonl or .json file of patches."
