"""Reading and writing tables of runs: the reference's CSV files and configurations, and lmlab's own tables."""

from __future__ import annotations

import csv
import io
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat

from lmlab.config import Config, validate
from lmlab.errors import UserError, did_you_mean, missing_extra, reads
from lmlab.files import atomic_file, read_json, read_jsonl
from lmlab.methods.ladder.tables.table import Floats, Run, RunTable
from lmlab.progress import console

TOKENS, STEP, BATCH = "throughput/total_tokens", "_step", "batch_size_in_tokens"
RATE = "optim/learning_rate_group0"
_OWN = ("run", "size", "n", "flops_per_token", "tokens", "step", "lr", "lr_peak", "seed", "mode", "planned_tokens")
_METADATA = "meta/"  # columns with facts of a run


class Cells(dict[str, list[str]]):
    """The cells of a table as texts, by column.

    Attributes:
        rows: where each row stands in its file, for messages: from 1, the header of a CSV file being its first line.
    """

    def __init__(self, columns: Mapping[str, list[str]], rows: Iterable[int]) -> None:
        super().__init__(columns)
        self.rows = tuple(rows)


class ReferenceEntry(Config):
    """One entry of the reference's configuration: a size, or a target."""

    paths: list[str] = Field(min_length=1)
    mode: Literal["train", "eval"] = "train"
    n: PositiveFloat | None = None
    flops: PositiveFloat | None = None
    label: str = ""
    color: str = ""
    use_last_n_percentage: float = Field(default=100, gt=0, le=100)


def read_table(path: Path) -> RunTable:
    """Read a configuration of the reference (JSON), a run table (CSV or Parquet), or a folder that `lmlab ladder
    collect` wrote.

    Raises:
        UserError: the file is missing or broken; the message says where.
    """
    if path.is_dir():
        path = path / "runs.csv"
    match path.suffix:
        case ".json":
            return read_reference_config(path)
        case ".parquet":
            columns = _read_parquet(path)
        case ".csv" | ".tsv":
            columns = read_csv_columns(path)
        case ".jsonl":
            columns = _read_rows(path)
        case _:
            raise UserError(
                f"'{path}': a run table is a .csv, .tsv, .jsonl or .parquet file, or the .json configuration of the"
                " reference."
            )
    return _from_own_table(columns, path)


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
    external: dict[str, Mapping[str, float]] = {}
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
    return _named_once(_check_modes(runs, path), external)


def _named_once(runs: list[Run], external: Mapping[str, Mapping[str, float]]) -> RunTable:
    """Files of the same name in several folders get the folder's name too."""
    names = [run.name for run in runs]
    renamed = [
        replace(run, name=f"{Path(run.source).parent.name}/{run.name}") if names.count(run.name) > 1 else run
        for run in runs
    ]
    return RunTable(tuple(renamed), external)


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


def read_csv_run(
    path: Path,
    n: float,
    flops_per_token: float | None,
    mode: Literal["train", "eval"] = "train",
    name: str | None = None,
    size: str = "",
) -> Run:
    """Read one run of a CSV file, one checkpoint a row, as Weights & Biases exports it.

    Raises:
        UserError: the file is missing or broken, tells no tokens, or two rows of one step differ.
    """
    cells = read_csv_columns(path)
    return run_of_columns(cells, cells.rows, path, n, flops_per_token, mode, name, size)


def run_of_columns(
    cells: Mapping[str, Sequence[str]],
    rows: Sequence[int],
    path: Path,
    n: float,
    flops_per_token: float | None,
    mode: Literal["train", "eval"] = "train",
    name: str | None = None,
    size: str = "",
) -> Run:
    """The run of such a file, from its cells by column; `rows` are their lines."""
    columns = {key: numbers(values) for key, values in cells.items()}
    tokens = _tokens(columns, path)
    seen = {TOKENS, STEP, BATCH}
    metrics = {key: values for key, values in columns.items() if key not in seen}
    run = Run(
        name=name or path.stem,
        n=n,
        flops_per_token=flops_per_token,
        tokens=tokens,
        metrics=metrics,
        mode=mode,
        size=size,
        step=columns.get(STEP),
        lr=columns.get(RATE),
        lr_peak=_highest(columns.get("learning_rate_peak")),
        source=str(path),
        rows=tuple(rows),
    )
    return _in_order(run)


def _highest(values: Floats | None) -> float | None:
    """The highest of the rates that are known, as a peak; None where none is."""
    known = np.zeros(0) if values is None else values[np.isfinite(values)]
    return float(known.max()) if len(known) and known.max() > 0 else None


