"""Instances: questions with their contexts, as JSON lines with the field names of HELMET (Yen et al. 2024).

The first line of a file is its header: with which tokenizer lengths were measured, from which texts, and how prompts
are worded. A file that was built for another tokenizer is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lmlab.config import Config, validate
from lmlab.errors import UserError
from lmlab.files import atomic_file, read_jsonl, sha256_json

SUITE_VERSION = 2
"""Raised whenever the same settings give other instances or other scores."""


class Instance(Config):
    """One question.

    Attributes:
        task, variant, length: what it is one of; `length` counts the tokens of prompt and answer.
        context_index, question_index: which context, and which question about it.
        instruction: what is asked of the context, before it.
        context: the long text.
        demos: solved examples, after the context; empty where there are none.
        question: the question, with what the answer begins with (`prefix`) left out.
        prefix: how the answer begins; it ends the prompt.
        answer: what counts as right, the best first.
        options: answers among which a model may be made to choose.
        depth: where in the context the answer stands, 0 at its beginning to 1 at its end; None if nowhere.
        n_items: items of the context: pairs, passages, examples, words.
        budget: most tokens of the answer.
        stop: what ends the answer.
        prompt_tokens: tokens of the prompt, by the tokenizer of the header.
        short: the context could not be made as long as was asked for.
        meta: what else the scores need.
    """

    id: str
    task: str
    variant: str
    length: int
    context_index: int
    question_index: int
    instruction: str = ""
    context: str
    demos: str = ""
    question: str
    prefix: str = ""
    answer: list[str] = Field(min_length=1)
    options: list[str] = []
    depth: float | None = None
    n_items: int = 0
    budget: int = Field(gt=0)
    stop: list[str] = []
    prompt_tokens: int = 0
    short: bool = False
    meta: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Of the task with its variant, unless that is the default."""
        return self.task if self.variant == "default" else f"{self.task}.{self.variant}"

    @property
    def context_id(self) -> str:
        """The same for all questions about one context."""
        return f"{self.name}/{self.length}/{self.context_index}"


class Header(Config):
    """What a file of instances was made with.

    Attributes:
        tokenizer: its fingerprint.
        template: how prompts are worded: `plain`, or the fingerprint of a chat template.
        settings: of the build.
        origin: versions of the packages with the texts.
    """

    longeval: Literal[2] = 2
    tokenizer: str
    template: str = "plain"
    settings: dict[str, Any] = {}
    origin: dict[str, str | None] = {}


@dataclass(frozen=True)
class InstanceFile:
    """A file of instances that was read.

    Attributes:
        fingerprint: of all of it.
    """

    header: Header
    instances: list[Instance]
    fingerprint: str


def prompt_of(instance: Instance, context: str | None = None) -> str:
    """The prompt: instruction, context, examples, question, and the beginning of the answer.

    Arguments:
        context: in place of the instance's own, for controls; an empty one is left out with its instruction.
    """
    shown = instance.context if context is None else context
    before = [instance.instruction, shown] if shown else []
    parts = [*before, instance.demos.strip(), instance.question]
    text = "\n\n".join(part for part in parts if part)
    return f"{text}\n{instance.prefix}" if instance.prefix else text


def write_instances(path: Path | str, header: Header, instances: Iterable[Instance]) -> int:
    """Write a file of instances atomically; the same instances give the same bytes. Returns how many there are."""
    count = 0
    with atomic_file(Path(path), "w") as file:
        file.write(_line(header.model_dump(mode="json")))
        for instance in instances:
            file.write(_line(instance.model_dump(mode="json")))
            count += 1
    return count


def read_instances(path: Path | str, tokenizer: str | None = None) -> InstanceFile:
    """Read a file of instances.

    Arguments:
        tokenizer: fingerprint of the tokenizer that they must have been built for.

    Raises:
        UserError: it is none, or it was built for another tokenizer or by another version of the suite; the message
            names the line.
    """
    rows = enumerate(read_jsonl(Path(path)), 1)
    header = _header(path, next(rows, (1, None))[1])
    if tokenizer is not None and header.tokenizer != tokenizer:
        raise UserError(
            f"The instances in '{path}' have the lengths of another tokenizer than the model's.",
            "Build them for this model: lmlab long build --model MODEL",
        )
    instances = [validate(Instance, row, f"'{path}', line {number}") for number, row in rows]
    if not instances:
        raise UserError(f"'{path}' holds no instance.", "Build it: lmlab long build")
    seen: set[str] = set()
    for instance in instances:
        if instance.id in seen:
            raise UserError(f"'{path}' has two instances with the id '{instance.id}'.", "Give each its own.")
        seen.add(instance.id)
    fingerprint = sha256_json([header.model_dump(mode="json"), [each.model_dump(mode="json") for each in instances]])
    return InstanceFile(header, instances, fingerprint)


def read_header(path: Path | str) -> Header:
    """The header of a file of instances, without reading them.

    Raises:
        UserError: as in `read_instances`.
    """
    return _header(path, next(iter(read_jsonl(Path(path))), None))


def _header(path: Path | str, row: dict[str, Any] | None) -> Header:
    if row is None:
        raise UserError(f"'{path}' is empty.", "Build it: lmlab long build")
    if row.get("longeval") not in (None, SUITE_VERSION):
        raise UserError(
            f"'{path}' was built by version {row['longeval']} of the suite; this is version {SUITE_VERSION}.",
            "Build it again: lmlab long build",
        )
    return validate(Header, row, f"'{path}', line 1")


def by_context(instances: Sequence[Instance]) -> Iterator[list[Instance]]:
    """The questions about each context together, in order."""
    groups: dict[str, list[Instance]] = {}
    for instance in instances:
        groups.setdefault(instance.context_id, []).append(instance)
    yield from groups.values()


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
