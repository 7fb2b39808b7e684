"""Benchmarks: which columns of a run hold a task's loss and accuracy, how they are weighted, and what a guess
scores.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt, model_validator

from lmlab.config import Config, validate
from lmlab.errors import UserError, did_you_mean
from lmlab.files import read_json
from lmlab.methods.ladder.config import Variant
from lmlab.words import counted

_ROUNDING = 5e-3  # of weights that are written with three digits


class Task(Config):
    """One benchmark. Where it averages several columns, all of its figures have the same `weights`.

    Attributes:
        name: as commands call it; `display_name` is what tables show.
        loss_keys: columns of the task loss, bits per byte of the right answer.
        accuracy_keys: columns of the accuracy in ranked-classification form, 0 to 1.
        soft_keys, soft_log_keys: columns of the probability of the right answer among the options, and of its
            logarithm.
        mc_accuracy_keys: columns of the accuracy where a letter is answered.
        chance: accuracy of a guess.
        n_instances: number of questions; None where it is not known.
        pool: other splits of the same benchmark, whose questions obey the same law: definitions of tasks, in files also
            names of other tasks.
        in_paper_main_eight: whether it is one of the eight tasks of the paper's main table.
    """

    name: str
    display_name: str = ""
    loss_keys: tuple[str, ...]
    accuracy_keys: tuple[str, ...]
    soft_keys: tuple[str, ...] = ()
    soft_log_keys: tuple[str, ...] = ()
    mc_accuracy_keys: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    chance: float = Field(ge=0, lt=1)
    n_instances: PositiveInt | None = None
    pool: tuple[Task, ...] = ()
    in_paper_main_eight: bool = False

    @model_validator(mode="after")
    def _check(self) -> Task:
        count = len(self.loss_keys)
        for field in ("accuracy_keys", "soft_keys", "soft_log_keys", "mc_accuracy_keys", "weights"):
            value = getattr(self, field)
            if value and len(value) != count:
                raise ValueError(f"{field} has {counted(len(value), 'entries')} for {counted(count, 'loss_keys')}.")
        if not count or not self.accuracy_keys:
            raise ValueError("a task needs loss_keys and accuracy_keys.")
        if self.weights and (min(self.weights) < 0 or abs(sum(self.weights) - 1) > _ROUNDING):
            raise ValueError(f"weights are shares of 0 or more that add up to 1, not to {sum(self.weights):g}.")
        for other in self.pool:
            if other.chance != self.chance:
                raise ValueError(f"pool: '{other.name}' has another chance ({other.chance:g} for {self.chance:g}).")
        if self.pool and None in (self.n_instances, *(other.n_instances for other in self.pool)):
            raise ValueError("splits are pooled by their questions: each needs n_instances.")
        return self

    @property
    def title(self) -> str:
        """The name for tables."""
        return self.display_name or self.name

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, equal ones where none are given."""
        return self.weights or (1 / len(self.loss_keys),) * len(self.loss_keys)

    def accuracy_columns(self, variant: Variant) -> tuple[str, ...]:
        """The columns of full answers, of answers by letter (`mc`), or of the probability of the right answer."""
        return {"rc": self.accuracy_keys, "mc": self.mc_accuracy_keys, "soft": self.soft_keys}[variant]

    def pooled(self, columns: Collection[str]) -> Task:
        """All splits as one task, each weighing as many as it has questions; the task itself where a split's columns
        are missing.
        """
        parts = [
            self,
            *(each for each in self.pool if {*each.loss_keys, *each.accuracy_keys, *each.soft_log_keys} <= {*columns}),
        ]
        if len(parts) == 1:
            return self
        questions = [part.n_instances or 0 for part in parts]
        keys = {
            field: tuple(key for part in parts for key in getattr(part, field))
            if all(getattr(part, field) for part in parts)
            else ()
            for field in ("loss_keys", "accuracy_keys", "soft_keys", "soft_log_keys", "mc_accuracy_keys")
        }
        total = sum(questions)
        weights = tuple(
            share * count / total for part, count in zip(parts, questions, strict=True) for share in part.shares
        )
        return self.model_copy(update={**keys, "weights": weights, "n_instances": total, "pool": ()})