def _tokens(columns: Mapping[str, Floats], path: Path) -> Floats:
    if TOKENS in columns:
        return columns[TOKENS]
    missing = [key for key in (STEP, BATCH) if key not in columns]
    if missing:
        raise UserError(
            f"'{path}' does not tell how many tokens were seen: the column '{TOKENS}' is missing, and so"
            f" {'is' if len(missing) == 1 else 'are'} " + " and ".join(f"'{key}'" for key in missing) + ".",
            f"Add '{TOKENS}', or both '{STEP}' and '{BATCH}'; lmlab ladder collect takes --batch NAME=TOKENS too.",
        )
    return columns[STEP] * columns[BATCH]


def _in_order(run: Run) -> Run:
    """Sort by tokens and drop rows that are there twice, with a notice."""
    where = run.source or run.name
    bad = np.flatnonzero(~np.isfinite(run.tokens) | (run.tokens < 0))
    if len(bad):
        raise UserError(f"'{where}', row {run.rows[bad[0]]}: the number of tokens is not a number, or is negative.")
    order: NDArray[np.int64] = np.argsort(run.tokens, kind="stable")
    if (np.diff(order) < 0).any():
        console.print(f"'{where}': rows were sorted by tokens.")
    run = run.keep(order)
    return _merged(run, where)


def _merged(run: Run, where: str) -> Run:
    """One row for each number of tokens: rows of which one holds what the other lacks, as logs of training and of
    evaluation have them, are put together; two that differ are an error.
    """
    same = np.flatnonzero(np.diff(run.tokens) == 0)
    if not len(same):
        return run
    metrics = {key: values.copy() for key, values in run.metrics.items()}
    rates, steps = (None if each is None else each.copy() for each in (run.lr, run.step))
    for place in same:
        for values in (rates, steps):
            if values is not None and not math.isfinite(values[place + 1]):
                values[place + 1] = values[place]
        for key, values in metrics.items():
            first, second = values[place], values[place + 1]
            if math.isfinite(first) and math.isfinite(second) and first != second:
                rows = f"rows {run.rows[place]} and {run.rows[place + 1]}"
                raise UserError(
                    f"'{where}', {rows}: two checkpoints of {run.tokens[place]:.0f} tokens differ in '{key}'.",
                    "Remove one of them.",
                )
            if not math.isfinite(second):
                values[place + 1] = first
    console.print(f"'{where}': {len(same)} repeated rows were dropped.")
    return replace(run, metrics=metrics, lr=rates, step=steps).keep(np.setdiff1d(np.arange(len(run)), same))


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


def _read_external(value: Any, path: Path, folders: Sequence[Path]) -> dict[str, Mapping[str, float]]:
    """Other models for the second step: JSON files, each one flat object of metrics."""
    where = f"'{path}', entry 'external'"
    patterns = value.get("paths") if isinstance(value, dict) else value
    if not isinstance(patterns, list) or not all(isinstance(each, str) for each in patterns):
        raise UserError(f"{where}: a list of JSON files is needed.")
    found: dict[str, Mapping[str, float]] = {}
    for file in (file for each in patterns for file in _resolve(each, folders, where)):
        metrics = read_json(file)
        if not isinstance(metrics, dict) or not all(isinstance(each, int | float) for each in metrics.values()):
            raise UserError(f"'{file}' must hold one object with a number for each metric.")
        found[file.stem] = {key: float(each) for key, each in metrics.items()}
    return found


def table_from_frame(frame: Any) -> RunTable:
    """The run table of a data frame, of pandas or another library with `columns` and `frame[name]`.

    Raises:
        UserError: it is no frame, or a column is missing or broken.
    """
    try:
        columns = {str(name): [_text(cell) for cell in frame[name]] for name in frame.columns}
    except (AttributeError, TypeError):
        raise UserError(f"A run table is a file or a data frame, not {type(frame).__name__}.") from None
    count = len(next(iter(columns.values()), []))
    if not count:
        raise UserError("The data frame has no rows.")
    return _from_own_table(Cells(columns, range(1, count + 1)), Path("the data frame"))


def _text(cell: Any) -> str:
    """A cell as a CSV file would have it; nothing where there is none."""
    text = "" if cell is None else str(cell)
    return "" if text in ("nan", "NaN", "<NA>", "NaT", "None") else text


