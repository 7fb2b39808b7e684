"""What the commands of ladders share: their arguments, where they write to, and showing tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.errors import UserError
from lmlab.files import require_writable
from lmlab.methods.ladder.config import EstimatorOptions, ForecastOptions, RunsOptions

if TYPE_CHECKING:
    from lmlab.methods.ladder.fitting.forecast import Forecaster
    from lmlab.methods.ladder.tables.table import RunTable

TABLES = (".csv", ".md", ".tex", ".json")


def place_for(what: str, *suffixes: str) -> Callable[[Path | None], Path | None]:
    """A check of an option that names a file to be written, before any work is done for it.

    Arguments:
        what: is written, as the sentence of a refusal begins.

    Raises:
        UserError: from the check: another suffix, a folder, or a place where nothing can be written.
    """

    def checked(path: Path | None) -> Path | None:
        if path is None:
            return None
        if path.suffix not in suffixes:
            *most, last = suffixes
            known = f"{', '.join(most)} or {last}" if most else last
            raise UserError(f"'{path}': {what} is written as {known}.", "Name the file with that ending.")
        require_writable(path)
        return path

    return checked


Runs = Annotated[
    Path | None,
    typer.Argument(
        help="Run table (.csv, .parquet), folder of `collect`, or the reference's .json.", show_default=False
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        "--output-path",
        help="Write the table: .csv, .md, .tex, .json.",
        show_default=False,
        callback=place_for("a table", *TABLES),
    ),
]
Target = Annotated[str | None, typer.Option("-t", "--target", help="Target of the table.", show_default=False)]
Size = Annotated[
    float | None, typer.Option("-n", "--n", help="Parameters without the input embedding.", show_default=False)
]
Length = Annotated[
    str | None, typer.Option("-d", "--d", help="Tokens: 4T, 100B, 20xC or a number.", show_default=False)
]
ESTIMATOR = set(EstimatorOptions.model_fields)
with_runs = options(RunsOptions, "data")
with_estimator = options(EstimatorOptions, "estimator")
with_preset = options(EstimatorOptions, "estimator", exclude=ESTIMATOR - {"preset"})
with_forecast = options(ForecastOptions, "forecast")


def read(
    runs: Path | None,
    data: RunsOptions,
    outputs: Sequence[Path | None] = (),
    second: Path | None = None,
    others: Iterable[Path | None] = (),
) -> RunTable:
    """The table of a command, which its outputs must not replace.

    Arguments:
        second: other runs for the second step.
        others: further files that the command reads.

    Raises:
        UserError: no runs are there, or an output is one of the files that are read.
    """
    from lmlab.methods.ladder.fitting.prepare import read_runs

    table = read_runs(runs, data, second)
    places = (runs, data.config_path, data.task_file, second, *others)
    spare([*(each for each in places if each is not None), *files_of(table)], outputs)
    return table


def files_of(table: RunTable) -> list[Path]:
    """All files that a table and the runs of its second step were read from."""
    return [*table.files, *(files_of(table.second) if table.second is not None else [])]


def spare(inputs: Iterable[Path], outputs: Iterable[Path | None]) -> None:
    """Refuse to write a result over what it was made from.

    Raises:
        UserError: an output is one of the inputs, or the table of a folder among them.
    """
    read_from = {each / "runs.csv" if each.is_dir() else each for each in inputs}
    kept = {each.resolve() for each in read_from if each.exists()}
    for path in outputs:
        if path is not None and path.resolve() in kept:
            raise UserError(f"'{path}' is read, and would be written over.", "Name another file with -o.")


def show(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], output: Path | None, title: str, details: Any = None
) -> None:
    """Print a table, its notes below; write it too where a path is given."""
    from rich.table import Table

    from lmlab.commandline.options import print_table
    from lmlab.methods.ladder.tables.write import text_of, write

    shown = Table(title=title, title_justify="left")
    noted = len(columns) - (columns[-1] == "notes")
    for number, column in enumerate(columns[:noted]):
        numeric = any(isinstance(row[number], int | float) for row in rows)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(text_of(cell) for cell in row[:noted]))
    print_table(shown)
    for row in rows if noted < len(columns) else ():
        if row[-1]:
            say(f"{text_of(row[0])}: {row[-1]}.")
    if output is not None:
        write(output, columns, rows, details)
        say(str(output))


def say(*sentences: str) -> None:
    """Print sentences, one a line; names of runs in them command no terminal."""
    from lmlab.terminal import printable

    for each in sentences:
        print(printable(each))


def say_of_runs(forecasters: Mapping[str, Forecaster], n: float, d: float, level: float) -> None:
    """Which runs are fitted, how far the target is from them, and what looks wrong, for each of several recipes."""
    from lmlab.methods.ladder.checking.alike import between
    from lmlab.methods.ladder.presenting.predictions import distance_sentence, runs_sentence, untold_sentences

    for name, each in forecasters.items():
        predictions = each.predict_all(n, d, level)
        say(*(f"{name}: Warning: {warning}" for warning in untold_sentences(each, predictions)))
        say(f"{name}: {runs_sentence(each)} {distance_sentence(predictions[0])}")
        say(*(f"{name}: Warning: {warning}" for warning in each.warnings))
    say(*(f"Warning: {warning}" for warning in between({name: each.table for name, each in forecasters.items()})))
