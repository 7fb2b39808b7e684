"""What a run keeps of each stage: `stage.json`, with its configuration, fingerprint, state and results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from lmlab.config import validate
from lmlab.data import rejects_summary
from lmlab.errors import UserError
from lmlab.files import read_json, write_json

NAME = "stage.json"


class Results(BaseModel):
    """What a stage found, as fields: what it returns, what `results.json` holds, and what its report is made of."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def to_json(self) -> dict[str, Any]:
        """For `results.json`."""
        return self.model_dump(mode="json")


class ReadResults(Results):
    """What every stage that reads records tells of those that it cannot use, as `lmlab.data.Rejects.account` gives it.

    Attributes:
        rejects, reject_reasons: records that are unfit, and why; rejects.jsonl lists them.
        damaged: files that could be read in part only.
        other_splits: records of other splits than the one that is read.
    """

    rejects: int = 0
    reject_reasons: dict[str, int] = {}
    damaged: list[str] = []
    other_splits: int = 0

    def set_aside(self) -> str:
        """One or more sentences on them; empty if there are none."""
        return rejects_summary(self.model_dump(include=set(ReadResults.model_fields)))


R = TypeVar("R", bound=Results)


class StageRecord(BaseModel):
    """One stage of a run.

    Attributes:
        content: what the fingerprint is made of, as far as a changed recipe is explained by it.
        files: what was read from outside the run: path -> a digest of its size and version.
        ways: how its attempts compute what can be computed in several ways (`lmlab.hardware.ways`).
        started: when its first attempt began.
        seconds: the time of all its attempts; while it is unfinished, of those that have ended.
        results: as JSON; `read_results` gives them their type.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    name: str
    kind: str
    fingerprint: str
    content: dict[str, Any]
    files: dict[str, str] = {}
    state: Literal["unfinished", "done"]
    ways: dict[str, str] = {}
    started: str
    finished: str | None = None
    seconds: float | None = None
    results: dict[str, Any] = {}

    @classmethod
    def read(cls, directory: str | Path) -> Self:
        """The record in a stage's directory.

        Raises:
            UserError: there is none, or it is damaged.
        """
        directory = Path(directory)
        path = directory / NAME
        if not path.is_file():
            raise UserError(f"'{directory}' is not the directory of a stage: it has no {NAME}.")
        data = read_json(path)
        if not isinstance(data, Mapping):
            raise UserError(f"'{path}' is damaged: it does not hold a record.", "Remove the stage's directory.")
        return validate(cls, data, f"'{path}'")

    @classmethod
    def finished_in(cls, directory: str | Path) -> Self:
        """The record of a finished stage.

        Raises:
            UserError: it has not finished, or as `read`.
        """
        directory = Path(directory)
        record = cls.read(directory)
        if record.state != "done":
            raise UserError(f"The stage in '{directory}' has not finished.")
        return record

    def spent(self, directory: str | Path) -> float:
        """Seconds of all attempts so far. An attempt that was killed wrote no end: it lasted from its record to the
        newest file that it left.
        """
        directory = Path(directory)
        times = [path.lstat().st_mtime for path in directory.rglob("*")]
        killed = max(times, default=0.0) - (directory / NAME).stat().st_mtime if self.state == "unfinished" else 0.0
        return (self.seconds or 0.0) + max(0.0, killed)

    def write(self, directory: str | Path) -> None:
        """Store the record in the stage's directory."""
        directory = Path(directory)
        write_json(directory / NAME, self.model_dump(mode="json"))

    def read_results(self, kind: type[R]) -> R:
        """The results with their type.

        Raises:
            UserError: they are those of another version of lmlab, or damaged.
        """
        return validate(kind, self.results, f"the results of stage '{self.name}'")


def is_finished(directory: str | Path) -> bool:
    """Whether a stage's directory holds the record of a stage that has finished."""
    directory = Path(directory)
    return (directory / NAME).is_file() and StageRecord.read(directory).state == "done"
