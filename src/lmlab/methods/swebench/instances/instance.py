"""One task: a repository at a commit, the text of an issue, and the tests that tell whether it is resolved."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from lmlab.errors import UserError
from lmlab.files import ParseError, json_value, kind_of, sha256_json
from lmlab.methods.swebench.grading.parsers import parser_of

EvalType = Literal["pass_and_fail", "fail_only"]
_LISTS = {"fail_to_pass": "FAIL_TO_PASS", "pass_to_pass": "PASS_TO_PASS"}


@dataclass(frozen=True)
class Instance:
    """A task.

    Attributes:
        instance_id: `owner__name-number`.
        base_commit: the commit before the fix.
        patch: the reference solution ("gold patch"), a unified diff.
        test_patch: what the fix changes of the tests; hidden from whoever solves the task.
        fail_to_pass, pass_to_pass: ids of tests that fail before and pass after the fix, and that pass both times.
        log_parser: the name of the parser of the runner's output.
        eval_type: `fail_only` where the runner prints failures only.
        extra: all other columns; ours are `test_command`, `test_files`, `environment`, `flaky`, `source`.
    """

    instance_id: str
    repo: str = ""
    base_commit: str = ""
    patch: str = ""
    test_patch: str = ""
    problem_statement: str = ""
    hints_text: str = ""
    created_at: str = ""
    version: str = ""
    fail_to_pass: tuple[str, ...] = ()
    pass_to_pass: tuple[str, ...] = ()
    environment_setup_commit: str = ""
    image: str = ""
    eval_script: str = ""
    log_parser: str = "parse_log_pytest"
    eval_type: EvalType = "pass_and_fail"
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_row(cls, row: Mapping[str, Any], where: str = "the instance") -> Instance:
        """An instance of a row of any published layout.

        Raises:
            UserError: the row has no id, or a column cannot be read.
        """
        values: dict[str, Any] = {}
        extra = dict(row)
        for name in (each.name for each in fields(cls) if each.name != "extra"):
            column = next((each for each in (_LISTS.get(name, name), name) if each in extra), None)
            value = None if column is None else extra.pop(column)
            extra.pop(name, None)
            if value is None:
                continue
            at = f"{where}, column '{column}'"
            if name in _LISTS:
                values[name] = tuple(list_of_tests(value, at))
            elif isinstance(value, str):
                values[name] = value
            elif name in ("version", "created_at"):  # numbers and dates of columnar files
                values[name] = value.isoformat() if hasattr(value, "isoformat") else str(value)
            else:
                raise UserError(f"{at}: expected text, got {kind_of(value)}.")
        if not values.get("instance_id"):
            raise UserError(f"{where} has no 'instance_id'.")
        name = values["instance_id"]  # of folders too, and printed
        if "/" in name or name in (".", "..") or not name.isprintable():
            raise UserError(f"{where}: {name[:80]!r} is no id: it cannot name a folder.")
        if not values.get("log_parser"):
            values["log_parser"] = parser_of(values.get("repo", ""))
        values["eval_type"] = values.get("eval_type") or "pass_and_fail"
        if values["eval_type"] not in ("pass_and_fail", "fail_only"):
            raise UserError(f"{where}: eval_type is 'pass_and_fail' or 'fail_only', not '{values['eval_type']}'.")
        return cls(**values, extra=extra)

    def to_row(self, lists: Literal["list", "json"] = "list") -> dict[str, Any]:
        """The row in the published layout; lists of tests as lists, or as JSON text as in Hugging Face's datasets."""
        row: dict[str, Any] = {}
        for each in fields(self):
            if each.name == "extra":
                continue
            value = getattr(self, each.name)
            if each.name in _LISTS:
                value = json.dumps(list(value)) if lists == "json" else list(value)
            row[_LISTS.get(each.name, each.name)] = value
        return row | dict(self.extra)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what decides a verdict; notes and dates beside it do not count."""
        row = self.to_row()
        beside = ("hints_text", "created_at", "validated_at", "difficulty", "datasets", "split", "adequacy")
        return sha256_json({name: value for name, value in row.items() if name not in beside})


def list_of_tests(value: Any, where: str) -> list[str]:
    """A list of test ids that is a list, JSON text, or the text of a Python list.

    Raises:
        UserError: it is none of these.
    """
    if isinstance(value, str):
        value = _listed(value, where)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise UserError(f"{where}: expected a list of test ids, got {kind_of(value)}.")
    return list(value)


def _listed(text: str, where: str) -> Any:
    if not text.strip():
        return []
    try:
        return json_value(text)
    except ParseError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise UserError(f"{where}: neither JSON nor the text of a Python list: {text[:80]!r}.") from None
