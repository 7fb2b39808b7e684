"""Whether a model has seen a reference solution: how likely it is, given the id and the issue alone, beside other
edits of the same lines.

A model that has not seen a patch finds a right one likelier than a wrong one too, as code that is right is more usual.
So what counts is how much more the id and the issue tell of the solution than of the others: what both are likely
without them is taken off.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lmlab.methods.swebench.building.adequacy import added_lines
from lmlab.methods.swebench.building.mutations import Mutant, mutants
from lmlab.methods.swebench.harness.repairing import reader_of
from lmlab.methods.swebench.harness.workspaces.git import run_git
from lmlab.methods.swebench.harness.workspaces.workspace import Workspaces
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.patches.answers import diff_of
from lmlab.methods.swebench.patches.diff import read_diff
from lmlab.stats import Interval, t_interval, wilson

_NEITHER = "A patch:\n\n"


class MeanLogProbs(Protocol):
    """Whatever can tell the mean log-probability of a token of texts after others."""

    def mean_log_probs(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Of each (context, continuation); not-a-number where both are longer than the model reads."""


@dataclass(frozen=True)
class Remembered:
    """What a model finds of one solution.

    Attributes:
        alternatives: other edits that it was compared with.
        likelier: the share of them than which the solution is likelier, given id and issue.
        gain: how much more id and issue tell of the solution than of the others on average, in nats a token.
    """

    instance_id: str
    alternatives: int
    likelier: float
    gain: float

    def to_row(self) -> dict[str, Any]:
        """As JSON."""
        return {name: getattr(self, name) for name in ("instance_id", "alternatives", "likelier", "gain")}


def edits_of(instance: Instance, workspaces: Workspaces, most: int = 8, seed: int = 0) -> tuple[str, list[str]]:
    """The solution as a patch, and patches that change the same lines otherwise, none by many characters.

    Arguments:
        most: other patches, drawn at random.

    Returns:
        The second is empty where there is no Python code to change.
    """
    with workspaces.fresh(instance) as tree:
        base = reader_of(workspaces.pristine(instance))
        if run_git(tree, ["apply", "--whitespace=nowarn", "-"], instance.patch.encode()).returncode != 0:
            return instance.patch, []
        read, files = reader_of(tree), read_diff(instance.patch)
        after = {path: read(path) for file in files for path in file.paths}
        gold = diff_of(base, after)
        changed: dict[str, Iterator[Mutant]] = {}
        lines: dict[str, int] = {}
        for file in files:
            source = None if file.new is None or not file.new.endswith(".py") else after[file.new]
            added = added_lines(file)
            if file.new is not None and source is not None and added:
                changed[file.new] = mutants(source, random.Random(f"{seed}{file.new}"), added)
                lines[file.new] = len(added)
        near: dict[str, None] = {}
        generator = random.Random(seed)
        for _ in range(_TRIED * most):  # a large solution has thousands, and each patch is a comparison of whole files
            if len(near) == most or not changed:
                break
            (path,) = generator.choices(list(changed), [lines[each] for each in changed])
            if (mutant := next(changed[path], None)) is None:
                del changed[path]
                continue
            other = diff_of(base, {**after, path: mutant.source})
            if other != gold and abs(len(other) - len(gold)) <= _FAR:
                near[other] = None
    return gold, list(near)


_TRIED = 16  # for each patch that is asked for; most are near enough
_FAR = 24  # characters: a mean over tokens hardly changes with so few


def remembered(
    instances: Sequence[Instance],
    workspaces: Workspaces,
    model: MeanLogProbs,
    most: int = 8,
    seed: int = 0,
    advance: Callable[[], object] = lambda: None,
) -> tuple[list[Remembered], dict[str, str]]:
    """Ask a model for each solution and its alternatives.

    Arguments:
        most: alternatives of each.
        advance: called after each instance.

    Returns:
        What was found, and why nothing was of other instances.
    """
    found, passed = [], dict[str, str]()
    for instance in instances:
        gold, others = edits_of(instance, workspaces, most, seed)
        if others:
            asked = f"{instance.instance_id}\n\n{instance.problem_statement.strip()}\n\n{_NEITHER}"
            texts = [gold, *others]
            scores = model.mean_log_probs([(context, text) for context in (asked, _NEITHER) for text in texts])
            given, alone = np.array(scores).reshape(2, len(texts))
            if np.isnan(scores).any():
                passed[instance.instance_id] = "longer than the model reads"
            else:
                told = given - alone
                found.append(
                    Remembered(
                        instance.instance_id,
                        len(others),
                        float(np.mean(given[1:] < given[0])),
                        float(told[0] - told[1:].mean()),
                    )
                )
        else:
            passed[instance.instance_id] = "no other edit of its lines can be made"
        advance()
    return found, passed


@dataclass(frozen=True)
class Memory:
    """What is said of a model.

    Attributes:
        first: share of solutions that are likelier than all their alternatives.
        chance: what that would be if all edits were alike.
        gain: mean of the gains, in nats a token. Where its interval is above zero on issues from before a model's
            training and not on later ones, it knows solutions by their issues.
    """

    first: Interval[float]
    chance: float
    gain: Interval[float]


def memory_of(found: Sequence[Remembered]) -> Memory:
    """The figures of several instances, with intervals over them."""
    return Memory(
        wilson(sum(each.likelier == 1 for each in found), len(found)),
        float(np.mean([1 / (1 + each.alternatives) for each in found])),
        t_interval([each.gain for each in found]),
    )
