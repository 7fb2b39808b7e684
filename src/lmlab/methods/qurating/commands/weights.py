"""`lmlab quality`: weights of criteria, or of domains, from small training runs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example
from lmlab.errors import UserError, reads
from lmlab.methods.qurating.cli import app
from lmlab.runs.loading import Drawn

_MARK = "# by lmlab quality fit-weights\n"


@app.command(
    "propose-weights",
    epilog=example("lmlab quality propose-weights educational_value_average style_average --runs 16 --out runs.csv"),
)
@options(Drawn, "drawn")
def propose(
    names: Annotated[list[str], typer.Argument(help="Columns of ratings, or labels of domains.")],
    drawn: Drawn,
    runs: Annotated[int, typer.Option(min=1, help="Small models to train.")] = 16,
    out: Annotated[Path, typer.Option("--out", "-o", help="Table of runs, CSV.")] = Path("runs.csv"),
) -> None:
    """Propose weights for small training runs.

    Choose text with the weights of each line, train on it, put the loss into the last column; then `lmlab quality
    fit-weights`.
    """
    from lmlab.files import atomic_file
    from lmlab.methods.qurating import propose_weights

    if out.exists():
        raise UserError(f"'{out}' exists; losses may be in it.", "Choose another file with --out.")
    with atomic_file(out, "w") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "loss"])
        writer.writerows(
            [*(f"{value:.4f}" for value in row), ""] for row in propose_weights(len(names), runs, drawn.seed)
        )
    print(
        f"{runs} runs: {out}\nOne of them: lmlab quality select --weights"
        f" {','.join(f'{name}=WEIGHT' for name in names)} ..."
    )


@app.command("fit-weights", epilog=example("lmlab quality fit-weights runs.csv --target loss --out weights.yaml"))
@options(Drawn, "drawn")
def fit(
    runs: Annotated[
        Path, typer.Argument(help="Table of runs, CSV or JSON lines: a column of weights for each name, and the loss.")
    ],
    drawn: Drawn,
    target: Annotated[str, typer.Option(help="Column with the loss; lower is better.")] = "loss",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="YAML file of names and weights, for --domain-weights.", show_default=False),
    ] = None,
) -> None:
    """Find the weights of criteria, or of domains, that small training runs speak for, and say how well the runs
    predict each other.
    """
    import yaml

    from lmlab.files import atomic_file
    from lmlab.methods.qurating import fit_weights
    from lmlab.methods.qurating.commands.shared import print_rows
    from lmlab.progress import console

    if out is not None:
        _refuse_foreign(out)
    names, weights, losses = _read_runs(runs, target)
    found = fit_weights(weights, losses, names, drawn.seed)
    fitted = dict(zip(found.names, found.weights, strict=True))
    print_rows(["", "weight"], [[name, round(weight, 4)] for name, weight in fitted.items()])
    print_rows(["regression", "error on runs left out"], sorted(found.errors.items(), key=lambda each: each[1]))
    if found.reliable:
        figures = (
            f"loss {found.loss:.4f}, with equal weights {found.equal_loss:.4f}; the best run had"
            f" {found.best_run_loss:.4f}"
        )
        print(
            f"Predicted by the {found.model} regression: {figures}. Rank correlation on runs left out:"
            f" {found.rank_correlation:.2f}."
        )
    else:
        console.print(
            "These runs do not tell good weights from bad: no regression beats the mean loss. Equal weights are given.",
            style="yellow",
        )
    print(f"Choose with them: --weights {','.join(f'{name}={weight:.3f}' for name, weight in fitted.items())}")
    if out is not None:
        with atomic_file(out, "w") as file:
            file.write(_MARK)
            yaml.safe_dump(
                {name: round(weight, 6) for name, weight in fitted.items()}, file, sort_keys=False, allow_unicode=True
            )
        print(f"Weights: {out}")


def _refuse_foreign(out: Path) -> None:
    """Refuse to write over a file that is not of this command, such as the table of runs."""
    try:
        with open(out, "rb") as file:
            found = file.read(len(_MARK.encode()))
    except FileNotFoundError:
        return
    if found != _MARK.encode():
        raise UserError(f"'{out}' holds something else than fitted weights.", "Choose another file with --out.")


@reads("a table of runs")
def _read_runs(path: Path, target: str) -> tuple[list[str], list[list[float]], list[float]]:
    """Names, weights and losses; runs whose loss is still missing are left out and told."""
    from lmlab.files import read_jsonl
    from lmlab.progress import console

    if not path.is_file():
        raise UserError(f"No such file: '{path}'.")
    if path.suffix == ".jsonl":
        rows: list[dict[str, Any]] = list(read_jsonl(path))
    else:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    if not rows or target not in rows[0]:
        there = ", ".join(rows[0]) if rows else "none"
        raise UserError(
            f"'{path}' has no column '{target}'; there are: {there}.", "Name the column of losses with --target."
        )
    names = [name for name in rows[0] if name != target]
    weights, losses, waiting = [], [], 0
    for number, row in enumerate(rows, 1):
        if row.get(target) in (None, ""):
            waiting += 1
            continue
        try:
            losses.append(float(row[target]))
            weights.append([float(row[name]) for name in names])
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"'{path}', run {number}: every column must hold a number.", "Remove columns that are no weights."
            ) from None
    if waiting:
        console.print(f"{waiting} of {len(rows)} runs have no '{target}' yet; they are left out.", style="yellow")
    return names, weights, losses
