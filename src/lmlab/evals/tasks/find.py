"""Tasks by name, group or file, and the kinds of tasks, which are found by entry points (`lmlab.plugins`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lmlab import plugins
from lmlab.config import validate
from lmlab.errors import UserError, did_you_mean
from lmlab.evals.tasks import olmes
from lmlab.evals.tasks.task import Metric, Task
from lmlab.files import read_yaml

DEFAULT = "ranked"


@cache
def find_kind(name: str, where: str = "task") -> type[Task]:
    """The class of a kind of tasks.

    Raises:
        UserError: there is none of that name, or what is registered is none.
    """
    found = plugins.find("tasks", name, "kind of task", where)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UserError(
            f"'{plugins.places('tasks')[name]}' is no kind of task: it does not derive from lmlab.evals.Task.",
            "Mend or remove the package that offers it.",
        )
    lacks = [
        *sorted(getattr(found, "__abstractmethods__", ())),
        *(() if getattr(found, "metrics", ()) else ("metrics",)),
    ]
    if lacks:
        raise UserError(
            f"'{plugins.places('tasks')[name]}' is no kind of task: it lacks {', '.join(lacks)}.",
            "lmlab.evals.Task says what a kind has.",
        )
    return found


def make_task(fields: Mapping[str, Any], where: str = "the task") -> Task:
    """A task from its fields, of the kind that they name, by default `ranked`.

    Raises:
        UserError: the kind is unknown, or a field is wrong.
    """
    name = fields.get("kind", DEFAULT)
    if not isinstance(name, str):
        raise UserError(
            f"{where}: kind: the name of a kind of task is needed.", did_you_mean(name, plugins.known("tasks"))
        )
    kind = find_kind(name, where)
    for key in fields.keys() - kind.model_fields.keys():
        owners = [other for other in plugins.known("tasks") if key in find_kind(other).model_fields]
        if owners:
            raise UserError(f"{where}: {key} belongs to tasks of kind {' and '.join(map(repr, owners))}.")
    return validate(kind, fields, where)


def read_task(path: str | Path) -> Task:
    """A task from its YAML file.

    Raises:
        UserError: the file is not a task, or its requests are missing.
    """
    path = Path(path)
    return make_task(read_yaml(path), f"'{path}'").located(path.parent)


def known_tasks() -> dict[str, Task]:
    """All tasks that can be named, by name; those of OLMES where the package with their request files is installed."""
    entries: list[Mapping[str, Any]] = [*olmes.catalog()]
    for kind in plugins.known("tasks"):
        entries += find_kind(kind).catalog()
    return {entry["name"]: make_task(entry) for entry in entries}


def known_groups() -> dict[str, Sequence[str]]:
    """Short names and groups, each with what it stands for."""
    found: dict[str, Sequence[str]] = dict(olmes.aliases())
    for kind in plugins.known("tasks"):
        found |= find_kind(kind).groups()
    return found


def find_tasks(names: Sequence[str]) -> list[Task]:
    """Tasks by name, group, YAML file, or KIND:REQUESTS, each once, in order.

    Raises:
        UserError: a name is unknown.
    """
    found: dict[str, Task] = {}
    waiting = list(names)[::-1]
    named = any(not _is_file(name) and _of_kind(name) is None for name in names)
    known, groups = (known_tasks(), known_groups()) if named else ({}, {})
    while waiting:
        name = waiting.pop()
        if (made := _of_kind(name)) is not None:
            task = made
        elif _is_file(name):
            task = read_task(Path(name))
        elif name in groups:
            waiting += groups[name][::-1]
            continue
        elif name in known:
            task = known[name]
        elif name in plugins.known("tasks"):
            raise UserError(f"'{name}' is a kind of task, and needs a file.", f"Name it, as {name}:questions.jsonl.")
        else:
            if olmes.version() is None:
                raise olmes.missing()
            raise UserError(
                f"Unknown task '{name}'. {did_you_mean(name, [*known, *groups])}",
                "`lmlab eval tasks` lists all; yours is a YAML file.",
            )
        if task.name in found and found[task.name] != task:
            raise UserError(f"Two tasks are called '{task.name}'.", "Give one of them another name.")
        found[task.name] = task
    return list(found.values())


def metric_of(kind: str, name: str) -> Metric:
    """What a figure of a kind of tasks is called and how it is shown; one that it does not declare is a number."""
    known = find_kind(kind).metrics if kind in plugins.places("tasks") else {}
    return known.get(name, Metric(name.replace("_", " "), is_share=False))


def _of_kind(name: str) -> Task | None:
    """The task of `KIND:REQUESTS` with its kind's defaults, named after both; None for anything else."""
    kind, colon, requests = name.partition(":")
    if not colon or not requests or kind not in plugins.known("tasks"):
        return None
    path = Path(requests)
    called = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{kind}-{path.stem}")
    return make_task({"kind": kind, "name": called, "requests": requests}, f"'{name}'").located(".")


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))
