"""Size of published programs before and after they are made short, on the data of their tasks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from lmlab.files import read_jsonl
from lmlab.hardware import machine_load
from lmlab.methods.transformer_programs import load_program, minimize
from lmlab.methods.transformer_programs.analysis.minimize import score
from lmlab.methods.transformer_programs.config import DataConfig
from lmlab.methods.transformer_programs.program.files import PROGRAM
from lmlab.methods.transformer_programs.tasks.load import draw
from lmlab.methods.transformer_programs.tasks.rasp import PAD, TASKS, Example


def measure_minimizing(directory: Path, only: Sequence[str], drop: float, seconds: float | None) -> None:
    """A row a program.

    Arguments:
        directory: folders with `program.json`; the name of each is its task, or `cases.jsonl` beside it has inputs and
            what the program answers, which then counts as right.
        only: parts of their paths.
        seconds: how long to look at each for what can go.
    """
    print("| program | lines | nodes | pairs | table rows | classifier rows | test accuracy, % | CPU-s |")
    print("|---|---|---|---|---|---|---|---|")
    for path in sorted(directory.rglob(PROGRAM)):
        name = str(path.parent.relative_to(directory))
        if only and not any(each in name for each in only):
            continue
        program, task = load_program(path), path.parent.name
        learned, held = _drawn(task) if task in TASKS else _answered(path.parent, program.pool_outputs)
        before = time.process_time()
        found = minimize(program, learned, drop, seconds=seconds)
        spent = time.process_time() - before
        sizes = ("lines", "nodes", "predicate_pairs", "table_rows", "classifier_rows")
        cells = [f"{found.before[size]} to {found.after[size]}" for size in sizes]
        accuracies = [f"{100 * score(each, held):.2f}" for each in (program, found.program)]
        print(f"| {name} | {' | '.join(cells)} | {' to '.join(accuracies)} | {spent:.0f} |", flush=True)
    print(f"at most {100 * drop:g} points lost on train and validation; load {machine_load()}")


def _drawn(task: str) -> tuple[list[Example], list[Example]]:
    data = draw(DataConfig(task=task))
    assert data.test is not None
    return [*data.train.examples, *data.valid.examples], list(data.test.examples)


def _answered(directory: Path, pooled: bool) -> tuple[list[Example], list[Example]]:
    found = []
    for row in read_jsonl(directory / "cases.jsonl"):
        tokens, answer = row["tokens"], row["faithful"]
        labels = [answer, *[PAD] * (len(tokens) - 1)] if pooled else [PAD, *answer[1:-1], PAD]
        found.append((tokens, labels))
    return found, found
