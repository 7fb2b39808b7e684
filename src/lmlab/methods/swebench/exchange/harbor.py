"""Instances as tasks of Harbor (the successor of Terminal-Bench's form), and back.

A task is a folder: `instruction.md` and `environment/` are what an agent sees; `tests/` comes into its container when
it is done, and writes a reward to /logs/verifier/reward.txt; `solution/solve.sh` is the reference.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from lmlab.errors import UserError
from lmlab.files import atomic_file, read_mapping, write_json, write_text
from lmlab.methods.swebench.exchange.tasks import with_tree
from lmlab.methods.swebench.harness.environment import EnvironmentSpec, dockerfile
from lmlab.methods.swebench.harness.judge import Judge
from lmlab.methods.swebench.harness.testing import command_of, files_of
from lmlab.methods.swebench.harness.workspaces.trees import TreeStore
from lmlab.methods.swebench.harness.workspaces.workspace import HiddenTests, Workspaces
from lmlab.methods.swebench.instances.instance import Instance

_ROW, _TREE, _PATCH = "tests/instance.json", "environment/tree.tar.gz", "solution/gold.patch"
_END = "LMLAB_END_OF_PATCH"
# What is in the way of the rewards is removed first: an agent may have written its own
_TEST = """#!/bin/bash
# Puts the hidden tests in their places, runs them, and writes the reward.
rm -rf /logs/verifier/* ; mkdir -p /logs/verifier
cd /testbed || exit 1
python3 /tests/put.py || exit 1
timeout {timeout} {command} > /logs/verifier/test_output.txt 2>&1
python3 /tests/grade.py $?
"""
_PUT = '''"""Write the hidden tests, and remove what they remove."""
import json, os, shutil

told = json.load(open("/tests/hidden.json"))
for path in told["removed"] + list(told["written"]):
    place = os.path.join("/testbed", path)
    if os.path.islink(place) or os.path.isfile(place):
        os.unlink(place)
    elif os.path.isdir(place):
        shutil.rmtree(place)
for path, text in told["written"].items():
    place = os.path.join("/testbed", path)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with open(place, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    os.chmod(place, 0o755 if path in told["programs"] else 0o644)
'''
_GRADE = '''"""Write the reward: 1 if all tests that must pass do. Without outcomes there is none."""
import json, sys
import xml.etree.ElementTree as tree

expected = json.load(open("/tests/expected.json"))
try:
    cases = tree.parse("/logs/verifier/junit.xml").iter("testcase")
except (OSError, tree.ParseError):
    sys.exit("the runner left no results")
modules = {}
for test in expected["FAIL_TO_PASS"] + expected["PASS_TO_PASS"]:
    file = test.split("::")[0]
    modules[file[: -len(".py")].replace("/", ".")] = file
found = {}
for case in cases:
    # The file that a case names is that of its function, which a class of another file may have inherited
    told = case.get("classname", "")
    known = [module for module in modules if told == module or told.startswith(module + ".")]
    module = max(known, key=len, default="")
    file = modules[module] if known else case.get("file") or ""
    inner = [part for part in told[len(module) :].split(".") if part] if known else []
    name = "::".join([file, *inner, case.get("name", "")])
    kinds = {each.tag for each in case}
    status = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
    for key in {name, name.split()[0]}:
        if found.get(key) != "failed":
            found[key] = status
passed = all(found.get(test) == "passed" for test in expected["FAIL_TO_PASS"]) and all(
    found.get(test) in ("passed", "skipped") for test in expected["PASS_TO_PASS"]
)
with open("/logs/verifier/reward.txt", "w") as file:
    file.write("1" if passed and sys.argv[1] == "0" or passed and expected["others_fail"] else "0")
'''


def write_harbor(folder: Path, instances: Sequence[Instance], judge: Judge, organization: str = "lmlab") -> list[str]:
    """Write tasks; their names.

    Raises:
        UserError: an instance runs in a published image, has hidden tests that are no text, or cannot be named.
    """
    names = []
    for instance in instances:
        name = re.sub(r"[^a-z0-9._-]+", "-", instance.instance_id.lower())
        if not re.search(r"[a-z0-9]", name) or name in names:
            raise UserError(f"{instance.instance_id}: '{name}' cannot name its task, or names another one.")
        if instance.image and "environment" not in instance.extra:
            raise UserError(f"{instance.instance_id} runs in the image '{instance.image}', of which no task is made.")
        _write_task(folder / name, f"{organization}/{name}", with_tree(instance, judge.workspaces), judge)
        names.append(name)
    return names


def _write_task(place: Path, name: str, instance: Instance, judge: Judge) -> None:
    limits, spec = judge.limits, judge.environment_of(instance)
    if "/" in spec.python:
        spec = EnvironmentSpec(**{**spec.model_dump(exclude={"python"}), "requirements": _locked(instance)})
    texts = {
        "instruction.md": _instruction(instance),
        "task.toml": _toml(name, instance, limits.timeout_s, limits.memory_mib, limits.cpus),
        "environment/Dockerfile": _dockerfile(spec, instance),
        _PATCH: instance.patch,
        "solution/solve.sh": _solve(instance),
        "tests/test.sh": _TEST.format(timeout=int(limits.timeout_s), command=_command(instance)),
        "tests/put.py": _PUT,
        "tests/grade.py": _GRADE,
    }
    for path, text in texts.items():
        with atomic_file(place / path) as file:  # in bytes, so that CRLF inside patches stays
            file.write(text.encode())
    for path in ("solution/solve.sh", "tests/test.sh"):
        (place / path).chmod(0o755)
    hidden = judge.workspaces.hidden_tests(instance)
    told = {
        "removed": sorted(hidden.removed),
        "written": _texts(instance, hidden),
        "programs": sorted(path for path, (kind, _) in hidden.written.items() if kind == "program"),
    }
    write_json(place / "tests/hidden.json", told)
    lists = {"FAIL_TO_PASS": list(instance.fail_to_pass), "PASS_TO_PASS": list(instance.pass_to_pass)}
    write_json(place / "tests/expected.json", {**lists, "others_fail": bool(instance.extra.get("fail_after"))})
    write_json(place / _ROW, instance.to_row())
    _copy_tree(judge.workspaces, instance, place / _TREE)


def _texts(instance: Instance, hidden: HiddenTests) -> dict[str, str]:
    found = {}
    for path, (kind, content) in hidden.written.items():
        try:
            found[path] = content.decode()
        except UnicodeDecodeError:
            kind = "other"
        if kind not in ("file", "program"):
            raise UserError(f"{instance.instance_id}: the hidden file '{path}' is no text.")
    return found


def _copy_tree(workspaces: Workspaces, instance: Instance, place: Path) -> None:
    digest = workspaces.tree_of(instance)
    with open(workspaces.trees.folder / f"{digest}.tar.gz", "rb") as source, atomic_file(place) as file:
        shutil.copyfileobj(source, file)


def _locked(instance: Instance) -> tuple[str, ...]:
    lock = instance.extra.get("environment_lock")
    return tuple(str(each) for each in lock) if isinstance(lock, list) and lock else ("pytest",)


def _command(instance: Instance) -> str:
    results = ["-o", "junit_family=xunit1", "--junitxml=/logs/verifier/junit.xml"]
    path = "env PYTHONPATH=/testbed:/testbed/src PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 TZ=UTC LC_ALL=C.UTF-8"
    return f"{path} {shlex.join([*command_of(instance), *results, *files_of(instance)])}"


def _instruction(instance: Instance) -> str:
    return (
        "A repository is in `/testbed`. Change its source so that this issue is resolved:\n\n"
        f"{instance.problem_statement.strip()}\n\nTests that you cannot see will be run.\n"
    )


def _toml(name: str, instance: Instance, timeout: float, memory_mib: int, cpus: float) -> str:
    # A basic string of TOML is one of JSON, apart from characters that JSON need not escape
    text = lambda value: json.dumps(value).replace("\x7f", "\\u007f")  # noqa: E731
    return (
        f'version = "1.0"\n\n[task]\nname = {text(name)}\n\n[metadata]\ncategory = "programming"\n'
        f"instance_id = {text(instance.instance_id)}\nrepo = {text(instance.repo)}\n"
        f'tags = ["swe", {text(str(instance.extra.get("source", "git")))}]\n\n'
        f"[verifier]\ntimeout_sec = {2 * timeout:.1f}\n\n[agent]\ntimeout_sec = 3600.0\n\n"
        f"[environment]\nbuild_timeout_sec = 3600.0\ncpus = {max(1, round(cpus))}\nmemory_mb = {memory_mib}\n"
        "storage_mb = 10240\nallow_internet = false\n"
    )


def _dockerfile(spec: EnvironmentSpec, instance: Instance) -> str:
    git = (
        "git init -q --initial-branch=main && git add --all --force && git -c user.name=lmlab"
        " -c user.email=lmlab@localhost commit -q --allow-empty -m base"
    )
    # ADD unpacks; one commit and no history, so that the solution is nowhere
    return f"{dockerfile(spec)}ADD tree.tar.gz /testbed\nWORKDIR /testbed\nRUN {git}\n"


def _solve(instance: Instance) -> str:
    if _END in instance.patch.splitlines():
        raise UserError(f"The solution of {instance.instance_id} has the line '{_END}'.")
    ended = instance.patch if instance.patch.endswith("\n") else instance.patch + "\n"
    return f"#!/bin/bash\ncd /testbed\ngit apply -v - <<'{_END}'\n{ended}{_END}\n"


def read_harbor(folder: Path, trees: TreeStore) -> Iterator[Instance]:
    """Instances out of tasks that `write_harbor` has written.

    Arguments:
        trees: receives their trees.

    Raises:
        UserError: there are no tasks, or one was written by somebody else, so that nothing says which of its tests must
            pass before and after, or has another tree than it was written with.
    """
    tasks = sorted(each.parent for each in folder.glob("**/task.toml"))
    if not tasks:
        raise UserError(f"'{folder}' holds no tasks of Harbor (task.toml).")
    for task in tasks:
        if not (task / _ROW).is_file():
            raise UserError(f"'{task}' has no {_ROW}: it was not written by `lmlab swe export harbor`.")
        instance = Instance.from_row(read_mapping(task / _ROW), f"'{task / _ROW}'")
        if trees.add_packed(task / _TREE) != instance.extra.get("base_tree"):
            raise UserError(f"'{task / _TREE}' is not the tree of {instance.instance_id}.", "Export the task anew.")
        yield instance


def write_readme(folder: Path, count: int) -> None:
    """Say what the tasks are, and what their rewards are worth."""
    write_text(
        folder / "README.md",
        f"{count} tasks of Harbor. Their rewards come from the tests alone: a patch that rewrites the test runner"
        " can forge one. `lmlab swe import harbor` and `lmlab swe eval` run the control that such a patch fails.\n",
    )