def _read_rows(path: Path) -> Cells:
    """JSON lines: one object of plain values a line; a key that a line lacks is an empty cell."""
    rows = list(read_jsonl(path, allow_nan=True))
    for number, row in enumerate(rows, 1):
        if any(isinstance(value, dict | list) for value in row.values()):
            raise UserError(f"'{path}', row {number}: a row is one object of numbers and texts.")
    if not rows:
        raise UserError(f"'{path}' has no rows.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Cells({name: [_text(row.get(name)) for row in rows] for name in names}, range(1, len(rows) + 1))


def read_csv_columns(path: Path) -> Cells:
    """The cells of a CSV file (of tabs with the suffix .tsv), by column.

    Raises:
        UserError: it is missing or empty, or a row has more or fewer cells than the header.
    """
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"No such file: '{path}'.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not UTF-8 text (byte {error.start}).") from None
    reader = csv.reader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ",")
    try:
        # An empty line ends with the one before it, so that lines are counted where a row ends.
        header, rows = next(reader, []), [(reader.line_num, row) for row in reader if any(row)]
    except csv.Error as error:
        raise UserError(
            f"'{path}', row {reader.line_num}: {error}.", "Is it a table of comma-separated cells?"
        ) from None
    if not header:
        raise UserError(f"'{path}' is empty.")
    twice = next((name for place, name in enumerate(header) if name in header[:place]), None)
    if twice is not None:
        raise UserError(f"'{path}': the column '{twice}' is there twice.", "Remove one of them.")
    for number, row in rows:
        if len(row) != len(header):
            raise UserError(f"'{path}', row {number}: {len(row)} cells for {len(header)} columns.")
    if not rows:
        raise UserError(f"'{path}' has a header and no rows.")
    cells = zip(*(row for _, row in rows), strict=True)
    return Cells({name: list(column) for name, column in zip(header, cells, strict=True)}, [at for at, _ in rows])


def numbers(cells: Sequence[str]) -> Floats:
    """Cells of a column as numbers; whatever is not one is nan, and is reported where it is used."""
    try:
        if (text := "".join(cells)).isascii() and "_" not in text:
            return np.array(cells, dtype=np.float64)
    except ValueError:
        pass
    return np.array([_number(cell) for cell in cells])


def _number(cell: str) -> float:
    """What Python takes for numbers beside those of tables, such as `1_000` and digits of other scripts, is none."""
    try:
        return float(cell) if cell.isascii() and "_" not in cell else math.nan
    except ValueError:
        return math.nan


def _read_parquet(path: Path) -> Cells:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise missing_extra("pyarrow", f"Reading '{path}'") from None
    try:
        table = parquet.read_table(path)
    except FileNotFoundError:
        raise UserError(f"No such file: '{path}'.") from None
    except Exception as error:  # pyarrow raises errors of its own
        raise UserError(f"'{path}' is not a readable Parquet file ({str(error).splitlines()[0]}).") from None
    if not table.num_rows:
        raise UserError(f"'{path}' has no rows.")
    columns = {name: [_text(cell) for cell in table[name].to_pylist()] for name in table.column_names}
    return Cells(columns, range(1, table.num_rows + 1))


def _from_own_table(columns: Cells, path: Path) -> RunTable:
    for key in ("run", "n", "tokens"):
        if key not in columns:
            raise UserError(f"'{path}': the column '{key}' is missing. {did_you_mean(key, columns)}")
    places: dict[str, list[int]] = {}
    for place, cell in enumerate(columns["run"]):
        # One name in two spellings, of which nobody sees the difference, would be two runs, and so repeats.
        name = unicodedata.normalize("NFC", _unguarded(cell.strip()))
        if not name:
            raise UserError(f"'{path}', row {columns.rows[place]}: the column 'run' is empty.", "Name the run.")
        places.setdefault(name, []).append(place)
    metrics = {
        key: numbers(values) for key, values in columns.items() if key not in _OWN and not key.startswith(_METADATA)
    }
    return RunTable(tuple(_own_run(name, rows, columns, metrics, path) for name, rows in places.items()))


