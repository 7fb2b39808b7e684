"""The published ladder (Bhagia et al. 2024), where its files are at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lmlab.files import read_mapping
from lmlab.methods.ladder.tables.csv_runs import read_csv_run
from lmlab.methods.ladder.tables.table import RunTable

_SIZES = ("190M", "370M", "760M", "1B")


def published_ladder(shared: Path) -> RunTable:
    """All 24 runs of the ladder, and the 7B model on 4T tokens as the target `7B-4T`.

    Arguments:
        shared: the folder with `data/ladder/models.json` and `data/ladder/runs/`.
    """
    folder = shared / "data" / "ladder"
    models = read_mapping(folder / "models.json")
    runs = []
    for path in sorted((folder / "runs").glob("*xC*.csv")):
        size = path.stem.split("-")[0]
        if size in _SIZES:
            runs.append(
                read_csv_run(
                    path, models[size]["n_non_embedding"], models[size]["flops_per_token"], size=models[size]["label"]
                )
            )
    target = read_csv_run(
        folder / "runs" / "peteish7_eval_anneal.csv",
        models["7B"]["n_non_embedding"],
        models["7B"]["flops_per_token"],
        "eval",
        "7B-4T",
    )
    runs.sort(key=lambda run: (run.n, run.final_tokens, run.name))
    return RunTable((*runs, replace(target, size="7B")))
