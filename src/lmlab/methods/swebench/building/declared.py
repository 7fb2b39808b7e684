"""What a repository says that its tests need: in pyproject.toml, setup.cfg, setup.py, tox.ini and lists for pip.

Nothing of it is run, and nothing but names and bounds is passed on: no addresses and no options of pip. What cannot be
read without running it, such as a list that setup.py computes, is not found.
"""

from __future__ import annotations

import ast
import configparser
import posixpath
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmlab.methods.swebench.config import RequiredConfig
from lmlab.methods.swebench.harness.environment import EnvironmentSpec
from lmlab.methods.swebench.harness.repairing import reader_of

Read = Callable[[str], str | None]

# Names of extras and groups, the first that is there; the second kind holds more than tests need
_FOR_TESTS, _FOR_ALL = ("test", "tests", "testing"), ("dev", "develop", "development")
_FILES = tuple(
    form.format(name)
    for name in ("test", "tests", "testing", "dev", "develop", "development")
    for form in ("requirements-{}.txt", "requirements_{}.txt", "{}-requirements.txt", "requirements/{}.txt")
)
_BOUND = r"(?:===|[<>=!~]=|[<>]) ?[\w.*+!-]+"
# Of lines whose white space is single blanks, so that no run of it can be read in many ways
_REQUIREMENT = re.compile(
    rf"([A-Za-z0-9][A-Za-z0-9._-]*) ?(\[[\w ,.-]*\])? ?\(? ?((?:{_BOUND} ?(?:, ?)?)*)\)? ?"
    r"(;[\w .,<>=!~'\"()+*-]*)?(?:#.*)?"
)
_MOST_NAMED = 100  # files, groups and extras that others name, as they may in a circle or without an end
_LONGEST = 500  # characters of a requirement; what is longer is something else
# What checks, documents and builds, which groups of development hold too; it makes environments heavy, and tests run
# without
_NO_TESTS = re.compile(
    r"(?:mypy|ruff|black|isort|flake8|pylint|pre-commit|tox|twine|build|bump2version|bumpversion|sphinx|mkdocs|furo"
    r"|coverage|coveralls|codecov|wheel|setuptools|pip|readme-renderer|docutils|pycodestyle|pyflakes|types"
    r"|pytest-(?:mypy|pycodestyle|pep8|flake8|black|ruff|pylint|isort))(?:[-_.].*)?$",
    re.IGNORECASE,
)


def declared_requirements(tree: str | Path) -> tuple[str, ...]:
    """What the package and its tests need, as pip takes it, each name once.

    Arguments:
        tree: a source tree, which nobody has to trust.
    """
    reader = reader_of(Path(tree))

    def read(path: str) -> str | None:
        text = reader(path)
        return None if text is None else text.removeprefix("\ufeff")  # that some editors of Windows write

    own = _own_name(read)
    found: dict[str, str] = {}
    for line in (*_needed(read), *_for_tests(read, own)):
        match = _requirement(line)
        if match is None:
            continue
        name = _plain(match[1])
        if name not in (own, "python") and not _NO_TESTS.match(name) and (name != "pytest" or match[3]):
            found.setdefault(
                name, re.sub(r"\s+", "", "".join(each or "" for each in match.groups()[:3])) + _mark(match)
            )
    return tuple(found.values())


def required_environment(required: RequiredConfig, tree: Path | None) -> EnvironmentSpec:
    """An environment with pytest, what is asked for, and what a tree declares (None to leave that out)."""
    declared = () if tree is None else declared_requirements(tree)
    return EnvironmentSpec(requirements=tuple(dict.fromkeys(["pytest", *required.requirements, *declared])))


def _requirement(line: str) -> re.Match[str] | None:
    return _REQUIREMENT.fullmatch(" ".join(line.split())) if len(line) <= _LONGEST else None


def _mark(match: re.Match[str]) -> str:
    return f" {match[4].strip()}" if match[4] else ""


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _toml(read: Read) -> dict[str, Any]:
    try:
        return tomllib.loads(read("pyproject.toml") or "")
    except (ValueError, RecursionError):  # also of numbers with thousands of digits
        return {}


def _ini(read: Read, path: str) -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        found.read_string(read(path) or "")
    except configparser.Error:
        return configparser.ConfigParser(interpolation=None)
    return found


def _at(found: Any, *names: str) -> Any:
    """What stands at a place in nested tables; None where there is nothing."""
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _table(found: Any, *names: str) -> Mapping[str, Any]:
    """A table at a place in nested ones; an empty one where something else stands there."""
    inner = _at(found, *names)
    return inner if isinstance(inner, Mapping) else {}


def _texts(found: Any) -> list[str]:
    return [each for each in found if isinstance(each, str)] if isinstance(found, list | tuple) else []


def _own_name(read: Read) -> str:
    toml = _toml(read)
    for found in (_at(toml, "project", "name"), _at(toml, "tool", "poetry", "name")):
        if isinstance(found, str):
            return _plain(found)
    found = _ini(read, "setup.cfg").get("metadata", "name", fallback="")
    return _plain(found or str(_setup(read).get("name", "")))


def _needed(read: Read) -> Iterator[str]:
    """What the package itself needs."""
    toml = _toml(read)
    yield from _texts(_at(toml, "project", "dependencies"))
    yield from _of_poetry(_at(toml, "tool", "poetry", "dependencies"))
    yield from _ini(read, "setup.cfg").get("options", "install_requires", fallback="").splitlines()
    yield from _texts(_setup(read).get("install_requires"))