def _own_run(name: str, rows: list[int], columns: Cells, metrics: Mapping[str, Floats], path: Path) -> Run:
    def one(key: str) -> str:
        values = {_text(columns[key][row].strip()) for row in rows} if key in columns else {""}
        if len(values) > 1 and key != "mode":
            values.discard("")  # logs have rows that do not tell all
        amounts = {_number(each) for each in values}
        if len(values) > 1 and len(amounts) == 1 and not math.isnan(min(amounts)):
            values = {min(values)}  # one number in several spellings
        if len(values) > 1:
            raise UserError(f"'{path}': run '{name}' has several values of '{key}': {', '.join(sorted(values)[:3])}.")
        return values.pop()

    def many(key: str) -> Floats | None:
        values = numbers([columns[key][row] for row in rows]) if key in columns else None
        return None if values is None or np.isnan(values).all() else values

    def number(key: str) -> float | None:
        text = one(key)
        value = _number(text)
        if text and not math.isfinite(value) and key != "n":
            raise UserError(f"'{path}': run '{name}': {key} is '{text}', which is no number.", "Mend the file.")
        return None if math.isnan(value) else value

    def told(key: str) -> bool:  # texts that are no numbers are bad values, not a column that is missing
        return any(_text(columns[key][row].strip()) for row in rows)

    def rates(key: str) -> Floats | None:
        for row in rows if key in columns else ():
            text = _text(columns[key][row].strip())
            if text and not 0 <= _number(text) < math.inf:
                raise UserError(f"'{path}', row {columns.rows[row]}: {key} is '{text}', which is no learning rate.")
        return many(key)

    mode = one("mode") or "train"
    if mode not in ("train", "eval"):
        raise UserError(f"'{path}': run '{name}': the mode '{mode}' is neither train nor eval.")
    seed, n = number("seed"), number("n")
    if (mode == "train" and n is None) or (n is not None and not 0 < n < math.inf):
        given = one("n")
        raise UserError(
            f"'{path}': run '{name}' has no positive n, the number of parameters"
            + (f", but '{given}'." if given else "."),
            "Write it out, as in 190354176 or 1.9e8.",
        )
    own = {key: values[rows] for key, values in metrics.items()}
    tokens = many("tokens")
    return _in_order(
        Run(
            name=name,
            n=math.nan if n is None else n,
            flops_per_token=number("flops_per_token"),
            tokens=np.full(len(rows), math.nan) if tokens is None else tokens,
            metrics={key: values for key, values in own.items() if not np.isnan(values).all() or told(key)},
            mode=mode,  # type: ignore[arg-type]
            size=_unguarded(one("size")),
            step=many("step"),
            planned_tokens=number("planned_tokens"),
            lr=rates("lr"),
            lr_peak=_highest(rates("lr_peak")),
            seed=None if seed is None else int(seed),
            source=f"{path}, run {name}",
            rows=tuple(columns.rows[row] for row in rows),
            metadata={
                key.removeprefix(_METADATA): _unguarded(one(key)) for key in columns if key.startswith(_METADATA)
            },
        )
    )


def write_table(table: RunTable, path: str | Path) -> Path:
    """Write a run table, one row a checkpoint: CSV, or Parquet by the suffix."""
    path = Path(path)
    keys = list(dict.fromkeys(key for run in table for key in run.metrics))
    facts = sorted({key for run in table for key in run.metadata})
    rows = [row for run in table for row in _rows_of(run, keys, facts)]
    if path.suffix == ".parquet":
        try:
            import pyarrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise missing_extra("pyarrow", f"Writing '{path}'") from None
        with atomic_file(path) as file:
            parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        return path
    return write_csv(
        path, [*_OWN, *(f"{_METADATA}{key}" for key in facts), *keys], [list(row.values()) for row in rows]
    )


def _rows_of(run: Run, keys: Sequence[str], facts: Sequence[str]) -> Iterable[dict[str, Any]]:
    for place in range(len(run)):
        yield {
            "run": run.name,
            "size": run.size,
            "n": run.n if math.isfinite(run.n) else None,
            "flops_per_token": run.flops_per_token,
            "tokens": float(run.tokens[place]),
            "step": None if run.step is None else float(run.step[place]),
            "lr": None if run.lr is None else float(run.lr[place]),
            "lr_peak": run.lr_peak,
            "seed": run.seed,
            "mode": run.mode,
            "planned_tokens": run.planned_tokens,
            **{f"{_METADATA}{key}": str(run.metadata.get(key, "")) for key in facts},
            **{key: _cell(run, key, place) for key in keys},
        }


def _cell(run: Run, key: str, place: int) -> float | None:
    value = float(run.metrics[key][place]) if key in run.metrics else math.nan
    return None if math.isnan(value) else value


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a CSV file whose texts no spreadsheet takes for formulas."""
    with atomic_file(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([_guarded(column) for column in columns])
        writer.writerows([[_guarded(cell) for cell in row] for row in rows])
    return path


_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def _unguarded(text: str) -> str:
    """A text as it was before `_guarded`."""
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULAS) else text


def _guarded(cell: Any) -> Any:
    """A text that begins like a formula gets a quote in front."""
    if isinstance(cell, str) and cell.startswith(_FORMULAS):
        return "'" + cell
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return int(cell)
    return cell
