"""Task repositories: one folder an instance, as `swebench` 5 keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmlab.errors import UserError
from lmlab.files import decode_utf8, read_mapping, read_yaml, write_text
from lmlab.words import counted

if TYPE_CHECKING:
    from lmlab.methods.swebench.instances.instance import Instance

_TEXTS = {
    "problem_statement": "problem_statement.md",
    "patch": "gold.patch",
    "test_patch": "test.patch",
    "eval_script": "eval.sh",
}
_INDEX = "sweb.yaml"


def is_task_repository(path: Path) -> bool:
    """Whether a folder is one."""
    return (path / _INDEX).is_file() and (path / "tasks").is_dir()


def read_task_repository(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of all tasks, each with its folder.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    for folder in sorted(each for each in (path / "tasks").iterdir() if each.is_dir()):
        row = read_yaml(folder / "task.yaml")
        row |= read_mapping(folder / "tests.json")
        row |= {name: _text(folder / file) for name, file in _TEXTS.items()}
        hints = folder / "hints.md"
        row["hints_text"] = _text(hints) if hints.exists() else ""
        yield f"'{folder}'", row


def _text(path: Path) -> str:
    """A text with its line ends, which in patches belong to the content."""
    try:
        return decode_utf8(path.read_bytes(), f"'{path}'")
    except FileNotFoundError:
        raise UserError(f"No such file: '{path}'.", "Every task has all files of a task repository.") from None


def check_instance(instance: Instance, folder: Path | None = None) -> list[str]:
    """What is wrong with an instance, in sentences; for one of a task repository also with its folder."""
    found = []
    if folder is not None and folder.name != instance.instance_id:
        found.append(f"its folder is called '{folder.name}'")
    if not instance.fail_to_pass and instance.extra.get("split") != "deprecated":
        found.append("FAIL_TO_PASS is empty")
    if both := set(instance.fail_to_pass) & set(instance.pass_to_pass):
        found.append(f"{counted(len(both), 'tests are')} in both lists")
    for name in ("patch", "test_patch"):
        text = getattr(instance, name)
        if "diff --git" not in text and not (name == "test_patch" and instance.extra.get("source") == "synthetic"):
            found.append(f"{name} is no diff of git")
    if not instance.problem_statement.strip():
        found.append("problem_statement is empty")
    if instance.image or instance.eval_script:
        found += [
            f"eval_script lacks the mark '{mark}'"
            for mark in (">>>>> Start Test Output", ">>>>> End Test Output")
            if mark not in instance.eval_script
        ]
        if instance.image.startswith("swebench/") and instance.image != image_name(instance.instance_id):
            found.append(f"its image is called '{instance.image}'")
    return found


def image_name(instance_id: str) -> str:
    """The image that the public registry has for an instance."""
    return f"swebench/sweb.eval.x86_64.{instance_id.lower().replace('__', '_1776_')}:latest"


def write_task_repository(path: Path, instances: Iterable[Instance], name: str) -> int:
    """Write instances as a task repository; how many.

    Raises:
        UserError: an id is no name of a folder.
    """
    import yaml

    count, splits = 0, set[str]()
    for instance in instances:
        if "/" in instance.instance_id or instance.instance_id in ("", ".", ".."):
            raise UserError(f"The id {instance.instance_id!r} is no name of a folder.")
        folder = path / "tasks" / instance.instance_id
        row = instance.to_row()
        texts = {key: row.pop(key) for key in _TEXTS}
        hints = row.pop("hints_text")
        tests = {key: row.pop(key) for key in ("FAIL_TO_PASS", "PASS_TO_PASS")}
        splits.add(row.setdefault("split", "test"))
        for key, text in texts.items():
            _write(folder / _TEXTS[key], text)
        if hints:
            _write(folder / "hints.md", hints)
        write_text(folder / "tests.json", json.dumps(tests, indent=2, ensure_ascii=False) + "\n")
        write_text(folder / "task.yaml", yaml.safe_dump(row, sort_keys=False, allow_unicode=True))
        count += 1
    write_text(path / _INDEX, yaml.safe_dump({"datasets": [name], "splits": sorted(splits)}))
    return count


def _write(path: Path, text: str) -> None:
    from lmlab.files import atomic_file

    with atomic_file(path) as file:  # in bytes, so that CRLF inside patches stays
        file.write(text.encode())
