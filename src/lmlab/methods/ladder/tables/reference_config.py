"""The reference's configuration: sizes and targets, each with the files of its runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat

from lmlab.config import Config, validate
from lmlab.errors import UserError, reads
from lmlab.files import read_json
from lmlab.methods.ladder.tables.csv_runs import read_csv_run
from lmlab.methods.ladder.tables.table import Run, RunTable


class ReferenceEntry(Config):
    """One entry of the reference's configuration: a size, or a target."""

    paths: list[str] = Field(min_length=1)
    mode: Literal["train", "eval"] = "train"
    n: PositiveFloat | None = None
    flops: PositiveFloat | None = None
    label: str = ""
    color: str = ""
    use_last_n_percentage: float = Field(default=100, gt=0, le=100)


@reads("a configuration of runs")
def read_reference_config(path: Path, roots: Sequence[Path] = ()) -> RunTable:
    """Read a configuration of the reference and the files that it lists; the order of its entries does not matter.

    Arguments:
        roots: folders from which paths start, besides the working directory and the configuration's own folder. No path
            may leave these.
    """
    data = read_json(path)
    if not isinstance(data, dict) or not data:
        raise UserError(f"'{path}' must hold a mapping of names to entries with the keys paths, mode, n and flops.")
    folders = [Path.cwd(), path.resolve().parent, *(root.resolve() for root in roots)]
    runs: list[Run] = []
    external: dict[Path, Mapping[str, float]] = {}
    for name in sorted(data):
        if name == "external":
            external = _read_external(data[name], path, folders)
            continue
        entry = validate(ReferenceEntry, data[name], f"'{path}', entry '{name}'")
        if entry.mode == "train":
            for key in ("n", "flops"):
                if getattr(entry, key) is None:
                    raise UserError(
                        f"'{path}', entry '{name}': the key '{name}.{key}' is required for a run that is fitted."
                    )
        files = [file for each in entry.paths for file in _resolve(each, folders, f"'{path}', {name}.paths")]
        for file in files:
            label = name if entry.mode == "eval" and len(files) == 1 else file.stem
            run = read_csv_run(file, entry.n or math.nan, entry.flops, entry.mode, label, name)
            count = math.ceil(len(run) * entry.use_last_n_percentage / 100)
            runs.append(run.keep(slice(len(run) - count, None)))
    runs = _check_modes(runs, path)
    places = [Path(run.source) for run in runs]
    names = _named_once([run.name for run in runs], places)
    models = dict(zip(_named_once([file.stem for file in external], list(external)), external.values(), strict=True))
    return RunTable(
        tuple(replace(run, name=name) for run, name in zip(runs, names, strict=True)),
        models,
        files=(path, *places, *external),
    )


def _named_once(names: Sequence[str], files: Sequence[Path]) -> list[str]:
    """Names of files; those that several have get as many of their folders' names as tell them apart."""
    found, depth = list(names), 0
    folders = [file.resolve().parent.parts for file in files]
    while len(set(found)) < len(found) and depth < max(map(len, folders)):
        depth += 1
        found = [
            "/".join((*folder[-depth:], name)) if found.count(longer) > 1 else longer
            for name, longer, folder in zip(names, found, folders, strict=True)
        ]
    return found


def _check_modes(runs: list[Run], path: Path) -> list[Run]:
    modes: dict[str, str] = {}
    for run in runs:
        key = str(Path(run.source).resolve())
        if modes.setdefault(key, run.mode) != run.mode:
            raise UserError(
                f"'{path}': '{run.source}' is listed both as a run that is fitted and as a target.",
                "Leave it out of one of them.",
            )
    unique = {str(Path(run.source).resolve()): run for run in runs}
    return list(unique.values())


def _resolve(pattern: str, folders: Sequence[Path], where: str) -> list[Path]:
    """The files that a path or a pattern means, below one of the folders."""
    for folder in folders:
        base = Path(pattern) if Path(pattern).is_absolute() else folder / pattern
        found = (
            sorted(base.parent.glob(base.name))
            if any(sign in base.name for sign in "*?[")
            else [base]
            if base.is_file()
            else []
        )
        if not found and any(sign in str(base.parent) for sign in "*?["):
            found = sorted(folder.glob(pattern)) if not Path(pattern).is_absolute() else []
        for file in found:
            if not any(file.resolve().is_relative_to(root) for root in folders):
                raise UserError(
                    f"{where}: '{pattern}' leads out of {', '.join(map(str, dict.fromkeys(folders)))}.",
                    "Move the files, or add --root DIR.",
                )
        if found:
            return found
    raise UserError(
        f"{where}: '{pattern}' matches no file.",
        "Paths start from the working directory or the configuration's folder.",
    )


def _read_external(value: Any, path: Path, folders: Sequence[Path]) -> dict[Path, Mapping[str, float]]:
    """Other models for the second step: JSON files, each one flat object of metrics."""
    where = f"'{path}', entry 'external'"
    patterns = value.get("paths") if isinstance(value, dict) else value
    if not isinstance(patterns, list) or not all(isinstance(each, str) for each in patterns):
        raise UserError(f"{where}: a list of JSON files is needed.")
    found: dict[Path, Mapping[str, float]] = {}
    for file in (file for each in patterns for file in _resolve(each, folders, where)):
        metrics = read_json(file)
        if not isinstance(metrics, dict) or not all(isinstance(each, int | float) for each in metrics.values()):
            raise UserError(f"'{file}' must hold one object with a number for each metric.")
        found[file] = {key: float(each) for key, each in metrics.items()}
    return found
