"""Results that are files, one for each file of a table, which several processes make together.

A file is made by one process, and whole or not at all, so that the result of many processes has the bytes of one, and
a call after a kill makes only what is missing.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.distributed import Backend, FolderStore, Leases, do_pieces, fan_out
from lmlab.errors import UserError
from lmlab.files import OwnedFolder, describe, owned_folder, read_mapping, sha256_json, write_json
from lmlab.methods.qurating.selecting.tables.table import RatedTable, Tabular

_PARTS = ".parts"


class Maker:
    """What is made of each file. Other processes get a copy.

    Attributes:
        shares: whether the work of one file can be shared too, by `share`.
    """

    shares = False

    def prepare(self, parts: Path) -> None:
        """Write what all processes read, to the folder that results stand in until they are all there."""

    def share(self, table: RatedTable, leases: Leases, parts: Path) -> None:
        """Do what comes before the files, with the other processes."""

    def make(self, table: RatedTable, shard: int, parts: Path, path: Path) -> dict[str, int]:
        """Write the result of a file of the table to a path; returns counts, which are added up."""
        raise NotImplementedError


@dataclass(frozen=True)
class Processes:
    """Who makes files: how many processes, and where they run."""

    workers: int = 1
    backend: Backend = "processes"


@dataclass(frozen=True)
class _Job:
    table: RatedTable  # as it was found at first: results may be written below the folder that it is read from
    maker: Maker
    parts: Path
    names: tuple[str, ...]
    alone: bool


def make_files(
    table: Tabular,
    out: Path,
    command: str,
    maker: Maker,
    name: Callable[[int, int], str],
    settings: Any,
    processes: Processes | None = None,
    notes: Callable[[OwnedFolder], None] | None = None,
) -> dict[str, int]:
    """Make a file of each file of a table, in a folder that the command owns; the summed counts.

    Arguments:
        name: of a result, from its number and how many there are.
        settings: what else the results depend on.
        notes: writes what stands beside them.

    Raises:
        UserError: the folder is not to be written, the table cannot be read, or it has changed meanwhile.
    """
    processes, rated = processes or Processes(), RatedTable(table)
    count = len(rated.shards)
    names = tuple(name(number, count) for number in range(count))
    with owned_folder(out, command, settings, rated.files) as folder:
        source = _source(rated)
        parts = out / _PARTS / sha256_json([command, settings, source])[:32]
        _remove(parts.parent, kept=parts)
        parts.mkdir(parents=True, exist_ok=True)
        maker.prepare(parts)
        workers = processes.workers if maker.shares else min(processes.workers, count)
        job = _Job(rated, maker, parts, names, workers <= 1)
        for _ in fan_out(_work, [job] * max(1, workers), max(1, workers), processes.backend):
            pass
        if rated.files and _source(rated) != source:
            raise UserError("The corpus has changed while it was read.", "Run the same command again.")
        counts = Counter[str]()
        for each in names:
            counts.update(read_mapping(parts / f"{each}.json"))
            os.replace(parts / each, folder.new(each))
        if notes is not None:
            notes(folder)
    shutil.rmtree(out / _PARTS, ignore_errors=True)
    return dict(counts)


def _source(table: RatedTable) -> list[Any]:
    """What tells the table's content from others; of one in memory nothing does."""
    if not table.files:
        return [uuid.uuid4().hex]
    return [[name, *describe(file)] for name, file in zip(table.shards, table.files, strict=True)]


def _remove(folder: Path, kept: Path) -> None:
    """Remove what was made for another result."""
    for other in folder.glob("*"):
        if other != kept:
            shutil.rmtree(other, ignore_errors=True)


def _work(job: _Job) -> None:
    table = job.table
    leases = Leases(FolderStore(job.parts / ".leases"))

    def done(name: str) -> bool:
        return (job.parts / f"{name}.json").exists() and (job.parts / name).exists()

    def make(name: str) -> None:
        draft = job.parts / f"{uuid.uuid4().hex}-{name}"  # containers that share it have the same process numbers
        try:
            counts = job.maker.make(table, job.names.index(name), job.parts, draft)
            with open(draft, "rb") as file:
                os.fsync(file.fileno())
            os.replace(draft, job.parts / name)
        finally:
            draft.unlink(missing_ok=True)
        write_json(job.parts / f"{name}.json", counts)

    try:
        if not job.alone:
            job.maker.share(table, leases, job.parts)
        do_pieces(job.names, leases, done, make)
    finally:
        leases.close()