class TaskRegistry:
    """Tasks by name.

    Arguments:
        tasks: those it holds, in order.
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = {task.name: task for task in tasks}

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, name: str) -> Task:
        """A task by its name; a stem such as `hellaswag` is enough where it is unique."""
        if name in self._tasks:
            return self._tasks[name]
        near = [
            task
            for key, task in self._tasks.items()
            if key.startswith(name) or task.display_name.lower() == name.lower()
        ]
        if len(near) == 1:
            return near[0]
        raise UserError(f"There is no task '{name}'. {did_you_mean(name, self._tasks)}")

    def select(self, names: str | Sequence[str] | None = None) -> list[Task]:
        """Tasks by a list of names, or by the name of a set: `main` (the paper's eight), `main+` (with BoolQ and
        WinoGrande), `all`.
        """
        names = [each.strip() for each in names.split(",")] if isinstance(names, str) else list(names or ["main"])
        found: dict[str, Task] = {}
        for name in names:
            found |= {task.name: task for task in self._named_set(name)}
        return list(found.values())

    def _named_set(self, name: str) -> list[Task]:
        main = [task for task in self if task.in_paper_main_eight] or list(self)
        match name:
            case "main":
                return main
            case "main+":
                return main + [task for task in self if task.name in ("boolq_val_5shot", "winogrande_val_5shot")]
            case "all":
                return list(self)
            case _:
                return [self[name]]

    @classmethod
    def builtin(cls) -> TaskRegistry:
        """The OLMES 5-shot tasks of the paper, under the column names of its runs; a test split knows its validation
        split, whose questions are of the same kind.
        """
        known = {task.name: task for task in _OLMES}
        return cls(
            task.model_copy(update={"pool": (known[other],)})
            if (other := task.name.replace("_test_", "_val_")) != task.name and other in known
            else task
            for task in _OLMES
        )

    @classmethod
    def read(cls, path: str | Path) -> TaskRegistry:
        """Tasks of a TOML or JSON file: a mapping of names to the fields of `Task`.

        Raises:
            UserError: a broken file, or a task with wrong fields; the message names them.
        """
        path = Path(path)
        if path.suffix == ".toml":
            try:
                data = tomllib.loads(path.read_text("utf-8"))
            except FileNotFoundError:
                raise UserError(f"No such file: '{path}'.") from None
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise UserError(f"'{path}' is not valid TOML: {error}.") from None
        else:
            data = read_json(path)
        if not isinstance(data, dict) or not data:
            raise UserError(f"'{path}' must hold a mapping of task names to tasks.")
        rows = {name: fields if isinstance(fields, dict) else {} for name, fields in data.items()}
        return cls(
            validate(Task, _with_pool(name, rows, f"'{path}', task '{name}'"), f"'{path}', task '{name}'")
            for name in rows
        )


def places_of(tasks: Sequence[Task]) -> list[int]:
    """Where each task stands in an order that does not depend on that of the list: built-in ones first, then by name.
    Random draws are given to tasks by it, so that the order in which tasks are named moves no figure.
    """
    known = {task.name: place for place, task in enumerate(_OLMES)}
    order = sorted(range(len(tasks)), key=lambda t: (known.get(tasks[t].name, len(known)), tasks[t].name))
    return [order.index(t) for t in range(len(tasks))]


def _with_pool(name: str, rows: Mapping[str, dict[str, Any]], where: str) -> dict[str, Any]:
    """A task's fields, with the definitions of other tasks in place of their names in `pool`."""
    fields = {"name": name, **rows[name]}
    if not isinstance(fields.get("pool"), list):
        return fields
    pool = []
    for each in fields["pool"]:
        if isinstance(each, str):
            if each not in rows or each == name:
                raise UserError(f"{where}: pool: there is no other task '{each}'. {did_you_mean(each, rows)}")
            each = {"name": each, **{key: value for key, value in rows[each].items() if key != "pool"}}
        pool.append(each)
    return fields | {"pool": pool}


_MMLU = ("stem", "humanities", "social_sciences", "other")
_MMLU_WEIGHTS = (0.215, 0.335, 0.219, 0.231)  # proportional to test questions


def _olmes(
    stem: str,
    title: str,
    chance: float,
    questions: int,
    main: bool = False,
    metric: str = "len_norm",
    parts: Sequence[str] = (),
    mc: str = "acc",
) -> Task:
    split = stem.rpartition("_")[2]
    stems = [f"mmlu_{part}_{split}" for part in parts] or [stem]

    def keys(folder: str, suffix: str) -> tuple[str, ...]:
        return tuple(f"eval/{folder}/{each}_{suffix}" for each in stems)

    return Task(
        name=f"{stem}_5shot",
        display_name=title,
        loss_keys=keys("downstream_bpb", "rc_5shot_bpb"),
        accuracy_keys=keys("downstream", f"rc_5shot_{metric}"),
        soft_keys=keys("downstream_soft", "rc_5shot_soft"),
        soft_log_keys=keys("downstream_soft_log", "rc_5shot_soft_log"),
        mc_accuracy_keys=keys("downstream", f"mc_5shot_{mc}"),
        weights=_MMLU_WEIGHTS if len(stems) > 1 else (1.0,),
        chance=chance,
        n_instances=questions,
        in_paper_main_eight=main,
    )


_OLMES = (
    _olmes("mmlu_avg_test", "MMLU", 0.25, 14_042, True, parts=_MMLU, mc="len_norm"),
    _olmes("hellaswag_val", "HellaSwag", 0.25, 10_042, True),
    _olmes("arc_challenge_test", "ARC-Challenge", 0.25, 1_172, True),
    _olmes("arc_easy_test", "ARC-Easy", 0.25, 2_376, True),
    _olmes("piqa_val", "PIQA", 0.5, 1_838, True),
    _olmes("csqa_val", "CommonsenseQA", 0.2, 1_221, True),
    _olmes("socialiqa_val", "Social IQa", 1 / 3, 1_954, True),
    _olmes("openbookqa_test", "OpenBookQA", 0.25, 500, True),
    _olmes("boolq_val", "BoolQ", 0.5, 3_270, metric="acc"),
    _olmes("winogrande_val", "WinoGrande", 0.5, 1_267),
    _olmes("arc_challenge_val", "ARC-Challenge (validation)", 0.25, 299),
    _olmes("arc_easy_val", "ARC-Easy (validation)", 0.25, 570),
    _olmes("openbookqa_val", "OpenBookQA (validation)", 0.25, 500),
    _olmes("mmlu_avg_val", "MMLU (validation)", 0.25, 1_531, parts=_MMLU, mc="len_norm"),
    *(
        _olmes(f"mmlu_{part}_test", f"MMLU, {part.replace('_', ' ')}", 0.25, count)
        for part, count in zip(_MMLU, (3_018, 4_705, 3_077, 3_242), strict=True)
    ),
)
