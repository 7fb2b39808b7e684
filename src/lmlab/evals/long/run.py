"""Measure a model on a file of instances: a row a question on the disk as it is found, figures from the rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.distributed import world
from lmlab.errors import UserError
from lmlab.evals.long.config import IN_AVERAGES, Mode
from lmlab.evals.long.figures import summarize
from lmlab.evals.long.instance import SUITE_VERSION, Instance, InstanceFile, by_context
from lmlab.evals.rows import Row
from lmlab.evals.run import collect_rows
from lmlab.files import read_mapping, write_json
from lmlab.words import counted

RESULTS, ROWS, MEASURED = "long.json", "rows.jsonl", "measured.json"


@dataclass(frozen=True)
class _Group:
    """The questions about one context, as one item that is measured together."""

    id: str
    instances: Sequence[Instance]


def run_suite(
    file: InstanceFile,
    measure: Callable[[Sequence[Instance]], Iterator[Row]],
    directory: Path | str,
    *,
    model: str,
    mode: Mode,
    max_seq_len: int | None,
    template: str = "plain",
    device: str = "",
    how: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure all questions, context by context; under `torchrun` the processes of a job share the contexts. What an
    earlier attempt on the same instances has measured is kept.

    Arguments:
        directory: receives `rows.jsonl` and `long.json`.
        model: what was measured, for the report.
        max_seq_len: the model's window; None where that is not known.
        template: how the prompts are worded now, which must be as when they were built.
        how: what else rows depend on, such as the model's weights: an earlier attempt is only continued with the same.

    Returns:
        what `long.json` holds.

    Raises:
        UserError: an instance is longer than the window, or the directory holds other results.
    """
    directory = Path(directory)
    if template != file.header.template:
        raise UserError(
            f"The instances have the lengths of prompts worded as '{file.header.template}', and would be asked as"
            f" '{template}'.",
            "Build them again with the same --chat.",
        )
    _check_window(file.instances, max_seq_len)
    about = {
        "suite": SUITE_VERSION,
        "mode": mode,
        "model": model,
        "instances": file.fingerprint,
        "tokenizer": file.header.tokenizer,
        "template": file.header.template,
        "settings": file.header.settings,
        "origin": file.header.origin,
        **(how or {}),
    }
    _check_directory(directory, about, ("instances", "mode", "model", *(how or {})))
    # the first context of every task and length before any second one: what is measured when a run is stopped, or
    # looked at before its end, is of all tasks alike
    contexts = sorted(by_context(file.instances), key=lambda found: found[0].context_index)
    groups = [_Group(found[0].context_id, found) for found in contexts]
    start = time.perf_counter()

    def rows_of(waiting: Sequence[_Group]) -> Iterator[Row]:
        for group in waiting:
            begun = time.perf_counter()
            rows = list(measure(group.instances))
            yield {"id": group.id, "rows": rows, "seconds": time.perf_counter() - begun}

    found = collect_rows(groups, rows_of, directory / ROWS, "long")
    assert found is not None
    rows = [row for group in found for row in group["rows"]]
    results = about | {
        "device": device,
        "seconds": sum(group["seconds"] for group in found),
        "wall_seconds": time.perf_counter() - start,
        **summarize(rows),
    }
    if world().is_main:
        write_json(directory / RESULTS, results)
    return results


def read_results(place: Path | str) -> dict[str, Any]:
    """The results of a directory, or of the file itself.

    Raises:
        UserError: there are none.
    """
    path = Path(place)
    path = path / RESULTS if path.is_dir() else path
    found = read_mapping(path)
    if "suite" not in found or not isinstance(found.get("tasks"), dict):
        raise UserError(f"'{path}' holds no results of the long-context suite.", "Make them: lmlab long eval")
    return found


def read_suite_rows(directory: Path | str) -> list[Row]:
    """The rows of all questions."""
    from lmlab.evals.rows import read_rows

    return [row for group in read_rows([Path(directory) / ROWS]) for row in group["rows"]]


def check_comparable(results: Sequence[dict[str, Any]]) -> None:
    """Refuse to set figures side by side that do not mean the same.

    Raises:
        UserError: the runs differ in suite, mode, unit of length, wording or categories; the message says in which.
    """
    first = results[0]
    for other in results[1:]:
        for key, name in _MUST_AGREE.items():
            if first.get(key) != other.get(key):
                raise UserError(
                    f"'{first['model']}' and '{other['model']}' differ in {name}: their scores cannot be compared.",
                    "Measure both on the same file of instances.",
                )
        if differ := sorted(averaged(first) ^ averaged(other)):
            name, length = differ[0]
            raise UserError(
                f"'{first['model']}' and '{other['model']}' were not measured in the same tasks at the same lengths:"
                f" one alone has {name} at {counted(int(length), 'tokens')}.",
                "Measure both on the same file of instances.",
            )
        if set(first["categories"]) != set(other["categories"]):
            raise UserError(
                f"'{first['model']}' was measured in {', '.join(sorted(first['categories'])) or 'no category'}, and"
                f" '{other['model']}' in {', '.join(sorted(other['categories'])) or 'none'}.",
                "Measure both on the same file of instances.",
            )


def averaged(results: dict[str, Any]) -> set[tuple[str, str]]:
    """The tasks and lengths whose scores the averages are made of."""
    return {
        (name, length)
        for name, cells in results["tasks"].items()
        if name in IN_AVERAGES
        for length, cell in cells.items()
        if "score" in cell
    }


_MUST_AGREE = {
    "suite": "the version of the suite",
    "mode": "their mode",
    "tokenizer": "the tokenizer, which is the unit of length",
    "template": "the wording of prompts",
}


def _check_window(instances: Sequence[Instance], window: int | None) -> None:
    if window is None:
        return
    longest = max(instances, key=lambda each: each.prompt_tokens + each.budget)
    if longest.prompt_tokens + longest.budget > window:
        raise UserError(
            f"The instance '{longest.id}' has {longest.prompt_tokens} tokens and up to {longest.budget} of its answer;"
            f" the model's window is {window}.",
            "Leave out the longer lengths (--length), or give the model a longer window.",
        )


def _check_directory(directory: Path, about: dict[str, Any], keys: Sequence[str]) -> None:
    path = directory / MEASURED
    if path.exists():
        before = read_mapping(path)
        changed = [key for key in keys if before.get(key) != about[key]]
        if changed:
            raise UserError(
                f"'{directory}' holds results with another {', '.join(changed)}.", "Name another directory with --out."
            )
    elif world().is_main:
        write_json(path, about)