def _for_tests(read: Read, own: str) -> list[str]:
    """What its tests need, from the first place that says so."""
    toml, setup = _toml(read), _setup(read)
    extras: dict[str, list[str]] = {}
    for name, found in _table(toml, "project", "optional-dependencies").items():
        extras[_plain(name)] = _texts(found)
    for name, found in _table(toml, "dependency-groups").items():
        extras.setdefault(_plain(name), _of_group(toml, found, set()))
    for name, found in _table(toml, "tool", "poetry", "group").items():
        extras.setdefault(_plain(name), _of_poetry(_at(found, "dependencies")))
    if found := _of_poetry(_at(toml, "tool", "poetry", "dev-dependencies")):
        extras.setdefault("dev", found)
    config = _ini(read, "setup.cfg")
    if config.has_section("options.extras_require"):
        for name, text in config.items("options.extras_require"):
            extras.setdefault(_plain(name), text.splitlines())
    told = setup.get("extras_require")
    for name, found in told.items() if isinstance(told, dict) else ():
        extras.setdefault(_plain(str(name)), _texts(found))
    listed = _texts(setup.get("tests_require")) or config.get("options", "tests_require", fallback="").splitlines()
    tox = _of_tox(read)
    files = {path: _of_file(read, path, set()) for path in _FILES}
    for names in (_FOR_TESTS, _FOR_ALL):
        for name in names:
            if extras.get(name):
                return [*_with_extras(extras, name, own, set()), *listed]
        if names is _FOR_TESTS and (listed or tox):
            return [*listed, *tox]
        for path, lines in files.items():
            if lines and any(name in path for name in names):
                return lines
    return []


def _with_extras(extras: Mapping[str, list[str]], name: str, own: str, seen: set[str]) -> list[str]:
    """An extra, with those of the same package that it names (`own[other]`), each once."""
    found: list[str] = []
    if name in seen or len(seen) >= _MOST_NAMED:
        return found
    seen.add(name)
    for line in extras.get(name, []):
        found.append(line)
        match = _requirement(line)
        if match is not None and match[2] and _plain(match[1]) == own:
            for each in match[2].strip("[] ").split(","):
                found += _with_extras(extras, _plain(each.strip()), own, seen)
    return found


def _of_group(toml: Mapping[str, Any], found: Any, seen: set[str]) -> list[str]:
    """A group of dependencies (PEP 735), with those that it includes, each once."""
    lines = _texts(found)
    for each in found if isinstance(found, list) else []:
        inner = _at(each, "include-group")
        if isinstance(inner, str) and inner not in seen and len(seen) < _MOST_NAMED:
            seen.add(inner)
            lines += _of_group(toml, _at(toml, "dependency-groups", inner), seen)
    return lines


def _of_poetry(table: Any) -> list[str]:
    found = []
    for name, told in table.items() if isinstance(table, Mapping) else ():
        version = told if isinstance(told, str) else _at(told, "version")
        optional = _at(told, "optional") is True
        if not optional and isinstance(version, str):
            found.append(f"{name}{_bounds(version)}")
    return found


def _bounds(version: str) -> str:
    """Bounds of Poetry as pip writes them: `^1.2` has no upper end here, as only its lower one is sure."""
    if version.strip() == "*":
        return ""
    if match := re.fullmatch(r"[\^~]\s*([\w.]+)", version.strip()):
        return f">={match[1]}"
    return version if version[:1] in "<>=!~" else f"=={version}"


def _of_tox(read: Read) -> list[str]:
    lines = []
    for line in _ini(read, "tox.ini").get("testenv", "deps", fallback="").splitlines():
        if match := re.fullmatch(r"\s*-r\s*(?:\{toxinidir\}/)?(\S+)\s*", line):
            lines += _of_file(read, match[1], set())
        elif "{" not in line and not re.match(r"\s*[\w!,-]+\s*:", line):  # of some environments only
            lines.append(line)
    return [each for each in lines if each.strip()]


def _of_file(read: Read, path: str, seen: set[str]) -> list[str]:
    """The lines of a list for pip, with those of the lists that it names, each once."""
    lines: list[str] = []
    if path in seen or len(seen) >= _MOST_NAMED:
        return lines
    seen.add(path)
    for line in (read(path) or "").splitlines():
        text = re.sub(r"(?:^|\s)#.*", "", line).strip()
        if match := re.fullmatch(r"-r\s*(\S+)", text):
            lines += _of_file(read, posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1])), seen)
        elif text and not text.startswith("-"):
            lines.append(text.partition(" --hash")[0])
    return lines


def _setup(read: Read) -> dict[str, Any]:
    """The arguments of setup() in setup.py that are written out."""
    try:
        module = ast.parse(read("setup.py") or "")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    names = dict(_constants(module.body))
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "setup":
            return {each.arg: _value(each.value, names) for each in node.keywords if each.arg is not None}
    return {}


def _constants(body: Iterable[ast.stmt]) -> Iterator[tuple[str, Any]]:
    for node in body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, _value(node.value, {})


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Dict):
        keys = (each.value if isinstance(each, ast.Constant) else None for each in node.keys)
        return {key: _value(each, names) for key, each in zip(keys, node.values, strict=True) if key is not None}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
