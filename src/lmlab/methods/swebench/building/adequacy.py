"""How well the tests of an instance tell a right solution from a wrong one: mutants of the solution that they kill, and
lines of it that they run.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from lmlab.methods.swebench.building.coverage import gold_coverage
from lmlab.methods.swebench.building.mutations import mutants
from lmlab.methods.swebench.harness.judge import Judge
from lmlab.methods.swebench.harness.suite import SuiteFailure, suite_of
from lmlab.methods.swebench.harness.testing import passing, statuses_of
from lmlab.methods.swebench.harness.workspaces.git import run_git
from lmlab.methods.swebench.harness.workspaces.workspace import copied
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.patches.diff import FileDiff, read_diff


@dataclass(frozen=True)
class Adequacy:
    """What mutants of the solution show.

    Attributes:
        mutants: changes of added lines of the solution.
        killed: those under which a test fails that passes with the solution.
        survivors: the others, as kind, function and line: wrong solutions that the tests accept, or changes that change
            nothing.
        covered: share of the lines that the solution adds which tests that it repairs run; None where it adds none that
            can be run, or where the runner is not pytest.
        missed: lines that are not run, with their files.
        wrong: survivors that some other test of the repository tells: surely wrong, and accepted. None where all tests
            were not run.
        full_suite_unknown: why all tests could not be run.
    """

    mutants: int
    killed: int
    survivors: tuple[tuple[str, str, int], ...]
    covered: float | None = None
    missed: tuple[tuple[str, int], ...] = ()
    wrong: int | None = None
    full_suite_unknown: str = ""

    @property
    def score(self) -> float | None:
        """The share that is killed; None where the solution has nothing to mutate."""
        return self.killed / self.mutants if self.mutants else None

    def to_row(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "mutants": self.mutants,
            "killed": self.killed,
            "score": self.score,
            "survivors": [list(each) for each in self.survivors],
            "covered": self.covered,
            "missed": [list(each) for each in self.missed],
            "wrong": self.wrong,
            **({"full_suite_unknown": self.full_suite_unknown} if self.full_suite_unknown else {}),
        }


def adequacy(instance: Instance, judge: Judge, most: int = 10, seed: int = 0, full_suite: bool = False) -> Adequacy:
    """Mutate the lines that the solution adds, and run the tests on each mutant.

    Arguments:
        most: mutants that are tried, chosen at random.
        full_suite: run all tests of the repository on mutants that live.
    """
    hidden = judge.workspaces.hidden_tests(instance)
    expected = [*instance.fail_to_pass, *instance.pass_to_pass]
    killed, survivors, tried = 0, [], 0
    with judge.workspaces.fresh(instance) as solved:
        run_git(solved, ["apply", "--whitespace=nowarn", "-"], instance.patch.encode())
        hidden.write(solved)
        found = []
        added: dict[str, set[int]] = {}
        for file in read_diff(instance.patch):
            if file.new is not None and file.new.endswith(".py") and (solved / file.new).is_file():
                source = (solved / file.new).read_text("utf-8", "replace")
                generator = random.Random(f"{seed}{file.new}")
                added[file.new] = added_lines(file)
                found += [(file.new, each) for each in mutants(source, generator, added[file.new])]
        with copied(solved) as tree:
            coverage = gold_coverage(instance, judge, tree, hidden, added)
        suite, unknown, wrong = None, "", 0
        if full_suite:
            try:
                suite = suite_of(judge, instance)
            except SuiteFailure as failure:
                unknown = failure.message
        random.Random(seed).shuffle(found)
        for path, mutant in found[:most]:
            with copied(solved) as tree:
                (tree / path).write_text(mutant.source, encoding="utf-8")
                run = judge.test(instance, tree)
            tried += 1
            outcomes = statuses_of(run)
            if run.result.timed_out or not all(passing(outcomes.get(test)) for test in expected):
                killed += 1
            else:
                survivors.append((mutant.kind, mutant.function, mutant.line))
                if suite is not None:
                    with copied(solved) as tree:
                        (tree / path).write_text(mutant.source, encoding="utf-8")
                        wrong += bool(suite.broken_by(judge, instance, tree)["broken"])
    return Adequacy(
        tried,
        killed,
        tuple(survivors),
        None if coverage is None else coverage.share,
        () if coverage is None else tuple(coverage.missed()),
        None if suite is None else wrong,
        unknown,
    )


def added_lines(file: FileDiff) -> set[int]:
    """Numbers of the lines that a change of a file adds, in the changed file."""
    found = set()
    for hunk in file.hunks:
        number = hunk.new_start
        for line in hunk.lines:
            if line.startswith("+"):
                found.add(number)
            number += line[:1] in (" ", "+", "\n")
    return found
