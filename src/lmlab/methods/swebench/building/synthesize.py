"""Bugs where there is no history: a function is mutated, and the tests that break tell what must be repaired."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lmlab.methods.swebench.building.mutations import Mutant, mutants
from lmlab.methods.swebench.harness.environment import EnvironmentSpec
from lmlab.methods.swebench.harness.judge import Judge
from lmlab.methods.swebench.harness.testing import PYTEST, RunOfTests, passing, statuses_of
from lmlab.methods.swebench.harness.workspaces.trees import tree_files
from lmlab.methods.swebench.harness.workspaces.workspace import copied
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.patches.answers import diff_of
from lmlab.methods.swebench.patches.split import is_test, runnable_tests

_MOST_OF_A_FUNCTION = 5  # instances, so that one long function does not make them all
_FAILURE = re.compile(r"^E   +(.*)$", re.MULTILINE)


def synthesize(
    tree: Path,
    repo: str,
    judge: Judge,
    environment: EnvironmentSpec,
    most: int = 20,
    seed: int = 0,
) -> Iterator[Instance]:
    """Instances of a tree whose tests pass: each a mutant that breaks at least one test and can still be imported.

    The tests are in the tree already; the files that hold those to be repaired are taken out of the tree that a solver
    sees, and come back for the verdict.

    Arguments:
        tree: a source tree with tests.
        most: instances.
        seed: of the mutants and their order.
    """
    base = Instance(
        instance_id="base",
        repo=repo,
        extra={"environment": environment.model_dump(mode="json"), "test_files": _tests(tree)},
    )
    with copied(tree) as whole:
        before = judge.test(base, whole)
    good = {test for test, status in statuses_of(before).items() if passing(status)}
    generator = random.Random(seed)
    found = [(path, each) for path in _sources(tree) for each in _of_file(tree, path, generator)]
    generator.shuffle(found)
    made, functions = 0, Counter[str]()
    for path, mutant in found:
        if made >= most:
            return
        if functions[f"{path}:{mutant.function}"] >= _MOST_OF_A_FUNCTION:
            continue
        instance = _instance(tree, path, mutant, base, good, judge, made)
        if instance is not None:
            functions[f"{path}:{mutant.function}"] += 1
            made += 1
            yield instance


def _tests(tree: Path) -> list[str]:
    return runnable_tests(path for path in tree_files(tree) if is_test(path))


def _sources(tree: Path) -> list[str]:
    return [path for path in tree_files(tree) if path.endswith(".py") and not is_test(path) and "/" in path]


def _of_file(tree: Path, path: str, generator: random.Random) -> list[Mutant]:
    return list(mutants((tree / path).read_text("utf-8", "replace"), generator))


def _instance(
    tree: Path, path: str, mutant: Mutant, base: Instance, good: set[str], judge: Judge, number: int
) -> Instance | None:
    with copied(tree) as broken:
        original = (broken / path).read_text("utf-8")
        (broken / path).write_text(mutant.source, encoding="utf-8")
        run = judge.test(base, broken)
        after = statuses_of(run)
        if not run.result.ended or run.result.exit_code not in (0, 1):
            return None  # it cannot be imported, or runs for ever
        failing = sorted(test for test in good if test in after and not passing(after[test]))
        if not failing or len(after) < len(good) // 2:
            return None
        files = sorted({test.partition("::")[0] for test in failing})
        kept = sorted(test for test in good if test.partition("::")[0] in files and test not in failing)
        hidden = {file: (broken / file).read_text("utf-8") for file in files}
        for file in files:
            (broken / file).unlink()
        digest = judge.workspaces.trees.add(broken)
    patch = diff_of({path: mutant.source}.get, {path: original})
    return Instance(
        instance_id=f"{base.repo.replace('/', '__')}-synthetic-{number}",
        repo=base.repo,
        patch=patch,
        problem_statement=statement_of_failure(run, mutant),
        fail_to_pass=tuple(failing),
        pass_to_pass=tuple(kept),
        extra={
            "schema_version": 1,
            "source": "synthetic",
            "base_tree": digest,
            "test_files": files,
            "hidden_files": hidden,
            "test_command": " ".join(PYTEST),
            "environment": base.extra["environment"],
            "mutation": {"kind": mutant.kind, "function": mutant.function, "line": mutant.line, "path": path},
            "problem_source": "traceback",
        },
    )


def statement_of_failure(run: RunOfTests, mutant: Mutant) -> str:
    """A report in words from the first failing assertion, without the test's code."""
    said = _FAILURE.search(run.output)
    name = mutant.function.rpartition(".")[2]
    seen = f"\n\nWhat I see:\n\n    {said[1].strip()[:300]}\n" if said else "\n"
    return f"`{name}` does not do what it should.{seen}"
